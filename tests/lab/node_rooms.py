"""What a real node leaves on a machine, kept apart and taken back: processes, mounts, links, rules, sysctls, cgroups.

`Room` is a process and mount namespace whose first process takes everything in it along when it ends: containers, shims
and mounts; also when the run is killed. The network namespace is the machine's own, since sizes of the table can be
written nowhere else; `Machine` notes what a node changes there, and puts it back. What a killed run left is put back by
the next.
"""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.lab.host import write_whole
from tests.lab.programs import Program, wait_until

LINK = "ctlab-node"
BRIDGE = "ctlab-pods"
ADDRESS = "10.77.0.1"
"""The node's address, on a link of our own: nothing outside the machine reaches it."""

NOTED = Path("/run/lock/conntrack-operator-node.json")
SOCKETS = Path("/run")
FOLDER_PREFIX = "ctlab-"
"""Of a node's folder in `SOCKETS`; one node is there at a time, so what is found before it is of a run that died."""
# What kubelet, kube-proxy and the bridge plugin write at their start, conntrack's own aside (tests/lab/host.py).
SYSCTLS = tuple(
    Path("/proc/sys") / name
    for name in (
        "vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops", "kernel/keys/root_maxkeys",
        "kernel/keys/root_maxbytes", "net/ipv4/ip_forward", "net/ipv4/conf/all/route_localnet",
        "net/ipv6/conf/all/forwarding", "net/ipv4/vs/conntrack",
    )
)  # fmt: skip
# Ends its children by its own end, and leaves no dead ones behind.
_FIRST = "import signal; signal.signal(signal.SIGCHLD, signal.SIG_IGN); print('here', flush=True); signal.pause()"
# Everything below /var that is written there lands in a folder of ours; sockets of shims lie where nobody else looks.
_MOUNTS = """set -e
mount -t overlay overlay -o "lowerdir=/var,upperdir=$1/upper,workdir=$1/work" /var
mkdir -p /run/containerd && mount -t tmpfs tmpfs /run/containerd
exec "$2" -c "$3"
"""


class Room:
    """A process and mount namespace in which a node's programs run; its end is theirs."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        for name in ("upper", "work"):
            (folder / name).mkdir(parents=True)
        self.first = Program(
            "room",
            ["unshare", "--mount", "--pid", "--fork", "--kill-child=KILL", "--mount-proc", "--propagation=private",
             "sh", "-c", _MOUNTS, "room", str(folder), sys.executable, _FIRST],
            folder / "room.log",
        )  # fmt: skip
        self._pid = 0

    def start(self) -> None:
        """Make it."""
        self.first.start()
        assert self.first.process
        children = Path(f"/proc/{self.first.process.pid}/task/{self.first.process.pid}/children")
        self.first.wait_until(lambda: "here" in self.first.tail(), 10, "the room's first process runs")
        self._pid = int(children.read_text().split()[0])

    def stop(self) -> None:
        """End all that is in it, and wait until it is gone."""
        self.first.stop(seconds=0)
        if self._pid:
            wait_until(lambda: not Path(f"/proc/{self._pid}").exists(), 20, "the room is empty")

    def command(self, command: Sequence[str]) -> list[str]:
        """Return what runs a command in it, and ends it when the caller ends."""
        inside = ["nsenter", f"--target={self._pid}", "--mount", "--pid", "--"]
        return [*inside, "setpriv", "--pdeathsig", "KILL", *command]

    def path(self, inside: Path) -> Path:
        """Return where a path of the room is found from outside."""
        return Path(f"/proc/{self._pid}/root{inside}")

    def run(self, *command: str, check: bool = True, seconds: float = 60) -> subprocess.CompletedProcess[str]:
        """Run a command in it and return what it said."""
        done = subprocess.run(
            self.command(command), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
            timeout=seconds, cwd="/",
        )  # fmt: skip
        if check and done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)} exited {done.returncode}:\n{done.stdout}{done.stderr}")
        return done


class Machine:
    """The initial network namespace while a node uses it: a link with its address, and the way back."""

    def __enter__(self) -> Self:
        """Note how it is, and make the link."""
        if NOTED.exists():
            self._put_back()
        write_whole(NOTED, json.dumps(_as_it_is()))
        _ip("link", "add", LINK, "type", "bridge")  # a dummy is a module that not every kernel has
        _ip("address", "add", f"{ADDRESS}/32", "dev", LINK)
        _ip("link", "set", LINK, "up")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Put it back."""
        self._put_back()

    def _put_back(self) -> None:
        before = json.loads(NOTED.read_text())
        for link in (LINK, BRIDGE):
            if link in {name for _, name in socket.if_nameindex()}:
                _ip("link", "delete", link)
        for family, name in _tables():
            if [family, name] not in before["tables"]:
                subprocess.run(["nft", "delete", "table", family, name], check=True, capture_output=True)
        for program, rules in before["rules"].items():
            if rules:  # else nothing of the kind was there, and its tables are gone
                subprocess.run([f"{program}-restore"], input=rules, text=True, check=True, capture_output=True)
        for path, value in before["sysctls"].items():
            if Path(path).exists() and Path(path).read_text() != value:
                Path(path).write_text(value)
        remove_groups({Path(group) for group in before["groups"]})
        for folder in SOCKETS.glob(f"{FOLDER_PREFIX}*"):
            shutil.rmtree(folder)
        NOTED.unlink()


def _as_it_is() -> dict[str, object]:
    saved = {
        program: subprocess.run([f"{program}-save"], capture_output=True, text=True, check=True).stdout
        for program in ("iptables", "ip6tables")
        if any(family == ("ip" if program == "iptables" else "ip6") for family, _ in _tables())
    }
    readable = {str(path): path.read_text() for path in SYSCTLS if path.exists()}
    return {"tables": _tables(), "rules": saved, "sysctls": readable, "groups": sorted(map(str, groups()))}


def _tables() -> list[tuple[str, str]]:
    done = subprocess.run(["nft", "-j", "list", "tables"], capture_output=True, text=True, check=True)
    found = [item["table"] for item in json.loads(done.stdout)["nftables"] if "table" in item]
    return [(table["family"], table["name"]) for table in found]


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")


def remove_groups(before: set[Path]) -> None:
    """Remove the cgroups that were not there before and hold nobody, the deepest first."""
    for group in sorted(groups() - before, key=lambda path: -len(path.parts)):
        with contextlib.suppress(OSError):
            group.rmdir()


def groups() -> set[Path]:
    """Return every cgroup of the machine."""
    return {Path(folder) for folder, _, _ in os.walk("/sys/fs/cgroup")}
