"""A fleet of simulated nodes in this process: Nodes in a real API server, and agents that run the real reporting code.

Each node costs two threads and one watch. What runs is the agent's loop, mailbox, watch, client and every decision
about reports; what is simulated is the machine (tests.lab.fleet_duty). Real kubelets write Ready conditions; here the
test does, and it may take agents away and give them back.
"""

import resource
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.lab.fleet_api import GROUP, MERGE, Api
from tests.lab.fleet_clock import StillClock
from tests.lab.fleet_node import SimulatedNode
from tests.lab.programs import wait_until

from conntrack_operator.agent.clock import Clock
from conntrack_operator.cluster.access import access_for

ROLE = "fleet"
"""The nodes' label: role=fleet."""
NODE_CONNTRACKS = f"{GROUP}/nodeconntracks"


class Fleet:
    """Nodes `node-000` and so on, made with `kubeconfig`, an administrator's; agents may have one of their own."""

    def __init__(self, kubeconfig: Path | str, agents_kubeconfig: str = "", clock: Clock | None = None) -> None:
        self.api = Api(access_for(str(kubeconfig)))
        self.clock = clock or Clock()
        self.nodes: dict[str, SimulatedNode] = {}
        self._access = access_for(agents_kubeconfig or str(kubeconfig))
        _allow_many_files()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        self.clear()
        self.api.close()

    def __getitem__(self, name: str) -> SimulatedNode:
        return self.nodes[name]

    def __iter__(self) -> Iterator[SimulatedNode]:
        return iter(list(self.nodes.values()))

    def add(self, number: int, *, ready: bool = True, agents: bool = True, **labels: str) -> list[str]:
        """Make so many more nodes, Ready or not, and start their agents; return their names."""
        first = len(self.nodes)
        names = [f"node-{first + offset:03}" for offset in range(number)]
        self.create(names, ready=ready, agents=agents, **labels)
        return names

    def create(self, names: Iterable[str], *, ready: bool = True, agents: bool = True, **labels: str) -> None:
        """Make Nodes of these names, with machines nobody has touched."""
        names = list(names)
        for name in names:
            self.nodes[name] = SimulatedNode(name, self._access, self.clock)
        self.api.each(lambda name: self._create(name, labels, ready=ready), names)
        if agents:
            self.start(names)

    def _create(self, name: str, labels: Mapping[str, str], *, ready: bool) -> None:
        labels = {"kubernetes.io/os": "linux", "kubernetes.io/hostname": name, "role": ROLE, **labels}
        document = {
            "apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels},
            "status": {"conditions": _conditions(ready=ready)},
        }  # fmt: skip
        self.api.request("POST", "/api/v1/nodes", document)

    def set_ready(self, names: Iterable[str], *, ready: bool) -> None:
        """Write the Nodes' Ready conditions, as their kubelets (or, for False, who misses them) would."""
        body = {"status": {"conditions": _conditions(ready=ready)}}
        self.api.each(lambda name: self.api.request("PATCH", f"/api/v1/nodes/{name}/status", body, MERGE), list(names))

    def label(self, names: Iterable[str], **labels: str | None) -> None:
        """Set labels of Nodes; None takes one away."""
        body = {"metadata": {"labels": labels}}
        self.api.each(lambda name: self.api.request("PATCH", f"/api/v1/nodes/{name}", body, MERGE), list(names))

    def delete(self, names: Iterable[str]) -> None:
        """Take nodes away: their agents and the Nodes. What is in the API server about them is others' to clean up."""
        names = list(names)
        self.stop(names)
        self.api.each(lambda name: self.api.request("DELETE", f"/api/v1/nodes/{name}"), names)
        for name in names:
            del self.nodes[name]

    def start(self, names: Iterable[str] = ()) -> None:
        """Start the agents of these nodes, of all when none is named."""
        for name in names or self.nodes:
            self.nodes[name].start()

    def stop(self, names: Iterable[str] = ()) -> None:
        """End the agents of these nodes, of all when none is named."""
        nodes = [self.nodes[name] for name in names or self.nodes]
        for node in nodes:
            node.hang_up()
        for node in nodes:
            node.stop()

    def clear(self) -> None:
        """Delete all Nodes, policies and node objects; a controller that runs may write one of these meanwhile."""
        paths = ("/api/v1/nodes", f"{GROUP}/conntrackpolicies", NODE_CONNTRACKS)

        def is_empty() -> bool:
            for path in paths:
                self.api.request("DELETE", path)
            return not any(self.api.items(path) for path in paths)

        wait_until(is_empty, 60, "Nodes, policies and node objects are gone")

    def objects(self) -> dict[str, dict[str, Any]]:
        """Return every NodeConntrack there is, by name."""
        return {item["metadata"]["name"]: item for item in self.api.items(NODE_CONNTRACKS)}

    def tell(self, revision: str, *, mode: str = "Apply", settings: Mapping[str, Any] | None = None) -> None:
        """Write every node's NodeConntrack, as a controller without waves would."""
        known = self.objects()
        uids = {item["metadata"]["name"]: item["metadata"]["uid"] for item in self.api.items("/api/v1/nodes")}

        def write(name: str) -> None:
            spec = {
                "revision": revision, "mode": mode, "nodeUID": uids[name], "policies": [], "settings": settings or {},
            }  # fmt: skip
            if name in known:
                self.api.request("PATCH", f"{NODE_CONNTRACKS}/{name}", {"spec": spec}, MERGE)
            else:
                document = {
                    "apiVersion": "conntrack-operator.io/v1alpha1", "kind": "NodeConntrack", "metadata": {"name": name},
                    "spec": spec,
                }  # fmt: skip
                self.api.request("POST", NODE_CONNTRACKS, document)

        self.api.each(write, list(self.nodes))

    def advance(self, seconds: float) -> None:
        """Let time pass on a clock that stands still otherwise."""
        assert isinstance(self.clock, StillClock)
        self.clock.advance(seconds, lambda: all(node.is_quiet for node in self))

    def touched(self, revision: str) -> list[str]:
        """Return the nodes whose kernel was changed for a revision of a node's spec."""
        return [node.name for node in self if node.kernel.touched(revision)]

    def writes(self) -> int:
        """Return how many statuses the agents wrote."""
        return sum(len(node.written) for node in self)


def _conditions(*, ready: bool) -> list[dict[str, str]]:
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return [
        {
            "type": "Ready", "status": "True" if ready else "Unknown", "lastHeartbeatTime": now,
            "lastTransitionTime": now, "reason": "Test", "message": "as the test wishes",
        }
    ]  # fmt: skip


def _allow_many_files() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY or soft < min(hard, 8192):
        resource.setrlimit(resource.RLIMIT_NOFILE, (8192 if hard == resource.RLIM_INFINITY else min(hard, 8192), hard))
