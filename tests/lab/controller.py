"""The controller as a process, killed and started at will, and the rights it gives to agents."""

import signal
import sys
from pathlib import Path

from tests.lab.cluster import Cluster
from tests.lab.operator import AGENT, ELSEWHERE, NAMESPACE
from tests.lab.programs import Program

IMAGE = "registry.example/conntrack-operator:test"
BEGUN = "everything is read"
"""What it logs when its workers begin."""


class Controller:
    """A controller of `cluster`, in the operator's namespace; `folder` takes its log.

    It presents `kubeconfig`, an administrator's when none is named.
    """

    def __init__(self, cluster: Cluster, folder: Path, kubeconfig: Path | None = None) -> None:
        self.cluster = cluster
        command = [
            sys.executable, "-m", "conntrack_operator", "controller",
            "--kubeconfig", str(kubeconfig or cluster.kubeconfig),
            "--namespace", NAMESPACE, "--agent-image", IMAGE,
        ]  # fmt: skip
        self.program = Program("controller", command, folder / "controller.log")

    def start(self) -> None:
        """Start it and wait until it is at work."""
        before = self._begun()
        self.program.start()
        self.program.wait_until(lambda: self._begun() > before, 60, "the controller has read everything")

    def _begun(self) -> int:
        return self.program.log.read_text().count(BEGUN) if self.program.log.exists() else 0

    def kill(self) -> None:
        """Kill it, as a node that loses power would. Whoever is started next need not wait for the dead one's lease."""
        if self.program.running:
            self.program.send(signal.SIGKILL)
        self.program.stop()
        self.cluster.kubectl("delete", "leases", "--all", "-n", NAMESPACE)

    def stop(self) -> None:
        """End it in order."""
        self.program.stop()

    def agents_kubeconfig(self) -> str:
        """Return a kubeconfig with the agents' rights, which it grants as long as the policy ELSEWHERE is there."""
        self.cluster.kubectl("apply", "-f", "-", input=ELSEWHERE)
        self.program.wait_until(self._has_rights, 60, "the controller makes the agents' account and its binding")
        return str(self.cluster.kubeconfig_for(self.cluster.token(AGENT, NAMESPACE)))

    def _has_rights(self) -> bool:
        account = self.cluster.get("serviceaccount", AGENT, "-n", NAMESPACE)
        return account is not None and self.cluster.get("clusterrolebinding", AGENT) is not None

    def memory(self) -> int:
        """Return its resident memory in KiB."""
        assert self.program.process
        text = Path(f"/proc/{self.program.process.pid}/status").read_text()
        return int(next(line for line in text.splitlines() if line.startswith("VmRSS:")).split()[1])
