"""Somebody who plays the agents of all nodes: a node must be heard before it is given anything.

Answers what asks for nothing (mode Hold), as every agent does; with `everything`, also what asks for something, as an
agent does whose kernel always obeys. Statuses that a test writes itself stay as they are.
"""

import contextlib
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from tests.lab.cluster import Cluster

from conntrack_operator.cluster.connection import Connection
from conntrack_operator.cluster.objects import NODE_CONNTRACKS, Objects
from conntrack_operator.errors import ConntrackOperatorError

EVERY_SECONDS = 0.2
USAGE = {"entries": 400, "maxEntries": 1000, "percent": 40}
PHASES = {"Hold": "Current", "Apply": "Current", "Restore": "Restored"}


def answer_to(spec: dict[str, Any], phase: str = "", **changes: Any) -> dict[str, Any]:
    """Return the status of a node that did what `spec` asks, or came to `phase` with it, with `changes`."""
    return {
        "observedRevision": spec["revision"],
        "observedAttempt": spec.get("attempt", ""),
        "nodeUID": spec["nodeUID"],
        "phase": phase or PHASES[spec["mode"]],
        "heartbeatTime": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "usage": USAGE,
        **changes,
    }


class Answering:
    """Answers until it is closed. `everything`: whether what asks for something is answered too."""

    def __init__(self, cluster: Cluster, *, everything: bool = False) -> None:
        self.everything = everything
        self.mute: frozenset[str] = frozenset()
        """Nodes it does not speak for."""
        self._objects = Objects(Connection(str(cluster.kubeconfig)))
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._answer_all, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Fall silent."""
        self._ended.set()
        self._thread.join()

    def _answer_all(self) -> None:
        while not self._ended.wait(EVERY_SECONDS):
            # The API server may be away, and an object gone, or changed since.
            with contextlib.suppress(ConntrackOperatorError):
                for found in self._objects.list(NODE_CONNTRACKS).items:
                    with contextlib.suppress(ConntrackOperatorError):
                        self._answer(found)

    def _answer(self, found: dict[str, Any]) -> None:
        name, spec, status = found["metadata"]["name"], found["spec"], found.get("status") or {}
        if name in self.mute or not (self.everything or spec["mode"] == "Hold"):
            return
        answer = answer_to(spec)
        if all(status.get(key) == answer[key] for key in ("observedRevision", "observedAttempt", "nodeUID")):
            return
        seen = {"/metadata/resourceVersion": found["metadata"]["resourceVersion"]}
        self._objects.replace_parts(NODE_CONNTRACKS, name, {"/status": answer}, subresource="status", only_if=seen)


@contextlib.contextmanager
def answering(cluster: Cluster, *, everything: bool = False) -> Iterator[Answering]:
    """Have the agents of all nodes answer."""
    agents = Answering(cluster, everything=everything)
    try:
        yield agents
    finally:
        agents.close()
