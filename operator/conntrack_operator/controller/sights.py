"""From what the API server sends to what decisions are made of, for every kind the controller watches.

A document that cannot be read is a value of its own and never the same as none: what cannot be read has not been
withdrawn.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from conntrack_operator.decide.pods import HostPod, PodPort
from conntrack_operator.decide.services import Kind, Translation
from conntrack_operator.decide.standing import time_in
from conntrack_operator.decide.targeting import Node
from conntrack_operator.model.node import NodeConntrack
from conntrack_operator.model.policy import ConntrackPolicy

M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True)
class Unreadable:
    """An object that is there and cannot be understood, with the reason as a sentence."""

    name: str
    uid: str
    generation: int
    sentence: str


def policy_in(document: dict[str, Any]) -> ConntrackPolicy | Unreadable:
    """Return the policy in `document`. Its status is ours: one that cannot be read counts as none."""
    return _read(ConntrackPolicy, document)


def node_conntrack_in(document: dict[str, Any]) -> NodeConntrack | Unreadable:
    """Return the NodeConntrack in `document`. A status that cannot be read counts as none: no answer yet."""
    return _read(NodeConntrack, document)


def node_in(document: dict[str, Any]) -> Node:
    """Return what we need of the Node in `document`."""
    metadata = document["metadata"]
    addresses = sorted(
        {
            each["address"]
            for each in (document.get("status") or {}).get("addresses") or ()
            if each.get("type") in ("InternalIP", "ExternalIP")
        }
    )
    conditions = (document.get("status") or {}).get("conditions") or ()
    ready = [each.get("status") == "True" for each in conditions if each.get("type") == "Ready"]
    return Node(
        metadata["name"],
        metadata["uid"],
        metadata.get("labels") or {},
        tuple(addresses),
        ready=all(ready),
        created=time_in(metadata.get("creationTimestamp") or ""),
    )


def pod_in(document: dict[str, Any]) -> HostPod | None:
    """Return the pod in `document` when it holds ports of its node, else None.

    It does from the moment it is bound to the node, so that its rules are there when it starts, and until it is gone:
    one that is being deleted still serves its last connections. One that has ended and will not start again does not.
    """
    spec, metadata = document.get("spec") or {}, document["metadata"]
    ended = (document.get("status") or {}).get("phase") in ("Succeeded", "Failed")
    if not spec.get("hostNetwork") or not spec.get("nodeName") or ended:
        return None
    # Init containers that run on beside the others (restartPolicy Always, 1.29) serve like them.
    sidecars = [each for each in spec.get("initContainers") or () if each.get("restartPolicy") == "Always"]
    ports = sorted(
        {
            (port["containerPort"], port.get("protocol") or "TCP", port.get("name") or "")
            for container in (*(spec.get("containers") or ()), *sidecars)
            for port in container.get("ports") or ()
        }
    )
    if not ports:
        return None
    return HostPod(
        namespace=metadata["namespace"],
        name=metadata["name"],
        node=spec["nodeName"],
        labels=metadata.get("labels") or {},
        ports=tuple(PodPort(*each) for each in ports),
    )


@dataclass(frozen=True)
class Translator:
    """What one Service translates, or the endpoints in one EndpointSlice that it translates to."""

    service: str
    translations: tuple[Translation, ...]


def service_in(document: dict[str, Any]) -> Translator | None:
    """Return what the Service in `document` translates; None when it is headless or a mere name (ExternalName)."""
    spec, metadata = document.get("spec") or {}, document["metadata"]
    cluster_ips = spec.get("clusterIPs") or [spec.get("clusterIP")]
    if spec.get("type") == "ExternalName" or cluster_ips[0] in (None, "", "None"):
        return None
    name = f"{metadata['namespace']}/{metadata['name']}"
    ingress = ((document.get("status") or {}).get("loadBalancer") or {}).get("ingress") or ()
    at: dict[Kind, list[str]] = {
        "ClusterIP": cluster_ips,
        "ExternalIP": spec.get("externalIPs") or [],
        # With ipMode Proxy the load balancer itself translates, and nodes see their own addresses (KEP-1860).
        "LoadBalancer": [each["ip"] for each in ingress if each.get("ip") and each.get("ipMode") != "Proxy"],
    }
    return Translator(name, tuple(_of_service(name, spec.get("ports") or (), at)))


def _of_service(name: str, ports: Any, at: dict[Kind, list[str]]) -> Iterator[Translation]:
    for port in ports:
        protocol = port.get("protocol") or "TCP"
        for kind, addresses in at.items():
            if addresses:
                yield Translation(protocol, port["port"], kind, name, tuple(sorted(addresses)))
        if port.get("nodePort"):
            yield Translation(protocol, port["nodePort"], "NodePort", name)


def slice_in(document: dict[str, Any]) -> Translator | None:
    """Return the endpoints in `document`, an EndpointSlice, ready or not; None when it is no Service's or has names."""
    metadata = document["metadata"]
    service = (metadata.get("labels") or {}).get("kubernetes.io/service-name")
    if not service or document.get("addressType") == "FQDN":
        return None
    addresses = tuple(
        sorted({text for each in document.get("endpoints") or () for text in each.get("addresses") or ()})
    )
    name = f"{metadata['namespace']}/{service}"
    ports = {(each.get("protocol") or "TCP", each["port"]) for each in document.get("ports") or () if each.get("port")}
    if not ports or not addresses:
        return None
    return Translator(
        name, tuple(Translation(protocol, port, "TargetPort", name, addresses) for protocol, port in sorted(ports))
    )


def slimmed(document: dict[str, Any]) -> dict[str, Any]:
    """Return a listed document without what nobody here looks at, so that a long list takes a fraction of the memory.

    Who wrote which field is half of most objects; of an endpoint its addresses are needed alone.
    """
    document["metadata"].pop("managedFields", None)
    if "endpoints" in document:
        document["endpoints"] = [{"addresses": each.get("addresses")} for each in document["endpoints"] or ()]
    return document


def _read(model: type[M], document: dict[str, Any]) -> M | Unreadable:
    try:
        return model.model_validate(document)
    except ValidationError:
        pass
    try:
        return model.model_validate({key: value for key, value in document.items() if key != "status"})
    except ValidationError as error:
        first = error.errors()[0]
        metadata = document["metadata"]
        return Unreadable(
            name=metadata["name"],
            uid=metadata.get("uid", ""),
            generation=metadata.get("generation", 0),
            sentence=f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}",
        )
