"""What the controller knows of the cluster, and what a change of one thing touches.

Of Services, endpoints and pods it keeps only what rules can meet: ports and addresses.
"""

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

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
from conntrack_operator.decide.targeting import Node
from conntrack_operator.decide.targets import Local
from conntrack_operator.model.node import NodeConntrack
from conntrack_operator.model.notrack import NotrackRule
from conntrack_operator.model.policy import ConntrackPolicy
from conntrack_operator.model.surroundings import Service

from .agent_pods import AgentPods
from .hearing import Hearing
from .host_pods import HostPods
from .shelf import Change, Shelf
from .sights import Unreadable, node_conntrack_in, node_in, policy_in
from .touched import ROLLOUT, Key, Touched, readable
from .translations import Translations


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


class Kept(Protocol):
    """The revisions that nodes may have."""

    def contents(self) -> Iterable[ConntrackPolicy]:
        """Return every policy at each of its revisions."""

    def knows(self, policy: str, revision: str) -> bool:
        """Tell whether the revision is among them."""


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
        self._touched = Touched(self._policies, self._nodes, self._node_conntracks, self._host_pods)
        self.puts: Mapping[Kind, Callable[..., set[Key]]] = {
            POLICIES: self.put_policy,
            NODES: self.put_node,
            NODE_CONNTRACKS: self.put_node_conntrack,
            SERVICES: self.put_service,
            ENDPOINT_SLICES: self.put_slice,
            HOST_PODS: self.put_pod,
        }
        """For every kind that is watched, what takes in a sight of it."""

    def note_away(self, nodes: frozenset[str]) -> bool:
        """Take note of the nodes that can be given nothing now: a word from one of them makes work.

        Tell whether they are others than before.
        """
        with self._lock:
            before, self._touched.away = self._touched.away, nodes
        return nodes != before

    def keep_in_mind(self, book: Kept) -> None:
        """Have the revisions in `book` count: their rules are in force until nodes have others."""
        self._touched.kept, self._touched.knows = book.contents, book.knows

    def policy(self, name: str) -> ConntrackPolicy | Unreadable | None:
        """Return the policy named so."""
        with self._lock:
            return self._policies.get(name)

    def policies(self) -> list[ConntrackPolicy]:
        """Return every policy that can be read."""
        with self._lock:
            return readable(self._policies)

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
            self._touched.forget_rules()
            return set(self._touched.by_policy(change)) if change else set()

    def put_node(self, document: dict[str, Any], *, deleted: bool = False) -> set[Key]:
        """Take in a sight of a node. Most of them tell nothing new: we know its name, uid and labels alone."""
        with self._lock:
            change = self._nodes.put(document, deleted=deleted)
            return set(self._touched.by_node(change)) if change else set()

    def put_node_conntrack(self, document: dict[str, Any], *, deleted: bool = False) -> set[Key]:
        """Take in a sight of a NodeConntrack."""
        with self._lock:
            change = self._node_conntracks.put(document, deleted=deleted)
            if change:
                self._hear(change, live=True)
            return set(self._touched.by_node_conntrack(change)) if change else set()

    def put_service(self, document: dict[str, Any], *, deleted: bool = False) -> set[Key]:
        """Take in a sight of a Service."""
        with self._lock:
            return set(self._touched.by_translations(self._translations.put_service(document, deleted=deleted)))

    def put_slice(self, document: dict[str, Any], *, deleted: bool = False) -> set[Key]:
        """Take in a sight of an EndpointSlice."""
        with self._lock:
            return set(self._touched.by_translations(self._translations.put_slice(document, deleted=deleted)))

    def put_pod(self, document: dict[str, Any], *, deleted: bool = False) -> set[Key]:
        """Take in a sight of a pod."""
        with self._lock:
            keys = set(self._touched.by_pods(self._host_pods.put(document, deleted=deleted)))
            return keys | set(self._touched.by_agents(self.agent_pods.put(document, deleted=deleted)))

    def replace(self, lists: Lists) -> None:
        """Take in full lists of everything. Of what may not be listed, what is known stays."""
        with self._lock:
            self._policies.replace(lists.policies)
            self._touched.forget_rules()
            self._nodes.replace(lists.nodes)
            for change in self._node_conntracks.replace(lists.node_conntracks):
                self._hear(change, live=False)
            self._translations.replace(lists.services, lists.slices)
            if lists.pods is not None:
                self._host_pods.replace(lists.pods)
                self.agent_pods.replace(lists.pods)
            else:
                self.agent_pods.clear()
            self._refused = dict(lists.refused)

    def _hear(self, change: Change[NodeConntrack | Unreadable], *, live: bool) -> None:
        if isinstance(change.after, NodeConntrack):
            self.hearing.saw(change.after, live)
        elif change.after is None:
            self.hearing.forget(change.name)
