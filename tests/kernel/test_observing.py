"""An agent that is told to hold: it changes nothing, keeps what it confirmed, and tells what a policy would change."""

import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from tests.lab.namespaces import Lab, Namespace

from conntrack_operator.agent import foresight, writing
from conntrack_operator.agent.duty import Duty
from conntrack_operator.agent.machine import Machine
from conntrack_operator.agent.meter import Meter
from conntrack_operator.agent.probes import Probe
from conntrack_operator.decide.notrack import TABLE
from conntrack_operator.decide.report import Moment, status_for
from conntrack_operator.kernel import accept_tools, flow_editing, modules, nftables
from conntrack_operator.kernel.journal import StateDirectory
from conntrack_operator.kernel.roots import Roots
from conntrack_operator.model.node import NodeSpec
from conntrack_operator.model.policy import Settings

ICMP = "net.netfilter.nf_conntrack_icmp_timeout"
GENERIC = "net.netfilter.nf_conntrack_generic_timeout"
QUICK = {"timeoutSeconds": 60, "soakSeconds": 0}
WISH = {"timeouts": {"icmp": 10}, "notrack": {"rules": [{"name": "web", "ports": [80]}]}, "trial": QUICK}
OTHER = {"timeouts": {"icmp": 12, "generic": 77}, "trial": QUICK}


@pytest.fixture
def node(netns: Lab) -> Namespace:
    """Return a fresh namespace."""
    return netns.namespace()


@pytest.fixture
def roots(tmp_path: Path) -> Roots:
    """Return the real /proc and directories of our own."""
    return Roots(state=tmp_path / "state", etc=tmp_path / "etc", usr=tmp_path / "usr", run=tmp_path / "run")


@pytest.fixture
def duty(node: Namespace, roots: Roots) -> Iterator[Duty]:
    """Return the duty of an agent in that namespace, with nothing to probe."""
    with node.inside(), StateDirectory(roots) as state:
        yield Duty(Machine(roots), state, list)


def spec(mode: str, settings: Any = None, preview: Any = None, **more: Any) -> NodeSpec:
    """Return what a node is told."""
    return NodeSpec(
        **{"revision": f"{mode} {settings} {preview}", "mode": mode, "node_uid": "", **more},
        settings=Settings.model_validate(settings or {}),
        preview=None if preview is None else Settings.model_validate(preview),
    )


def stepped(duty: Duty, seconds: float, until: Callable[[], bool] = lambda: False) -> bool:
    """Step whenever something is due, for so long, or until it holds; tell whether it did."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if until():
            return True
        duty.step()
        time.sleep(min(0.1, max(0.0, duty.seconds_to_step)))
    return until()


def often(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Let previews be made so often, however long one takes on a busy machine."""
    monkeypatch.setattr(foresight, "PREVIEW_SECONDS", seconds)
    monkeypatch.setattr(foresight, "PREVIEW_SHARE", 0)


def obeyed(duty: Duty, wish: NodeSpec) -> str:
    """Let the node do what it is told; return the phase it ends in."""
    duty.wish(wish)
    assert stepped(duty, 120, lambda: duty.deed is not None and duty.deed.phase != "Trial")
    assert duty.deed
    return duty.deed.phase


def previewed(duty: Duty) -> dict[str, tuple[Any, Any]]:
    """Return what would change: from and to, by setting."""
    assert duty.deed
    assert duty.deed.preview
    return {change.setting: (change.from_, change.to) for change in duty.deed.preview.changes}


def kept(roots: Roots) -> dict[str, tuple[bytes, int]]:
    """Return the files of the state directory, with the time each was written."""
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in roots.state.iterdir()}


def kernel(node: Namespace) -> tuple[str, str]:
    """Return every rule, and every conntrack sysctl that is this namespace's own."""
    shared = tuple(f"net.netfilter.nf_conntrack_{name} " for name in ("buckets", "count", "expect_max", "max"))
    lines = node.run("sysctl", "net.netfilter").stdout.splitlines()
    own = [line for line in lines if not line.startswith(shared)]
    assert len(own) > 30
    # Without counters: the question whether anything is tracked is a connection over loopback, and rules count it.
    return node.run("nft", "-s", "list", "ruleset").stdout, "\n".join(own)


def test_hold_changes_nothing_and_tells(node: Namespace, roots: Roots, duty: Duty) -> None:
    """A node that never had anything: no write to kernel or disk, phase Current, and what each setting would become."""
    node.sysctl(ICMP, 31)
    before, files = kernel(node), kept(roots)
    duty.start()
    assert obeyed(duty, spec("Hold", preview=WISH)) == "Current"
    assert duty.deed
    assert (duty.deed.results, duty.deed.warnings) == ((), ())
    assert previewed(duty) == {ICMP: (31, 10), "notrack/web": ("absent", "TCP 80 Server")}
    assert (kernel(node), kept(roots)) == (before, files)
    assert obeyed(duty, spec("Hold")) == "Current"
    assert duty.deed.preview is None
    assert (kernel(node), kept(roots)) == (before, files)


def test_hold_keeps_and_mends(node: Namespace, roots: Roots, duty: Duty) -> None:
    """The object of a node that confirmed something was made anew: all of it stays, and is put right when it drifts."""
    assert obeyed(duty, spec("Apply", WISH)) == "Current"
    files = kept(roots)
    for running in (duty, Duty(duty.machine, duty.state, list)):  # the same agent, and one that starts
        assert obeyed(running, spec("Hold", preview=OTHER)) == "Current"
        assert previewed(running) == {ICMP: (10, 12), GENERIC: (600, 77), "notrack/web": ("TCP 80 Server", "absent")}
        assert kept(roots) == files
        node.sysctl(ICMP, 99)
        node.run("nft", "delete", "table", "inet", TABLE)
        assert stepped(running, 60, lambda: node.sysctl(ICMP) == "10" and nftables.read_table() is not None)
        assert node.sysctl(GENERIC) == "600"


def test_what_changed_while_no_agent_ran(node: Namespace, duty: Duty) -> None:
    """A restart or a boot in the meantime: what is confirmed is in force again before the node says Current."""
    assert obeyed(duty, spec("Apply", WISH)) == "Current"
    node.sysctl(ICMP, 99)
    node.run("nft", "delete", "table", "inet", TABLE)
    assert obeyed(Duty(duty.machine, duty.state, list), spec("Hold", preview=WISH)) == "Current"
    assert node.sysctl(ICMP) == "10"
    assert nftables.read_table() is not None


def test_hold_in_a_trial(node: Namespace, roots: Roots) -> None:
    """A trial under way is taken back, and counts as no failure; what was confirmed before stays."""
    with node.inside(), StateDirectory(roots) as state:
        duty = Duty(Machine(roots), state, lambda: [Probe("target", lambda _seconds: True)])
        assert obeyed(duty, spec("Apply", WISH)) == "Current"
        duty.wish(spec("Apply", OTHER | {"trial": {"timeoutSeconds": 60, "soakSeconds": 40}}))
        assert duty.deed
        assert (duty.deed.phase, node.sysctl(ICMP)) == ("Trial", "12")
        assert obeyed(duty, spec("Hold")) == "Current"
        assert (node.sysctl(ICMP), node.sysctl(GENERIC)) == ("10", "600")
        journal = duty.machine.journal(state)
        assert (journal.trial, journal.failures) == (None, None)


def test_hold_after_an_agent_was_killed_in_a_trial(node: Namespace, roots: Roots) -> None:
    """As at any start, what nobody finished is taken back; that is all that Hold undoes."""
    with node.inside(), StateDirectory(roots) as state:
        killed = Duty(Machine(roots), state, lambda: [Probe("target", lambda _seconds: True)])
        killed.wish(spec("Apply", WISH | {"trial": {"timeoutSeconds": 60, "soakSeconds": 40}}))
        assert node.sysctl(ICMP) == "10"
        duty = Duty(Machine(roots), state, list)
        assert obeyed(duty, spec("Hold", preview=WISH)) == "Current"
        assert node.sysctl(ICMP) == "30"
        assert previewed(duty)[ICMP] == (30, 10)


def test_hold_then_apply_then_restore(node: Namespace, duty: Duty, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was previewed is what is changed, and taken back; a restored node goes on to preview, and writes nothing."""
    often(monkeypatch, 0.5)
    before = kernel(node)
    for _ in range(2):
        assert obeyed(duty, spec("Hold", preview=WISH)) == "Current"
        assert kernel(node) == before
        assert obeyed(duty, spec("Apply", WISH)) == "Current"
        assert node.sysctl(ICMP) == "10"
        assert obeyed(duty, spec("Restore", preview=WISH)) == "Restored"
        assert kernel(node) == before
        assert previewed(duty) == {ICMP: (30, 10), "notrack/web": ("absent", "TCP 80 Server")}
        node.sysctl(ICMP, 31)
        assert stepped(duty, 60, lambda: previewed(duty)[ICMP] == (31, 10))
        assert duty.deed
        assert duty.deed.phase == "Restored"
        node.sysctl(ICMP, 30)


def test_a_preview_follows_the_machine(node: Namespace, duty: Duty, monkeypatch: pytest.MonkeyPatch) -> None:
    """What others change is in the preview the next time it is made, and a preview that is as before is no news."""
    often(monkeypatch, 0.3)
    assert obeyed(duty, spec("Hold", preview=WISH)) == "Current"
    first = duty.deed
    stepped(duty, 2)
    assert duty.deed is first
    node.nft("add table ip x; add chain ip x p { type nat hook prerouting priority -100; };")
    node.nft("add rule ip x p tcp dport 81 redirect to :80")
    assert stepped(duty, 60, lambda: bool(duty.deed and duty.deed.preview and duty.deed.preview.refused))
    assert duty.deed
    assert duty.deed.preview
    assert [(each.setting, each.reason) for each in duty.deed.preview.refused] == [("notrack/web", "NATConflict")]
    assert previewed(duty) == {ICMP: (30, 10)}
    assert duty.deed.phase == "Current"


FIREWALL = """
*filter
:INPUT DROP [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT DROP [0:0]
-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A INPUT -p tcp --dport 80 -j ACCEPT
-A OUTPUT -m conntrack --ctstate NEW,RELATED,ESTABLISHED -j ACCEPT
COMMIT
"""
"""Drops by state, so that rules need accepts of ours in it."""
EVERYTHING = {
    "table": {"size": {"maxEntries": 1_000_000}},
    "timeouts": {"icmp": 10, "tcp": {"established": "24h"}},
    "tcp": {"beLiberal": True},
    "sysctls": {"nf_conntrack_acct": "1"},
    "notrack": {
        "acceptUntracked": "Both",
        "dropExisting": True,
        "rules": [
            {"name": "web", "ports": [80]},
            {"name": "dns", "ports": [8053], "protocol": "UDP", "side": "Client", "addresses": ["192.0.2.53"]},
        ],
    },
    "trial": QUICK,
}


@pytest.fixture
def writes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return what is written from now on, by whatever way there is: each is told in place of being done."""
    found: list[str] = []

    def telling(owner: Any, name: str, only: Callable[..., bool] = lambda *_, **__: True) -> None:
        real = getattr(owner, name)

        def told(*arguments: Any, **options: Any) -> Any:
            if not only(*arguments, **options):
                return real(*arguments, **options)
            found.append(f"{name} {arguments} {options}")
            return None

        monkeypatch.setattr(owner, name, told)

    telling(writing, "write_sysctl")
    telling(nftables, "_nft", lambda *words, **_: "-f" in words)
    telling(nftables, "self_test")
    telling(accept_tools, "_run")
    telling(flow_editing, "_carry_out")
    telling(modules, "load")
    telling(modules, "unload")
    telling(StateDirectory, "_write")
    return found


@pytest.mark.parametrize("preview", [EVERYTHING, {"tracking": "Disabled"}], ids=["everything", "tracking off"])
def test_observing_writes_nothing(
    node: Namespace, roots: Roots, duty: Duty, monkeypatch: pytest.MonkeyPatch, writes: list[str], preview: Any
) -> None:
    """Whatever is previewed, again and again: no sysctl, no rule, no entry, no file, and no self-test."""
    often(monkeypatch, 0.2)
    node.run("iptables-restore", text=FIREWALL)
    before, files, generation = kernel(node), kept(roots), nftables.generation()
    duty.start()
    for mode in ("Hold", "Restore", "Hold"):
        phase = obeyed(duty, spec(mode, preview=preview))
        assert phase == ("Restored" if mode == "Restore" else "Current")
        stepped(duty, 1)
        assert duty.deed
        assert duty.deed.preview
        if preview is EVERYTHING:
            # A namespace cannot write the table's size: that fails when it is tried, and is no part of this.
            assert {"notrack/web", "notrack/dns", ICMP} <= previewed(duty).keys(), duty.deed.preview.refused
            assert duty.deed.preview.accepts
            assert duty.deed.preview.accepts.chains
            unknown = [each.reason for each in duty.deed.preview.warnings if each.setting == "notrack.rules"]
            assert unknown == ["NotTested"]
        else:
            assert [each.reason for each in duty.deed.preview.refused][:1] == ["TrackingNeeded"]
    with Meter(roots) as meter:
        meter.may_load = lambda: duty.acts
        assert not duty.acts
        meter.read()
    assert writes == []
    assert (kernel(node), kept(roots), nftables.generation()) == (before, files, generation)


def test_observing_loads_nothing(
    node: Namespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writes: list[str]
) -> None:
    """Where nf_conntrack is all that is loaded nothing else is asked, and the preview says what is unknown."""
    proc = tmp_path / "proc"
    (proc / "sys").mkdir(parents=True)
    (proc / "sys/net").symlink_to("/proc/sys/net")
    (proc / "sys/kernel").symlink_to("/proc/sys/kernel")
    (proc / "modules").write_text("nf_conntrack 212992 0 - Live 0x0\nnf_defrag_ipv4 12288 1 nf_conntrack, Live 0x0\n")
    (proc / "kallsyms").write_text("")
    module = tmp_path / "sys/module/nf_conntrack"
    module.mkdir(parents=True)
    (module / "initstate").write_text("live\n")
    roots = Roots(proc=proc, sys=tmp_path / "sys", state=tmp_path / "state", etc=tmp_path, usr=tmp_path, run=tmp_path)
    asked: list[Any] = []
    real = socket.socket

    class Watched(real):  # type: ignore[misc, valid-type]
        def __init__(self, family: int = -1, kind: int = -1, protocol: int = -1, *more: Any) -> None:
            if family == socket.AF_NETLINK and protocol != 0:
                asked.append(protocol)
            super().__init__(family, kind, protocol, *more)

        def send(self, data: Any, *more: Any) -> int:
            if self.family == socket.AF_NETLINK and self.proto != 0:
                asked.append(bytes(data))
            return super().send(data, *more)

    started = subprocess.Popen
    with node.inside(), StateDirectory(roots) as state:
        monkeypatch.setattr(socket, "socket", Watched)
        monkeypatch.setattr(subprocess, "Popen", lambda words, **more: (asked.append(words), started(words, **more))[1])
        duty = Duty(Machine(roots), state, list)
        duty.start()
        for mode in ("Hold", "Restore", "Hold"):
            for preview in (EVERYTHING, {"tracking": "Disabled"}, None):
                wish = spec(mode, preview=preview)
                assert obeyed(duty, wish) == ("Restored" if mode == "Restore" else "Current")
                assert duty.deed
                if preview is not EVERYTHING:
                    continue
                assert {"notrack/web", "notrack/dns", ICMP} <= previewed(duty).keys()
                assert duty.deed.preview
                status = status_for(wish, None, duty.deed, Moment(datetime.now(UTC), "boot"))
                assert status.preview
                said = [each.message for each in status.preview.warnings if each.reason == "NotLoaded"]
                assert ["no nftables firewall to meet" in each for each in said] == [True]
        with Meter(roots) as meter:
            meter.may_load = lambda: duty.acts
            reading = meter.read()
            assert reading.max_entries == int(Path("/proc/sys/net/netfilter/nf_conntrack_max").read_text())
            assert meter.talkers(5, 10) == []
    # Which TCP sockets listen is seen in /proc; sock_diag itself, which is asked for nothing, is part of every kernel.
    assert {each for each in asked if each != 4} == set()
    assert writes == []
