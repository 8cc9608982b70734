"""Whose an address is: pods with their owners, Services, Nodes, from the objects that a person may see. Pure.

An address that nothing seen has is given no name. Pods on their node's own network have its address: that is the Node,
as is a loopback address: a node's table holds what the node says to itself.
"""

import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

Document = dict[str, Any]


@dataclass(frozen=True)
class Names:
    """Names by address, and what could not be looked at."""

    by_address: Mapping[str, str] = field(default_factory=dict)
    pod_networks: tuple[tuple[str, str], ...] = ()
    """Networks of pods (spec.podCIDRs), each with its Node."""
    unseen: tuple[str, ...] = ()

    def of(self, address: str) -> str:
        """Return the name of an address, empty when nobody seen has it."""
        found = self.by_address.get(address)
        if found is not None:
            return found
        try:
            parsed = ipaddress.ip_address(address)
        except ValueError:
            return ""
        if parsed.is_loopback:
            return "the node itself"
        for network, node in self.pod_networks:
            if parsed in ipaddress.ip_network(network):
                return f"no pod seen; in node {node}'s pod network"
        return ""


def names_from(
    pods: Iterable[Document], services: Iterable[Document], nodes: Iterable[Document], unseen: Iterable[str] = ()
) -> Names:
    """Return the names that these objects give. A Node's address wins over a pod's, a pod's over a Service's."""
    names: dict[str, str] = {}
    networks: list[tuple[str, str]] = []
    for service in services:
        names.update((address, f"Service {_full_name(service)}") for address in _service_addresses(service))
    for pod in pods:
        names.update((address, _pod_name(pod)) for address in _pod_addresses(pod))
    for node in nodes:
        name = node["metadata"]["name"]
        addresses = (node.get("status") or {}).get("addresses") or ()
        names.update(
            (each["address"], f"Node {name}") for each in addresses if each.get("type") in ("InternalIP", "ExternalIP")
        )
        networks.extend((network, name) for network in (node.get("spec") or {}).get("podCIDRs") or ())
    return Names(names, tuple(networks), tuple(unseen))


def _full_name(document: Document) -> str:
    return f"{document['metadata']['namespace']}/{document['metadata']['name']}"


def _pod_addresses(pod: Document) -> set[str]:
    """Return a pod's own addresses; one that has ended has none any more, whatever its status still says."""
    status = pod.get("status") or {}
    if (pod.get("spec") or {}).get("hostNetwork") or status.get("phase") in ("Succeeded", "Failed"):
        return set()
    return {address for each in (*(status.get("podIPs") or ()), {"ip": status.get("podIP")}) if (address := each["ip"])}


def _pod_name(pod: Document) -> str:
    owner = _owner(pod)
    return f"pod {_full_name(pod)}" + (f" ({owner})" if owner else "")


def _owner(pod: Document) -> str:
    """Return the pod's controller; of a Deployment's ReplicaSet the Deployment.

    The name of such a ReplicaSet is the Deployment's and the hash in the pod's label (deployment_util.go).
    """
    metadata = pod["metadata"]
    for owner in metadata.get("ownerReferences") or ():
        if owner.get("controller"):
            tail = f"-{(metadata.get('labels') or {}).get('pod-template-hash', '')}"
            if owner["kind"] == "ReplicaSet" and len(tail) > 1 and owner["name"].endswith(tail):
                return f"Deployment {owner['name'].removesuffix(tail)}"
            return f"{owner['kind']} {owner['name']}"
    return ""


def _service_addresses(service: Document) -> set[str]:
    spec, status = service.get("spec") or {}, service.get("status") or {}
    balancers = (status.get("loadBalancer") or {}).get("ingress") or ()
    listed = [*(spec.get("clusterIPs") or [spec.get("clusterIP")]), *(spec.get("externalIPs") or ())]
    listed += [each.get("ip") for each in balancers]
    return {address for address in listed if address and address != "None"}
