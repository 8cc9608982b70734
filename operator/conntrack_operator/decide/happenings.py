"""What a person must be told about, found by comparing two statuses of a policy; the controller posts it as Events.

A change is told once, when it begins, and when it is over. Comparing with the status that is stored, and not with one
remembered, means that a restarted controller does not tell it again.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from conntrack_operator.model.status import FAILURES_MAX, Condition, NodeFailure, PolicyStatus

from .conditions import AGENTS_NOT_RUNNING
from .rollout import CANARY_FAILED, CANARY_SILENT, TOO_MANY_FAILURES
from .trial import ROLLED_BACK_BY

ROLLED_BACK = "RolledBack"
RECOVERED = "Recovered"
RESUMED = "RolloutResumed"
HALTS = frozenset({CANARY_FAILED, CANARY_SILENT, TOO_MANY_FAILURES})
"""Reasons of Stalled while a rollout has stopped by itself."""
TOLD_BY_NODES = "NodesFailed"
"""Reason of Stalled that is no news: every node it is about has an event of its own."""
AGENTS_START = "AgentsStart"
_GRAVER = frozenset({AGENTS_NOT_RUNNING, "NodesFailed"})
"""Reasons of Degraded with which agents may still not run."""


@dataclass(frozen=True)
class Happening:
    """One Event to be. `node` names the node it happened to, empty when it concerns the policy as a whole."""

    type: Literal["Normal", "Warning"]
    reason: str
    message: str
    node: str = ""


def happenings_between(before: PolicyStatus | None, after: PolicyStatus) -> Iterator[Happening]:
    """Yield what begins with `after`, and what is over.

    No node matches, all are current, a conflict, a full table, agents that do not run, a rollout that halts or goes on,
    nodes that gave up, a node that fails or fails no more.
    """
    old, new = _conditions(before), _conditions(after)
    yield from _of_policy(old, new)
    yield from _of_rollout(old, new)
    failed = before.failures if before else []
    yield from _failing(failed, after.failures)
    if "Reconciling" in new and new["Reconciling"].status == "False":
        yield from _recovered(failed, after.failures)


def _of_policy(old: Mapping[str, Condition], new: Mapping[str, Condition]) -> Iterator[Happening]:
    ready, degraded = new.get("Ready"), new.get("Degraded")
    if ready and ready.reason != _reason(old, "Ready"):
        if ready.status == "True":
            yield Happening("Normal", ready.reason, ready.message)
        elif ready.reason == "NoNodeMatches":
            yield Happening("Warning", ready.reason, ready.message)
    for kind in ("Conflicted", "Saturated"):
        if _holds(new, kind) and not _holds(old, kind):
            yield Happening("Warning", kind, new[kind].message)
    if degraded and degraded.reason == AGENTS_NOT_RUNNING != _reason(old, "Degraded"):
        yield Happening("Warning", AGENTS_NOT_RUNNING, degraded.message)
    elif degraded and _reason(old, "Degraded") == AGENTS_NOT_RUNNING and degraded.reason not in _GRAVER:
        yield Happening("Normal", AGENTS_START, "nothing keeps agents from running any more")


def _of_rollout(old: Mapping[str, Condition], new: Mapping[str, Condition]) -> Iterator[Happening]:
    stalled, ready, was = new.get("Stalled"), new.get("Ready"), _reason(old, "Stalled")
    if not stalled or stalled.reason in (was, TOLD_BY_NODES):
        return
    if stalled.status == "True":
        yield Happening("Warning", stalled.reason, stalled.message)
    elif was in HALTS and ready and ready.status != "True":
        yield Happening("Normal", RESUMED, f"the rollout goes on: {ready.message}")


def _failing(before: Iterable[NodeFailure], after: Iterable[NodeFailure]) -> Iterator[Happening]:
    """Yield the failures that begin: one for each node and reason, however many settings it is about.

    At most FAILURES_MAX of them, since a status names no more: a bad policy on 5,000 nodes is no storm.
    """
    known = {(failure.node, failure.reason) for failure in before}
    for failure in after:
        if (failure.node, failure.reason) not in known:
            known.add((failure.node, failure.reason))
            reason = ROLLED_BACK if failure.reason in ROLLED_BACK_BY else failure.reason
            yield Happening("Warning", reason, f"{failure.node}: {failure.message}", failure.node)


def _recovered(before: list[NodeFailure], after: list[NodeFailure]) -> Iterator[Happening]:
    """Yield the nodes that fail no more. Where a list is full, nobody can tell who left it for being well."""
    if FAILURES_MAX in (len(before), len(after)):
        return
    still = {failure.node for failure in after}
    was = {failure.node: failure.reason for failure in reversed(before) if failure.node not in still}
    for node, reason in sorted(was.items()):
        yield Happening("Normal", RECOVERED, f"{node}: nothing fails there any more (it was {reason})", node)


def _holds(conditions: Mapping[str, Condition], kind: str) -> bool:
    return kind in conditions and conditions[kind].status == "True"


def _reason(conditions: Mapping[str, Condition], kind: str) -> str:
    return conditions[kind].reason if kind in conditions else ""


def _conditions(status: PolicyStatus | None) -> dict[str, Condition]:
    return {condition.type: condition for condition in (status.conditions if status else ())}
