"""One machine, and the one door by which anything on it is read or changed.

It looks (facts, table, plan), writes what a plan says, keeps the journal around it, and takes an unfinished trial back.
What to try, and when to keep it, is `agent.trial`'s; nothing is decided in this module.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from conntrack_operator.decide import notrack
from conntrack_operator.decide.accepts import Accepts, AcceptUntracked, accepts_for
from conntrack_operator.decide.intervals import Intervals, merged, port_intervals
from conntrack_operator.decide.outcome import phase_of, results_for
from conntrack_operator.decide.plan import Change, Plan, TableState, plan_for
from conntrack_operator.decide.refusal import Refusal
from conntrack_operator.decide.remember import (
    journal_after,
    journal_before,
    journal_undone,
    judged_anew,
    without_keeps,
)
from conntrack_operator.decide.tracking import SETTING as TRACKING
from conntrack_operator.decide.tracking_off import journal_after_loading, journal_before_unloading
from conntrack_operator.decide.trial import (
    Wishing,
    failed_again,
    rules_named,
    undoing,
    withdrawn_rules,
)
from conntrack_operator.errors import ConntrackOperatorError, Unsupported
from conntrack_operator.kernel import accepts, flow_editing, modules, nftables
from conntrack_operator.kernel.clock import read_boottime
from conntrack_operator.kernel.facts import read_boot_id, read_facts
from conntrack_operator.kernel.firewall import read_firewall
from conntrack_operator.kernel.journal import StateDirectory
from conntrack_operator.kernel.roots import Roots
from conntrack_operator.kernel.surroundings import read_surroundings
from conntrack_operator.kernel.sysctl import write_sysctl
from conntrack_operator.kernel.tracking import read_tracking
from conntrack_operator.model.facts import Facts
from conntrack_operator.model.journal import Confirmed, Journal, TrialRecord
from conntrack_operator.model.node import NodeSpec, Phase, PolicyUse, Result
from conntrack_operator.model.policy import NotrackRule, Settings
from conntrack_operator.model.surroundings import Service, TrackingState

log = logging.getLogger(__name__)

AGENT_KILLED = "AgentKilled"


@dataclass(frozen=True)
class Outcome:
    """What a wish came to. `changes` were made in this order and stayed; none when all was right already."""

    phase: Phase
    results: tuple[Result, ...]
    changes: tuple[Change, ...]
    facts: Facts
    warnings: tuple[Refusal, ...] = ()
    sight: "Sight | None" = None
    """The look that it was made of; None for what was rolled back."""

    @property
    def message(self) -> str:
        """Why the node as a whole was refused or rolled back, if it was."""
        return next((result.message for result in self.results if result.setting == NODE), "")


ACCEPT_UNTRACKED = "notrack.acceptUntracked"
NODE = "node"
"""The setting of a result that is about the node as a whole."""


@dataclass(frozen=True)
class Sight:
    """What a machine is, and what must change for a wish."""

    facts: Facts
    table: TableState
    plan: Plan
    accepts: Accepts | None = None
    """What has to stand in other people's firewalls for the rules; None where there are and were none."""
    accepts_differ: bool = False
    """Whether something else stands there."""

    @property
    def changes_anything(self) -> bool:
        """Whether there is anything to write."""
        return bool(self.plan.changes) or self.accepts_differ


Failed = dict[str, ConntrackOperatorError]
"""Errors of writes, by setting."""


class Machine:
    """The machine this process runs on, in the network namespace it runs in."""

    def __init__(
        self,
        roots: Roots,
        clock: Callable[[], float] = read_boottime,
        api_server: tuple[str, int] | None = None,
    ) -> None:
        self.roots = roots
        self.api_server = api_server
        """Host and port of the API server this process is configured with; a rule must not touch it."""
        self.clock = clock
        """Seconds on CLOCK_BOOTTIME."""

    def facts(self, *, tracking_needed: bool = True) -> Facts:
        """Return what the machine is now. Raises Unsupported when tracking is needed and nf_conntrack not loaded."""
        return read_facts(self.roots, tracking_needed=tracking_needed)

    def journal(self, state: StateDirectory | None = None) -> Journal:
        """Return what was written since this boot; without `state` without taking the lock."""
        return (state or StateDirectory(self.roots)).read_journal(read_boot_id(self.roots))

    def plan(
        self,
        settings: Settings,
        uses: Sequence[PolicyUse] = (),
        facts: Facts | None = None,
        services: Sequence[Service] = (),
    ) -> Plan:
        """Return what `settings` would change here; with `facts` of another machine, what they would change there."""
        if facts is not None:
            return plan_for(settings, facts, uses=uses)
        return self.look(settings, uses, self.journal(), services).plan

    def look(
        self, settings: Settings, uses: Sequence[PolicyUse], journal: Journal, services: Sequence[Service] = ()
    ) -> Sight:
        """Return what the machine is and what `settings` would change on it.

        Firewalls are looked at only where there are rules, or were: it takes longer than all the rest.
        """
        off = settings.tracking == "Disabled"
        # Without nf_conntrack there is nothing to switch off, and nothing to put back for settings that ask nothing.
        needed = not off and settings != Settings()
        facts, table = self.facts(tracking_needed=needed), read_table_state()
        asks = settings.notrack is not None and bool(settings.notrack.rules)
        if not off and (table.problem or not (asks or journal.applied_rules)):
            return Sight(facts, table, plan_for(settings, facts, table, journal, uses))
        surroundings = replace(
            read_surroundings(self.roots, services, None if off else _ports_of(settings, journal), self.api_server),
            timed_elements=journal.timed_elements is not False,
            tracking=read_tracking(self.roots) if off else TrackingState(),
        )
        plan = plan_for(settings, facts, table, journal, uses, surroundings)
        wanted = plan.accepts or Accepts()
        return Sight(facts, table, plan, wanted, wanted.standing != accepts.read_accepts())

    def load_again(self, settings: Settings, state: StateDirectory) -> None:
        """Load nf_conntrack if `tracking: Disabled` unloaded it and `settings` no longer ask for that.

        Raises Unsupported when it cannot be loaded; then the journal still says that it is to be.
        """
        journal = self.journal(state)
        if journal.unloaded and settings.tracking != "Disabled":
            modules.load(self.roots)
            state.write_journal(journal_after_loading(journal, self.facts()))

    def settle(
        self,
        sight: Sight,
        journal: Journal,
        state: StateDirectory,
        uses: Sequence[PolicyUse] = (),
        mode: Literal["Apply", "Restore"] = "Apply",
    ) -> Outcome:
        """Carry out a plan that needs no trial, and tell what became of each setting.

        Nothing is written, neither to the kernel nor to the disk, when nothing differs. Raises Unsupported when the
        originals could not be kept safely; then nothing was written to the kernel either.
        """
        plan, facts, table = sight.plan, sight.facts, sight.table
        withdrawn = withdrawn_rules(journal, plan.rules)
        journal = journal_before(plan, journal, facts, uses)
        if plan.off and plan.off.unload:
            journal = journal_before_unloading(journal, facts, plan.off.unload)
        state.write_journal(journal)
        failed: Failed = {}
        if sight.changes_anything:
            failed = self.write_sysctls(plan.changes)
            if rules_named(plan) or sight.accepts_differ:
                failed |= self.write_rules(plan.rules, withdrawn, rules_named(plan), sight.accepts)
            if not failed:
                failed = self.unload(plan)
            facts, table = self.facts(tracking_needed=False), read_table_state()
        state.write_journal(journal_after(plan, journal, failed))
        results = results_for(plan, facts, table, failed)
        return Outcome(phase_of(results, mode), results, plan.changes, facts, plan.warnings, sight)

    def unload(self, plan: Plan) -> Failed:
        """Unload the modules that `plan` names, after everything else; return why not."""
        try:
            for name in plan.off.unload if plan.off else ():
                modules.unload(name)
        except ConntrackOperatorError as error:
            return {TRACKING: error}
        return {}

    def restore(self, state: StateDirectory, uses: Sequence[PolicyUse] = (), *, kept_too: bool = False) -> Outcome:
        """Put every original value back and remove the rules; a trial that nobody finished is taken back first.

        What `uses`, the policies that are gone, say of onDelete counts; with `kept_too` nothing is left behind.
        """
        self.recover(state)
        self.load_again(Settings(), state)
        journal = judged_anew(self.journal(state), uses)
        if kept_too:
            journal = without_keeps(journal)
        outcome = self.settle(self.look(Settings(), (), journal), journal, state, mode="Restore")
        state.write_confirmed(None)
        return outcome

    def write_sysctls(self, changes: Iterable[Change]) -> Failed:
        """Write the sysctls among `changes`, one by one and in their order; return what failed."""
        failed: Failed = {}
        for change in changes:
            if change.setting != TRACKING and not change.setting.startswith("notrack/"):
                try:
                    write_sysctl(self.roots, change.setting, int(change.to))
                except ConntrackOperatorError as error:
                    failed[change.setting] = error
        return failed

    def write_rules(
        self,
        rules: Sequence[NotrackRule],
        withdrawn: Sequence[NotrackRule],
        settings: Iterable[str],
        beside: Accepts | None,
    ) -> Failed:
        """Make `rules` the lasting ones, and `beside` what stands in firewalls for them.

        Flows of the `withdrawn` rules are made known to the table first, and accepts go last: they match nothing but
        what rules leave untracked. Returns the error under each of `settings` when it failed.
        """
        try:
            if withdrawn:
                flow_editing.seed(withdrawn, roots=self.roots)
            nftables.write_rules(rules)
            if beside is not None:
                accepts.write_accepts(beside)
        except ConntrackOperatorError as error:
            return dict.fromkeys(settings or [ACCEPT_UNTRACKED], error)
        return {}

    def accepts_of(self, rules: Sequence[NotrackRule], mode: AcceptUntracked) -> Accepts:
        """Return what has to stand in the firewalls, as they are now, for `rules`."""
        ports = merged(interval for rule in rules for interval in port_intervals(rule.ports or ()))
        return accepts_for(rules, mode, read_firewall(ports))

    def read_confirmed(self, state: StateDirectory) -> Confirmed | None:
        """Return what was confirmed last; None too when its file is damaged, which costs a second trial at most."""
        try:
            return state.read_confirmed()
        except ConntrackOperatorError as error:
            log.warning("%s", error)
            return None

    def keep_confirmed(self, spec: NodeSpec, outcome: Outcome, plan: Plan, state: StateDirectory) -> None:
        """Note what is in force now as confirmed. A disk that will not have it costs a second trial, nothing else."""
        good = {result.setting for result in outcome.results if result.reason == "Applied"}
        confirmed = Confirmed(
            revision=spec.revision,
            settings=spec.settings,
            uses=spec.policies,
            sysctls={name: value for name, value in plan.wanted.items() if name in good},
            rules=[rule for rule in plan.rules if f"notrack/{rule.name}" in good],
        )
        try:
            state.write_confirmed(confirmed)
        except ConntrackOperatorError as error:
            log.warning("%s; at the next boot what was confirmed before is put in force", error)

    def recover(self, state: StateDirectory) -> Outcome | None:
        """Take back a trial that was under way when its agent ended; None when there was none. Counts as a failure."""
        journal = self.journal(state)
        if journal.trial is None:
            return None
        return self.undo(
            state,
            journal,
            AGENT_KILLED,
            f"the agent ended during the trial of revision {journal.trial.revision}; see why (killed, out of memory,"
            " evicted)",
        )

    def _rules_as_confirmed(self, state: StateDirectory, rules: Sequence[NotrackRule]) -> Failed:
        confirmed = self.read_confirmed(state)
        try:
            beside = self.accepts_of(rules, accept_mode(confirmed.settings if confirmed else Settings()))
        except ConntrackOperatorError as error:
            # They match nothing but what rules leave untracked; the rules go back all the same.
            return self.write_rules(rules, (), ["notrack"], None) | {ACCEPT_UNTRACKED: error}
        return self.write_rules(rules, (), ["notrack"], beside)

    def _spare_new_flows(self, record: TrialRecord) -> None:
        # As well as it goes: a few new connections are not worth keeping rules that cut something off.
        try:
            flow_editing.seed(record.new_rules, roots=self.roots)
        except ConntrackOperatorError as error:
            log.warning("%s; connections that came about during the trial may break", error)

    def undo(
        self, state: StateDirectory, journal: Journal, reason: str, message: str, *, counted: bool = True
    ) -> Outcome:
        """Take back the trial in `journal`, look whether all is as it was before, and tell.

        Sysctls that somebody else wrote meanwhile are left. What cannot be taken back stays in the journal, and is
        tried again by the next `recover`.
        """
        record = journal.trial
        if record is None:
            raise ValueError("there is no trial to undo")
        way = undoing(record, self.facts())
        failed = self.write_sysctls(way.changes)
        if record.touches_rules:
            self._spare_new_flows(record)
            failed |= self._rules_as_confirmed(state, confirmed_rules(journal))
        facts = self.facts()
        wrong = [change.setting for change in way.changes if facts.sysctls.get(change.setting) != change.to]
        said = [message, *way.left]
        said += [f"{setting} could not be put back: {error}" for setting, error in failed.items()]
        said += [
            f"{name} reads {facts.sysctls.get(name)} after it was put back" for name in wrong if name not in failed
        ]
        said.append("not all is as it was" if failed or wrong else "everything else is as it was before")
        text = "; ".join(said)
        if not failed:
            failures = journal.failures
            if counted:
                wish = Wishing(record.revision, record.attempt)
                failures = failed_again(journal, wish, self.clock(), reason, text)
            journal = journal_undone(journal, failures)
        try:
            state.write_journal(journal)
        except ConntrackOperatorError as error:
            text = f"{text}; {error}"
        log.warning("rolled back: %s: %s", reason, text)
        result = Result(setting=NODE, wanted="", observed="", reason=reason, message=text)
        return Outcome("RolledBack", (result,), (), facts)


def confirmed_rules(journal: Journal) -> list[NotrackRule]:
    """Return the rules that are confirmed."""
    return [applied.rule for applied in journal.applied_rules.values()]


def _ports_of(settings: Settings, journal: Journal) -> Intervals:
    rules = [*((settings.notrack and settings.notrack.rules) or ()), *confirmed_rules(journal)]
    return merged(interval for rule in rules for interval in port_intervals(rule.ports or ()))


def accept_mode(settings: Settings) -> AcceptUntracked:
    """Return which untracked packets to accept; absent means Replies."""
    return (settings.notrack and settings.notrack.accept_untracked) or "Replies"


def read_table_state() -> TableState:
    """Return our nftables table as it is; why nft cannot be used, where it cannot."""
    try:
        listing = nftables.read_table()
    except Unsupported as error:
        return TableState(problem=str(error))
    return TableState(notrack.installed_from(listing) if listing is not None else None)
