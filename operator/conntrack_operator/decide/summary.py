"""What becomes of a policy, told to the person who wrote it: its status, from where each of its nodes stands.

Counts are complete, lists are short (the five fullest tables, the first ten failures): the whole story of a node is in
its own NodeConntrack.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from conntrack_operator.model.node import Preview, Usage
from conntrack_operator.model.policy import ConntrackPolicy
from conntrack_operator.model.status import (
    FAILURES_MAX,
    HOTTEST_MAX,
    Condition,
    FleetUsage,
    HotNode,
    NodeCounts,
    NodeFailure,
    PolicyStatus,
)

from .conditions import conditions_of
from .merge import Conflict
from .picture import Picture
from .previewed import preview_of
from .rollout import Verdict
from .standing import Standing

_GRAVEST_FIRST = {"refused": 0, "rolled_back": 1, "unknown": 2, "updating": 3, "pending": 4}


@dataclass(frozen=True)
class Sight:
    """One node the policy selects, as seen from the policy. `usage` is None when nothing recent is known of it."""

    standing: Standing
    usage: Usage | None = None
    conflicts: tuple[Conflict, ...] = ()
    preview: Preview | None = None


@dataclass(frozen=True)
class Around:
    """What there is to say of a policy besides its nodes."""

    revision: str = ""
    """The revision it is at."""
    verdict: Verdict | None = None
    """Where its rollout stands; None while nobody has judged it."""
    leaving: int = 0
    """Nodes that still have it and should not."""
    trouble: str = ""
    """What keeps the agents from running, as a sentence with the remedy."""
    blind: str = ""
    """What the controller may not see and this policy needs."""
    guarded: str = ""
    """Why nothing is withdrawn from any node, though nodes have what they should not."""


def summary_of(policy: ConntrackPolicy, sights: Iterable[Sight], now: datetime, around: Around) -> PolicyStatus:
    """Return the status of `policy`, whose nodes are `sights`, at `now`.

    The status the policy has so far is looked at for one thing only: since when each condition has been what it is.
    """
    ordered = sorted(sights, key=lambda sight: sight.standing.node)
    counts = _counts_of(ordered)
    usage = _usage_of(ordered)
    failures = failures_of(ordered)
    preview = None
    if policy.spec.mode == "Observe":
        preview = preview_of((each.standing.node, each.preview) for each in ordered if each.preview is not None)
    picture = Picture(
        policy=policy,
        counts=counts,
        usage=usage,
        failures=failures,
        conflicts=_conflicts_of(ordered),
        retrying=sum(sight.standing.retries for sight in ordered),
        troubled=sum(
            sight.standing.state in ("updating", "pending") and bool(sight.standing.failures) for sight in ordered
        ),
        warned=[sight.standing.warnings[0] for sight in ordered if sight.standing.warnings],
        waiting=sum(_waits(sight) for sight in ordered),
        absent=sum(sight.standing.absent for sight in ordered),
        leaving=around.leaving,
        verdict=around.verdict,
        preview=preview,
        trouble=around.trouble,
        blind=around.blind,
        guarded=around.guarded,
    )
    return PolicyStatus(
        observed_generation=policy.metadata.generation or 0,
        revision=around.revision,
        conditions=conditions_of(picture, now),
        nodes=counts,
        usage=usage,
        hottest=hottest_of(ordered),
        failures=list(failures),
        preview=preview,
    )


def rejected(generation: int, sentence: str, now: datetime) -> PolicyStatus:
    """Return the status of a policy that this version cannot read, because of `sentence`."""
    message = f"this version cannot read the policy ({sentence}); its nodes are left as they are. Write it anew"
    return PolicyStatus(
        observed_generation=generation,
        conditions=[
            Condition(
                type=kind,
                status=status,
                reason="Unreadable",
                message=message,
                last_transition_time=now.strftime("%Y-%m-%dT%H:%M:%SZ"),
                observed_generation=generation,
            )
            for kind, status in (("Ready", "False"), ("Reconciling", "False"), ("Stalled", "True"))
        ],
    )


def _waits(sight: Sight) -> bool:
    standing = sight.standing
    return standing.state == "pending" and standing.waits and not standing.absent


def _counts_of(sights: Sequence[Sight]) -> NodeCounts:
    states = Counter(sight.standing.state for sight in sights)
    return NodeCounts(matched=len(sights), **{str(state): number for state, number in states.items()})


def _usage_of(sights: Sequence[Sight]) -> FleetUsage:
    known = [(sight.usage, sight.standing.node) for sight in sights if sight.usage is not None]
    peak, node = max(((usage.percent, usage.entries, name) for usage, name in known), default=(0, 0, ""))[::2]
    return FleetUsage(
        entries=sum(usage.entries for usage, _ in known),
        max_entries=sum(usage.max_entries for usage, _ in known),
        peak_percent=peak,
        peak_node=node,
        drops_per_second=sum(usage.drops_per_second for usage, _ in known),
    )


def hottest_of(sights: Iterable[Sight]) -> list[HotNode]:
    """Return the nodes with the fullest tables, fullest first."""
    known = [(sight.usage, sight.standing.node) for sight in sights if sight.usage is not None]
    known.sort(key=lambda pair: (-pair[0].percent, -pair[0].entries, pair[1]))
    return [
        HotNode(
            node=name,
            percent=usage.percent,
            entries=usage.entries,
            max_entries=usage.max_entries,
            drops_per_second=usage.drops_per_second,
            seconds_to_full=usage.seconds_to_full,
        )
        for usage, name in known[:HOTTEST_MAX]
    ]


def failures_of(sights: Iterable[Sight]) -> tuple[NodeFailure, ...]:
    """Return the first failures, the gravest kind first, every node's first before any node's second."""
    failed = [
        (place, _GRAVEST_FIRST[sight.standing.state], sight.standing.node, failure)
        for sight in sights
        if sight.standing.state in _GRAVEST_FIRST
        for place, failure in enumerate(sight.standing.failures)
    ]
    failed.sort(key=lambda item: item[:3])
    return tuple(item[3] for item in failed[:FAILURES_MAX])


def _conflicts_of(sights: Iterable[Sight]) -> dict[Conflict, list[str]]:
    where: dict[Conflict, list[str]] = {}
    for sight in sights:
        for conflict in sight.conflicts:
            where.setdefault(conflict, []).append(sight.standing.node)
    return where
