"""When something that is not there has been taken away on purpose: absence alone is not deletion.

A node loses a policy's share because the policy is gone, or no longer means it. Both may be an illusion: a CRD that is
being deleted shows an empty list while it is still found, a namespace on its way out takes the operator's rights along.
So a loss counts when two full lists agree on it, some time apart, and the surroundings were right at both.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

CONFIRM_SECONDS = 10.0
"""The least time between the end of the list that first shows a loss and the beginning of the one that confirms it."""


@dataclass(frozen=True, order=True)
class Loss:
    """One policy's share that one node would lose."""

    policy: str
    """Name of the policy; empty for what is left when no policy has a share any more, the node's object itself."""
    node: str
    told: str = field(default="", compare=False)
    """When the NodeConntrack that names the policy was created, RFC 3339 in UTC as Kubernetes writes it; empty when
    that is not known. Losses are the same whatever it says."""


@dataclass(frozen=True)
class Absences:
    """What full lists have shown so far."""

    first_listed: Mapping[Loss, float] = field(default_factory=dict)
    """When the list ended that showed it first, with no list since that did not, in seconds of the caller's clock."""
    confirmed: frozenset[Loss] = frozenset()
    """Those of them that a second list agreed on."""

    def after_list(self, losses: Iterable[Loss], began: float, ended: float) -> "Absences":
        """Return what is known after a full list that shows exactly `losses`, read from `began` to `ended`."""
        listed = {loss: self.first_listed.get(loss, ended) for loss in losses}
        agreed = (loss for loss, first in listed.items() if began - first >= CONFIRM_SECONDS)
        return Absences(listed, frozenset(agreed) | (self.confirmed & listed.keys()))

    def without(self, losses: Collection[Loss]) -> "Absences":
        """Return what is known when `losses` turned out to be none."""
        kept = {loss: first for loss, first in self.first_listed.items() if loss not in losses}
        return Absences(kept, self.confirmed - frozenset(losses))

    def seconds_to_confirm(self, now: float) -> float:
        """Return in how many seconds a list may begin that confirms something; inf when nothing waits for one."""
        waiting = (first for loss, first in self.first_listed.items() if loss not in self.confirmed)
        return max(0.0, min(waiting, default=float("inf")) + CONFIRM_SECONDS - now)


def trouble_with_crd(name: str, crd: Mapping[str, Any] | None) -> str:
    """Return why what a list of this kind lacks may be there all the same, as a sentence; empty when it may not."""
    if crd is None:
        return f"the CRD {name} does not exist"
    if crd["metadata"].get("deletionTimestamp"):
        return f"the CRD {name} is being deleted"
    conditions = (crd.get("status") or {}).get("conditions") or ()
    states = {each.get("type"): each.get("status") for each in conditions}
    # It stays Established while it is being deleted (tried on 1.37), so that both are asked for.
    if states.get("Established") != "True":
        return f"the CRD {name} is not Established"
    return ""


def trouble_with_namespace(name: str, namespace: Mapping[str, Any] | None) -> str:
    """Return why the operator's namespace is no ground to act on, as a sentence; empty when it is."""
    if namespace is None:
        return f"the namespace {name} does not exist"
    phase = (namespace.get("status") or {}).get("phase")
    if namespace["metadata"].get("deletionTimestamp") or phase == "Terminating":
        return f"the namespace {name} is being deleted"
    return ""


def lost_with_their_crd(losses: Iterable[Loss], last_seen: Mapping[str, str], crd_created: str) -> frozenset[Loss]:
    """Return the losses of policies that nobody deleted: they went with an earlier CRD, which was made anew since.

    `last_seen` has the creation times of the policies seen so far, by name; `crd_created` is when the CRD of today was.
    All times are RFC 3339 in UTC as Kubernetes writes them, in whole seconds, so that they compare as text. A policy
    that is as old as the CRD or younger has lived under it. One that nobody here has seen is judged by the node that
    was told of it: told before the CRD was made, it was told by a policy of an earlier one.
    """

    def is_older(loss: Loss) -> bool:
        if not loss.policy:
            return False  # whatever shares the node had were lost before, and judged then
        seen = last_seen.get(loss.policy)
        return seen < crd_created if seen else bool(loss.told) and loss.told <= crd_created

    return frozenset(filter(is_older, losses))
