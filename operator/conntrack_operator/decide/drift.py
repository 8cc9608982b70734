"""Drift: what somebody else changed of what was confirmed here, and when to stop changing it back. Pure.

The plan of confirmed settings against the kernel as it is now is the drift: had nobody touched anything, it would be
empty. Time is an argument, in seconds on a clock that only moves forward.
"""

from collections import deque
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace

from conntrack_operator.model.node import Result

from .draft import RETURNED
from .plan import ABSENT, Change, Plan

REPAIRS_AN_HOUR = 3
"""Of one setting. The next one in the same hour is a war: a writer that comes back is named, not outshouted."""
WINDOW_SECONDS = 3600.0
CONTENDED = "Contended"
LEFT_ALONE = (
    f"it was put right {REPAIRS_AN_HOUR} times within an hour and is left alone now; it is tried again in an hour, or"
    " at once when the policy changes or rollout.retry has a new text"
)
PUT_BACK = (
    f"that was more than {REPAIRS_AN_HOUR} times within an hour; it is put back each time all the same, since without"
    " it the ports of the rules may not answer"
)
TABLE = "notrack"
"""One key for our table: one flush takes all rules and is one repair."""


@dataclass(frozen=True)
class Drift:
    """One setting that is not as it was confirmed."""

    setting: str
    """A sysctl's full dotted name, notrack/<rule>, or notrack/* for the table as a whole."""
    wanted: int | str
    """As confirmed."""
    observed: int | str | None
    """As found; None when it is not there."""


def drift_of(plan: Plan, applied: Collection[str] | None = None) -> tuple[Drift, ...]:
    """Return what somebody changed, from the plan of the settings that were confirmed; empty when nobody did.

    What a policy gave up and has not got back yet (BelowUse) is none. Nor is a rule that goes because preflight refuses
    it now, or that comes back after that: `applied` are the names of the rules in force, None where that is not known.
    Neither may be put off by a war about something else.
    """
    return tuple(_drift(change) for change in plan.changes if not _is_own(change, applied))


def _is_own(change: Change, applied: Collection[str] | None) -> bool:
    kind, _, name = change.setting.partition("/")
    if change.reason == RETURNED or kind != TABLE or name == "*":
        return change.reason == RETURNED
    return change.to == ABSENT or (applied is not None and name not in applied)


def _drift(change: Change) -> Drift:
    return Drift(change.setting, change.to, change.from_)


def key_of(setting: str) -> str:
    """Return what repairs of `setting` are counted under: `notrack` for every rule, else the setting."""
    return TABLE if setting.startswith(f"{TABLE}/") else setting


@dataclass
class _Count:
    """One key's repairs. At most REPAIRS_AN_HOUR times are kept."""

    times: deque[float] = field(default_factory=lambda: deque(maxlen=REPAIRS_AN_HOUR))
    total: int = 0
    seen_at: float = 0.0
    """When it last was not as confirmed."""
    contended: bool = False


class Repairs:
    """Counts repairs and ends wars: after three in an hour a setting is Contended.

    A contended setting is tried once an hour, in case its writer has gone. It is contended no more when it has been as
    confirmed for an hour, or when somebody asks for something new (`forget`).
    """

    def __init__(self) -> None:
        self._counts: dict[str, _Count] = {}

    @property
    def totals(self) -> Mapping[str, int]:
        """Repairs by key since the agent started; `forget` leaves them."""
        return {key: count.total for key, count in self._counts.items() if count.total}

    @property
    def total(self) -> int:
        """All repairs since the agent started."""
        return sum(self.totals.values())

    def may_repair(self, key: str, now: float) -> bool:
        """Note that `key` is not as confirmed, and tell whether to put it right now."""
        count = self._counts.setdefault(key, _Count())
        count.seen_at = now
        recent = [time for time in count.times if now - time < WINDOW_SECONDS]
        if count.contended:
            return not count.times or now - count.times[-1] >= WINDOW_SECONDS
        count.contended = len(recent) >= REPAIRS_AN_HOUR
        return not count.contended

    def repaired(self, key: str, now: float) -> None:
        """Note that `key` was put right. A write that failed is no repair."""
        count = self._counts.setdefault(key, _Count())
        count.times.append(now)
        count.total += 1

    def contended(self, now: float) -> tuple[str, ...]:
        """Return the keys that somebody else keeps changing, in order."""
        for count in self._counts.values():
            if count.contended and now - count.seen_at >= WINDOW_SECONDS:
                count.contended = False
        return tuple(sorted(key for key, count in self._counts.items() if count.contended))

    def forget(self) -> None:
        """End every war: a new revision or attempt is another wish, and deserves its own tries."""
        for count in self._counts.values():
            count.times.clear()
            count.contended = False


@dataclass(frozen=True)
class Mending:
    """What to do about the drift of one moment."""

    plan: Plan
    """The plan to carry out: without the settings that are contended."""
    repairing: tuple[Drift, ...]
    left: tuple[Drift, ...]
    """Contended: reported, not touched."""

    def note(self, failed: Collection[str], repairs: Repairs, now: float) -> tuple[Drift, ...]:
        """Count what was put right, once the plan was carried out; `failed` are the settings whose write failed.

        Returns one drift for each thing that counted.
        """
        mended = {key_of(drift.setting): drift for drift in self.repairing if drift.setting not in failed}
        for key in mended:
            repairs.repaired(key, now)
        return tuple(mended.values())


def mending_of(plan: Plan, repairs: Repairs, now: float, applied: Collection[str] | None = None) -> Mending:
    """Return which part of `plan`, the plan of confirmed settings, is to be done now; `applied` as for `drift_of`."""
    drifts = drift_of(plan, applied)
    allowed = {key: repairs.may_repair(key, now) for key in dict.fromkeys(key_of(drift.setting) for drift in drifts)}
    left = tuple(drift for drift in drifts if not allowed[key_of(drift.setting)])
    leave = {drift.setting for drift in left}
    return Mending(
        plan=replace(plan, changes=tuple(change for change in plan.changes if change.setting not in leave)),
        repairing=tuple(drift for drift in drifts if drift.setting not in leave),
        left=left,
    )


def with_contended(
    results: Iterable[Result], sentences: Mapping[str, str], what_next: str = LEFT_ALONE
) -> tuple[Result, ...]:
    """Return `results` in which each setting of `sentences` is Contended; its sentence says by whom, and what next."""
    told = {setting: f"{sentence}; {what_next}" for setting, sentence in sentences.items()}
    changed = tuple(
        result.model_copy(update={"reason": CONTENDED, "message": told[result.setting]})
        if result.setting in told
        else result
        for result in results
    )
    named = {result.setting for result in changed}
    return changed + tuple(
        Result(setting=setting, wanted="", observed="", reason=CONTENDED, message=sentence)
        for setting, sentence in told.items()
        if setting not in named
    )
