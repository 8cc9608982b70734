"""What the controller knows of the cluster: every policy, node and NodeConntrack, and what a change of one touches.

Three streams fill it: watches, full lists, and the answers to our own writes. They may overtake one another, so each
object carries its resource version and an older sight never replaces a newer one, a deletion included. (Kubernetes lets
versions of one kind be compared since 1.35, KEP-5504; every API server on etcd has always counted them up.)
"""

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, Literal, NamedTuple, TypeVar

from conntrack_operator.cluster.objects import Listing
from conntrack_operator.decide.targeting import Node, policies_for
from conntrack_operator.model.node import NodeConntrack
from conntrack_operator.model.policy import ConntrackPolicy

from .sights import Unreadable, node_conntrack_in, node_in, policy_in

T = TypeVar("T")


class Key(NamedTuple):
    """One piece of work: put one node's object right, one policy's status, the agents, or read everything anew."""

    kind: Literal["node", "policy", "agents", "list"]
    name: str = ""

    def __str__(self) -> str:
        return f"{self.kind} {self.name}".rstrip()


@dataclass(frozen=True)
class Change(Generic[T]):
    """One object before and after; None where it was not there."""

    name: str
    before: T | None
    after: T | None


class Shelf(Generic[T]):
    """The objects of one kind by name. Not safe for threads by itself; the store's lock is."""

    def __init__(self, read: Callable[[dict[str, Any]], T]) -> None:
        self._read = read
        self._seen: dict[str, tuple[int, T | None]] = {}

    def get(self, name: str) -> T | None:
        """Return the object, or None."""
        return self._seen.get(name, (0, None))[1]

    def values(self) -> list[T]:
        """Return all objects."""
        return [item for _, item in self._seen.values() if item is not None]

    def names(self) -> list[str]:
        """Return the names of all objects."""
        return [name for name, (_, item) in self._seen.items() if item is not None]

    def put(self, document: dict[str, Any], *, deleted: bool = False) -> Change[T] | None:
        """Take in one sight of an object; None when it tells nothing new."""
        name, version = document["metadata"]["name"], int(document["metadata"]["resourceVersion"])
        known, before = self._seen.get(name, (0, None))
        if version < known or (version == known and not deleted):
            return None
        after = None if deleted else self._read(document)
        self._seen[name] = (version, after)
        return Change(name, before, after) if before != after else None

    def replace(self, listing: Listing) -> list[Change[T]]:
        """Take in a full list; what it lacks is gone, unless it was seen later than the list was made."""
        changes = [change for document in listing.items if (change := self.put(document))]
        listed = {document["metadata"]["name"] for document in listing.items}
        for name, (version, item) in list(self._seen.items()):
            if name not in listed and version <= listing.resource_version:
                del self._seen[name]
                if item is not None:
                    changes.append(Change(name, item, None))
        return changes


class Store:
    """All that is known. Reads return copies; every write returns the keys of the work it makes."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._policies: Shelf[ConntrackPolicy | Unreadable] = Shelf(policy_in)
        self._nodes: Shelf[Node] = Shelf(node_in)
        self._node_conntracks: Shelf[NodeConntrack | Unreadable] = Shelf(node_conntrack_in)

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

    def has_work(self) -> bool:
        """Tell whether there is any policy, or any node that has not been let go yet."""
        with self._lock:
            return bool(self._policies.names() or self._node_conntracks.names())

    def every_key(self) -> set[Key]:
        """Return the keys of everything known."""
        with self._lock:
            nodes = {Key("node", name) for name in (*self._nodes.names(), *self._node_conntracks.names())}
            return nodes | {Key("policy", name) for name in self._policies.names()} | {Key("agents")}

    def put_policy(self, document: dict[str, Any], *, deleted: bool = False) -> set[Key]:
        """Take in a sight of a policy."""
        with self._lock:
            change = self._policies.put(document, deleted=deleted)
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
            return set(self._touched_by_node_conntrack(change)) if change else set()

    def replace(self, policies: Listing, nodes: Listing, node_conntracks: Listing) -> None:
        """Take in full lists of everything."""
        with self._lock:
            self._policies.replace(policies)
            self._nodes.replace(nodes)
            self._node_conntracks.replace(node_conntracks)

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
        yield Key("agents")

    def _touched_by_node(self, change: Change[Node]) -> Iterator[Key]:
        yield Key("node", change.name)
        for side in (change.before, change.after):
            if side is not None:
                yield from self._policies_of(side)

    def _touched_by_node_conntrack(self, change: Change[NodeConntrack | Unreadable]) -> Iterator[Key]:
        yield Key("node", change.name)
        if change.before is None or change.after is None:
            yield Key("agents")
        node = self._nodes.get(change.name)
        if node is not None:
            yield from self._policies_of(node)

    def _policies_of(self, node: Node) -> Iterator[Key]:
        for policy in policies_for(node.labels, self._readable_policies()):
            yield Key("policy", policy.metadata.name)


def _differs(before: ConntrackPolicy, after: ConntrackPolicy) -> bool:
    """Tell whether more than the status changed."""
    return (
        before.spec != after.spec
        or before.metadata.uid != after.metadata.uid
        or before.metadata.deletion_timestamp != after.metadata.deletion_timestamp
    )
