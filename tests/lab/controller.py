"""The controller as a process, killed and started at will, and the rights it gives to agents."""

import signal
import sys
from pathlib import Path

from tests.lab.cluster import NAMESPACE, Cluster
from tests.lab.policies import policy
from tests.lab.programs import Program

AGENT = "conntrack-operator-agent"
ELSEWHERE = policy("elsewhere", {"role": "nowhere"}, mode="Observe")
"""Matches no node. While it is there the controller keeps the agents' account, whose token an agent presents."""
IMAGE = "registry.example/conntrack-operator:test"
HASTY = {"confirm": 2.0, "pace": 1.0}
"""The nerves (tests.lab.watchful) of a controller whose waits are not what a test is about."""
BEGUN = "everything is read"
"""What it logs when its workers begin."""


def program(folder: Path, kubeconfig: Path, name: str = "controller", **nerves: object) -> Program:
    """Return a controller, not started; with `nerves`, one of tests.lab.watchful that has them."""
    module = ["conntrack_operator"]
    if nerves:
        module = ["tests.lab.watchful", *(f"{nerve}={value}" for nerve, value in nerves.items()), "--"]
    command = [
        sys.executable, "-m", *module, "controller",
        "--kubeconfig", str(kubeconfig), "--namespace", NAMESPACE, "--agent-image", IMAGE,
    ]  # fmt: skip
    return Program(name, command, folder / f"{name}.log")


def started(cluster: Cluster, folder: Path, **nerves: object) -> Program:
    """Return a controller that is at work, of the cluster's administrator; hasty, but for `nerves`."""
    controller = Controller(cluster, folder, **nerves)
    controller.start()
    return controller.program


class Controller:
    """A controller of `cluster`, in the operator's namespace; `folder` takes its log.

    It presents `kubeconfig`, an administrator's when none is named, and is hasty but for `nerves`.
    """

    def __init__(self, cluster: Cluster, folder: Path, kubeconfig: Path | None = None, **nerves: object) -> None:
        self.cluster = cluster
        self.program = program(folder, kubeconfig or cluster.kubeconfig, **{**HASTY, **nerves})

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
        self.cluster.delete_all(("leases", "-n", NAMESPACE))

    def stop(self) -> None:
        """End it in order."""
        self.program.stop()

    def agents_kubeconfig(self) -> str:
        """Return a kubeconfig with the agents' rights, which it grants as long as the policy ELSEWHERE is there."""
        self.cluster.apply(ELSEWHERE)
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
