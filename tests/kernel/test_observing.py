"""An agent that is told to hold: it changes nothing, keeps what it confirmed, and tells what a policy would change."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.lab.namespaces import Lab, Namespace

from conntrack_operator.agent import duty as duty_module
from conntrack_operator.agent.duty import Duty
from conntrack_operator.agent.machine import Machine
from conntrack_operator.agent.probes import Probe
from conntrack_operator.decide.notrack import TABLE
from conntrack_operator.kernel import nftables
from conntrack_operator.kernel.journal import StateDirectory
from conntrack_operator.kernel.roots import Roots
from conntrack_operator.model.node import NodeSpec
from conntrack_operator.model.policy import Settings

ICMP = "net.netfilter.nf_conntrack_icmp_timeout"
GENERIC = "net.netfilter.nf_conntrack_generic_timeout"
QUICK = {"timeoutSeconds": 20, "soakSeconds": 0}
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


def obeyed(duty: Duty, wish: NodeSpec) -> str:
    """Let the node do what it is told; return the phase it ends in."""
    duty.wish(wish)
    assert stepped(duty, 60, lambda: duty.deed is not None and duty.deed.phase != "Trial")
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
    return node.run("nft", "list", "ruleset").stdout, "\n".join(own)


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
        assert stepped(running, 10, lambda: node.sysctl(ICMP) == "10" and nftables.read_table() is not None)
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
    monkeypatch.setattr(duty_module, "PREVIEW_SECONDS", 0.5)
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
        assert stepped(duty, 10, lambda: previewed(duty)[ICMP] == (31, 10))
        assert duty.deed
        assert duty.deed.phase == "Restored"
        node.sysctl(ICMP, 30)


def test_a_preview_follows_the_machine(node: Namespace, duty: Duty, monkeypatch: pytest.MonkeyPatch) -> None:
    """What others change is in the preview the next time it is made, and a preview that is as before is no news."""
    monkeypatch.setattr(duty_module, "PREVIEW_SECONDS", 0.3)
    assert obeyed(duty, spec("Hold", preview=WISH)) == "Current"
    first = duty.deed
    stepped(duty, 2)
    assert duty.deed is first
    node.nft("add table ip x; add chain ip x p { type nat hook prerouting priority -100; };")
    node.nft("add rule ip x p tcp dport 81 redirect to :80")
    assert stepped(duty, 10, lambda: bool(duty.deed and duty.deed.preview and duty.deed.preview.refused))
    assert duty.deed
    assert duty.deed.preview
    assert [(each.setting, each.reason) for each in duty.deed.preview.refused] == [("notrack/web", "NATConflict")]
    assert previewed(duty) == {ICMP: (30, 10)}
    assert duty.deed.phase == "Current"
