"""A run that is killed leaves no process behind, and the next one puts the machine back. Without a kubelet.

In a network namespace of our own, with a note, cgroups and folders of our own: real nodes may be at work meanwhile.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.lab import namespaces, node_rooms
from tests.lab.namespaces import Lab, Namespace
from tests.lab.node_rooms import BRIDGE, LINK
from tests.lab.programs import wait_until

FORWARDING = "net.ipv4.ip_forward"
BEFORE = """
table ip lab_before {
  chain c { type filter hook input priority 0; counter; }
}
"""
# What a node does on a machine: programs in a room, one with a child, a link, a table, rules, a sysctl, a cgroup.
NODE = """
import json, os, signal, subprocess, sys
from pathlib import Path
from tests.lab import node_rooms
from tests.lab.programs import Program, wait_until
notes, folder, groups = map(Path, sys.argv[1:4])
node_rooms.NOTED, node_rooms.SOCKETS, node_rooms.GROUPS = notes / "noted.json", notes, groups
sockets = node_rooms.make_folder()
with node_rooms.MachinesNetwork():
    room = node_rooms.Room(folder)
    room.start()
    program = Program("shim", room.command(["sh", "-c", "setsid sleep 601 & echo started; exec sleep 602"]),
                      folder / "shim.log")
    program.start()
    program.wait_until(lambda: "started" in program.tail(), 60, "it runs")
    (sockets / "runc" / "k8s.io" / "container").mkdir(parents=True)
    for tree in ("", "memory"):
        (groups / tree / "k8s.io" / "container" / "below").mkdir(parents=True)
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
    subprocess.run(["ip", "link", "add", node_rooms.BRIDGE, "type", "bridge"], check=True)
    subprocess.run(["nft", "add", "table", "ip", "kube-proxy"], check=True)
    subprocess.run(["iptables", "-t", "nat", "-A", "POSTROUTING", "-j", "MASQUERADE"], check=True)
    room.run("touch", "/var/lib/lab-was-here")
    room.run("sh", "-c", "echo 7 > /proc/sys/kernel/panic")
    assert room.run("cat", "/proc/sys/kernel/panic").stdout.strip() == "7" != Path("/proc/sys/kernel/panic").read_text()
    print(room.first.process.pid, program.process.pid, os.stat(f"/proc/{room._pid}/ns/pid").st_ino, flush=True)
    if sys.argv[4:] == ["die"]:
        signal.pause()
    program.stop(seconds=0)
    room.stop()
    node_rooms.remove_folder(sockets)
"""


@pytest.fixture
def machine() -> Iterator[Namespace]:
    """Give a network namespace with a table of its own and no forwarding."""
    if reason := namespaces.missing():
        pytest.skip(reason)
    with Lab() as lab:
        made = lab.namespace()
        made.sysctl(FORWARDING, 0)
        made.nft(BEFORE)
        yield made


def members(pid_namespace: int) -> list[int]:
    """Return the processes in a process namespace."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if (entry / "ns" / "pid").stat().st_ino == pid_namespace:
                found.append(int(entry.name))
        except OSError:
            continue  # it has ended meanwhile
    return found


def state(machine: Namespace) -> dict[str, object]:
    """Return what a node would have changed."""
    links = json.loads(machine.run("ip", "-j", "link").stdout)
    return {
        "tables": machine.run("nft", "list", "ruleset").stdout,
        "links": sorted(link["ifname"] for link in links),
        "forwarding": machine.sysctl(FORWARDING),
    }


def left(tmp_path: Path) -> list[Path]:
    """Return the folders and cgroups of nodes."""
    return [*tmp_path.glob("ctlab-*"), *(tmp_path / "groups").rglob("k8s.io")]


def command(tmp_path: Path, folder: str, *more: str) -> list[str]:
    """Return what plays the node, with its notes in `tmp_path`."""
    (tmp_path / "groups" / "memory").mkdir(parents=True, exist_ok=True)
    return [sys.executable, "-c", NODE, str(tmp_path), str(tmp_path / folder), str(tmp_path / "groups"), *more]


def test_a_node_that_ends_leaves_nothing(machine: Namespace, tmp_path: Path) -> None:
    """In order: processes, links, tables, rules, sysctls, cgroups and folders are as before."""
    before = state(machine)
    said = machine.run(*command(tmp_path, "room")).stdout
    assert members(int(said.split()[2])) == []
    assert state(machine) == before
    assert not (tmp_path / "noted.json").exists()
    assert left(tmp_path) == []


def test_a_run_that_is_killed_is_cleared_away_by_the_next(machine: Namespace, tmp_path: Path) -> None:
    """SIGKILL of the run ends everything in the room at once; the next run puts back what stayed."""
    before = state(machine)
    run = machine.start(*command(tmp_path, "first", "die"))
    assert run.stdout
    first, program, pid_namespace = map(int, run.stdout.readline().split())
    assert len(members(pid_namespace)) >= 3
    os.kill(run.pid, signal.SIGKILL)
    run.wait(60)
    wait_until(lambda: members(pid_namespace) == [], 60, "nothing is left in the room")
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in (first, program)), 60, "nor of what made it")
    now = state(machine)
    assert {LINK, BRIDGE} <= set(now["links"])  # type: ignore[call-overload]
    assert now["forwarding"] == "1"
    assert len(left(tmp_path)) == 3
    machine.run(*command(tmp_path, "second"))
    assert state(machine) == before
    assert left(tmp_path) == []
    assert not Path("/var/lib/lab-was-here").exists()


def test_a_note_that_was_not_finished_is_none(tmp_path: Path) -> None:
    """Killed while it notes how the machine is, a run leaves nothing that the next one cannot read."""
    noted = tmp_path / "noted.json"
    code = f"""
import os, signal
from pathlib import Path
from tests.lab.host import write_whole
Path.rename = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
write_whole(Path({str(noted)!r}), "half of")
"""
    done = subprocess.run([sys.executable, "-c", code], check=False, timeout=120)
    assert done.returncode == -signal.SIGKILL
    assert not noted.exists()
    node_rooms.write_whole(noted, "all")
    assert noted.read_text() == "all"
