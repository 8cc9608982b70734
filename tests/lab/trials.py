"""A node with something to reach, and `apply` running on it: what the tests of trials share."""

import contextlib
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.lab.namespaces import End, Lab, Namespace

from conntrack_operator.decide.notrack import TABLE

ICMP = "net.netfilter.nf_conntrack_icmp_timeout"
POLICY = {
    "apiVersion": "conntrack-operator.io/v1alpha1",
    "kind": "ConntrackPolicy",
    "metadata": {"name": "web"},
    "spec": {"mode": "Enforce", "nodeSelector": {"matchLabels": {"role": "web"}}},
}
PORT = 7000
"""Of what the node must reach."""

_PATIENT = """
import sys
from conntrack_operator.agent import trial
from conntrack_operator.cli.main import main
trial.BEFORE_SECONDS = 30.0
"""
"""What does not answer within a second before a change is not watched after it: on a busy machine nothing would be."""
_HELD = """
import os, signal
made = trial.Trial.__init__
def hold(*arguments):
    made(*arguments)
    os.kill(os.getpid(), signal.SIGSTOP)
trial.Trial.__init__ = hold
"""
_RUN = "sys.exit(main(sys.argv[1:]))\n"


def policy(path: Path, **spec: object) -> Path:
    """Write a policy file with these fields and return its path."""
    path.write_text(json.dumps({**POLICY, "spec": {**POLICY["spec"], **spec}}), encoding="utf-8")
    return path


@dataclass
class Reachable:
    """A TCP port on another node that can be closed and opened again."""

    namespace: Namespace
    end: End
    _listener: socket.socket | None = None

    @property
    def address(self) -> str:
        """HOST:PORT."""
        return f"{self.end.ipv4}:{PORT}"

    def open(self) -> None:
        """Let connections come about."""
        self._listener = self.namespace.listen(self.end.ipv4, PORT)
        threading.Thread(target=_accept, args=(self._listener,), daemon=True).start()

    def close(self) -> None:
        """Refuse connections from now on."""
        if self._listener is not None:
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            self._listener = None


def _accept(listener: socket.socket) -> None:
    with contextlib.suppress(OSError):  # closed
        listener.settimeout(None)
        while True:
            listener.accept()[0].close()


@contextlib.contextmanager
def reachable(lab: Lab) -> Iterator[tuple[Namespace, Reachable]]:
    """Give a tracking node, and something that it reaches by a link."""
    node, other = lab.namespace(), lab.namespace()
    _, far = lab.link(node, other)
    node.track()
    target = Reachable(other, far)
    target.open()
    try:
        yield node, target
    finally:
        target.close()


def start(node: Namespace, *arguments: object, first: str = "", held: bool = False) -> "subprocess.Popen[str]":
    """Start `conntrack-operator` with these arguments on the node, after the Python code `first`.

    With `held` it stops itself when it has made a change that is on trial, before it looks at it: see `wait_for_trial`.
    """
    code = first + _PATIENT + _HELD * held + _RUN
    return node.start(sys.executable, "-c", code, *map(str, arguments))


def wait_for_trial(process: "subprocess.Popen[str]") -> None:
    """Wait until a process that was started `held` has made its change. It goes on with SIGCONT."""

    def is_stopped() -> bool:
        assert process.poll() is None, process.communicate()
        return Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"  # proc_pid_stat(5)

    wait_until(is_stopped, 60, "the change is made")


def let_go(process: "subprocess.Popen[str]") -> None:
    """Let it go on."""
    process.send_signal(signal.SIGCONT)


def wait_until(holds: Callable[[], bool], seconds: float, what: str) -> None:
    """Fail unless `holds()` within that time."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {what}"
        time.sleep(0.05)


def our_table(node: Namespace) -> str:
    """Return our table as nft prints it, empty when there is none."""
    return node.run("nft", "list", "table", "inet", TABLE, check=False).stdout


def ended(process: "subprocess.Popen[str]", seconds: float) -> tuple[int, str]:
    """Return exit code and output of a process, once it has ended."""
    out, complaints = process.communicate(timeout=seconds)
    return process.returncode, out + complaints


def notracked(node: Namespace, target: Reachable, words: Sequence[str] = ()) -> bool:
    """Tell whether a connection to the target leaves no entry in the node's table now."""
    node.run("conntrack", "-F")
    with node.connect(target.end.ipv4, PORT):
        listing = node.run("conntrack", "-L", "-p", "tcp").stdout
    return not [
        line for line in listing.splitlines() if f"dport={PORT}" in line and all(word in line for word in words)
    ]


def confirmed(state: Path) -> dict[str, int] | None:
    """Return the sysctls that are confirmed in this state directory, None when nothing is."""
    file = state / "confirmed.json"
    return json.loads(file.read_text())["sysctls"] if file.exists() else None
