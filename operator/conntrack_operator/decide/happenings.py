"""What a person must be told about, found by comparing two statuses of a policy; the controller posts it as Events.

A change is told once, when it begins. Comparing with the status that is stored, and not with one remembered, means
that a restarted controller does not tell it again.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from conntrack_operator.model.status import Condition, PolicyStatus


@dataclass(frozen=True)
class Happening:
    """One Event to be. `node` names the node it happened to, empty when it concerns the policy as a whole."""

    type: Literal["Normal", "Warning"]
    reason: str
    message: str
    node: str = ""


def happenings_between(before: PolicyStatus | None, after: PolicyStatus) -> Iterator[Happening]:
    """Yield what begins with `after`: no node matches, all are current, a conflict, a full table, a refusing node."""
    old, new = _conditions(before), _conditions(after)
    ready = new["Ready"]
    if ready.reason != (old["Ready"].reason if "Ready" in old else ""):
        if ready.status == "True":
            yield Happening("Normal", ready.reason, ready.message)
        elif ready.reason == "NoNodeMatches":
            yield Happening("Warning", ready.reason, ready.message)
    for kind in ("Conflicted", "Saturated"):
        if new[kind].status == "True" and (kind not in old or old[kind].status != "True"):
            yield Happening("Warning", kind, new[kind].message)
    known = {(failure.node, failure.reason) for failure in (before.failures if before else ())}
    fresh = [failure for failure in after.failures if (failure.node, failure.reason) not in known]
    # At most FAILURES_MAX of them, since a status names no more: a bad policy on 5,000 nodes is no storm.
    for failure in fresh:
        yield Happening("Warning", failure.reason, f"{failure.node}: {failure.message}", failure.node)


def _conditions(status: PolicyStatus | None) -> dict[str, Condition]:
    return {condition.type: condition for condition in (status.conditions if status else ())}
