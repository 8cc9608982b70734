"""A change on trial: made, watched by probes, then confirmed or taken back. One object is one trial.

It is ticked from outside and never waits itself for longer than one round of probes, so that a newer wish or a signal
is heard meanwhile. When to do what is decided in `decide.trial`; what is written goes through `agent.writing`.

Whoever ends in the middle leaves a journal that says how to go back, and rules that the kernel lets expire. The point
of no return is the nft transaction that makes the rules last, which the kernel refuses after the deadline, and then the
renaming of the journal.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from conntrack_operator.decide.accepts import accept_mode
from conntrack_operator.decide.outcome import phase_of, results_for
from conntrack_operator.decide.remember import journal_confirmed, journal_on_trial
from conntrack_operator.decide.trial import (
    ABORTED,
    AGENT_FAILED,
    BEFORE_SECONDS,
    CONFIRM_FAILED,
    EXPIRED,
    PROBE_SECONDS,
    STATE_UNWRITABLE,
    Budget,
    Confirm,
    Decision,
    Round,
    Undo,
    Wait,
    Wishing,
    budget_for,
    has_failed,
    needs_trial,
    rules_named,
    verdict,
)
from conntrack_operator.errors import ConntrackOperatorError, Refused, Retry
from conntrack_operator.kernel.journal import StateDirectory
from conntrack_operator.model.facts import Facts
from conntrack_operator.model.journal import Journal
from conntrack_operator.model.node import NodeSpec, Result

from . import way_back
from .machine import Machine, Outcome
from .probes import Probe, passing
from .sight import ACCEPT_UNTRACKED, Sight, confirmed_rules, read_table_state, with_mode
from .trial_rules import TrialRules
from .writing import Failed, write_sysctls

log = logging.getLogger(__name__)

SEED_SECONDS = 5.0
"""Between two times that the connections born in a trial get entries: it takes a walk over all sockets."""
SEED_LEFT_SECONDS = 60
"""How long after the deadline such entries wait for their first packet."""
SEED_SHARE = 10
"""A walk that took long is not done again for so many times as long."""
HELD_UP_SECONDS = 0.5
"""A round of probes that ends so much too late: this process was held up."""
ASKED_MOST = 3
"""So often the probes are asked before a change, on a node that holds us up each time."""
_INTERRUPTED = "the change was interrupted while it was made"


def begin(
    machine: Machine, state: StateDirectory, spec: NodeSpec, find_probes: Callable[[], Sequence[Probe]]
) -> "Trial | Outcome":
    """Make `spec` true: at once what was confirmed here before or only goes back, else on trial.

    A trial that somebody left unfinished must have been taken back (`way_back.recover`). Nothing is written when
    nothing differs. Raises Unsupported when the journal cannot be written; then the kernel was not touched either.
    """
    machine.load_again(spec.settings, state)
    journal = machine.journal(state)
    with machine.asking_for(spec.settings, state):
        sight = machine.look(spec.settings, spec.policies, journal, spec.services)
    confirmed = machine.read_confirmed(state)
    # Accepts that somebody removed are put back at once; others than were confirmed are tried.
    same_accepts = confirmed is not None and accept_mode(confirmed.settings.notrack) == accept_mode(
        spec.settings.notrack
    )
    accepts_tried = sight.accepts_differ and bool(sight.plan.rules) and not same_accepts
    if not needs_trial(sight.plan, confirmed) and not accepts_tried:
        outcome = machine.settle(sight, journal, state, spec.policies)
        machine.keep_confirmed(spec, outcome, sight.plan, state)
        return outcome
    return Trial(machine, state, spec, sight, find_probes())


def finished(begun: "Trial | Outcome") -> Outcome:
    """Tick a trial in the foreground until it has ended, and return how."""
    while not isinstance(begun, Outcome):
        begun = begun.tick() or begun
        if isinstance(begun, Trial):
            time.sleep(min(begun.seconds_to_tick, 1.0))
    return begun


def _answering(probes: Sequence[Probe]) -> frozenset[str]:
    """Return the names of the probes that pass before a change.

    They are asked again where this process did not run meanwhile, as on a node with no time left, or frozen: that
    nobody was heard then says nothing, and what is not heard before a change is not watched after it.
    """
    for _ in range(ASKED_MOST):
        began = time.monotonic()
        answered = passing(probes, BEFORE_SECONDS)
        if len(answered) == len(probes) or time.monotonic() - began < BEFORE_SECONDS + HELD_UP_SECONDS:
            break
    return answered


class Trial:
    """One change that was made and is not confirmed yet. `outcome` is None until it has ended."""

    def __init__(
        self, machine: Machine, state: StateDirectory, spec: NodeSpec, sight: Sight, probes: Sequence[Probe]
    ) -> None:
        """Look which probes pass, write the journal, then make the change. Raises as `begin` does."""
        self._machine, self._state, self._sight = machine, state, sight
        self.spec = spec
        self.budget: Budget = budget_for(spec.settings.trial)
        answered = _answering(probes)
        self.probes = tuple(probe for probe in probes if probe.name in answered)
        """Those that passed before the change and must pass after it."""
        self.unwatched = tuple(probe.name for probe in probes if probe.name not in answered)
        """Names of those that did not answer before either: they say nothing about the change."""
        self.rounds: list[Round] = []
        self._seed_at = SEED_SECONDS
        self._seed_took = 0.0
        self.outcome: Outcome | None = None
        journal = machine.journal(state)
        self._must_be_watched(probes, journal)
        self._rules = TrialRules(machine.roots, sight, spec.settings.notrack)
        journal = self._rules.tested(journal)
        self._began = machine.clock()
        deadline = self._began + self.budget.timeout_seconds
        self._journal = journal_on_trial(sight.plan, journal, sight.facts, spec, deadline)
        if self._rules.touched and self._journal.trial is not None:
            record = self._journal.trial.model_copy(update={"touches_rules": True})
            self._journal = self._journal.model_copy(update={"trial": record})
        state.write_journal(self._journal)
        try:
            self._failed = self._made()
        except BaseException as error:
            # An error of ours counts: started anew, the agent would run into it without end.
            counted = isinstance(error, Exception)
            self._undone(Undo(AGENT_FAILED if counted else ABORTED, _INTERRUPTED), counted=counted)
            raise

    def _must_be_watched(self, probes: Sequence[Probe], journal: Journal) -> None:
        """Raise Retry when this wish failed before and what would show it cannot be reached now anyway.

        Without that a rule that cuts the API server off would be undone, and then confirmed while the API server is
        away, since what does not answer before a change says nothing about it. The first try is not put off: a full
        table is a reason why nothing answers, and the change may be its cure.
        """
        if not has_failed(journal.failures, Wishing(self.spec.revision, self.spec.attempt)):
            return
        missing = [probe.name for probe in probes if probe.needed_again and probe.name in self.unwatched]
        if missing:
            raise Retry(f"it is tried again once {' and '.join(missing)} answers")

    def watched_words(self) -> str:
        """Return which probes must go on answering, and which say nothing of this change."""
        watched = ", ".join(probe.name for probe in self.probes) or "nothing"
        silent = f"; did not answer before it either: {', '.join(self.unwatched)}" if self.unwatched else ""
        return f"trial: must go on answering: {watched}{silent}"

    @property
    def elapsed(self) -> float:
        """Seconds since the trial began, on the boot clock."""
        return self._machine.clock() - self._began

    @property
    def seconds_to_tick(self) -> float:
        """Seconds until there is something to do."""
        decision = self._verdict()
        return max(0.0, decision.next_round - self.elapsed) if isinstance(decision, Wait) else 0.0

    @property
    def changes(self) -> int:
        """How many settings the change is about."""
        return len(self._sight.plan.changes)

    @property
    def facts(self) -> Facts:
        """The machine as it was before the change."""
        return self._sight.facts

    @property
    def results(self) -> tuple[Result, ...]:
        """What is known of the settings while the trial goes on: what was refused and what failed."""
        sight = self._sight
        return tuple(
            result
            for result in results_for(sight.plan, self._machine.facts(), sight.table, self._failed)
            if not self._is_on_trial(result)
        )

    def tick(self) -> Outcome | None:
        """Do what is due; return the outcome once the trial has ended. Takes as long as one round of probes."""
        if self.outcome is not None:
            return self.outcome
        decision = self._verdict()
        if isinstance(decision, Wait) and self.elapsed >= decision.next_round:
            self.rounds.append(self._round())
            decision = self._verdict()
        if isinstance(decision, Undo):
            self.outcome = self._undone(decision)
        elif isinstance(decision, Confirm):
            self.outcome = self._confirmed()
        else:
            self._prepare_for_expiry()
        return self.outcome

    def abort(self, why: str, *, failed: bool = False) -> Outcome:
        """Take the change back because somebody wants something else; that is no failure, unless the agent `failed`."""
        if self.outcome is None:
            self.outcome = self._undone(Undo(AGENT_FAILED if failed else ABORTED, why), counted=failed)
        return self.outcome

    def _verdict(self) -> Decision:
        return verdict(self.budget, [probe.name for probe in self.probes], self.rounds, self.elapsed)

    def _round(self) -> Round:
        began = self.elapsed
        try:
            answered = passing(self.probes, PROBE_SECONDS)
        except ConntrackOperatorError as error:
            log.warning("%s", error)
            answered = frozenset()
        failed = frozenset(probe.name for probe in self.probes) - answered
        if failed:
            log.info("trial: %s does not answer", " and ".join(sorted(failed)))
        return Round(began, self.elapsed, failed)

    def _prepare_for_expiry(self) -> None:
        """Give connections that came about in the trial entries, in case the rules expire with nobody to do it then.

        On a node with a million sockets it takes seconds: it takes a tenth of the time at most, and none of what the
        next round and the confirmation need.
        """
        began = self.elapsed
        if not self._rules.touched or began < self._seed_at or began + 2 * self._seed_took > self.budget.last_round:
            return
        at_most = round(self.budget.timeout_seconds - began + SEED_LEFT_SECONDS)
        self._rules.spare_new_flows(self._journal, at_most)
        self._seed_took = self.elapsed - began
        self._seed_at = self.elapsed + max(SEED_SECONDS, SEED_SHARE * self._seed_took)

    def _is_on_trial(self, result: Result) -> bool:
        return result.setting.startswith("notrack/") and result.reason == "ReadBackDiffers"

    def _made(self) -> Failed:
        failed = write_sysctls(self._machine.roots, self._sight.plan.changes)
        if self._rules.touched:
            try:
                self._rules.begin(self._journal, lambda: self.budget.timeout_seconds - self.elapsed)
            except ConntrackOperatorError as error:
                failed.update(dict.fromkeys(rules_named(self._sight.plan) or [ACCEPT_UNTRACKED], error))
        for setting, problem in failed.items():
            log.warning("%s: %s", setting, problem)
        return failed

    def _confirmed(self) -> Outcome:
        plan = self._sight.plan
        rules_failed = any(setting.startswith("notrack") for setting in self._failed)
        try:
            if self._rules.touched and not rules_failed:
                self._rules.confirm(self._journal)
            if self.elapsed > self.budget.timeout_seconds:
                raise Refused(EXPIRED, "the confirmation was not through by the deadline; see what held the agent up")
            facts, table = self._machine.facts(), read_table_state()
            kept = journal_confirmed(plan, self._journal, self._sight.facts, self.spec.policies, self._failed)
            kept = kept if rules_failed else with_mode(kept, self._sight)
        except ConntrackOperatorError as error:
            reason = error.reason if isinstance(error, Refused) else CONFIRM_FAILED
            return self._undone(Undo(reason, f"the change could not be confirmed: {error}"))
        try:
            self._state.write_journal(kept)
        except ConntrackOperatorError as error:
            return self._undone(Undo(STATE_UNWRITABLE, f"the change could not be confirmed: {error}"))
        results = results_for(plan, facts, table, self._failed)
        outcome = Outcome(phase_of(results, "Apply"), results, plan.changes, facts, plan.warnings, self._sight)
        self._machine.keep_confirmed(self.spec, outcome, plan, self._state)
        if self._rules.touched and not rules_failed:
            self._rules.tidy(self._journal)
        elif self._rules.touched:
            # What failed half way is taken away, rather than left until it expires.
            for problem in way_back.rules_as_confirmed(self._machine, self._state, confirmed_rules(kept)).values():
                log.warning("%s", problem)
        if plan.off and plan.off.unload and not self._failed:
            # Nothing holds the module any more; that needs no trial.
            spec, journal = self.spec, self._machine.journal(self._state)
            sight = self._machine.look(spec.settings, spec.policies, journal, spec.services)
            return self._machine.settle(sight, journal, self._state, spec.policies)
        return outcome

    def _undone(self, why: Undo, *, counted: bool = True) -> Outcome:
        outcome = way_back.undo(self._machine, self._state, self._journal, why, counted=counted)
        refused = (
            Result(setting=refusal.setting, wanted="", observed="", reason=refusal.reason, message=refusal.message)
            for refusal in self._sight.plan.refused
        )
        return replace(outcome, results=(*outcome.results, *refused))
