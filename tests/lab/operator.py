"""The operator at work: controller and agent as processes of their own, between a real API server and this machine."""

import contextlib
import json
import signal
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tests.lab.cluster import NAMESPACE, Cluster
from tests.lab.controller import AGENT, ELSEWHERE, HASTY
from tests.lab.controller import program as controller
from tests.lab.kube_proxy import Relay, set_address
from tests.lab.namespaces import Lab, Namespace
from tests.lab.policies import policy
from tests.lab.programs import Program, wait_until

NODE = "this-machine"


class Operator:
    """Controller and agent, between `cluster` and `host`; `folder` takes their logs and the agent's state.

    `host` is this machine, or a network namespace in which the agent runs; there it needs a `server` that it can reach,
    the API server's address as it is seen from inside.
    """

    def __init__(self, cluster: Cluster, host: Namespace, folder: Path, node: str = NODE, server: str = "") -> None:
        self.cluster, self.host, self.folder, self.name, self.server = cluster, host, folder, node, server
        self.neighbour: Namespace | None = None
        """Whom the node reaches, where it is a namespace of `in_namespace`."""
        self.state = folder / "state"
        self.controller = controller(folder, cluster.kubeconfig, **HASTY)
        command = [
            sys.executable, "-m", "conntrack_operator", "agent",
            f"--node={node}", f"--kubeconfig={folder / 'agent.kubeconfig'}", f"--state-dir={self.state}",
        ]  # fmt: skip
        self.agent = Program("agent", command, folder / "agent.log", inside=host.inside)

    @property
    def programs(self) -> tuple[Program, ...]:
        """The processes, in the order they start."""
        return (self.controller, self.agent)

    def start(self, labels: Mapping[str, str]) -> None:
        """Start both, on a cluster that has this machine as its one Node, with `labels`."""
        self.cluster.add_node(self.name, **labels)
        self.controller.start()
        self.start_agent()

    def start_agent(self) -> None:
        """Start the agent with the token of the account the controller makes, bound to the Node as a kubelet asks.

        So every right it uses is one it has in production.
        """
        self.cluster.apply(ELSEWHERE)
        self.controller.wait_until(self._has_rights, 60, "the controller makes the agents' account and its binding")
        token = self.cluster.token(AGENT, NAMESPACE, node=self.name)
        self.cluster.kubeconfig_for(token, self.folder / "agent.kubeconfig", server=self.server)
        self.agent.start()

    def _has_rights(self) -> bool:
        account = self.cluster.get("serviceaccount", AGENT, "-n", NAMESPACE)
        return account is not None and self.cluster.get("clusterrolebinding", AGENT) is not None

    def has_no_account(self) -> bool:
        """Return whether the agents' account is gone, which the controller makes and takes away."""
        return self.cluster.get("serviceaccount", AGENT, "-n", NAMESPACE) is None

    def stop(self) -> None:
        """End both. The agent goes first, so that it does not see the cluster being emptied."""
        for program in reversed(self.programs):
            if program.running:
                program.send(signal.SIGCONT)
            program.stop()

    def policy(self, name: str) -> dict[str, Any] | None:
        """Return a policy, None when there is none."""
        return self.cluster.get("conntrackpolicy", name)

    def node(self) -> dict[str, Any] | None:
        """Return this machine's NodeConntrack, None when there is none."""
        return self.cluster.get("nodeconntrack", self.name)

    def apply(self, name: str, **spec: Any) -> None:
        """Apply a policy for this machine alone, in mode Enforce when `spec` says nothing else."""
        self.cluster.apply(policy(name, {"kubernetes.io/hostname": self.name}, **spec))

    def status(self) -> dict[str, Any]:
        """Return what this machine's agent reported last, empty when it reported nothing."""
        return dict((self.node() or {}).get("status") or {})

    def phases(self) -> list[str]:
        """Return the phases this machine has reported, oldest first."""
        return [entry["phase"] for entry in self.status().get("history", [])]

    def journal(self) -> dict[str, Any]:
        """Return the agent's journal: `trial` is in it while a change is tried. Empty when there is none."""
        try:
            return dict(json.loads((self.state / "journal.json").read_text()))
        except FileNotFoundError:
            return {}

    def condition(self, policy: str, kind: str) -> dict[str, Any]:
        """Return one condition of a policy's status, empty when it is not there or of an older generation."""
        found = self.policy(policy)
        for condition in (found or {}).get("status", {}).get("conditions", []):
            if condition["type"] == kind and found:
                current = condition.get("observedGeneration", 0) >= found["metadata"]["generation"]
                return dict(condition) if current else {}
        return {}

    def wait_ready(self, policy: str, seconds: float = 60) -> float:
        """Wait until a policy is Ready; return the seconds it took."""
        return wait_until(
            lambda: self.condition(policy, "Ready").get("status") == "True", seconds, f"policy {policy} is Ready"
        )

    def acts(self) -> int:
        """Return how often the agent has said that it carried a revision out, also with nothing to do."""
        return self.agent.log.read_text().count("revision ")

    def has_acted(self, times: int) -> bool:
        """Return whether the agent has carried out `times` revisions in all, over all its starts."""
        return self.acts() >= times

    def withdraw(self) -> None:
        """Delete every policy but ELSEWHERE and wait until the node is as it was and its object gone.

        The controller would look twice, 10 s apart, before it has anything restored. That has tests of its own; here
        the node is asked by hand, which the controller then takes for what it has asked itself.
        """
        names = [item["metadata"]["name"] for item in self.cluster.items("conntrackpolicies")]
        mine = [name for name in names if name != ELSEWHERE["metadata"]["name"]]
        if mine:
            self.cluster.kubectl("delete", "conntrackpolicies", *mine)
        wait_until(self._is_let_go, 60, "the NodeConntrack of this machine is gone")

    def _is_let_go(self) -> bool:
        found = self.node()
        if found is not None and found["spec"]["mode"] != "Restore":
            by_hand = {"mode": "Restore", "revision": "by-hand", "settings": None}
            self.cluster.patch({"spec": by_hand}, "nodeconntrack", self.name)  # which may have gone meanwhile
        return found is None


NEAR, FAR = "10.99.1.1", "10.99.1.2"
"""Addresses of a node in a namespace, and of its neighbour, through whom it reaches the API server."""
FAR_PORT = 6443


@contextlib.contextmanager
def in_namespace(cluster: Cluster, folder: Path, name: str, server: str = "") -> Iterator[Operator]:
    """Give an operator, not started yet, whose agent runs in a namespace of its own and reaches the API server at FAR.

    With `server` it asks for the API server there instead; the way from there to FAR, port FAR_PORT, is the test's.
    The cluster is cleared before and afterwards.
    """
    cluster.clear()
    folder.mkdir(exist_ok=True)
    with Lab() as lab:
        namespace, neighbour = lab.namespace(), lab.namespace()
        _, far = lab.link(namespace, neighbour)
        assert far.ipv4 == FAR
        lab.route(namespace, far)
        relay = Relay(neighbour, cluster.port, (FAR, FAR_PORT))
        operator = Operator(cluster, namespace, folder, name, server or f"https://{FAR}:{FAR_PORT}")
        operator.neighbour = neighbour
        try:
            yield operator
        finally:
            operator.stop()
            relay.close()
            cluster.clear()


def start_in_namespace(operator: Operator) -> None:
    """Start an operator of `in_namespace`, with a Node that has the namespace's address."""
    operator.start({})
    set_address(operator.cluster, operator.name, NEAR)
