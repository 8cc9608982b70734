"""The way back on a machine: restoring all of it, taking back a trial, and the rules that were confirmed before.

What goes back is decided in `decide.trial` and `decide.remember`, from what the journal holds.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace

from conntrack_operator.decide.accepts import accept_mode
from conntrack_operator.decide.outcome import of_node, phase_of
from conntrack_operator.decide.remember import journal_undone, judged_anew, without_keeps
from conntrack_operator.decide.trial import AGENT_KILLED, Undo, Wishing, failed_again, undoing
from conntrack_operator.errors import ConntrackOperatorError
from conntrack_operator.kernel import accepts
from conntrack_operator.kernel.journal import StateDirectory
from conntrack_operator.model.journal import Journal
from conntrack_operator.model.node import PolicyUse, Result
from conntrack_operator.model.notrack import NotrackRule
from conntrack_operator.model.policy import Settings

from .machine import Machine, Outcome
from .sight import ACCEPT_UNTRACKED, confirmed_rules
from .writing import Failed, accepts_of, spare_flows, write_rules, write_sysctls

log = logging.getLogger(__name__)


def restore(
    machine: Machine, state: StateDirectory, uses: Sequence[PolicyUse] = (), *, kept_too: bool = False
) -> Outcome:
    """Put every original value back and remove the rules; a trial that nobody finished is taken back first.

    What `uses`, the policies that are gone, say of onDelete counts; with `kept_too` nothing is left behind.
    """
    recover(machine, state)
    machine.load_again(Settings(), state)
    with machine.asking_for(Settings(), state):
        return _restored(machine, state, uses, kept_too=kept_too)


def _restored(machine: Machine, state: StateDirectory, uses: Sequence[PolicyUse], *, kept_too: bool) -> Outcome:
    journal = judged_anew(machine.journal(state), uses)
    if kept_too:
        journal = without_keeps(journal)
    sight = machine.look(Settings(), (), journal)
    outcome = machine.settle(sight, journal, state, mode="Restore")
    if not sight.plan.rules:
        outcome = _without_accepts(outcome)
    state.write_confirmed(None)
    return outcome


def _without_accepts(outcome: Outcome) -> Outcome:
    """Take away whatever accept rules of ours stand in firewalls, whoever forgot them; say so when that fails."""
    try:
        accepts.remove_accepts()
    except ConntrackOperatorError as error:
        if any(result.setting == ACCEPT_UNTRACKED for result in outcome.results):
            return outcome
        left = Result(
            setting=ACCEPT_UNTRACKED,
            wanted="absent",
            observed="",
            reason="WriteFailed",
            message=f"{error}; accept rules of ours may stand there still; they match nothing without our rules",
        )
        results = (*outcome.results, left)
        return replace(outcome, results=results, phase=phase_of(results, "Restore"))
    return outcome


def recover(machine: Machine, state: StateDirectory) -> Outcome | None:
    """Take back a trial that was under way when its agent ended; None when there was none. Counts as a failure."""
    journal = machine.journal(state)
    if journal.trial is None:
        return None
    trial = f"the trial of revision {journal.trial.revision}"
    why = Undo(AGENT_KILLED, f"the agent ended during {trial}; see why (killed, out of memory, evicted)")
    return undo(machine, state, journal, why)


def rules_as_confirmed(machine: Machine, state: StateDirectory, rules: Sequence[NotrackRule]) -> Failed:
    """Make `rules`, the confirmed ones, all there is, with the accepts they were confirmed with."""
    # First what may cut the node off; reading firewalls takes long, and what stands there harms nobody.
    error = write_rules(machine.roots, rules, (), None)
    failed: Failed = {"notrack": error} if error else {}
    confirmed = machine.read_confirmed(state)
    try:
        mode = machine.journal(state).accept_untracked or accept_mode(confirmed.settings.notrack if confirmed else None)
        accepts.write_accepts(accepts_of(rules, mode))
    except ConntrackOperatorError as error:
        failed[ACCEPT_UNTRACKED] = error
    return failed


def undo(machine: Machine, state: StateDirectory, journal: Journal, why: Undo, *, counted: bool = True) -> Outcome:
    """Take back the trial in `journal`, look whether all is as it was before, and tell.

    It is `counted` as a failure of the revision, which is not tried again at once, unless somebody wished for it.
    Sysctls that somebody else wrote meanwhile are left. What cannot be taken back stays in the journal, and is
    tried again by the next `recover`.
    """
    record = journal.trial
    if record is None:
        raise ValueError("there is no trial to undo")
    way = undoing(record, machine.facts())
    failed = write_sysctls(machine.roots, way.changes)
    if record.touches_rules:
        spare_flows(machine.roots, record.new_rules)
        failed |= rules_as_confirmed(machine, state, confirmed_rules(journal))
    facts = machine.facts()
    wrong = [change.setting for change in way.changes if facts.sysctls.get(change.setting) != change.to]
    said = [why.message, *way.left]
    said += [f"{setting} could not be put back: {error}" for setting, error in failed.items()]
    said += [f"{name} reads {facts.sysctls.get(name)} after it was put back" for name in wrong if name not in failed]
    said.append("not all is as it was" if failed or wrong else "everything else is as it was before")
    text = "; ".join(said)
    if not failed:
        failures = journal.failures
        if counted:
            wish = Wishing(record.revision, record.attempt)
            failures = failed_again(journal, wish, machine.clock(), why.reason, text)
        journal = journal_undone(journal, failures)
    try:
        state.write_journal(journal)
    except ConntrackOperatorError as error:
        text = f"{text}; {error}"
    log.warning("rolled back: %s: %s", why.reason, text)
    result = of_node(why.reason, text)
    return Outcome("RolledBack", (result,), (), facts)
