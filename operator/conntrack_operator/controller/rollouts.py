"""The waves at work: judges all rollouts together, remembers what was granted until it is written, and keeps the book.

One worker at a time judges (there is one key for it), so that no two policies spend the same room. What it grants is
written by the workers of the nodes.
"""

import logging
import threading
import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from conntrack_operator.decide.absence import Loss
from conntrack_operator.decide.holding import (
    GONE,
    Target,
    attempt_of,
    held_by,
    holding_of,
    newcomers_share,
)
from conntrack_operator.decide.merge import precedence
from conntrack_operator.decide.rollout import Verdict
from conntrack_operator.decide.seen import Seen
from conntrack_operator.decide.targeting import Node, selects
from conntrack_operator.decide.targets import Wish
from conntrack_operator.decide.waves import Fleet, fleet_at
from conntrack_operator.model.node import NodeConntrack
from conntrack_operator.model.policy import ConntrackPolicy

from .book import Book
from .guard import Guard
from .store import Store
from .touched import ROLLOUT, Key
from .workqueue import WorkQueue

log = logging.getLogger(__name__)

PAUSE_SECONDS = 0.5
"""Before a full list that somebody waits for: most edits come in a row."""

LOOK_SECONDS = 60.0
"""How often the rollouts are judged when nothing happens: agents fall silent without a word."""

LIST_SECONDS = 5.0
"""Between two full lists that are read because of something that nodes would lose."""


@dataclass
class Rollouts:
    """What is granted to whom, and where every policy's change stands."""

    store: Store
    queue: WorkQueue[Key]
    book: Book
    guard: Guard
    _fleet: Fleet = field(default_factory=Fleet)
    _judged: bool = False
    """Whether anything has been: a process that has just started knows nothing of what is under way."""
    _listed_at: float = float("-inf")
    _ended: float = float("-inf")
    _took: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def verdict(self, policy: str, revision: str) -> Verdict | None:
        """Return where the change of `policy` to `revision` stands; None when that has not been judged yet."""
        with self._lock:
            fleet = self._fleet
        return fleet.verdicts.get(policy) if fleet.revisions.get(policy) == revision else None

    def leaving(self, policy: str) -> int:
        """Return the number of nodes that still have `policy` and should not, and can be told so."""
        with self._lock:
            return self._fleet.leaving.get(policy, 0)

    def seen(self, node: Node) -> Seen:
        """Return `node` with all that is known of it."""
        found = self.store.node_conntrack(node.name)
        existing = found if isinstance(found, NodeConntrack) else None
        ready = self.store.agent_pods.ready(node.name)
        if existing is None:
            return Seen(node, agent_ready=ready)
        hearing, status, look = self.store.hearing, existing.status, self.book.lookup(())
        held = held_by(node, existing.spec)
        return Seen(
            node,
            existing,
            heard_at=hearing.heard_at(node.name, status) if status else None,
            told_at=hearing.told_at(node.name, existing.metadata.generation or 0),
            answered_at=hearing.answered_at(node.name, status) if status else None,
            agent_ready=ready,
            unknown=frozenset(name for name, revision in held.items() if look(name, revision) is None),
        )

    def judge(self) -> None:
        """Judge all rollouts, and have written what may be. Raises Retry or Refused when the book cannot be written."""
        began = time.monotonic()
        if began - self._ended < self._took:
            # In a large fleet a judgement takes a while and answers come all the time: half the time is enough.
            self.queue.add(ROLLOUT, self._took)
            return
        targets, now = self._targets(write_down=True), datetime.now(UTC)
        before, seen = self._fleet, [self.seen(node) for node in self.store.nodes()]
        fleet = fleet_at(seen, targets, now, granted=before.grants, confirmed=self.guard.confirmed())
        with self._lock:
            self._fleet, self._judged = fleet, True
        away = frozenset(each.node.name for each in seen if not each.is_able(now) and not each.is_awaited(now))
        if self.store.note_away(away):
            self.queue.add_all(Key("policy", target.name) for target in targets if target.policy is not None)
        self._carry_out(before, fleet, targets, now)
        self._ended = time.monotonic()
        self._took = self._ended - began

    def _carry_out(self, before: Fleet, fleet: Fleet, targets: Sequence[Target], now: datetime) -> None:
        self._say(before, fleet)
        stale = self._nodes_with_stale_withdrawals(fleet.travelling)
        needless = {loss.node for loss in fleet.losses if not loss.policy} if self.guard.confirmed() else set()
        # In the order of their names, so that a controller that ends meanwhile is followed by one that goes on there.
        self.queue.add_all(Key("node", name) for name in sorted({*fleet.grants, *stale, *needless}))
        self.queue.add_all(
            Key("policy", name)
            for name, verdict in fleet.verdicts.items()
            if _differs(before.verdicts.get(name), verdict)
        )
        self._ask_for_lists(fleet.losses, targets)
        ends = [verdict.again_at for verdict in fleet.verdicts.values() if verdict.again_at is not None]
        waits = [max(0.1, (end - now).total_seconds()) for end in ends]
        self.queue.add(ROLLOUT, min([LOOK_SECONDS, *waits]))
        for target in targets:
            if fleet.verdicts[target.name].is_good and target.policy is not None:
                self.book.mark_good(target.name, target.revision, now)
        if self.book.names() - {target.name for target in targets} - self.store.unreadable_policies():
            self.tidy()

    def take_in_list(self, policies: Iterable[dict[str, Any]], began: float) -> None:
        """Tell the guard what nodes would lose by a full list, read since `began` by the monotonic clock."""
        seen = [self.seen(node) for node in self.store.nodes()]
        fleet = fleet_at(seen, self._targets(write_down=False), datetime.now(UTC), granted={}, confirmed=())
        self.guard.saw(fleet.losses, policies, began=began)
        self._listed_at = time.monotonic()

    def wish_for(self, node: Node, existing: NodeConntrack | None) -> Wish:
        """Return what `node` is to have now, with what it was granted."""
        live = self.store.policies()
        lookup = self.book.lookup(live)
        with self._lock:
            granted = dict(self._fleet.grants.get(node.name, {}))
            travelling = self._fleet.travelling if self._judged else None
        told = existing.spec if existing is not None and existing.spec.node_uid == node.uid else None
        share = granted
        if told is None:
            share = {**newcomers_share(node, self._live_targets(), lookup), **granted}
        holding = holding_of(node, existing, share, travelling, lookup)
        mine = [policy for policy in live if _means(policy, node)]
        held = {policy.metadata.name for policy in holding.policies}
        keeps = told is not None and told.mode == "Apply" and not share
        return Wish(
            holding,
            granted=granted,
            observed=[policy for policy in mine if policy.spec.mode == "Observe" and policy.metadata.name not in held],
            attempt=told.attempt
            if told is not None and keeps
            else attempt_of(p for p in live if p.metadata.name in held),
            former=self.book.with_rules({*held, *(policy.metadata.name for policy in mine)}, lookup),
            is_meant=bool(mine) or bool(self.store.unreadable_policies()),
            may_restore=Loss("", node.name) in self.guard.confirmed(),
        )

    def unknown_revision(self, policy: str, seen: Seen) -> str:
        """Return at which revision the node has `policy` when nobody knows it; empty when it is known or none."""
        return seen.held.get(policy, "") if policy in seen.unknown else ""

    def written(self, node: str, wish: Wish) -> None:
        """Take note that the node's spec says what it was granted."""
        with self._lock:
            # What was granted meanwhile is not in what was written.
            granted = self._fleet.grants.get(node, {})
            left = {name: granted[name] for name in granted if wish.granted.get(name) != granted[name]}
            grants = {**self._fleet.grants, node: left}
            if not left:
                del grants[node]
            self._fleet = replace(self._fleet, grants=grants)

    def tidy(self) -> None:
        """Drop the revisions nobody needs, and write down again those that were lost. Raises Retry or Refused."""
        present = {target.name: target.revision for target in self._targets(write_down=False) if target.policy}
        unreadable = self.store.unreadable_policies()
        used = [
            (use.name, use.revision)
            for node in self.store.node_conntracks()
            for use in node.spec.policies
            if node.spec.mode == "Apply"
        ]
        used += [(name, each.name) for name in unreadable for each in self.book.revisions(name)]
        self.book.keep(present, used)

    def _targets(self, *, write_down: bool) -> list[Target]:
        """Return every policy as it is wanted, those that win fields first; those that are gone, but on nodes, last."""
        if write_down:
            for policy in self.store.policies():
                self.book.write_down(policy)
        targets = self._live_targets()
        known = {target.name for target in targets} | self.store.unreadable_policies()
        gone = {
            name
            for each in self.store.node_conntracks()
            for name in (
                *(use.name for use in each.spec.policies if each.spec.mode == "Apply"),
                *(withdrawal.name for withdrawal in each.spec.withdrawn),
            )
        }
        return targets + [Target(name, None, GONE) for name in sorted(gone - known)]

    def _live_targets(self) -> list[Target]:
        live = sorted(self.store.policies(), key=precedence)
        names = [policy.metadata.name for policy in live]
        return [
            Target(name, policy, self.book.name_of(policy), self.book.good(name))
            for name, policy in zip(names, live, strict=True)
        ]

    def _nodes_with_stale_withdrawals(self, travelling: Collection[tuple[str, str]]) -> set[str]:
        """Return the nodes that still name a withdrawal that has ended: it is not `travelling` any more."""
        return {
            each.metadata.name
            for each in self.store.node_conntracks()
            if any((one.name, one.revision) not in travelling for one in each.spec.withdrawn)
        }

    def _ask_for_lists(self, losses: frozenset[Loss], targets: Iterable[Target]) -> None:
        """Have full lists taken while there is something to confirm; and forget what has turned out to be no loss."""
        created = {each.name: each.policy.metadata.creation_timestamp or "" for each in targets if each.policy}
        wait = self.guard.compare(losses, created)
        if wait < float("inf"):
            # A node that gains and loses a label over and over must not have everything read each time.
            pace = self._listed_at + LIST_SECONDS - time.monotonic()
            self.queue.add(Key("list"), max(wait + PAUSE_SECONDS, pace))

    def _say(self, before: Fleet, after: Fleet) -> None:
        for name, verdict in after.verdicts.items():
            if verdict.release:
                log.info("policy %s: %s, released to %s", name, verdict.stage, ", ".join(verdict.release[:10]))
            old = before.verdicts.get(name)
            if verdict.stage == "Halted" and (old is None or old.reason != verdict.reason):
                log.warning("policy %s: %s: %s", name, verdict.reason, verdict.message)


def _means(policy: ConntrackPolicy, node: Node) -> bool:
    return policy.metadata.deletion_timestamp is None and selects(policy.spec.node_selector, node.labels)


def _differs(before: Verdict | None, after: Verdict) -> bool:
    return before is None or (before.stage, before.reason, before.message) != (after.stage, after.reason, after.message)
