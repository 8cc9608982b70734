"""Keeps the agents running while there is anything for them to do, and takes them away when there is not.

The DaemonSet is looked at by one GET every few seconds, not watched: a watch would be a line to the API server that
brings every change of its status, one for each pod that starts on thousands of nodes, to learn of an edit that hardly
ever comes. All that the agents are made of is applied when that look finds it changed, and every five minutes.
"""

import logging
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from conntrack_operator.cluster.objects import (
    BY_KIND,
    DAEMON_SETS,
    EVENTS,
    NODE_CONNTRACKS,
    POLICIES,
    Kind,
    Objects,
)
from conntrack_operator.decide.agent_trouble import trouble_of_pods, trouble_of_set
from conntrack_operator.decide.standing import time_in
from conntrack_operator.errors import Refused, Retry
from conntrack_operator.model.agent_config import AgentConfig

from .agent_pods import AgentPods
from .daemonset import AS_BUILT, MANAGED_BY, NAME, agent_documents

log = logging.getLogger(__name__)

LOOK_SECONDS = 10.0
"""Time between two looks at the DaemonSet. Deleted or edited by hand, it is put right in this time."""
SOON_SECONDS = 2.0
"""The same while it lacks pods, and after it was applied. A pod that changes asks for a look too, and there are many:
one that was made half this time ago will do."""
APPLY_SECONDS = 300.0
ASK_SECONDS = 60.0
"""How often the DaemonSet is touched while pods are refused. Its controller tries ever more rarely, in the end every
17 minutes (client-go's rate limiter), but at once when the DaemonSet changes: who removed the cause need not wait."""
LACKING_SECONDS = 5.0
"""How long pods must be missing before that is trouble: while they are being created some always are."""
COMPLAINT_AGE = timedelta(minutes=20)
"""Older complaints are about something else: until then the DaemonSet's controller has tried again."""
ASKED_AGAIN = "conntrack-operator.io/asked-again"

FAILED_CREATE = Kind(
    EVENTS.kind,
    EVENTS.api_version,
    EVENTS.plural,
    namespaced=True,
    field_selector=f"involvedObject.kind=DaemonSet,involvedObject.name={NAME},reason=FailedCreate",
)
"""What the DaemonSet's controller says when a pod is refused; its status only shows that pods are missing."""


@dataclass
class Agents:
    """The DaemonSet, its rights and its pods. `trouble` says why agents do not run anywhere, with the remedy.

    It is empty while all is well, and as of the last `put_right`.
    """

    objects: Objects
    namespace: str
    image: str
    pods: AgentPods
    clock: Callable[[], float] = time.monotonic
    now: Callable[[], datetime] = lambda: datetime.now(UTC)
    config: AgentConfig = AS_BUILT
    trouble: str = ""
    _impossible: str = ""
    _lacking: str = ""
    _lacking_since: float | None = None
    _applied: tuple[str, int] | None = None
    """Uid and generation of the DaemonSet as we made it."""
    _applied_at: float = field(default=float("-inf"))
    _looked_at: float = field(default=float("-inf"))

    def trouble_on(self, nodes: Collection[str]) -> str:
        """Return why agents do not run on some of `nodes`, as a sentence with the remedy; empty while they do."""
        lacks = self._lacking and any(self.pods.ready(node) is None for node in nodes)
        return self._impossible or (self._lacking if lacks else "") or self._ailing(frozenset(nodes))

    def put_right(self, *, wanted: bool) -> float:
        """Create or repair the agents when they are `wanted`, else remove them. Raises Retry or Refused.

        Returns in how many seconds to come again; 0 when that is not foreseen. What is right already is not written to.
        """
        try:
            if wanted:
                self._look()
            else:
                if self._is_needless():
                    self._remove()
                self._applied, self._lacking = None, ""
        except Refused as refusal:
            self._impossible = f"the agents cannot be started: {refusal}; see the controller's rights"
            raise
        else:
            self._impossible = ""
        finally:
            self.trouble = self._impossible or self._lacking or self._ailing(None)
        return self._seconds_to_next() if wanted else 0.0

    def _ailing(self, nodes: frozenset[str] | None) -> str:
        return trouble_of_pods(self.pods.ailing()[0], nodes, self.namespace)

    def _seconds_to_next(self) -> float:
        # What was just applied is about to show whether it works.
        is_unclear = self._lacking_since is not None or self.clock() - self._applied_at < LOOK_SECONDS
        recovers = self.pods.ailing()[1]
        return min(SOON_SECONDS if is_unclear else LOOK_SECONDS, recovers or LOOK_SECONDS)

    def _look(self) -> None:
        """Look at the DaemonSet, unless that was just done, and make it right if it is not."""
        clock = self.clock()
        if self._applied and clock - self._looked_at < SOON_SECONDS / 2:
            return
        found = self.objects.get(DAEMON_SETS, NAME, self.namespace)
        self._looked_at = clock
        since = clock - self._applied_at
        if found is None and self._is_needless():
            return  # an uninstallation is quicker than our watches, and what we made now would stay
        if found is None or self._applied != _version_of(found) or since >= APPLY_SECONDS:
            found = self._apply()
        elif self._lacking and since >= ASK_SECONDS:
            found = self._apply({ASKED_AGAIN: self.now().strftime("%Y-%m-%dT%H:%M:%SZ")})
        self._judge(found)

    def _apply(self, annotations: dict[str, str] | None = None) -> dict[str, Any]:
        """Apply all that the agents are made of, and return the DaemonSet, the last of it."""
        stored: dict[str, Any] = {}
        for document in agent_documents(self.namespace, self.image, self.config):
            kind = BY_KIND[document["kind"]]
            if kind is DAEMON_SETS and annotations:
                document["metadata"]["annotations"] = annotations
            answer = self.objects.apply(kind, document, self.namespace if kind.namespaced else "")
            if answer is None:
                self._impossible = (
                    f"the agents cannot be started: namespace {self.namespace} does not exist;"
                    f" kubectl create namespace {self.namespace}"
                )
                raise Retry(self._impossible)
            stored = answer
        self._applied, self._applied_at = _version_of(stored), self.clock()
        return stored

    def _judge(self, found: dict[str, Any]) -> None:
        """Note whether the DaemonSet's pods are refused, and why."""
        status = found.get("status") or {}
        desired, current = status.get("desiredNumberScheduled", 0), status.get("currentNumberScheduled", 0)
        if current >= desired:
            self._lacking, self._lacking_since = "", None
            return
        clock = self.clock()
        if self._lacking_since is None:
            self._lacking_since = clock
        if clock - self._lacking_since >= LACKING_SECONDS:
            complaints = self._complaints(found["metadata"]["uid"])
            self._lacking = trouble_of_set(desired, current, complaints, self.namespace)

    def _complaints(self, uid: str) -> list[str]:
        try:
            events = self.objects.list(FAILED_CREATE, namespace=self.namespace).items
        except Refused as refusal:
            return [f"nobody knows why, since {refusal}"]
        said = sorted((moment, event.get("message") or "") for event in events if (moment := _last(event, uid)))
        return [message for moment, message in said if self.now() - moment < COMPLAINT_AGE]

    def _is_needless(self) -> bool:
        """Ask the API server itself before taking the agents from every node, or putting them there."""
        return not self.objects.list(POLICIES).items and not self.objects.list(NODE_CONNTRACKS).items

    def _remove(self) -> None:
        remove_agents(self.objects, self.namespace)


def remove_agents(objects: Objects, namespace: str) -> None:
    """Delete what the agents are made of, the DaemonSet first, as far as it is ours. Raises Retry or Refused."""
    for document in reversed(agent_documents(namespace, "")):
        kind, name = BY_KIND[document["kind"]], document["metadata"]["name"]
        place = namespace if kind.namespaced else ""
        found = objects.get(kind, name, place)
        labels = (found or {}).get("metadata", {}).get("labels") or {}
        if found is not None and labels.get("app.kubernetes.io/managed-by") == MANAGED_BY:
            objects.delete(kind, name, place, uid=found["metadata"]["uid"])
            log.info("removed %s %s", kind.kind, name)


def _version_of(daemon_set: dict[str, Any]) -> tuple[str, int]:
    return daemon_set["metadata"]["uid"], daemon_set["metadata"]["generation"]


def _last(event: dict[str, Any], uid: str) -> datetime | None:
    """Return when the event about the object with this `uid` was seen last, None when it is about another."""
    if (event.get("involvedObject") or {}).get("uid") != uid:
        return None
    series = event.get("series") or {}
    return time_in(series.get("lastObservedTime") or event.get("lastTimestamp") or event.get("eventTime") or "")
