"""The pods on their nodes' own network, by node, and for a short while those that have just gone.

A pod that restarts, or that a rollout replaces, is away for seconds. Its rule would be withdrawn and tried anew each
time, so a pod that goes counts for GRACE_SECONDS more. One that comes counts at once. Nothing is lost by the wait: with
nobody listening on a port, leaving it untracked bothers nobody.
"""

import time
from collections.abc import Callable, Iterable
from typing import Any

from conntrack_operator.cluster.objects import Listing
from conntrack_operator.decide.pods import HostPod
from conntrack_operator.decide.services import PortKey

from .shelf import Change, Shelf
from .sights import pod_in

GRACE_SECONDS = 20.0


class HostPods:
    """The pods by node. Not safe for threads by itself; the store's lock is."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._shelf: Shelf[HostPod] = Shelf(pod_in)
        self._here: dict[str, dict[str, HostPod]] = {}
        self._leaving: dict[str, dict[str, tuple[float, HostPod]]] = {}
        self._ports: frozenset[PortKey] | None = None

    def put(self, document: dict[str, Any], *, deleted: bool = False) -> list[HostPod]:
        """Take in one sight of a pod; return both sides of what changed."""
        change = self._shelf.put(document, deleted=deleted)
        return self._take_in([change] if change else [])

    def replace(self, listing: Listing) -> list[HostPod]:
        """Take in a full list."""
        for node in list(self._leaving):
            self.on(node)  # nobody asks any more about a node that is gone itself
        return self._take_in(self._shelf.replace(listing))

    def on(self, node: str) -> tuple[list[HostPod], float]:
        """Return the pods that count on `node`, and in how many seconds fewer will; 0 when that is not foreseen."""
        now = self._clock()
        leaving = {name: item for name, item in self._leaving.get(node, {}).items() if item[0] > now}
        if leaving:
            self._leaving[node] = leaving
        else:
            self._leaving.pop(node, None)
        pods = [*self._here.get(node, {}).values(), *(pod for _, pod in leaving.values())]
        return pods, min((until - now for until, _ in leaving.values()), default=0.0)

    def ports(self) -> frozenset[PortKey]:
        """Return every port that any of the pods declares."""
        if self._ports is None:
            self._ports = frozenset((port.protocol, port.port) for pod in self._shelf.values() for port in pod.ports)
        return self._ports

    def _take_in(self, changes: Iterable[Change[HostPod]]) -> list[HostPod]:
        touched = []
        for change in changes:
            before, after = change.before, change.after
            self._ports = None
            if before is not None:
                self._here[before.node].pop(change.name, None)
                until = self._clock() + GRACE_SECONDS
                self._leaving.setdefault(before.node, {})[change.name] = (until, before)
            if after is not None:
                self._here.setdefault(after.node, {})[change.name] = after
            touched += [pod for pod in (before, after) if pod is not None]
        return touched
