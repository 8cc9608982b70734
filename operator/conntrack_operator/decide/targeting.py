"""Which nodes a selector means: metav1.LabelSelector, judged exactly as Kubernetes judges it.

One difference is deliberate: an empty selector, which Kubernetes reads as "everything", means nothing here.
The API refuses one, and if one slips through all the same it must not reach every node.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from conntrack_operator.model.policy import ConntrackPolicy
from conntrack_operator.model.selector import LabelRequirement, LabelSelector


@dataclass(frozen=True)
class Node:
    """What the controller needs to know of a Node object."""

    name: str
    uid: str
    labels: Mapping[str, str] = field(default_factory=dict)
    addresses: tuple[str, ...] = ()
    """Its own addresses, internal and external."""
    ready: bool = True
    """What its Ready condition says; a node that has none, which no kubelet has ever spoken for, passes."""
    created: datetime | None = None
    """When the Node object was made."""


def requirement_holds(requirement: LabelRequirement, labels: Mapping[str, str]) -> bool:
    """Return whether `labels` satisfy one matchExpressions entry.

    NotIn holds for an absent label too, as in apimachinery's labels.Requirement.Matches.
    """
    present = requirement.key in labels
    among = present and labels[requirement.key] in (requirement.values or ())
    match requirement.operator:
        case "In":
            return among
        case "NotIn":
            return not among
        case "Exists":
            return present
        case "DoesNotExist":
            return not present


def selects(selector: LabelSelector, labels: Mapping[str, str]) -> bool:
    """Return whether every condition of `selector` holds for `labels`; an empty selector selects nothing."""
    if not selector.match_labels and not selector.match_expressions:
        return False
    return all(labels.get(key) == value for key, value in (selector.match_labels or {}).items()) and all(
        requirement_holds(requirement, labels) for requirement in selector.match_expressions or ()
    )


def policies_for(labels: Mapping[str, str], policies: Iterable[ConntrackPolicy]) -> list[ConntrackPolicy]:
    """Return the policies that select a node with `labels`, but for those that are being deleted."""
    return [
        policy
        for policy in policies
        if policy.metadata.deletion_timestamp is None and selects(policy.spec.node_selector, labels)
    ]


def selector_text(selector: LabelSelector) -> str:
    """Return `selector` as one writes it after `kubectl get nodes -l`."""
    parts = [f"{key}={value}" for key, value in sorted((selector.match_labels or {}).items())]
    for requirement in selector.match_expressions or ():
        values = ",".join(requirement.values or ())
        parts.append(
            {
                "In": f"{requirement.key} in ({values})",
                "NotIn": f"{requirement.key} notin ({values})",
                "Exists": requirement.key,
                "DoesNotExist": f"!{requirement.key}",
            }[requirement.operator]
        )
    return ",".join(parts)
