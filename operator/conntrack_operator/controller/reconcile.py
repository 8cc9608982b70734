"""The controller's work, one key at a time: look at what is known, ask the pure functions what to do, and do that.

Nothing is decided here. Every method can be repeated at any time; what is right already is not written to.
"""

import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from conntrack_operator.cluster.events import Subject
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
from conntrack_operator.decide.blindness import blindness_of
from conntrack_operator.decide.happenings import happenings_between
from conntrack_operator.decide.merge import Merge, merged
from conntrack_operator.decide.standing import speaks_of, standing_of
from conntrack_operator.decide.summary import Sight, rejected, summary_of
from conntrack_operator.decide.targeting import Node, selects
from conntrack_operator.decide.targets import Remove, Write, owner_of, share_of, step_for
from conntrack_operator.errors import Refused
from conntrack_operator.model.node import NodeConntrack, NodeSpec
from conntrack_operator.model.policy import ConntrackPolicy
from conntrack_operator.model.status import PolicyStatus

from .agents import Agents
from .pace import Pace
from .sights import Unreadable, slimmed
from .store import Key, Lists, Store
from .telling import Telling
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
    telling: Telling
    pace: Pace = field(default_factory=Pace)
    _merges: dict[frozenset[tuple[str | None, int | None]], Merge] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def put_right(self, key: Key) -> None:
        """Do the work of `key`. Raises what the API server's answer means; the caller tries again later."""
        match key.kind:
            case "node":
                self._node(key.name)
            case "policy":
                self._policy(key.name)
            case "agents":
                self._agents()
            case "list":
                self.read_everything()

    def read_everything(self) -> None:
        """Replace all that is known by full lists, look at everything anew, and come again in five minutes."""
        refused: dict[str, str] = {}
        self.store.replace(
            Lists(
                policies=self.objects.list(POLICIES, slimmed),
                nodes=self.objects.list(NODES, slimmed),
                node_conntracks=self.objects.list(NODE_CONNTRACKS, slimmed),
                services=self._list_if_allowed(SERVICES, refused),
                slices=self._list_if_allowed(ENDPOINT_SLICES, refused),
                pods=self._list_if_allowed(HOST_PODS, refused),
                refused=refused,
            )
        )
        self.queue.add_all(self.store.every_key())
        self.queue.add(Key("list"), RELIST_SECONDS)

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
        node, existing = self.store.node(name), self.store.node_conntrack(name)
        if node is None:
            if existing is not None:
                self._let_go_of_lost_node(name)
            return
        policies, unreadable = self.store.policies(), self.store.unreadable_policies()
        local, seconds = self.store.local(node)
        if seconds:
            self.queue.add(Key("node", name), seconds)
        if isinstance(existing, Unreadable):
            # Somebody spoilt it by hand. Whether it named an unreadable policy cannot be told, so none may be about.
            step = None if unreadable else step_for(node, policies, None, merging=self._merged, local=local)
            if isinstance(step, Write):
                self._write(node, step.spec, exists=True)
            return
        step = step_for(node, policies, existing, unreadable, merging=self._merged, local=local)
        if isinstance(step, Write):
            self._write(node, step.spec, exists=existing is not None)
        elif isinstance(step, Remove) and existing is not None:
            self._remove(existing, step.why)

    def _write(self, node: Node, spec: NodeSpec, *, exists: bool) -> None:
        stored = None
        if exists:
            parts = {"/spec": spec.document(), "/metadata/ownerReferences": [owner_of(node)]}
            stored = self.objects.replace_parts(NODE_CONNTRACKS, node.name, parts)
        if stored is None:
            metadata = {"name": node.name, "ownerReferences": [owner_of(node)]}
            stored = self.objects.create(NODE_CONNTRACKS, {"metadata": metadata, "spec": spec.document()})
        names = ", ".join(use.name for use in spec.policies)
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
            self.objects.delete(NODE_CONNTRACKS, name, uid=found["metadata"]["uid"])
            log.info("node %s is gone, and its NodeConntrack", name)

    def _policy(self, name: str) -> None:
        policy = self.store.policy(name)
        if policy is None:
            self.pace.forget(name)
            self.telling.forget(name)
            return
        wait = self.pace.wait_seconds(name)
        if wait > 0:
            self.queue.add(Key("policy", name), wait)
            return
        now = datetime.now(UTC)
        if isinstance(policy, Unreadable):
            before, after, uid = None, rejected(policy.generation, policy.sentence, now), policy.uid
            if self._says(name, after):
                return
        else:
            before, uid = policy.status, policy.metadata.uid or ""
            sights, blind = self._sights(policy, now), blindness_of(policy.spec, self.store.refused())
            trouble = self.agents.trouble_on([sight.standing.node for sight in sights])
            after = summary_of(policy, sights, now, trouble, blind)
        if after == before:
            return
        stored = self.objects.replace_parts(POLICIES, name, {"/status": after.document()}, subresource="status")
        self.pace.spend(name)
        if stored is not None:
            self.queue.add_all(self.store.put_policy(stored))
            happenings = happenings_between(before, after)
            self.telling.tell(Subject(POLICIES, name, uid), after.observed_generation, happenings, self.store.node, now)

    def _says(self, name: str, status: PolicyStatus) -> bool:
        """Tell whether an unreadable policy says so already. Its stored status is not known, so it is asked for."""
        found = self.objects.get(POLICIES, name) or {}
        said = (found.get("status") or {}).get("conditions") or [{}]
        return bool(said[0].get("message") == status.conditions[0].message)

    def _sights(self, policy: ConntrackPolicy, now: datetime) -> list[Sight]:
        others = self.store.policies()
        return [
            self._sight(policy, node, others, now)
            for node in self.store.nodes()
            if selects(policy.spec.node_selector, node.labels)
        ]

    def _sight(self, policy: ConntrackPolicy, node: Node, others: Sequence[ConntrackPolicy], now: datetime) -> Sight:
        found = self.store.node_conntrack(node.name)
        existing = found if isinstance(found, NodeConntrack) else None
        share = share_of(policy, node, others, self._merged)
        standing = standing_of(node, share, existing, now)
        usage = None
        if existing is not None and existing.status is not None and standing.state != "unknown":
            usage = existing.status.usage if speaks_of(node, existing) else None
        return Sight(standing, usage, share.conflicts)

    def _agents(self) -> None:
        trouble = self.agents.trouble
        try:
            seconds = self.agents.put_right(wanted=self.store.has_work())
            if seconds:
                self.queue.add(Key("agents"), seconds)
        finally:
            if self.agents.trouble != trouble:
                self.queue.add_all(key for key in self.store.every_key() if key.kind == "policy")

    def _merged(self, policies: Sequence[ConntrackPolicy]) -> Merge:
        """Merge once for all nodes that have the same policies."""
        key = frozenset((policy.metadata.uid, policy.metadata.generation) for policy in policies)
        with self._lock:
            known = self._merges.get(key)
        if known is None:
            known = merged(policies)
            with self._lock:
                if len(self._merges) >= MERGES_KEPT:
                    self._merges.clear()
                self._merges[key] = known
        return known
