"""The way out of a cluster, in order: policies first, then the nodes give back what they were given, then the agents.

The controller that runs does the giving back, in its waves; this only asks for it, waits, and says what came of it. It
writes without holding the lease, and only what the controller writes no more once there is no policy.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from conntrack_operator.cluster.objects import CONTROLLER_REVISIONS, NODE_CONNTRACKS, POLICIES, Objects
from conntrack_operator.errors import LookAgain, Retry

from .agents import remove_agents
from .book import LABELS

PAUSE_SECONDS = 2.0
TRIES = 15
"""How often a request that is not answered is tried again at the end, PAUSE_SECONDS apart."""


@dataclass
class Removal:
    """One removal. `say` takes a sentence whenever there is something new."""

    objects: Objects
    namespace: str
    say: Callable[[str], None]
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    _said: str = field(default="")

    def run(self, limit_seconds: float) -> tuple[str, ...]:
        """Delete the policies, wait until every node is restored, and remove what is left.

        Returns the nodes that had not answered after `limit_seconds`, by name. Their objects are deleted all the same;
        an agent whose object is gone keeps the node as it is. Raises Refused when a right is missing.
        """
        until = self.clock() + limit_seconds
        skipped = self._waited(until)
        self._surely(self._remove_rest)
        return skipped

    def _waited(self, until: float) -> tuple[str, ...]:
        left: tuple[str, ...] = ("every node",)
        while True:
            try:
                # Each time anew: somebody may have applied one since.
                for policy in self.objects.list(POLICIES).items:
                    self.objects.delete(POLICIES, policy["metadata"]["name"])
                left = tuple(sorted(each["metadata"]["name"] for each in self.objects.list(NODE_CONNTRACKS).items))
                if not left:
                    return ()
                self._tell(f"{len(left)} nodes still to be restored")
            except Retry as error:
                self._tell(str(error))
            if self.clock() >= until:
                return left
            self.sleep(min(PAUSE_SECONDS, max(0.0, until - self.clock())))

    def _remove_rest(self) -> None:
        for each in self.objects.list(NODE_CONNTRACKS).items:
            self.objects.delete(NODE_CONNTRACKS, each["metadata"]["name"])
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
