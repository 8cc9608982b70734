"""Which policies have NOTRACK rules, and which nodes a change of Services or endpoints concerns because of them.

Most changes in a cluster are about ports that no rule names; they must cost next to nothing.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

from conntrack_operator.model.node import NodeSpec
from conntrack_operator.model.policy import ConntrackPolicy

from .pods import follows_pods
from .services import PortKey, Reach, Translation, reach_of
from .targeting import Node, policies_for


@dataclass(frozen=True)
class Asking:
    """NOTRACK rules, mostly of one policy: what they take in, and the namespaces whose pods they follow."""

    policy: ConntrackPolicy | None
    reaches: tuple[Reach, ...]
    namespaces: frozenset[str]
    nodes: frozenset[str] = frozenset()
    """Nodes that have these rules of no policy anybody knows."""

    def touched_by(
        self,
        changed: Sequence[Translation],
        nodes: Iterable[Node],
        pod_ports: Callable[[], Collection[PortKey]],
        has: Callable[[str, str], bool],
    ) -> Iterator[str]:
        """Yield the names of those of `nodes` that have a rule which `changed` may meet.

        `pod_ports` gives every port followed pods may have; `has` tells whether the node of that name has the policy of
        that name at some revision, which it may although the policy does not mean it any more. An endpoint concerns the
        one node whose address it has, unless a router is asked about it; anything else concerns every node of the
        policy.
        """
        met = [
            (reach, each)
            for reach in self.reaches
            for each in changed
            if reach.meets(each) is not None and (reach.ports is not None or each.key in pod_ports())
        ]
        if not met:
            return
        at_home = all(reach.side == "Server" and each.kind == "TargetPort" for reach, each in met)
        addresses = {address for _, each in met for address in each.addresses}
        for node in nodes:
            if at_home and addresses.isdisjoint(node.addresses):
                continue
            policy = self.policy
            if node.name in self.nodes or (
                policy is not None and (policies_for(node.labels, [policy]) or has(node.name, policy.metadata.name))
            ):
                yield node.name


def asking_of(policies: Iterable[ConntrackPolicy]) -> list[Asking]:
    """Return those of `policies`, of today or at revisions that nodes may have, that have NOTRACK rules."""
    return [
        Asking(policy, tuple(reach_of(rule) for rule in rules), follows_pods(policy.spec))
        for policy in policies
        if policy.spec.notrack and (rules := policy.spec.notrack.rules)
    ]


def asking_of_nodes(specs: Iterable[tuple[str, NodeSpec]]) -> list[Asking]:
    """Return the rules in these specs, by name of their node; those that are the same are asked for once."""
    nodes: dict[tuple[Reach, ...], set[str]] = {}
    for name, spec in specs:
        rules = spec.settings.notrack.rules if spec.settings.notrack else None
        if rules:
            nodes.setdefault(tuple(map(reach_of, rules)), set()).add(name)
    return [Asking(None, reaches, frozenset(), frozenset(names)) for reaches, names in nodes.items()]
