"""What a real node leaves on a machine, kept apart and taken back: processes, mounts, links, rules, sysctls, cgroups.

`Room` is a process and mount namespace whose first process takes everything in it along when it ends: containers, shims
and mounts; also when the run is killed. The network is one of the node's own, which goes as a whole, or the machine's,
since sizes of the table can be written nowhere else; `MachinesNetwork` notes what a node changes there, and puts it
back. What a killed run left is put back by the next.
"""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.lab.host import write_whole
from tests.lab.namespaces import Lab
from tests.lab.programs import Program, wait_until

LINK = "ctlab-node"
BRIDGE = "ctlab-pods"
ADDRESS = "10.77.0.1"
"""The node's address, on a link of our own: nothing outside the machine reaches it."""

NOTED = Path("/run/lock/conntrack-operator-node.json")
SOCKETS = Path("/run")
GROUPS = Path("/sys/fs/cgroup")
CONTAINERD = "k8s.io"
"""The kubelet's namespace in containerd, after which the folders and cgroups of its containers are named."""
FOLDER_PREFIX = "ctlab-"
"""Of a node's folder in `SOCKETS`; the pid of the run follows, by which the next one sees whether it died."""
# What a kubelet writes at its start and is one for the whole machine: a room has files of its own in their place.
MACHINES_SYSCTLS = (
    "vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops", "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
)  # fmt: skip
# What kubelet, kube-proxy and the bridge plugin write in their network, conntrack's own aside (tests/lab/host.py).
SYSCTLS = tuple(
    Path("/proc/sys") / name
    for name in (
        "net/ipv4/ip_forward", "net/ipv4/conf/all/route_localnet", "net/ipv6/conf/all/forwarding",
        "net/ipv4/vs/conntrack",
    )
)  # fmt: skip
# Ends its children by its own end, and leaves no dead ones behind.
_FIRST = "import signal; signal.signal(signal.SIGCHLD, signal.SIG_IGN); print('here', flush=True); signal.pause()"
# Everything below /var that is written there lands in a folder of ours; sockets of shims lie where nobody else looks.
_MOUNTS = """set -e
mount -t overlay overlay -o "lowerdir=/var,upperdir=$1/upper,workdir=$1/work" /var
mkdir -p /run/containerd && mount -t tmpfs tmpfs /run/containerd
for name in $(cd "$1/sysctls" && find . -type f); do mount --bind "$1/sysctls/$name" "/proc/sys/$name"; done
exec "$2" -c "$3"
"""


class Room:
    """A process and mount namespace in which a node's programs run; its end is theirs."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        for name in ("upper", "work", "sysctls"):
            (folder / name).mkdir(parents=True)
        for name in MACHINES_SYSCTLS:
            value, own = Path("/proc/sys") / name, folder / "sysctls" / name
            if value.exists():
                own.parent.mkdir(exist_ok=True, parents=True)
                own.write_text(value.read_text())
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
        self.first.wait_until(lambda: "here" in self.first.tail(), 30, "the room's first process runs")
        self._pid = int(children.read_text().split()[0])

    def stop(self) -> None:
        """End all that is in it, and wait until it is gone."""
        self.first.stop(seconds=0)
        if self._pid:
            wait_until(lambda: not Path(f"/proc/{self._pid}").exists(), 60, "the room is empty")

    def command(self, command: Sequence[str]) -> list[str]:
        """Return what runs a command in it, and ends it when the caller ends."""
        inside = ["nsenter", f"--target={self._pid}", "--mount", "--pid", "--"]
        return [*inside, "setpriv", "--pdeathsig", "KILL", *command]

    def path(self, inside: Path) -> Path:
        """Return where a path of the room is found from outside."""
        return Path(f"/proc/{self._pid}/root{inside}")

    def run(self, *command: str, check: bool = True, seconds: float = 120) -> subprocess.CompletedProcess[str]:
        """Run a command in it and return what it said."""
        done = subprocess.run(
            self.command(command), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
            timeout=seconds, cwd="/",
        )  # fmt: skip
        if check and done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)} exited {done.returncode}:\n{done.stdout}{done.stderr}")
        return done


@contextlib.contextmanager
def own_network() -> Iterator[None]:
    """Have the calling thread, and all that it starts, in a new network namespace that has the node's address."""
    with Lab() as lab, lab.namespace().inside():
        _add_link()
        # A packet to a Service needs a route before kube-proxy sends it elsewhere.
        _ip("route", "add", "default", "dev", LINK)
        yield


class MachinesNetwork:
    """The initial network namespace while a node uses it: a link with its address, and the way back."""

    def __enter__(self) -> Self:
        """Note how it is, and make the link."""
        if NOTED.exists():
            self._put_back()
        write_whole(NOTED, json.dumps(_as_it_is()))
        _add_link()
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
        NOTED.unlink()


def _as_it_is() -> dict[str, object]:
    saved = {
        program: subprocess.run([f"{program}-save"], capture_output=True, text=True, check=True).stdout
        for program in ("iptables", "ip6tables")
        if any(family == ("ip" if program == "iptables" else "ip6") for family, _ in _tables())
    }
    readable = {str(path): path.read_text() for path in SYSCTLS if path.exists()}
    return {"tables": _tables(), "rules": saved, "sysctls": readable}


def _tables() -> list[tuple[str, str]]:
    done = subprocess.run(["nft", "-j", "list", "tables"], capture_output=True, text=True, check=True)
    found = [item["table"] for item in json.loads(done.stdout)["nftables"] if "table" in item]
    return [(table["family"], table["name"]) for table in found]


def _add_link() -> None:
    _ip("link", "add", LINK, "type", "bridge")  # a dummy is a module that not every kernel has
    _ip("address", "add", f"{ADDRESS}/32", "dev", LINK)
    _ip("link", "set", LINK, "up")


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")


def make_folder() -> Path:
    """Make a folder for the sockets of a node of this process; those of runs that died are cleared away before."""
    for folder in SOCKETS.glob(f"{FOLDER_PREFIX}*"):
        if not Path(f"/proc/{folder.name.split('-')[1]}").exists():
            remove_folder(folder)
    return Path(tempfile.mkdtemp(prefix=f"{FOLDER_PREFIX}{os.getpid()}-", dir=SOCKETS))


def remove_folder(folder: Path) -> None:
    """Remove a node's folder, and the cgroups of the containers that runc keeps in it: all of them have ended."""
    for container in (folder / "runc" / CONTAINERD).glob("*"):
        for tree in _trees():
            for group, _, _ in os.walk(tree / CONTAINERD / container.name, topdown=False):
                _remove_group(Path(group))
    # Another process of the run may be clearing away the same one, of a run that died.
    shutil.rmtree(folder, ignore_errors=True)
    if not any(SOCKETS.glob(f"{FOLDER_PREFIX}*")):
        # Never what is in it: another node may have begun to make its groups there.
        for tree in _trees():
            _remove_group(tree / CONTAINERD)


def _trees() -> list[Path]:
    # Of version 2 there is one tree, of version 1 one for each controller.
    return [GROUPS, *(path for path in GROUPS.iterdir() if path.is_dir())]


def _remove_group(group: Path) -> None:
    with contextlib.suppress(OSError):
        group.rmdir()
