"""The policies' statuses: what has become of each, written rarely, and told as Events when something begins."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from conntrack_operator.cluster.events import Subject
from conntrack_operator.cluster.objects import POLICIES, Objects
from conntrack_operator.decide.blindness import blindness_of
from conntrack_operator.decide.happenings import happenings_between
from conntrack_operator.decide.standing import SILENT_AFTER, Share, preview_for, share_of, standing_of, unknown_revision
from conntrack_operator.decide.summary import Around, Sight, rejected, summary_of
from conntrack_operator.decide.targeting import Node, policies_for, selects
from conntrack_operator.model.node import NodeConntrack
from conntrack_operator.model.policy import ConntrackPolicy
from conntrack_operator.model.status import PolicyStatus

from .agents import Agents
from .merges import Merges
from .pace import Pace
from .rollouts import Rollouts
from .sights import Unreadable
from .store import Store
from .telling import Telling
from .touched import Key
from .workqueue import WorkQueue

log = logging.getLogger(__name__)


@dataclass
class Policies:
    """Writes the policies' statuses. Safe to be called from several workers, as long as each policy is with one."""

    objects: Objects
    store: Store
    queue: WorkQueue[Key]
    rollouts: Rollouts
    merges: Merges
    agents: Agents
    telling: Telling
    pace: Pace = field(default_factory=Pace)

    def put_right(self, name: str) -> None:
        """Write the status of the policy named so, if it says something new. Raises Retry or Refused."""
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
            as_seen = {"/metadata/uid": uid}
            if self._says(name, after):
                return
        else:
            before, uid = policy.status, policy.metadata.uid or ""
            as_seen = {"/metadata/resourceVersion": policy.metadata.resource_version or ""}
            sights = self._sights(policy, now)
            after = summary_of(policy, sights, now, self._around(policy, sights))
            # An agent that falls silent makes no noise.
            if (seconds := self.store.hearing.next_silence()) is not None:
                self.queue.add(Key("policy", name), seconds)
        if after == before:
            return
        stored = self.objects.replace_parts(
            POLICIES, name, {"/status": after.document()}, subresource="status", only_if=as_seen
        )
        self.pace.spend(name)
        if stored is not None:
            self.queue.add_all(self.store.put_policy(stored))
            happenings = happenings_between(before, after)
            self.telling.tell(Subject(POLICIES, name, uid), after.observed_generation, happenings, self.store.node, now)

    def _around(self, policy: ConntrackPolicy, sights: Sequence[Sight]) -> Around:
        name, rollouts = policy.metadata.name, self.rollouts
        revision = rollouts.book.name_of(policy)
        return Around(
            revision=revision,
            verdict=rollouts.verdict(name, revision),
            leaving=rollouts.leaving(name),
            trouble=self.agents.trouble_on([sight.standing.node for sight in sights]),
            blind=blindness_of(policy.spec, self.store.refused()),
            guarded=rollouts.guard.trouble,
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
        if not share.has_it and (lost := self.rollouts.unknown_revision(policy.metadata.name, seen)):
            standing = replace(standing, failures=(*standing.failures, unknown_revision(node, lost)))
        status = seen.status if standing.state != "unknown" else None
        preview = preview_for(share, existing) if status else None
        return Sight(standing, status.usage if status else None, share.conflicts, preview)

    def _share(
        self, policy: ConntrackPolicy, node: Node, others: Sequence[ConntrackPolicy], existing: NodeConntrack | None
    ) -> Share:
        """Return the policy's part on the node. Conflicts are those of what is wanted, released or not."""
        name, observes = policy.metadata.name, policy.spec.mode == "Observe"
        mine = [each for each in policies_for(node.labels, others) if observes or each.spec.mode == "Enforce"]
        merge, revision = self.merges.of(mine), self.rollouts.book.name_of(policy)
        spec = existing.spec if existing is not None else None
        if not observes:
            return share_of(name, revision, spec, merge.conflicts)
        use = next(use for use in merge.uses if use.name == name)
        every = frozenset(field for each in merge.uses for field in each.fields)
        conflicts = tuple(conflict for conflict in merge.conflicts if name in conflict.parties)
        has_it = spec is not None and spec.previewed.get(name) == revision
        return Share(frozenset(use.fields), every, has_it=has_it, observes=True, conflicts=conflicts)
