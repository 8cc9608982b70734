"""What a change of one thing is news for: the pieces of work it makes.

Most changes in a cluster concern nobody here, and must cost next to nothing.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal, NamedTuple

from conntrack_operator.decide.asking import Asking, asking_of, asking_of_nodes
from conntrack_operator.decide.pods import HostPod
from conntrack_operator.decide.services import Translation
from conntrack_operator.decide.targeting import Node, policies_for
from conntrack_operator.model.node import NodeConntrack
from conntrack_operator.model.policy import ConntrackPolicy

from .host_pods import HostPods
from .shelf import Change, Shelf
from .sights import Unreadable


class Key(NamedTuple):
    """One piece of work: a node's object, a policy's status, all rollouts, the agents, or everything read anew."""

    kind: Literal["node", "policy", "rollout", "agents", "list", "look"]
    name: str = ""

    def __str__(self) -> str:
        return f"{self.kind} {self.name}".rstrip()


ROLLOUT = Key("rollout")


class Touched:
    """Tells what changes touch, by what is on the shelves. Not safe for threads by itself; the store's lock is."""

    def __init__(
        self,
        policies: Shelf[ConntrackPolicy | Unreadable],
        nodes: Shelf[Node],
        node_conntracks: Shelf[NodeConntrack | Unreadable],
        host_pods: HostPods,
    ) -> None:
        self._policies, self._nodes, self._node_conntracks = policies, nodes, node_conntracks
        self._host_pods = host_pods
        self._asking: list[Asking] | None = None
        self.kept: Callable[[], Iterable[ConntrackPolicy]] = tuple
        """Gives the policies at all revisions that nodes may have."""
        self.knows: Callable[[str, str], bool] = lambda _policy, _revision: True
        """Tells whether a revision of a policy is among them."""
        self.away: frozenset[str] = frozenset()
        """Nodes that could be given nothing when the rollouts were judged last: a word from one of them is news."""

    def forget_rules(self) -> None:
        """Work out anew which policies have rules."""
        self._asking = None

    def by_policy(self, change: Change[ConntrackPolicy | Unreadable]) -> Iterator[Key]:
        """Yield what a change of a policy is news for."""
        before, after = change.before, change.after
        yield Key("policy", change.name)
        if isinstance(before, ConntrackPolicy) and isinstance(after, ConntrackPolicy) and not _differs(before, after):
            return
        sides = [side for side in (before, after) if side is not None]
        readable = [side for side in sides if isinstance(side, ConntrackPolicy)]
        everywhere = len(readable) < len(sides)
        for node in self._nodes.values():
            if everywhere or policies_for(node.labels, readable):
                yield Key("node", node.name)
        # What one policy sets, another may have lost by it or won back.
        yield from (Key("policy", name) for name in self._policies.names())
        yield from (ROLLOUT, Key("agents"))

    def by_node(self, change: Change[Node]) -> Iterator[Key]:
        """Yield what a change of a Node is news for."""
        yield from (Key("node", change.name), ROLLOUT)
        for side in (change.before, change.after):
            if side is not None:
                yield from self._policies_of(side)

    def by_node_conntrack(self, change: Change[NodeConntrack | Unreadable]) -> Iterator[Key]:
        """Yield what a change of a node's object is news for."""
        if _answer_of(change.before) != _answer_of(change.after):
            # A heartbeat alone changes nothing for the node, and there are many.
            yield from (Key("node", change.name), ROLLOUT)
        elif change.name in self.away:
            yield ROLLOUT
        if self._is_lost(change.after):
            self.forget_rules()
        if change.before is None or change.after is None:
            yield Key("agents")
        node = self._nodes.get(change.name)
        if node is not None:
            yield from self._policies_of(node)

    def by_agents(self, nodes: Iterable[str]) -> Iterator[Key]:
        """Yield what to look at when something else is known of the agents' pods on `nodes`."""
        for name in nodes:
            yield from (ROLLOUT, Key("agents"))
            if (node := self._nodes.get(name)) is not None:
                yield from self._policies_of(node)

    def by_pods(self, pods: Iterable[HostPod]) -> Iterator[Key]:
        """Yield the nodes of `pods`, where any policy follows pods of their namespace."""
        followed = frozenset(name for asking in self._policies_with_rules() for name in asking.namespaces)
        yield from (Key("node", pod.node) for pod in pods if pod.namespace in followed)

    def by_translations(self, changed: Sequence[Translation]) -> Iterator[Key]:
        """Yield the nodes that have a rule which these Services or endpoints may meet."""
        for asking in self._policies_with_rules() if changed else ():
            touched = asking.touched_by(changed, self._nodes.values(), self._host_pods.ports, self._has)
            yield from (Key("node", name) for name in touched)

    def _policies_with_rules(self) -> list[Asking]:
        if self._asking is None:
            lost = (
                (each.metadata.name, each.spec)
                for each in self._node_conntracks.values()
                if isinstance(each, NodeConntrack) and self._is_lost(each)
            )
            self._asking = [*asking_of([*readable(self._policies), *self.kept()]), *asking_of_nodes(lost)]
        return self._asking

    def _is_lost(self, found: NodeConntrack | Unreadable | None) -> bool:
        """Tell whether a node has rules of a revision nobody knows."""
        if not isinstance(found, NodeConntrack) or found.spec.settings.notrack is None:
            return False
        return not all(self.knows(use.name, use.revision) for use in found.spec.policies)

    def _has(self, node: str, policy: str) -> bool:
        found = self._node_conntracks.get(node)
        return isinstance(found, NodeConntrack) and any(use.name == policy for use in found.spec.policies)

    def _policies_of(self, node: Node) -> Iterator[Key]:
        for policy in policies_for(node.labels, readable(self._policies)):
            yield Key("policy", policy.metadata.name)


def readable(policies: Shelf[ConntrackPolicy | Unreadable]) -> list[ConntrackPolicy]:
    """Return those of `policies` that can be read."""
    return [item for item in policies.values() if isinstance(item, ConntrackPolicy)]


def _answer_of(found: NodeConntrack | Unreadable | None) -> object:
    """Return all of a node's object that decides what is done next."""
    if not isinstance(found, NodeConntrack):
        return found
    meta, status = found.metadata, found.status
    about = (meta.uid, meta.owner_references, found.spec)
    if status is None:
        return about
    conditions = [(each.type, each.status) for each in status.conditions]
    answer = (status.node_uid, status.observed_revision, status.observed_attempt, status.phase)
    return (*about, *answer, conditions, bool(status.heartbeat_time))


def _differs(before: ConntrackPolicy, after: ConntrackPolicy) -> bool:
    """Tell whether more than the status changed."""
    return (
        before.spec != after.spec
        or before.metadata.uid != after.metadata.uid
        or before.metadata.deletion_timestamp != after.metadata.deletion_timestamp
    )
