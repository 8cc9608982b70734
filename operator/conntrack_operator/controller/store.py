"""What the controller knows of the cluster, and what a change of one thing touches.

Of Services, endpoints and pods it keeps only what rules can meet: ports and addresses.
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from conntrack_operator.cluster.objects import (
    ENDPOINT_SLICES,
    HOST_PODS,
    NODE_CONNTRACKS,
    NODES,
    POLICIES,
    SERVICES,
    Kind,
    Listing,
)
from conntrack_operator.decide.asking import Asking, asking_of
from conntrack_operator.decide.pods import HostPod
from conntrack_operator.decide.services import Translation
from conntrack_operator.decide.targeting import Node, policies_for
from conntrack_operator.decide.targets import Local
from conntrack_operator.model.node import NodeConntrack
from conntrack_operator.model.policy import ConntrackPolicy, NotrackRule
from conntrack_operator.model.surroundings import Service

from .agent_pods import AgentPods
from .hearing import Hearing
from .host_pods import HostPods
from .shelf import Change, Shelf
from .sights import Unreadable, node_conntrack_in, node_in, policy_in
from .translations import Translations


class Key(NamedTuple):
    """One piece of work: a node's object, a policy's status, all rollouts, the agents, or everything read anew."""

    kind: Literal["node", "policy", "rollout", "agents", "list"]
    name: str = ""

    def __str__(self) -> str:
        return f"{self.kind} {self.name}".rstrip()


ROLLOUT = Key("rollout")


@dataclass(frozen=True)
class Lists:
    """Full lists of everything. What may not be listed is None; `refused` says why, by the kind's plural."""

    policies: Listing
    nodes: Listing
    node_conntracks: Listing
    services: Listing | None = None
    slices: Listing | None = None
    pods: Listing | None = None
    refused: Mapping[str, str] = field(default_factory=dict)


class Store:
    """All that is known. Reads return copies; every write returns the keys of the work it makes."""

    def __init__(self, namespace: str = "") -> None:
        self._lock = threading.Lock()
        self.hearing = Hearing()
        self.agent_pods = AgentPods(namespace)
        self._policies: Shelf[ConntrackPolicy | Unreadable] = Shelf(policy_in)
        self._nodes: Shelf[Node] = Shelf(node_in)
        self._node_conntracks: Shelf[NodeConntrack | Unreadable] = Shelf(node_conntrack_in)
        self._host_pods = HostPods()
        self._translations = Translations()
        self._refused: Mapping[str, str] = {}
        self._asking: list[Asking] | None = None
        self.puts: Mapping[Kind, Callable[..., set[Key]]] = {
            POLICIES: self.put_policy,
            NODES: self.put_node,
            NODE_CONNTRACKS: self.put_node_conntrack,
            SERVICES: self.put_service,
            ENDPOINT_SLICES: self.put_slice,
            HOST_PODS: self.put_pod,
        }
        """For every kind that is watched, what takes in a sight of it."""

    def policy(self, name: str) -> ConntrackPolicy | Unreadable | None:
        """Return the policy named so."""
        with self._lock:
            return self._policies.get(name)

    def policies(self) -> list[ConntrackPolicy]:
        """Return every policy that can be read."""
        with self._lock:
            return self._readable_policies()

    def unreadable_policies(self) -> frozenset[str]:
        """Return the names of the policies that cannot be read."""
        with self._lock:
            return frozenset(item.name for item in self._policies.values() if isinstance(item, Unreadable))

    def node(self, name: str) -> Node | None:
        """Return the node named so."""
        with self._lock:
            return self._nodes.get(name)

    def nodes(self) -> list[Node]:
        """Return every node."""
        with self._lock:
            return self._nodes.values()

    def node_conntrack(self, name: str) -> NodeConntrack | Unreadable | None:
        """Return the NodeConntrack named so."""
        with self._lock:
            return self._node_conntracks.get(name)

    def node_conntracks(self) -> list[NodeConntrack]:
        """Return every NodeConntrack that can be read."""
        with self._lock:
            return [item for item in self._node_conntracks.values() if isinstance(item, NodeConntrack)]

    def local(self, node: Node) -> tuple[Local, float]:
        """Return what else is known of `node`, and in how many seconds it will be less; 0 when that is not foreseen."""
        with self._lock:
            pods, seconds = self._host_pods.on(node.name)
            refused = self._refused

        def services(rules: Sequence[NotrackRule]) -> list[Service]:
            with self._lock:
                concern = self._translations.concern(rules)
            return concern.on(node.addresses)

        return (
            Local(
                None if HOST_PODS.plural in refused else pods,
                None if SERVICES.plural in refused else services,
            ),
            seconds,
        )

    def refused(self) -> Mapping[str, str]:
        """Return why a kind could not be listed, by its plural; empty when all could."""
        with self._lock:
            return self._refused

    def has_work(self) -> bool:
        """Tell whether there is any policy, or any node that has not been let go yet."""
        with self._lock:
            return bool(self._policies.names() or self._node_conntracks.names())

    def every_key(self) -> set[Key]:
        """Return the keys of everything known."""
        with self._lock:
            nodes = {Key("node", name) for name in (*self._nodes.names(), *self._node_conntracks.names())}
            policies = {Key("policy", name) for name in self._policies.names()}
            return nodes | policies | {ROLLOUT, Key("agents")}

    def put_policy(self, document: dict[str, Any], *, deleted: bool = False) -> set[Key]:
        """Take in a sight of a policy."""
        with self._lock:
            change = self._policies.put(document, deleted=deleted)
            self._asking = None
            return set(self._touched_by_policy(change)) if change else set()

    def put_node(self, document: dict[str, Any], *, deleted: bool = False) -> set[Key]:
        """Take in a sight of a node. Most of them tell nothing new: we know its name, uid and labels alone."""
        with self._lock:
            change = self._nodes.put(document, deleted=deleted)
            return set(self._touched_by_node(change)) if change else set()

    def put_node_conntrack(self, document: dict[str, Any], *, deleted: bool = False) -> set[Key]:
        """Take in a sight of a NodeConntrack."""
        with self._lock:
            change = self._node_conntracks.put(document, deleted=deleted)
            if change:
                self._hear(change, live=True)
            return set(self._touched_by_node_conntrack(change)) if change else set()

    def put_service(self, document: dict[str, Any], *, deleted: bool = False) -> set[Key]:
        """Take in a sight of a Service."""
        with self._lock:
            return set(self._touched_by_translations(self._translations.put_service(document, deleted=deleted)))

    def put_slice(self, document: dict[str, Any], *, deleted: bool = False) -> set[Key]:
        """Take in a sight of an EndpointSlice."""
        with self._lock:
            return set(self._touched_by_translations(self._translations.put_slice(document, deleted=deleted)))

    def put_pod(self, document: dict[str, Any], *, deleted: bool = False) -> set[Key]:
        """Take in a sight of a pod."""
        with self._lock:
            keys = set(self._touched_by_pods(self._host_pods.put(document, deleted=deleted)))
        return keys | self._touched_by_agents(self.agent_pods.put(document, deleted=deleted))

    def replace(self, lists: Lists) -> None:
        """Take in full lists of everything. Of what may not be listed, what is known stays."""
        with self._lock:
            self._policies.replace(lists.policies)
            self._asking = None
            self._nodes.replace(lists.nodes)
            for change in self._node_conntracks.replace(lists.node_conntracks):
                self._hear(change, live=False)
            self._translations.replace(lists.services, lists.slices)
            if lists.pods is not None:
                self._host_pods.replace(lists.pods)
                self.agent_pods.replace(lists.pods)
            self._refused = dict(lists.refused)

    def _readable_policies(self) -> list[ConntrackPolicy]:
        return [item for item in self._policies.values() if isinstance(item, ConntrackPolicy)]

    def _touched_by_policy(self, change: Change[ConntrackPolicy | Unreadable]) -> Iterator[Key]:
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

    def _touched_by_node(self, change: Change[Node]) -> Iterator[Key]:
        yield from (Key("node", change.name), ROLLOUT)
        for side in (change.before, change.after):
            if side is not None:
                yield from self._policies_of(side)

    def _hear(self, change: Change[NodeConntrack | Unreadable], *, live: bool) -> None:
        if isinstance(change.after, NodeConntrack):
            self.hearing.saw(change.after, live)
        elif change.after is None:
            self.hearing.forget(change.name)

    def _touched_by_node_conntrack(self, change: Change[NodeConntrack | Unreadable]) -> Iterator[Key]:
        if _answer_of(change.before) != _answer_of(change.after):
            # A heartbeat alone changes nothing for the node, and there are many.
            yield from (Key("node", change.name), ROLLOUT)
        if change.before is None or change.after is None:
            yield Key("agents")
        node = self._nodes.get(change.name)
        if node is not None:
            yield from self._policies_of(node)

    def _touched_by_agents(self, nodes: Iterable[str]) -> set[Key]:
        """Return what to look at when something else is known of the agents' pods on `nodes`."""
        with self._lock:
            found = [node for name in nodes if (node := self._nodes.get(name)) is not None]
            keys = {key for node in found for key in self._policies_of(node)}
        return keys | {ROLLOUT, Key("agents")} if nodes else set()

    def _touched_by_pods(self, pods: Iterable[HostPod]) -> Iterator[Key]:
        """Yield the nodes of `pods`, where any policy follows pods of their namespace."""
        followed = frozenset(name for asking in self._policies_with_rules() for name in asking.namespaces)
        yield from (Key("node", pod.node) for pod in pods if pod.namespace in followed)

    def _touched_by_translations(self, changed: Sequence[Translation]) -> Iterator[Key]:
        for asking in self._policies_with_rules() if changed else ():
            touched = asking.touched_by(changed, self._nodes.values(), self._host_pods.ports)
            yield from (Key("node", name) for name in touched)

    def _policies_with_rules(self) -> list[Asking]:
        if self._asking is None:
            self._asking = asking_of(self._readable_policies())
        return self._asking

    def _policies_of(self, node: Node) -> Iterator[Key]:
        for policy in policies_for(node.labels, self._readable_policies()):
            yield Key("policy", policy.metadata.name)


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
