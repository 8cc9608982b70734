"""Which nodes a change of one policy may reach next: canary, soak, then waves; or nobody, and why.

Judged anew each time from what the nodes have been given and what they answered. Nothing is counted and nothing is
remembered, so that a controller that was killed goes on where it was.

A member is one node on which the policy changes something, whether it gets a revision or loses the policy.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from conntrack_operator.model.policy import CANARY, MAX_FAILURES, MAX_UNAVAILABLE, ROLLOUT_SOAK_SECONDS, Rollout

ANSWER_SECONDS = 300
"""A node that has not answered this long after its trial must have ended stops holding up the others."""

State = Literal["waiting", "moving", "retrying", "done", "refused", "failed"]
Stage = Literal["Canary", "Soak", "Waves", "Paused", "Halted", "Done"]

CANARY_FAILED, CANARY_SILENT, TOO_MANY_FAILURES = "CanaryFailed", "CanarySilent", "TooManyFailures"


@dataclass(frozen=True)
class Member:
    """One node, as this policy's change sees it."""

    node: str
    state: State
    """waiting: not given it yet. moving: given, not answered. retrying: rolled back, will try again by itself. done:
    as asked. refused: it said no, and nothing was changed. failed: rolled back for good."""
    since: datetime
    """Since when it has been so."""
    able: bool = True
    """Whether it is Ready with a working agent; while it is not, it is given nothing."""
    touched: bool = False
    """Whether it has something of this policy that is not known to be good: then it goes first, and not another."""
    busy: bool = False
    """Whether it waits while it is on its way for something else."""
    is_granted: bool = False
    """Whether it is moving, and its spec does not say so yet: it may still be spared."""
    patience_seconds: float = ANSWER_SECONDS
    """How long its answer may take."""

    def is_overdue(self, now: datetime) -> bool:
        """Tell whether its answer is not waited for any more."""
        return now - self.since >= timedelta(seconds=self.patience_seconds)


@dataclass(frozen=True)
class Verdict:
    """Where a change stands and who is next. `reason` and `message` say why it halted, or what is waited for."""

    stage: Stage
    release: tuple[str, ...] = ()
    reason: str = ""
    message: str = ""
    again_at: datetime | None = None
    """When to judge anew although nothing has happened; None when only news changes anything."""
    is_good: bool = False
    """Whether the change has ended well: nobody is left who could take it, and some node has it."""

    @property
    def is_held(self) -> bool:
        """Whether nobody is given the change, by somebody's wish or because it failed."""
        return self.stage in ("Paused", "Halted")


def verdict_on(members: Sequence[Member], rollout: Rollout | None, now: datetime) -> Verdict:
    """Return where the change stands among `members` at `now`, and which of them are to be given it next."""
    pace = Pace.of(rollout)
    waiting = sorted(
        (each for each in members if each.state == "waiting" and each.able and _is_free(each, now)),
        key=lambda each: (not each.touched, not each.busy, each.node),
    )
    if pace.paused:
        return Verdict("Paused" if waiting or _left(members) else "Done")
    able = sum(each.able for each in members)
    budget = max(1, number_of(pace.max_unavailable, able, up=True))
    canaries = _canaries(members, pace, now)
    if canaries is not None:
        return _canary_verdict(waiting, canaries, budget, now)
    return _wave_verdict(members, waiting, pace, budget, now)


def number_of(value: int | str, total: int, *, up: bool) -> int:
    """Return the number that `value`, a number or a percentage such as 10%, means among `total`, rounded up or down."""
    if isinstance(value, int):
        return value
    hundredths = int(value.removesuffix("%")) * total
    return -(-hundredths // 100) if up else hundredths // 100


@dataclass(frozen=True)
class Pace:
    """A rollout with its defaults in place."""

    canary: int
    max_unavailable: int | str
    max_failures: int | str
    soak: timedelta
    paused: bool

    @classmethod
    def of(cls, rollout: Rollout | None) -> "Pace":
        """Return the pace that `rollout` asks for."""
        asked = rollout or Rollout()
        soak = ROLLOUT_SOAK_SECONDS if asked.soak_seconds is None else asked.soak_seconds
        return cls(
            canary=CANARY if asked.canary is None else asked.canary,
            max_unavailable=MAX_UNAVAILABLE if asked.max_unavailable is None else asked.max_unavailable,
            max_failures=MAX_FAILURES if asked.max_failures is None else asked.max_failures,
            soak=timedelta(seconds=soak),
            paused=bool(asked.paused),
        )


def strictest(rollouts: Iterable[Rollout | None], total: int) -> Rollout:
    """Return the rollout that is as careful as the most careful of `rollouts` in each respect, among `total` nodes."""
    several = [Pace.of(each) for each in rollouts] or [Pace.of(None)]
    return Rollout(
        canary=max(each.canary for each in several),
        max_unavailable=min(number_of(each.max_unavailable, total, up=True) for each in several),
        max_failures=min(number_of(each.max_failures, total, up=False) for each in several),
        soak_seconds=int(max(each.soak for each in several).total_seconds()),
    )


def _is_free(member: Member, now: datetime) -> bool:
    """Tell whether `member` may be given something now: what is on its way for another policy is let end first."""
    return not member.busy or member.touched or member.is_overdue(now)


def _left(members: Iterable[Member]) -> bool:
    return any(each.state in ("waiting", "moving", "retrying") and each.able for each in members)


@dataclass(frozen=True)
class _Canaries:
    """The first nodes of a change that is not proved yet, and how many more of them there should be."""

    begun: tuple[Member, ...]
    missing: int
    soak: timedelta


def _canaries(members: Sequence[Member], pace: Pace, now: datetime) -> _Canaries | None:
    """Return the canaries, None when enough nodes have proved the change, or none need to."""
    # One that refused proves nothing either way, so that a small fleet may have fewer than are asked for.
    soak, needed = pace.soak, min(pace.canary, sum(each.able and each.state != "refused" for each in members))
    proved = [each for each in members if each.state == "done" and each.able and now - each.since >= soak]
    if len(proved) >= needed:
        return None
    begun = tuple(
        each
        for each in members
        if each.state in ("moving", "retrying", "failed")
        # One that was well long before it went away is no canary of today.
        or (each.state == "done" and (each.able or not now - each.since >= soak + timedelta(seconds=ANSWER_SECONDS)))
    )
    if not begun and not any(each.state == "waiting" for each in members):
        return None
    return _Canaries(begun, max(0, needed - len(begun)), soak)


def _canary_verdict(waiting: Sequence[Member], canaries: _Canaries, budget: int, now: datetime) -> Verdict:
    begun = canaries.begun
    failed = [each.node for each in begun if each.state == "failed"]
    if failed:
        return Verdict(
            "Halted",
            reason=CANARY_FAILED,
            message=f"canary {_named(failed)} rolled the change back; no other node was touched."
            " Edit the policy, or let it try again with another text in rollout.retry",
        )
    silent = [each.node for each in begun if each.state == "moving" and each.is_overdue(now)]
    if silent:
        return Verdict(
            "Halted",
            reason=CANARY_SILENT,
            message=f"canary {_named(silent)} was given the change and has not answered since; no other node was"
            " touched. Look at that node and at its agent; delete the Node if it is lost",
        )
    room = budget - sum(each.state in ("moving", "retrying") for each in begun)
    release = tuple(each.node for each in waiting[: max(0, min(canaries.missing, room))])
    away = [each.node for each in begun if not each.able]
    on_the_way = [*release, *(each.node for each in begun if each.state != "done")]
    soaking = [each for each in begun if each.state == "done"]
    ends = [each.since + canaries.soak for each in soaking]
    ends += [each.since + canaries.soak + timedelta(seconds=ANSWER_SECONDS) for each in soaking if not each.able]
    ends += [_deadline_of(each) for each in begun if each.state == "moving"]
    again = min((end for end in ends if end > now), default=None)
    if away:
        message = f"canary {_named(away)} is not Ready, or has no working agent, since it was given the change"
        return Verdict("Canary", release, "CanaryAway", message, again)
    if on_the_way:
        return Verdict("Canary", release, "Canary", f"canary {_named(on_the_way)} goes first", again)
    until = max((each.since for each in soaking), default=now) + canaries.soak
    if not soaking or until <= now:
        message = "the next canary has to end what it was given by another policy first"
        return Verdict("Canary", reason="CanaryBusy", message=message, again_at=again)
    message = f"canary {_named([each.node for each in soaking])} must stay current until {until:%H:%M:%S} UTC"
    return Verdict("Soak", (), "Soak", message, again)


def _wave_verdict(
    members: Sequence[Member], waiting: Sequence[Member], pace: Pace, budget: int, now: datetime
) -> Verdict:
    failing = [each.node for each in members if each.state in ("failed", "retrying")]
    allowed = number_of(pace.max_failures, len(members), up=False)
    moving = [each for each in members if each.state in ("moving", "retrying") or each.busy]
    holding = [each for each in moving if not each.is_overdue(now)]
    again = min((_deadline_of(each) for each in holding), default=None)
    spared = len(waiting) + sum(each.is_granted for each in members)
    if spared and len(failing) > allowed:
        return Verdict(
            "Halted",
            reason=TOO_MANY_FAILURES,
            message=f"{_named(failing)} rolled the change back, more than rollout.maxFailures allows ({allowed});"
            f" {spared} more were spared. Edit the policy, or set another text in rollout.retry",
            again_at=again,
        )
    # What has not ended there is replaced by what was edited since: that takes no room that it did not have.
    replaced = [each.node for each in waiting if each.busy and each.touched and not each.is_overdue(now)]
    others = [each.node for each in waiting if each.node not in replaced]
    release = (*replaced, *others[: max(0, budget - len(holding))])
    if waiting or any(each.able for each in holding):
        return Verdict("Waves", release, "Waves", "", again)
    # A node that is away now speaks for nobody: with all of them away, nothing has ended well.
    done = any(each.state == "done" and each.able for each in members)
    return Verdict("Done", again_at=again, is_good=done and len(failing) <= allowed)


def _deadline_of(member: Member) -> datetime:
    return member.since + timedelta(seconds=member.patience_seconds)


def _named(nodes: Sequence[str]) -> str:
    names = sorted(nodes)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
