"""Which nodes a change of one policy may reach next: canary, soak, then waves; or nobody, and why.

Judged anew each time from what the nodes have been given and what they answered. Nothing is counted and nothing is
remembered, so that a controller that was killed goes on where it was.

A member is one node on which the policy changes something, whether it gets a revision or loses the policy.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from conntrack_operator.model.policy import Rollout

from .pacing import Pace, number_of

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
    as asked. refused: it said no to all of it, and nothing was changed. failed: rolled back for good."""
    since: datetime
    """Since when it has been so."""
    able: bool = True
    """Whether it is Ready with a working agent; while it is not, it is given nothing."""
    touched: bool = False
    """Whether it has something of this policy that is not known to be good: then it goes first, and not another."""
    busy: bool = False
    """Whether it waits while it is on its way for something else."""
    is_new: bool = False
    """Whether its agent was never heard: a node that has just joined, and was given its share then, holds up nobody."""
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
    way = _Way(
        budget,
        [
            each
            for each in members
            if (each.state in ("moving", "retrying") or each.busy) and not each.is_new and not each.is_overdue(now)
        ],
    )
    canaries = _canaries(members, pace, now)
    if canaries is not None:
        return _canary_verdict(waiting, canaries, way, now)
    return _wave_verdict(members, waiting, pace, way)


@dataclass(frozen=True)
class _Way:
    """What is on its way, for whatever reason, and how much may be."""

    budget: int
    members: Sequence[Member]

    def release(self, waiting: Sequence[Member], limit: int) -> tuple[str, ...]:
        """Return those of `waiting` that may be given the change now, `limit` at most, in their order.

        Where something is on its way that was edited since, it is replaced: that takes no room that it did not have.
        """
        there = {each.node for each in self.members}
        room = self.budget - len(there)
        released: list[str] = []
        for each in waiting:
            if len(released) < limit and (each.node in there or room > 0):
                released.append(each.node)
                room -= each.node not in there
        return tuple(released)


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
        if (each.state in ("moving", "retrying", "failed") and not each.is_new)
        # One that was well long before it went away is no canary of today.
        or (each.state == "done" and (each.able or not now - each.since >= soak + timedelta(seconds=ANSWER_SECONDS)))
    )
    if not begun and not any(each.state == "waiting" for each in members):
        return None
    return _Canaries(begun, max(0, needed - len(begun)), soak)


def _canary_verdict(waiting: Sequence[Member], canaries: _Canaries, way: _Way, now: datetime) -> Verdict:
    begun = canaries.begun
    failed = [each.node for each in begun if each.state == "failed"]
    if failed:
        return Verdict(
            "Halted",
            reason=CANARY_FAILED,
            message=f"canary {_named(failed)} rolled the change back; {_untouched(begun)} was touched."
            " Edit the policy, or let it try again with another text in rollout.retry",
        )
    silent = [each.node for each in begun if each.state in ("moving", "retrying") and each.is_overdue(now)]
    if silent:
        return Verdict(
            "Halted",
            reason=CANARY_SILENT,
            message=f"canary {_named(silent)} was given the change and has not answered since; {_untouched(begun)}"
            " was touched. Look at that node and at its agent; delete the Node if it is lost",
        )
    release = way.release(waiting, canaries.missing)
    away = [each.node for each in begun if not each.able]
    on_the_way = [*release, *(each.node for each in begun if each.state != "done")]
    soaking = [each for each in begun if each.state == "done"]
    ends = [each.since + canaries.soak for each in soaking]
    ends += [each.since + canaries.soak + timedelta(seconds=ANSWER_SECONDS) for each in soaking if not each.able]
    ends += [_deadline_of(each) for each in begun if each.state in ("moving", "retrying")]
    again = min((end for end in ends if end > now), default=None)
    if away:
        message = f"canary {_named(away)} is not Ready, or has no working agent, since it was given the change"
        return Verdict("Canary", release, "CanaryAway", message, again)
    if on_the_way:
        return Verdict("Canary", release, "Canary", f"canary {_named(on_the_way)} goes first", again)
    until = max((each.since for each in soaking), default=now) + canaries.soak
    if not soaking or until <= now:
        message = "the canary waits until what is on its way for other policies has ended"
        return Verdict("Canary", reason="CanaryBusy", message=message, again_at=again)
    message = f"canary {_named([each.node for each in soaking])} must stay current until {until:%H:%M:%S} UTC"
    return Verdict("Soak", (), "Soak", message, again)


def _wave_verdict(members: Sequence[Member], waiting: Sequence[Member], pace: Pace, way: _Way) -> Verdict:
    failing = [each.node for each in members if each.state in ("failed", "retrying")]
    allowed = number_of(pace.max_failures, len(members), up=False)
    again = min((_deadline_of(each) for each in way.members), default=None)
    spared = len(waiting) + sum(each.is_granted for each in members)
    if spared and len(failing) > allowed:
        return Verdict(
            "Halted",
            reason=TOO_MANY_FAILURES,
            message=f"{_named(failing)} rolled the change back, more than rollout.maxFailures allows ({allowed});"
            f" {spared} more were spared. Edit the policy, or set another text in rollout.retry",
            again_at=again,
        )
    if waiting or any(each.able for each in way.members):
        return Verdict("Waves", way.release(waiting, len(waiting)), "Waves", "", again)
    # A node that is away now speaks for nobody: with all of them away, nothing has ended well.
    done = any(each.state == "done" and each.able for each in members)
    return Verdict("Done", again_at=again, is_good=done and len(failing) <= allowed)


def _untouched(canaries: Sequence[Member]) -> str:
    return "no other node" if len(canaries) == 1 else "no node beyond the canaries"


def _deadline_of(member: Member) -> datetime:
    return member.since + timedelta(seconds=member.patience_seconds)


def _named(nodes: Sequence[str]) -> str:
    names = sorted(nodes)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
