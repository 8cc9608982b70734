"""The controller's work, one key at a time: look at what is known, ask the pure functions what to do, and do that.

Nothing is decided here. Every method can be repeated at any time; what is right already is not written to.
"""

import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from conntrack_operator.cluster.events import Subject, post_event
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
from conntrack_operator.decide.standing import SILENT_AFTER, Share, share_of, standing_of
from conntrack_operator.decide.summary import Around, Sight, rejected, summary_of
from conntrack_operator.decide.targeting import Node, policies_for, selects
from conntrack_operator.decide.targets import Remove, Write, owner_of, step_for
from conntrack_operator.errors import ConntrackOperatorError, Refused
from conntrack_operator.model.node import NodeConntrack, NodeSpec
from conntrack_operator.model.policy import ConntrackPolicy
from conntrack_operator.model.status import PolicyStatus

from .agents import Agents
from .pace import Pace
from .rollouts import Rollouts
from .sights import Unreadable, slimmed
from .store import Key, Lists, Store
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
    pace: Pace = field(default_factory=Pace)
    _merges: dict[frozenset[int], tuple[tuple[ConntrackPolicy, ...], Merge]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def put_right(self, key: Key) -> None:
        """Do the work of `key`. Raises what the API server's answer means; the caller tries again later."""
        match key.kind:
            case "node":
                self._node(key.name)
            case "policy":
                self._policy(key.name)
            case "rollout":
                self.rollouts.judge()
            case "agents":
                self._agents()
            case "list":
                self.read_everything()

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
        self.rollouts.guard.saw(self.rollouts.losses(), policies.items, began=began)
        self.rollouts.tidy()
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
        wish = self.rollouts.wish_for(node, existing)
        step = step_for(node, wish, existing, merging=self._merged, local=local)
        if isinstance(step, Write):
            self._write(node, step.spec, existing, exists=found is not None)
        elif isinstance(step, Remove) and existing is not None:
            self._remove(existing, step.why)
        self.rollouts.written(name, wish)

    def _write(self, node: Node, spec: NodeSpec, existing: NodeConntrack | None, *, exists: bool) -> None:
        stored = None
        if exists:
            parts = {"/spec": spec.document(), "/metadata/ownerReferences": [owner_of(node)]}
            stored = self.objects.replace_parts(NODE_CONNTRACKS, node.name, parts, only_if=_as_seen(existing))
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

    def _policy(self, name: str) -> None:
        policy = self.store.policy(name)
        if policy is None:
            self.pace.forget(name)
            return
        wait = self.pace.wait_seconds(name)
        if wait > 0:
            self.queue.add(Key("policy", name), wait)
            return
        now = datetime.now(UTC)
        if isinstance(policy, Unreadable):
            before, after, uid = None, rejected(policy.generation, policy.sentence, now), policy.uid
            unchanged = {"/metadata/uid": uid, "/metadata/generation": policy.generation}
            if self._says(name, after):
                return
        else:
            before, uid = policy.status, policy.metadata.uid or ""
            unchanged = {"/metadata/resourceVersion": policy.metadata.resource_version}
            after = summary_of(policy, self._sights(policy, now), now, self._around(policy))
        if after == before:
            return
        stored = self.objects.replace_parts(
            POLICIES, name, {"/status": after.document()}, subresource="status", only_if=unchanged
        )
        self.pace.spend(name)
        if stored is not None:
            self.queue.add_all(self.store.put_policy(stored))
            self._tell(Subject(POLICIES, name, uid), before, after, now)

    def _around(self, policy: ConntrackPolicy) -> Around:
        name, rollouts = policy.metadata.name, self.rollouts
        revision = rollouts.book.name_of(policy)
        return Around(
            revision=revision,
            verdict=rollouts.verdict(name, revision),
            leaving=rollouts.leaving(name),
            trouble=self.agents.trouble,
            blind="; ".join(filter(None, (blindness_of(policy.spec, self.store.refused()), rollouts.guard.trouble))),
        )

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
        seen = self.rollouts.seen(node)
        existing = seen.existing
        share = self._share(policy, node, others, existing)
        silent = seen.heard_at is not None and now - seen.heard_at >= SILENT_AFTER
        standing = standing_of(
            node, share, existing, silent=silent, away=not seen.is_able(now) and not seen.is_awaited(now)
        )
        status = seen.status if standing.state != "unknown" else None
        return Sight(standing, status.usage if status else None, share.conflicts, status.preview if status else None)

    def _share(
        self, policy: ConntrackPolicy, node: Node, others: Sequence[ConntrackPolicy], existing: NodeConntrack | None
    ) -> Share:
        """Return the policy's part on the node. Conflicts are those of what is wanted, released or not."""
        name, observes = policy.metadata.name, policy.spec.mode == "Observe"
        mine = [each for each in policies_for(node.labels, others) if observes or each.spec.mode == "Enforce"]
        merge = self._merged(mine)
        if not observes:
            spec = existing.spec if existing is not None else None
            return share_of(name, self.rollouts.book.name_of(policy), spec, merge.conflicts)
        use = next(use for use in merge.uses if use.name == name)
        every = frozenset(field for each in merge.uses for field in each.fields)
        conflicts = tuple(conflict for conflict in merge.conflicts if name in conflict.parties)
        return Share(frozenset(use.fields), every, observes=True, conflicts=conflicts)

    def _tell(self, subject: Subject, before: PolicyStatus | None, after: PolicyStatus, now: datetime) -> None:
        """Post what began. An event that cannot be posted is not worth repeating the work for."""
        try:
            for happening in happenings_between(before, after):
                post_event(self.objects, subject, happening, now)
                node = self.store.node(happening.node) if happening.node else None
                if node is not None:
                    post_event(self.objects, Subject(NODES, node.name, node.uid), happening, now)
        except ConntrackOperatorError as error:
            log.warning("an event about %s could not be posted: %s", subject.name, error)

    def _agents(self) -> None:
        trouble = self.agents.trouble
        try:
            self.agents.put_right(wanted=self.store.has_work())
        finally:
            if self.agents.trouble != trouble:
                self.queue.add_all(key for key in self.store.every_key() if key.kind == "policy")

    def _merged(self, policies: Sequence[ConntrackPolicy]) -> Merge:
        """Merge once for all nodes that have the same policies: the very same objects, which are kept meanwhile."""
        key = frozenset(map(id, policies))
        with self._lock:
            known = self._merges.get(key)
        if known is None:
            known = (tuple(policies), merged(policies))
            with self._lock:
                if len(self._merges) >= MERGES_KEPT:
                    self._merges.clear()
                self._merges[key] = known
        return known[1]


def _as_seen(existing: NodeConntrack | None) -> dict[str, Any]:
    """Return what must still be true of a node's object for our writing over its spec: that nobody else has."""
    if existing is None:
        return {}
    return {"/metadata/uid": existing.metadata.uid, "/metadata/generation": existing.metadata.generation}
