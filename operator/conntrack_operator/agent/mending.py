"""Drift repair: watches what was confirmed, puts right what somebody changed, names who, and ends wars.

Called by the loop every second or two while no trial is under way. It looks first at what costs next to nothing
(`kernel.vigil`); only when something may have moved is a plan made. All writes go through `Machine.settle`.
"""

import logging
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

from conntrack_operator.decide.accept_standing import Standing
from conntrack_operator.decide.drift import PUT_BACK, Drift, Mending, Repairs, key_of, mending_of, with_contended
from conntrack_operator.decide.notrack import TABLE, ruleset_for
from conntrack_operator.decide.outcome import APPLIED
from conntrack_operator.decide.plan import ABSENT
from conntrack_operator.decide.refusal import Refusal
from conntrack_operator.decide.rivals import UNKNOWN_KIND, Hidden, Table, kind_of_rival, likely_flusher, sentence_for
from conntrack_operator.decide.symptoms import Writer
from conntrack_operator.decide.trial import known_part
from conntrack_operator.errors import ConntrackOperatorError
from conntrack_operator.kernel.accepts import read_accepts
from conntrack_operator.kernel.journal import StateDirectory
from conntrack_operator.kernel.table_rivals import has_kube_proxy_rules, read_flushers, read_handles
from conntrack_operator.kernel.vigil import Mark, Moved, Vigil
from conntrack_operator.kernel.writers import read_writers
from conntrack_operator.metrics.tally import Counts
from conntrack_operator.model.journal import Confirmed
from conntrack_operator.model.node import NodeSpec
from conntrack_operator.model.notrack import NotrackRule

from .machine import Machine, Outcome
from .sight import ACCEPT_UNTRACKED, Sight, read_table_state

log = logging.getLogger(__name__)

OURS = ("inet", TABLE)
AGAIN_SECONDS, AGAIN_MOST_SECONDS = 2.0, 30.0
"""Before another look where something could not be read or written: at first, and at most."""
ACCEPTS = ACCEPT_UNTRACKED
"""Key under which repairs of accept rules in other people's firewalls are counted."""
REPAIRED = "Repaired"


@dataclass(frozen=True)
class Mended:
    """What somebody changed, and what was made of it."""

    outcome: Outcome
    """As of any change; phase Contended when something is left to whoever keeps changing it."""
    warnings: tuple[Refusal, ...]
    """What was put right, with its setting and how often that was done, for a status."""
    said: tuple[str, ...]
    """One sentence for each thing that was changed: from, to, by whom, remedy."""
    repaired: int
    """Things that were put right now."""

    def with_earlier(self, warnings: Sequence[Refusal]) -> tuple[Refusal, ...]:
        """Return these warnings, and those of earlier repairs among `warnings` that are about other settings."""
        now = {warning.setting for warning in self.warnings}
        earlier = (each for each in warnings if each.reason == REPAIRED and each.setting not in now)
        return (*self.warnings, *earlier)


class Mender:
    """Watches one machine for drift from what is confirmed on it."""

    def __init__(self, machine: Machine, counted: Counts | None = None) -> None:
        self._machine = machine
        self._counted = counted if counted is not None else Counts()
        self._writers: Sequence[Writer] = ()
        self._hidden: Hidden | None = None
        self._vigil = Vigil(machine.roots)
        self._handles: dict[Table, int] = {}
        self._rules: Sequence[NotrackRule] = ()
        self._standing: Standing | None = None
        self._left: set[str] = set()
        self._again_at, self._pause = float("inf"), AGAIN_SECONDS
        self.repairs = Repairs()
        """Counts for metrics (`totals`) and wars; `forget` at a new revision or attempt."""

    @property
    def left(self) -> frozenset[str]:
        """The settings that somebody keeps changing. They are left to him, but for the accepts."""
        return frozenset(self._left)

    def forget(self) -> None:
        """End every war: a new revision or attempt deserves its own tries."""
        self.repairs.forget()
        self._left = set()

    def settled(self, sight: Sight) -> None:
        """Take the machine as it is now as right; call it after every change that was confirmed, with its last look."""
        self._expect(sight, self._vigil.mark())

    def mend(self, state: StateDirectory, confirmed: Confirmed, spec: NodeSpec | None, now: float) -> Mended | None:
        """Return what was done about drift; None when nothing moved, or what moved is none of ours.

        `spec` is the newest wish, for the Services in it; None while nobody said anything yet. `now` is in seconds on a
        clock that only moves forward. Raises as `Machine.look` and `Machine.settle` do.
        """
        if not self._is_due(now):
            return None
        # From before the look and the writes: a change meanwhile is seen at the next look, at the cost of one more.
        mark = self._vigil.mark()
        journal = self._machine.journal(state)
        sight = self._machine.look(confirmed.settings, confirmed.uses, journal, spec.services if spec else ())
        mending = mending_of(known_part(sight.plan, confirmed), self.repairs, now, journal.applied_rules.keys())
        if sight.accepts_differ:
            self.repairs.may_repair(ACCEPTS, now)
        # Put back however often, unlike a value: a rule in force without its accepts is a port that does not answer.
        accepts_war = ACCEPTS in self.repairs.contended(now)
        drifts = (*mending.repairing, *mending.left)
        moves = bool(mending.plan.changes)
        quiet = not drifts and not moves and not sight.accepts_differ and not sight.plan.refused
        if quiet and not self._left:
            self._went(sight)
            self._expect(sight, mark, mending)
            return None
        sentences = self._sentences(drifts, sight)
        for setting, sentence in _own_moves(mending, sight):
            log.warning("%s: %s", setting, sentence)
        mended = replace(sight, plan=mending.plan)
        outcome = self._machine.settle(mended, journal, state, confirmed.uses)
        failed = {result.setting for result in outcome.results if result.reason != APPLIED}
        self._went(sight, failed - {drift.setting for drift in mending.left})
        for drift in mending.note(failed, self.repairs, now):
            self._counted.add(key_of(drift.setting), kind_of_rival(drift, self._writers, self._hidden))
        if sight.accepts_differ and ACCEPTS not in failed:
            self.repairs.repaired(ACCEPTS, now)
            self._counted.add(ACCEPTS, UNKNOWN_KIND)
        if (sight.accepts_differ or accepts_war) and sight.plan.rules:
            sentences[ACCEPTS] = _ACCEPTS_CHANGED
        self._expect(sight, mark, mending)
        for setting in sentences.keys() - self._left:
            log.warning("%s", sentences[setting])
        left = {drift.setting: sentences[drift.setting] for drift in mending.left}
        war = {ACCEPTS: _ACCEPTS_CHANGED} if accepts_war and ACCEPTS in sentences else {}
        self._left = {*left, *war}
        if self._left:
            results = with_contended(with_contended(outcome.results, left), war, PUT_BACK)
            outcome = replace(outcome, phase="Contended", results=results)
        warnings = tuple(
            Refusal(setting, REPAIRED, self._with_count(setting, sentence))
            for setting, sentence in sentences.items()
            if setting not in self._left
        )
        return Mended(outcome, warnings, tuple(sentences.values()), len(mending.repairing) + sight.accepts_differ)

    def _with_count(self, setting: str, sentence: str) -> str:
        count = self.repairs.totals.get(key_of(setting), 0)
        return f"{sentence} (put right {count} {'time' if count == 1 else 'times'} since the agent started)"

    def _is_due(self, now: float) -> bool:
        moved = self._vigil.moved(now)
        if now < self._again_at and (not moved or (moved == Moved(table=True) and self._is_as_left())):
            return False
        # What moved is told once: unless all goes well, look again soon, and ever later where that does not help.
        self._again_at = now + self._pause
        self._pause = min(2 * self._pause, AGAIN_MOST_SECONDS)
        return True

    def _went(self, sight: Sight, failed: Collection[str] = ()) -> None:
        refused = {refusal.setting for refusal in sight.plan.refused}
        if not sight.blind and refused.issuperset(failed):
            self._again_at, self._pause = float("inf"), AGAIN_SECONDS

    def _expect(self, sight: Sight, mark: Mark | None, mending: Mending | None = None) -> None:
        # What is left to a rival is looked at again with the surroundings, once a minute, not at every look.
        left = {drift.setting for drift in mending.left} if mending else set()
        plan = sight.plan
        wanted = {name: value for name, value in plan.wanted.items() if name not in left}
        self._vigil.expect(wanted, table=bool(plan.rules), mark=mark, off=plan.off is not None)
        self._handles = _handles()
        self._rules, self._standing = plan.rules, sight.accepts.standing if sight.accepts else None

    def _is_as_left(self) -> bool:
        """Tell whether our table and our accepts are as they were: others move the generation all the time.

        Everybody's rules are read at their own interval; on a node with 10,000 Services that takes seconds.
        """
        if self._left:
            return False
        try:
            table = read_table_state()
            if table.problem or table.installed != ruleset_for(self._rules).expected:
                return False
            return self._standing is None or read_accepts() == self._standing
        except ConntrackOperatorError:
            return False

    def _sentences(self, drifts: tuple[Drift, ...], sight: Sight) -> dict[str, str]:
        if not drifts:
            return {}
        roots, cpus = self._machine.roots, sight.facts.cpus
        self._writers = writers = read_writers(roots, cpus)
        self._hidden = hidden = None if roots.shows_processes else Hidden(cpus, has_kube_proxy_rules())
        rival = likely_flusher(self._handles, _handles(), OURS, read_flushers(roots))
        return {drift.setting: sentence_for(drift, writers, rival, hidden) for drift in drifts}


_ACCEPTS_CHANGED = (
    "accept rules of ours in the firewall were taken out by somebody; find what reloads it (iptables -F, a restart), or"
    " set acceptUntracked: Never and accept the rules' UNTRACKED packets there"
)


def _own_moves(mending: Mending, sight: Sight) -> Iterator[tuple[str, str]]:
    """Yield the rules that we withdraw, or put back after that, with why."""
    drifting = {drift.setting for drift in mending.repairing}
    why = {refusal.setting: f"withdrawn: {refusal.reason}: {refusal.message}" for refusal in sight.plan.refused}
    for change in mending.plan.changes:
        if change.setting not in drifting:
            yield change.setting, why.get(change.setting, "withdrawn") if change.to == ABSENT else "put back"


def _handles() -> dict[Table, int]:
    try:
        return read_handles()
    except ConntrackOperatorError:
        return {}  # only names come from it
