"""The six conditions of a policy, for `kubectl wait`, Flux (kstatus) and Argo CD, and for the person who reads them.

kstatus takes Reconciling=True for "in progress" and Stalled=True for "failed", so Stalled is said only when nothing
moves any more and somebody must act: while a node that rolled back will try again, the policy is in progress. A node
whose agent is silent makes a policy Degraded, not unready: one broken machine must not hold up everybody's deployment.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from conntrack_operator.model.status import Condition, PolicyPreview

from .merge import Conflict
from .picture import Picture
from .previewed import words_of
from .targeting import selector_text

SATURATED_FROM_PERCENT = 90
SATURATED_UNTIL_PERCENT = 85
"""Between the two a saturated policy stays so, or the condition would flap around one number."""

PARKED = "NodesParked"
"""Reason of Stalled while some node has given up what it rolled back."""
PAUSED = "Paused"
AGENTS_NOT_RUNNING = "AgentsNotRunning"
AWAY = "not Ready or without a working agent"
CONFLICTS_NAMED = 5
NODES_NAMED = 3


@dataclass(frozen=True)
class _Verdict:
    status: Literal["True", "False", "Unknown"]
    reason: str
    message: str


def conditions_of(picture: Picture, now: datetime) -> list[Condition]:
    """Return the conditions at `now`. One whose status is what it was keeps the time it has had it since."""
    status = picture.policy.status
    before = {condition.type: condition for condition in (status.conditions if status else ())}
    conditions = []
    for kind, judge in _JUDGES.items():
        verdict = judge(picture)
        old = before.get(kind)
        same = old is not None and old.status == verdict.status
        conditions.append(
            Condition(
                type=kind,
                status=verdict.status,
                reason=verdict.reason,
                message=verdict.message,
                last_transition_time=old.last_transition_time if old and same else now.strftime("%Y-%m-%dT%H:%M:%SZ"),
                observed_generation=picture.policy.metadata.generation,
            )
        )
    return conditions


def _nodes(number: int) -> str:
    return "1 node" if number == 1 else f"{number} nodes"


def _ready(picture: Picture) -> _Verdict:
    counts = picture.counts
    if not counts.matched:
        selector = selector_text(picture.policy.spec.node_selector)
        return _Verdict(
            "False", "NoNodeMatches", f"no node matches spec.nodeSelector; look at: kubectl get nodes -l '{selector}'"
        )
    if picture.failed:
        reason = "NodesRefused" if counts.refused else "NodesRolledBack"
        said = f"{picture.failed} of {_nodes(counts.matched)} failed"
        if picture.policy.spec.mode == "Observe" and picture.preview is not None:
            said = words_of(picture.preview, counts.matched)
        spared = f"; {_nodes(picture.waiting)} spared, see Stalled" if picture.is_stuck and picture.waiting else ""
        return _Verdict("False", reason, f"{said}; {picture.first_failure}{spared}")
    if picture.is_stuck or (picture.is_held and (picture.waiting or picture.leaving)):
        return _held(picture)
    if picture.moving:
        return _Verdict("False", "Progressing", _progress(picture))
    return _settled(picture)


def _settled(picture: Picture) -> _Verdict:
    """Return what is said when nothing moves and nothing failed."""
    counts = picture.counts
    if not counts.current:
        if picture.trouble:
            return _Verdict("False", AGENTS_NOT_RUNNING, picture.trouble)
        ways = _counted(((counts.unknown, "not heard for 15 minutes"), (picture.absent, AWAY)))
        whole = f"nobody can speak for any of {_nodes(counts.matched)}"
        return _Verdict("Unknown", "NodesUnknown", ": ".join(filter(None, (whole, ", ".join(ways)))))
    if picture.policy.spec.mode == "Observe":
        return _Verdict("True", "Observed", words_of(picture.preview or PolicyPreview(), counts.matched))
    done = f"{counts.current} of {_nodes(counts.matched)} as the policy says"
    if picture.absent:
        done += f"; {picture.absent} {AWAY}, to be given it when back"
    if picture.warned:
        first = picture.warned[0]
        done += f"; {len(picture.warned)} with warnings; {first.node}: {first.reason}: {first.message}"
    return _Verdict("True", "AllNodesCurrent", done)


def _held(picture: Picture) -> _Verdict:
    """Return why nobody else is given the change, of a rollout that is paused or has halted."""
    if picture.verdict is not None and picture.verdict.stage == "Halted":
        return _Verdict("False", picture.verdict.reason, f"{_numbers(picture)}; {picture.verdict.message}")
    return _Verdict("False", PAUSED, f"{_numbers(picture)}; nothing more is released while rollout.paused is true")


def _numbers(picture: Picture) -> str:
    counts = picture.counts
    ways = (
        (counts.pending - picture.waiting - picture.absent, "yet to answer"),
        (counts.updating, "on trial"),
        (picture.retrying, "to be tried again"),
        (picture.waiting, "waiting for their turn"),
        (picture.absent, AWAY),
        (picture.leaving, "still to give it up"),
    )
    return ", ".join((f"{counts.current} of {_nodes(counts.matched)} current", *_counted(ways)))


def _progress(picture: Picture) -> str:
    said = picture.verdict.message if picture.verdict is not None and picture.waiting else ""
    failure = picture.first_failure if picture.retrying or picture.troubled else ""
    return "; ".join(filter(None, (_numbers(picture), picture.trouble or failure or said)))


def _counted(numbers: Iterable[tuple[int, str]]) -> list[str]:
    return [f"{number} {what}" for number, what in numbers if number]


def _reconciling(picture: Picture) -> _Verdict:
    if picture.moving and not picture.is_stuck:
        return _Verdict("True", AGENTS_NOT_RUNNING if picture.trouble else "Progressing", _progress(picture))
    if picture.is_stuck or (picture.is_held and (picture.waiting or picture.leaving)):
        held = _held(picture)
        return _Verdict("False", held.reason, held.message)
    return _Verdict("False", "Settled", "every node that can answer has answered")


def _stalled(picture: Picture) -> _Verdict:
    verdict = picture.verdict
    if verdict is not None and picture.is_stuck:
        return _Verdict("True", verdict.reason, verdict.message)
    if picture.failed and not picture.moving:
        return _Verdict("True", PARKED if picture.counts.rolled_back else "NodesFailed", picture.first_failure)
    return _Verdict("False", "NotStalled", "")


_NO_NODE_FAILED = _Verdict("False", "NoNodeFailed", "")


def _degraded(picture: Picture) -> _Verdict:
    counts = picture.counts
    bad = picture.failed + picture.troubled + counts.unknown + picture.absent
    if not bad and picture.trouble:
        return _Verdict("True", AGENTS_NOT_RUNNING, picture.trouble)
    if not bad and picture.guarded:
        return _Verdict("True", "WithdrawalsWait", picture.guarded)
    if not bad:
        return _Verdict("True", "ControllerMayNotSee", picture.blind) if picture.blind else _NO_NODE_FAILED
    reason = "NodesAway"
    if picture.failed or picture.troubled:
        reason = "NodesFailed"
    elif counts.unknown or picture.trouble:
        reason = AGENTS_NOT_RUNNING if picture.trouble else "AgentsSilent"
    ways = (
        (counts.refused, "refused"),
        (counts.rolled_back, "rolled back"),
        (picture.troubled, "with failures so far"),
    )
    parts = ", ".join(_counted((*ways, (counts.unknown, "unknown"), (picture.absent, AWAY))))
    more = filter(None, (picture.first_failure, picture.trouble, picture.guarded, picture.blind))
    return _Verdict("True", reason, "; ".join((f"of {_nodes(counts.matched)}: {parts}", *more)))


def _conflicted(picture: Picture) -> _Verdict:
    if not picture.conflicts:
        return _Verdict("False", "NoConflict", "")
    me = picture.policy.metadata.name
    named = [_told(conflict, _some(nodes), me) for conflict, nodes in sorted(picture.conflicts.items())]
    more = f"; and {len(named) - CONFLICTS_NAMED} more fields" if len(named) > CONFLICTS_NAMED else ""
    lost = any(conflict.loser == me for conflict in picture.conflicts)
    return _Verdict("True", "OtherPolicyWins" if lost else "SamePriority", "; ".join(named[:CONFLICTS_NAMED]) + more)


def _told(conflict: Conflict, nodes: str, me: str) -> str:
    if conflict.loser != me:
        return (
            f"{conflict.field} is decided here on {nodes}, and policy {conflict.loser} of the same priority asks for"
            " another value; give one of them a higher priority"
        )
    if not conflict.why:
        tie = " (of the same priority, and older or first by name)" if conflict.tied else ""
        return f"{conflict.field} is decided by policy {conflict.winner}{tie} on {nodes}"
    if conflict.field.startswith("trial."):
        return f"{conflict.field} is {conflict.why} of policy {conflict.winner} on {nodes}"
    return f"{conflict.why}: {conflict.field} is left out on {nodes}, policy {conflict.winner} comes first"


def _some(nodes: Sequence[str]) -> str:
    rest = f" and {len(nodes) - NODES_NAMED} more" if len(nodes) > NODES_NAMED else ""
    return ", ".join(nodes[:NODES_NAMED]) + rest


def _saturated(picture: Picture) -> _Verdict:
    usage, status = picture.usage, picture.policy.status
    was = any(item.type == "Saturated" and item.status == "True" for item in (status.conditions if status else ()))
    if usage.drops_per_second:
        return _Verdict(
            "True",
            "Dropping",
            f"new connections are being dropped; the fullest table is {usage.peak_node}'s at {usage.peak_percent} %."
            f" See: kubectl get nodeconntrack {usage.peak_node} -o yaml",
        )
    if usage.peak_percent >= (SATURATED_UNTIL_PERCENT if was else SATURATED_FROM_PERCENT):
        return _Verdict("True", "NearlyFull", f"the table of {usage.peak_node} is {usage.peak_percent} % full")
    return _Verdict("False", "Room", "")


_JUDGES: dict[str, Callable[[Picture], _Verdict]] = {
    "Ready": _ready,
    "Reconciling": _reconciling,
    "Stalled": _stalled,
    "Degraded": _degraded,
    "Conflicted": _conflicted,
    "Saturated": _saturated,
}
