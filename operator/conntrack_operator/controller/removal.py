"""The way out of a cluster, in order: policies first, then the nodes give back what they were given, then the agents.

The controller that runs does the giving back, in its waves; this only asks for it, waits, and says what came of it. It
writes without holding the lease, and only what the controller writes no more once there is no policy.

What it says is gone with its pod. So each node that was skipped has an Event too, which `kubectl describe node` shows.
"""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from conntrack_operator.cluster.events import Subject, post_event
from conntrack_operator.cluster.objects import CONTROLLER_REVISIONS, LEASES, NODE_CONNTRACKS, NODES, POLICIES, Objects
from conntrack_operator.decide.election import Lease
from conntrack_operator.decide.finding import counted
from conntrack_operator.decide.happenings import Happening
from conntrack_operator.decide.pacing import soak_past
from conntrack_operator.decide.targets import has_restored
from conntrack_operator.errors import ConntrackOperatorError, Invalid, LookAgain, Refused, Retry
from conntrack_operator.model.node import NodeConntrack, node_from

from .agents import remove_agents
from .book import LABELS
from .leadership import NAME as LEASE

PAUSE_SECONDS = 2.0
TRIES = 15
"""How often a request that is not answered is tried again at the end, PAUSE_SECONDS apart."""
LEADER_SECONDS = 30.0
"""How long to look for a controller that leads: one that died is followed by another within half of that."""
NOT_RESTORED = "NotRestored"
EVENTS_MAX = 50
"""Nodes that have an Event: of more than these nobody reads one by one, and each costs two requests."""


@dataclass(frozen=True)
class Skipped:
    """A node that was not restored in time. `heard`: when its agent reported last (RFC 3339), empty for never."""

    node: str
    uid: str
    heard: str

    def words(self) -> str:
        """Return how it can be told from a node that was only not its turn yet."""
        return f"last heard {self.heard}" if self.heard else "never heard"


def _readable(documents: Iterable[dict[str, Any]]) -> Iterator[NodeConntrack]:
    """Yield what this version understands; the rest is another version's, of whose waves nothing is known."""
    for document in documents:
        with contextlib.suppress(Invalid):
            yield node_from(document)


def _skipped(document: dict[str, Any]) -> Skipped:
    heard = (document.get("status") or {}).get("heartbeatTime") or ""
    return Skipped(document["metadata"]["name"], (document.get("spec") or {}).get("nodeUID") or "", heard)


@dataclass
class Removal:
    """One removal. `say` takes a sentence whenever there is something new."""

    objects: Objects
    namespace: str
    say: Callable[[str], None]
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    _said: str = field(default="")
    _skipped: dict[str, Skipped] = field(default_factory=dict)

    def run(self, limit_seconds: float) -> tuple[Skipped, ...]:
        """Delete the policies, wait until every node is restored, and remove what is left.

        Returns the nodes that had not answered after `limit_seconds`, by name. Their objects are deleted all the same;
        an agent whose object is gone keeps the node as it is. Raises Refused when a right is missing, or, before
        anything is deleted, when the limit is not 0 and no controller leads, or a policy's waves go past it for sure;
        Retry when the API server is silent to the end.
        """
        self._wait(limit_seconds)
        self._surely(self._remove_rest)
        return tuple(self._skipped[node] for node in sorted(self._skipped))

    def note(self, skipped: Iterable[Skipped], now: datetime | None = None) -> None:
        """Post an Event about each node that was skipped; what keeps them from being posted is said, and no error."""
        message = (
            "conntrack-operator was uninstalled and did not get this node restored in time ({}). It keeps the conntrack"
            " settings and rules it has until it boots, or until conntrack-operator restore is run on it"
        )
        for number, each in enumerate(skipped):
            if number == EVENTS_MAX:
                return self.say(f"Events tell of the first {EVENTS_MAX} of them")
            happening = Happening("Warning", NOT_RESTORED, message.format(each.words()), each.node)
            try:
                post_event(self.objects, Subject(NODES, each.node, each.uid), happening, now or datetime.now(UTC))
            except ConntrackOperatorError as error:
                return self.say(f"no Event tells of it: {error}")
        return None

    def _wait(self, limit_seconds: float) -> None:
        until = self.clock() + limit_seconds
        is_judged = not limit_seconds  # who gives no time wants no waves
        while True:
            try:
                if not is_judged:
                    self._judge(limit_seconds)
                    is_judged = True
                self._delete_policies()
                left = len(self.objects.list(NODE_CONNTRACKS).items)
                if not left:
                    return
                self._tell(f"{counted(left, 'node')} still to be restored")
            except Retry as error:
                self._tell(str(error))
            if self.clock() >= until:
                return
            self.sleep(min(PAUSE_SECONDS, max(0.0, until - self.clock())))

    def _judge(self, limit_seconds: float) -> None:
        # Of a withdrawal that is under way already nobody knows from here how far it is.
        there = {policy["metadata"]["name"] for policy in self.objects.list(POLICIES).items}
        nodes = self.objects.list(NODE_CONNTRACKS).items
        uses = (use for node in _readable(nodes) for use in node.spec.policies if use.name in there)
        if found := soak_past(uses, limit_seconds):
            name, soak = found
            raise Refused(
                "SoakPastLimit",
                f"nothing is deleted: nodes of policy {name} follow its canary {soak} s later (rollout.soakSeconds),"
                f" and would be skipped after {limit_seconds:g} s. Let all go at once: kubectl patch ctp {name}"
                ' --type merge -p \'{"spec":{"rollout":{"canary":0,"maxUnavailable":"100%"}}}\'; or give more time, by'
                " --timeout, in the chart uninstall.timeoutSeconds",
            )
        if nodes:
            self._see_leader(len(nodes))

    def _see_leader(self, nodes: int) -> None:
        """Return when somebody has renewed the Lease. Raises Refused when nobody does."""
        until = self.clock() + LEADER_SECONDS
        first = self._lease()
        while True:
            self.sleep(PAUSE_SECONDS)
            lease = self._lease()
            if lease and lease.holder and lease != first:
                return
            if self.clock() >= until:
                raise Refused(
                    "NoController",
                    f"nothing is deleted: no controller leads in namespace {self.namespace}, and"
                    f" {counted(nodes, 'node')} would stay as they are, without an agent. Get one to work:"
                    f" kubectl logs -n {self.namespace} deployment/conntrack-operator; or restore the nodes without it"
                    " (docs/uninstall.md, Emergency). --timeout 0 removes all the same",
                )

    def _lease(self) -> Lease | None:
        found = self.objects.get(LEASES, LEASE, self.namespace)
        return Lease.read(found) if found else None

    def _delete_policies(self) -> None:
        # Each time anew: somebody may have applied one since.
        for policy in self.objects.list(POLICIES).items:
            self.objects.delete(POLICIES, policy["metadata"]["name"])

    def _remove_rest(self) -> None:
        self._delete_policies()
        left = self.objects.list(NODE_CONNTRACKS).items
        # A canary's object stays until it has soaked.
        restored = {node.metadata.name for node in _readable(left) if has_restored(node)}
        for each in left:
            skipped = _skipped(each)
            if skipped.node not in restored:
                self._skipped[skipped.node] = skipped
            self.objects.delete(NODE_CONNTRACKS, skipped.node)
        remove_agents(self.objects, self.namespace)
        label = ",".join(f"{key}={value}" for key, value in LABELS.items())
        for each in self.objects.list(CONTROLLER_REVISIONS, namespace=self.namespace, label_selector=label).items:
            self.objects.delete(CONTROLLER_REVISIONS, each["metadata"]["name"], self.namespace)

    def _surely(self, act: Callable[[], None]) -> None:
        for left in reversed(range(TRIES)):
            try:
                return act()
            except LookAgain:
                pass  # the controller was quicker; what it has deleted need not be
            except Retry as error:
                if not left:
                    raise
                self._tell(str(error))
            self.sleep(PAUSE_SECONDS)
        return None

    def _tell(self, sentence: str) -> None:
        if sentence != self._said:
            self._said = sentence
            self.say(sentence)


def judged(objects: Objects, name: str, limit_seconds: float, clock: Callable[[], float] = time.monotonic) -> float:
    """Create a policy that observes and means no node, wait until the controller has judged it, and delete it.

    Returns the seconds that took. Raises Refused when the API server will not have it, Retry when no controller has
    judged it within `limit_seconds`.
    """
    spec = {"mode": "Observe", "nodeSelector": {"matchLabels": {"conntrack-operator.io/check": name}}}
    began = clock()
    objects.create(POLICIES, {"metadata": {"name": name}, "spec": {**spec, "table": {"size": {"maxEntries": 262144}}}})
    try:
        while clock() - began < limit_seconds:
            status = (objects.get(POLICIES, name) or {}).get("status") or {}
            if status.get("observedGeneration") == 1:
                return clock() - began
            time.sleep(0.5)
    finally:
        objects.delete(POLICIES, name)
    raise Retry(
        f"no controller has judged policy {name} within {limit_seconds:g} s; do its pods' logs say that one leads?"
    )
