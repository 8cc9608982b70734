"""Looks up whose addresses are, by the person's own rights; what may not be seen is said."""

from collections.abc import Collection
from typing import Any

from conntrack_operator.cluster.objects import NODES, SERVICES
from conntrack_operator.cluster.person import PODS, Person

from .access import unless_forbidden
from .names import Names, names_from

ONE_BY_ONE = 24
"""Up to so many addresses each is asked for by itself (field selector status.podIP); more, or IPv6 ones, which may be a
pod's second address and are not found so, take one list of all pods."""


def names_for(person: Person, addresses: Collection[str]) -> Names:
    """Return the names of `addresses`, as far as the person may see their owners."""
    if not addresses:
        return Names()
    unseen: list[str] = []
    nodes = unless_forbidden(lambda: person.all(NODES, slim=_slim), unseen, "names of Nodes")
    services = unless_forbidden(lambda: person.all(SERVICES, slim=_slim), unseen, "names of Services")
    pods = unless_forbidden(lambda: _pods(person, addresses), unseen, "names of pods")
    return names_from(pods or (), services or (), nodes or (), unseen)


def _pods(person: Person, addresses: Collection[str]) -> list[dict[str, Any]]:
    if len(addresses) > ONE_BY_ONE or any(":" in address for address in addresses):
        return person.all(PODS, slim=_slim)
    return [pod for each in addresses for pod in person.all(PODS, fields=f"status.podIP={each}", slim=_slim)]


def _slim(document: dict[str, Any]) -> dict[str, Any]:
    """Return what names are made of: a list of all pods of a large cluster is hundreds of megabytes."""
    metadata = document["metadata"]
    kept = {
        "metadata": ("name", "namespace", "ownerReferences", "labels"),
        "spec": ("hostNetwork", "clusterIP", "clusterIPs", "externalIPs", "podCIDRs"),
        "status": ("podIP", "podIPs", "phase", "addresses", "loadBalancer"),
    }
    parts = {"metadata": metadata, "spec": document.get("spec") or {}, "status": document.get("status") or {}}
    return {part: {key: parts[part][key] for key in keys if key in parts[part]} for part, keys in kept.items()}
