"""Which ports Kubernetes translates, and which of them meet the NOTRACK rules of a node.

kube-proxy translates by DNAT, and DNAT needs tracking: a packet that a rule leaves untracked is not translated, and a
reply that it leaves untracked is not translated back. What meets a rule depends on the side the node has in it:

- Server: what arrives for the node itself. NodePorts, and addresses of load balancers and external addresses that may
  be the node's own; and the ports of endpoints at the node's own addresses (TargetPort), since a client on this node
  reaches them by the Service's address and waits for the reply to come back from there.
- Client: what the node connects to. Every address of a Service (ClusterIP, LoadBalancer, ExternalIP) among the rule's.
- Forward: all of these, and the ports of any endpoint: a reply comes through with the endpoint's port.

A hostPort is not among them: the plugin that makes one (portmap) does so by NAT rules of the node's own, which the
agent reads there at once, and the API server cannot pick the pods that have one out of all others.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from itertools import chain, zip_longest
from typing import Literal

from conntrack_operator.model.node import SERVICES_MAX
from conntrack_operator.model.notrack import NotrackRule
from conntrack_operator.model.surroundings import Service

from .intervals import Intervals, covers, port_intervals

Kind = Literal["NodePort", "LoadBalancer", "ExternalIP", "ClusterIP", "TargetPort"]

PortKey = tuple[str, int]
"""A protocol as in the API (TCP) and a port."""

ADDRESSES_MAX = 16
"""Addresses told of one Service: those that meet a rule, as many as help a person to find it."""

_MET_BY: Mapping[str, frozenset[Kind]] = {
    "Server": frozenset({"NodePort", "LoadBalancer", "ExternalIP", "TargetPort"}),
    "Client": frozenset({"LoadBalancer", "ExternalIP", "ClusterIP"}),
    "Forward": frozenset({"NodePort", "LoadBalancer", "ExternalIP", "ClusterIP", "TargetPort"}),
}


@dataclass(frozen=True, order=True)
class Translation:
    """One port that a Service translates, or (TargetPort) translates to."""

    protocol: str
    port: int
    kind: Kind
    service: str
    """Namespace and name: shop/web."""
    addresses: tuple[str, ...] = ()
    """Where; for a NodePort none, which means every address of every node."""

    @property
    def key(self) -> PortKey:
        """Protocol and port."""
        return self.protocol, self.port


@dataclass(frozen=True)
class Reach:
    """What one rule takes in, prepared for being asked often. `ports` is None when they follow pods."""

    side: str
    protocol: str
    ports: Intervals | None
    addresses: tuple[str, ...] | None = None

    def has(self, key: PortKey) -> bool:
        """Tell whether the rule may be about this port."""
        protocol, port = key
        return protocol == self.protocol and (self.ports is None or covers(self.ports, [(port, port)]))

    def meets(self, translation: Translation) -> tuple[str, ...] | None:
        """Return the addresses at which `translation` meets the rule, empty for all of a node's; None when it does not.

        Endpoints are told by address in a Server rule, where they must be the node's own.
        """
        if translation.kind not in _MET_BY[self.side] or not self.has(translation.key):
            return None
        if self.addresses is None or translation.kind == "NodePort":
            return translation.addresses
        networks = [ip_network(text) for text in self.addresses]
        within = tuple(
            text for text in translation.addresses if any(ip_address(text) in network for network in networks)
        )
        return within or None


def reach_of(rule: NotrackRule) -> Reach:
    """Return what `rule` takes in."""
    return Reach(
        side=rule.side or "Server",
        protocol=rule.protocol or "TCP",
        ports=None if rule.ports is None else port_intervals(rule.ports),
        addresses=None if rule.addresses is None else tuple(rule.addresses),
    )


@dataclass(frozen=True)
class Concern:
    """What meets the same rules on many nodes: `everywhere`, and `at` the node that has the address."""

    everywhere: tuple[Service, ...] = ()
    at: Mapping[str, tuple[Service, ...]] = field(default_factory=dict)

    def on(self, addresses: Iterable[str]) -> list[Service]:
        """Return what meets the rules on the node with these addresses: at most SERVICES_MAX, in a settled order."""
        by_port: dict[PortKey, dict[tuple[str, ...], Service]] = {}
        for address in addresses:
            for service in self.at.get(address, ()):
                _note(by_port.setdefault((service.protocol, service.port), {}), service)
        # The node's own first: half of the room is kept for what is the same on all nodes.
        first = _in_turn(by_port[key] for key in sorted(by_port))[: SERVICES_MAX // 2]
        return sorted([*first, *self.everywhere[: SERVICES_MAX - len(first)]], key=_order)


def concern_of(reaches: Sequence[Reach], translations: Iterable[Translation]) -> Concern:
    """Return which of `translations` meet rules of these reaches.

    Where there are too many, every rule gets its turn: one Service is enough to refuse it.
    """
    by_rule: list[dict[tuple[str, ...], Service]] = [{} for _ in reaches]
    at: dict[str, dict[tuple[str, ...], Service]] = {}
    for translation in translations:
        for reach, found in zip(reaches, by_rule, strict=True):
            addresses = reach.meets(translation)
            if addresses is None:
                continue
            if translation.kind != "TargetPort":
                _note(found, _service(translation, sorted(addresses)[:ADDRESSES_MAX]))
            elif reach.side == "Server":
                for address in addresses:
                    _note(at.setdefault(address, {}), _service(translation, [address]))
            elif addresses:
                # Endpoints come and go; that there are some is what matters to a router, and which must not make news.
                _note(found, _service(translation, []))
    return Concern(
        tuple(_in_turn(by_rule)[:SERVICES_MAX]),
        {address: tuple(found[key] for key in sorted(found)) for address, found in at.items()},
    )


def changed_between(before: Iterable[Translation], after: Iterable[Translation]) -> Iterator[Translation]:
    """Yield what one object translates now and did not before, or the other way round.

    Of endpoints only the addresses that differ are told: a slice with a hundred of them changes by one.
    """
    old, new = set(before), set(after)
    yield from (each for each in old ^ new if each.kind != "TargetPort")
    was, now = _endpoints(old), _endpoints(new)
    for place in sorted(was.keys() | now.keys()):
        addresses = was.get(place, set()) ^ now.get(place, set())
        if addresses:
            protocol, port, service = place
            yield Translation(protocol, port, "TargetPort", service, tuple(sorted(addresses)))


def _endpoints(translations: Iterable[Translation]) -> dict[tuple[str, int, str], set[str]]:
    found: dict[tuple[str, int, str], set[str]] = {}
    for each in translations:
        if each.kind == "TargetPort":
            found.setdefault((each.protocol, each.port, each.service), set()).update(each.addresses)
    return found


def _in_turn(groups: Iterable[Mapping[tuple[str, ...], Service]]) -> list[Service]:
    """Return the first of every group, then the second of every group and so on, each Service once."""
    ordered = ([group[key] for key in sorted(group)] for group in groups)
    in_turn = chain.from_iterable(zip_longest(*ordered))
    return list({_order(service): service for service in in_turn if service is not None}.values())


def _service(translation: Translation, addresses: list[str]) -> Service:
    return Service.model_validate(
        {
            "name": translation.service,
            "kind": translation.kind,
            "protocol": translation.protocol,
            "port": translation.port,
            "addresses": addresses,
        }
    )


def _note(found: dict[tuple[str, ...], Service], service: Service) -> None:
    found[_order(service)] = service


def _order(service: Service) -> tuple[str, ...]:
    return (service.protocol, f"{service.port:05}", service.kind, service.name, *service.addresses)
