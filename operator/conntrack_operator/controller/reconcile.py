"""The controller's work, one key at a time: look at what is known, ask the pure functions what to do, and do that.

Nothing is decided here. Every method can be repeated at any time; what is right already is not written to.
"""

import logging
import time
from dataclasses import dataclass, field
from typing import Any

from conntrack_operator.cluster.objects import (
    ENDPOINT_SLICES,
    HOST_PODS,
    NODE_CONNTRACKS,
    NODES,
    POLICIES,
    SERVICES,
    Kind,
    Listing,
    Objects,
)
from conntrack_operator.decide.targeting import Node
from conntrack_operator.decide.targets import Remove, Write, owner_of, step_for
from conntrack_operator.errors import LookAgain, Refused
from conntrack_operator.model.node import NodeConntrack, NodeSpec

from .agents import Agents
from .figures import Figures
from .lookout import LOOK_SECONDS, Lookout
from .merges import Merges
from .policies import Policies
from .rollouts import Rollouts
from .sights import Unreadable, slimmed
from .store import Lists, Store
from .telling import Telling
from .touched import Key
from .workqueue import WorkQueue

log = logging.getLogger(__name__)

RELIST_SECONDS = 300.0
MERGES_KEPT = 256


@dataclass
class Reconciler:
    """Puts things right. Safe to be called from several workers, as long as each key is with one of them."""

    objects: Objects
    store: Store
    queue: WorkQueue[Key]
    agents: Agents
    rollouts: Rollouts
    telling: Telling
    figures: Figures = field(default_factory=Figures)

    def __post_init__(self) -> None:
        self.lookout = Lookout(self.objects, self.store, self.queue)
        self.merges = Merges()
        self.policies = Policies(
            self.objects, self.store, self.queue, self.rollouts, self.merges, self.agents, self.telling
        )

    def put_right(self, key: Key) -> None:
        """Do the work of `key`. Raises what the API server's answer means; the caller tries again later."""
        try:
            self._put_right(key)
        except LookAgain:
            self._look_again(key)
            raise

    def _look_again(self, key: Key) -> None:
        """See the object of `key` as it is: the watches may be late, or have missed how it became so."""
        kind = {"node": NODE_CONNTRACKS, "policy": POLICIES}.get(key.kind)
        found = self.objects.get(kind, key.name) if kind else None
        if kind and found is not None:
            self.queue.add_all(self.store.puts[kind](found))

    def _put_right(self, key: Key) -> None:
        match key.kind:
            case "node":
                self._node(key.name)
            case "policy":
                self.policies.put_right(key.name)
            case "rollout":
                self.rollouts.judge()
            case "agents":
                self._agents()
            case "list":
                self.read_everything()
            case "look":
                self.lookout.look()

    def read_everything(self) -> None:
        """Replace all that is known by full lists, look at everything anew, and come again in five minutes."""
        refused: dict[str, str] = {}
        began = time.monotonic()
        self.rollouts.book.load()
        policies = self.objects.list(POLICIES, slimmed)
        self.store.replace(
            Lists(
                policies=policies,
                nodes=self.objects.list(NODES, slimmed),
                node_conntracks=self.objects.list(NODE_CONNTRACKS, slimmed),
                services=self._list_if_allowed(SERVICES, refused),
                slices=self._list_if_allowed(ENDPOINT_SLICES, refused),
                pods=self._list_if_allowed(HOST_PODS, refused),
                refused=refused,
            )
        )
        self.rollouts.take_in_list(policies.items, began)
        self.rollouts.tidy()
        self.figures.full_lists.add()
        self.queue.add_all(self.store.every_key())
        self.queue.add(Key("list"), RELIST_SECONDS)
        self.queue.add(Key("look"), LOOK_SECONDS)

    def _list_if_allowed(self, kind: Kind, refused: dict[str, str]) -> Listing | None:
        """Return the list, or None and say why in `refused`: sizes and timeouts need no look at Services and pods."""
        try:
            return self.objects.list(kind, slimmed)
        except Refused as refusal:
            refused[kind.plural] = str(refusal)
            if self.store.refused().get(kind.plural) != str(refusal):
                log.warning("%s cannot be looked at: %s; see the controller's rights", kind.plural, refusal)
            return None

    def _node(self, name: str) -> None:
        node, found = self.store.node(name), self.store.node_conntrack(name)
        if node is None:
            if found is not None:
                self._let_go_of_lost_node(name)
            return
        local, seconds = self.store.local(node)
        if seconds:
            self.queue.add(Key("node", name), seconds)
        # One that somebody spoilt is written anew: asked for nothing, the node keeps what it has until it is released.
        existing = found if isinstance(found, NodeConntrack) else None
        if isinstance(found, Unreadable):
            log.warning("node %s: its NodeConntrack cannot be read (%s), and is written anew", name, found.sentence)
        wish = self.rollouts.wish_for(node, existing)
        step = step_for(node, wish, existing, merging=self.merges.of, local=local)
        if isinstance(step, Write):
            self._write(node, step.spec, found)
        elif isinstance(step, Remove) and existing is not None:
            self._remove(existing, step.why)
        self.rollouts.written(name, wish)

    def _write(self, node: Node, spec: NodeSpec, found: NodeConntrack | Unreadable | None) -> None:
        stored = None
        if found is not None:
            parts = {"/spec": spec.document(), "/metadata/ownerReferences": [owner_of(node)]}
            stored = self.objects.replace_parts(NODE_CONNTRACKS, node.name, parts, only_if=_as_seen(found))
        if stored is None:
            metadata = {"name": node.name, "ownerReferences": [owner_of(node)]}
            stored = self.objects.create(NODE_CONNTRACKS, {"metadata": metadata, "spec": spec.document()})
        names = ", ".join(f"{use.name} {use.revision}" for use in spec.policies)
        log.info("node %s: %s revision %s of %s", node.name, spec.mode, spec.revision, names or "no policy")
        self.queue.add_all(self.store.put_node_conntrack(stored))

    def _remove(self, existing: NodeConntrack, why: str) -> None:
        meta = existing.metadata
        # In this version only: if it changed meanwhile, there may be something left to say to the node.
        self.objects.delete(
            NODE_CONNTRACKS, meta.name, uid=meta.uid or "", resource_version=meta.resource_version or ""
        )
        log.info("node %s: NodeConntrack removed, %s", meta.name, why)

    def _let_go_of_lost_node(self, name: str) -> None:
        """Delete the object of a node that is gone. Kubernetes does so by the owner too, if its collector runs."""
        found = self.objects.get(NODE_CONNTRACKS, name)
        if found is not None and self.objects.get(NODES, name) is None:
            meta = found["metadata"]
            self.objects.delete(NODE_CONNTRACKS, name, uid=meta["uid"], resource_version=meta["resourceVersion"])
            log.info("node %s is gone, and its NodeConntrack", name)

    def _agents(self) -> None:
        trouble = self.agents.trouble
        try:
            seconds = self.agents.put_right(wanted=self.store.has_work())
            if seconds:
                self.queue.add(Key("agents"), seconds)
        finally:
            if self.agents.trouble != trouble:
                self.queue.add_all(key for key in self.store.every_key() if key.kind == "policy")


def _as_seen(found: NodeConntrack | Unreadable) -> dict[str, Any]:
    """Return what must still be true of a node's object for our writing over its spec: that nobody else has."""
    if isinstance(found, Unreadable):
        return {"/metadata/uid": found.uid, "/metadata/generation": found.generation}
    return {"/metadata/uid": found.metadata.uid, "/metadata/generation": found.metadata.generation}
