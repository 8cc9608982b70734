"""Rules whose ports follow pods, turned into the ports of the host-network pods that run on one node.

Merged settings are the same for many nodes and name pods; a node's spec names ports. A rule that finds no port on a
node is left out of that node's spec: there is nothing there to spare.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from conntrack_operator.model.notrack import NotrackRule, PodPorts
from conntrack_operator.model.policy import Settings

from .intervals import merged, port_text
from .targeting import selects

PORTS_MAX = 1024
"""Ports and ranges that one rule takes (model.policy.NotrackRule.ports)."""


@dataclass(frozen=True)
class PodPort:
    """A port that a container declares. On the host's network it is the node's port too."""

    port: int
    protocol: str = "TCP"
    name: str = ""


@dataclass(frozen=True)
class HostPod:
    """A pod on the network of its node, with the ports it declares."""

    namespace: str
    name: str
    node: str
    labels: Mapping[str, str] = field(default_factory=dict)
    ports: tuple[PodPort, ...] = ()


def resolved(settings: Settings, pods: Sequence[HostPod] | None, before: Settings | None = None) -> Settings:
    """Return `settings` with every rule's `pods` replaced by the ports they have among `pods`, those of one node.

    `pods` is None when they cannot be seen: then a rule keeps the ports it has in `before`, since what cannot be seen
    has not gone, and one that has none there is left out.
    """
    notrack = settings.notrack
    if notrack is None or not any(rule.pods is not None for rule in notrack.rules or ()):
        return settings
    known = {rule.name: rule for rule in _rules_of(before)}
    rules = list(_resolved(notrack.rules or (), pods, known))
    bare = notrack.model_copy(update={"rules": rules or None})
    # Without a single field it must be as if nobody had written it, or the same settings would have two revisions.
    return settings.model_copy(update={"notrack": bare if bare.document() else None})


def ports_of(asked: PodPorts, protocol: str, pods: Iterable[HostPod]) -> list[int | str]:
    """Return the ports that the pods meant by `asked` declare for `protocol`, sorted and each once."""
    names = asked.port_names
    found = sorted(
        {
            port.port
            for pod in pods
            if pod.namespace == asked.namespace and selects(asked.selector, pod.labels)
            for port in pod.ports
            if port.protocol == protocol and (names is None or port.name in names)
        }
    )
    if len(found) <= PORTS_MAX:
        return list(found)
    ranges = merged((port, port) for port in found)[:PORTS_MAX]
    return list(map(port_text, ranges))


def follows_pods(settings: Settings) -> frozenset[str]:
    """Return the namespaces whose pods the rules of `settings` follow; none when no rule does."""
    return frozenset(rule.pods.namespace for rule in _rules_of(settings) if rule.pods is not None)


def _resolved(
    rules: Iterable[NotrackRule], pods: Sequence[HostPod] | None, known: Mapping[str, NotrackRule]
) -> Iterator[NotrackRule]:
    for rule in rules:
        if rule.pods is None:
            yield rule
            continue
        if pods is None:
            ports = known[rule.name].ports if rule.name in known else None
        else:
            ports = ports_of(rule.pods, rule.protocol or "TCP", pods)
        if ports:
            yield rule.model_copy(update={"ports": list(ports), "pods": None})


def _rules_of(settings: Settings | None) -> Sequence[NotrackRule]:
    return (settings.notrack.rules if settings is not None and settings.notrack is not None else None) or ()
