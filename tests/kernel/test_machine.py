"""A machine is made as its settings say, told what became of each, and put back: on a real kernel, in a namespace."""

import fcntl
import os
import signal
import subprocess
import sys
import time

import pytest

from conntrack_operator.agent import way_back
from conntrack_operator.agent.machine import Machine
from conntrack_operator.agent.trial import begin, finished
from conntrack_operator.errors import Unsupported
from conntrack_operator.kernel import nftables
from conntrack_operator.kernel.journal import StateDirectory
from conntrack_operator.kernel.roots import Roots
from conntrack_operator.model.node import NodeSpec, PolicyUse
from conntrack_operator.model.policy import Settings

MAX = "net.netfilter.nf_conntrack_max"
WISH = {
    "timeouts": {"tcp": {"established": "24h", "timeWait": "30s"}, "udp": {"stream": "60s"}},
    "tcp": {"beLiberal": True},
    "sysctls": {"nf_conntrack_acct": "1"},
    "notrack": {"rules": [{"name": "web", "ports": [80, "8000-8100"]}]},
}
VALUES = {
    "nf_conntrack_tcp_timeout_established": ("432000", "86400"),
    "nf_conntrack_tcp_timeout_time_wait": ("120", "30"),
    "nf_conntrack_udp_timeout_stream": ("120", "60"),
    "nf_conntrack_tcp_be_liberal": ("0", "1"),
    "nf_conntrack_acct": ("0", "1"),
}


@pytest.fixture
def node(netns):
    """Return a fresh namespace: everything in it is as the kernel makes it."""
    return netns.namespace()


@pytest.fixture
def roots(tmp_path):
    """Return the real /proc and a state directory of our own."""
    return Roots(state=tmp_path)


def values(node):
    """Return the values of the keys in `VALUES` in the namespace."""
    return {name: node.sysctl(f"net.netfilter.{name}") for name in VALUES}


def apply(node, roots, document, *uses):
    """Apply settings in the namespace; each time by a machine that knows nothing but what is on disk."""
    with node.inside(), StateDirectory(roots) as state:
        spec = NodeSpec(
            revision="r", mode="Apply", node_uid="", settings=Settings.model_validate(document), policies=list(uses)
        )
        return finished(begin(Machine(roots), state, spec, list))


def restore(node, roots, **options):
    """Restore in the namespace."""
    with node.inside(), StateDirectory(roots) as state:
        return way_back.restore(Machine(roots), state, **options)


def table(node):
    """Return our table's listing in the namespace, or None."""
    with node.inside():
        return nftables.read_table()


def test_apply_read_back_restore(node, roots):
    """Every value is in the kernel, every result says so, and a restore leaves nothing behind."""
    before = values(node)
    assert before == {name: original for name, (original, _) in VALUES.items()}
    outcome = apply(node, roots, WISH)
    assert outcome.phase == "Current"
    assert {result.reason for result in outcome.results} == {"Applied"}
    assert values(node) == {name: wanted for name, (_, wanted) in VALUES.items()}
    assert table(node) is not None
    outcome = restore(node, roots)
    assert outcome.phase == "Restored"
    assert values(node) == before
    assert table(node) is None


def test_second_time_changes_nothing(node, roots):
    """Applied again, by another process's eyes, not a byte is written to the kernel or the disk."""
    apply(node, roots, WISH)
    journal = (roots.state / "journal.json").stat()
    handles = node.run("nft", "-a", "list", "ruleset").stdout
    for _ in range(3):
        assert apply(node, roots, WISH).changes == ()
    after = (roots.state / "journal.json").stat()
    assert (journal.st_ino, journal.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    assert node.run("nft", "-a", "list", "ruleset").stdout == handles


def test_one_setting_less(node, roots):
    """What the settings no longer name gets its original back; the rest stays."""
    apply(node, roots, WISH)
    outcome = apply(node, roots, {"timeouts": {"tcp": {"timeWait": "30s"}}})
    assert outcome.phase == "Current"
    now = values(node)
    assert now.pop("nf_conntrack_tcp_timeout_time_wait") == "30"
    assert now == {name: original for name, (original, _) in VALUES.items() if name in now}
    assert table(node) is None


def test_somebody_else_wrote_it(node, roots):
    """A value that is no longer ours is left to whoever wrote it."""
    apply(node, roots, WISH)
    node.sysctl("net.netfilter.nf_conntrack_udp_timeout_stream", 77)
    assert restore(node, roots).phase == "Restored"
    assert node.sysctl("net.netfilter.nf_conntrack_udp_timeout_stream") == "77"
    assert node.sysctl("net.netfilter.nf_conntrack_tcp_timeout_established") == "432000"


def test_keep_and_restore_all(node, roots):
    """What onDelete: Keep leaves behind stays through a restore by the controller, and goes when a person asks."""
    use = PolicyUse(name="web", revision="r", fields=["timeouts.tcp.timeWait", "notrack.rules[web]"], on_delete="Keep")
    apply(node, roots, WISH, use)
    assert restore(node, roots).phase == "Restored"
    now = values(node)
    assert (now["nf_conntrack_tcp_timeout_time_wait"], now["nf_conntrack_acct"]) == ("30", "0")
    assert table(node) is not None
    assert restore(node, roots, kept_too=True).phase == "Restored"
    assert values(node)["nf_conntrack_tcp_timeout_time_wait"] == "120"
    assert table(node) is None


def test_sizes_belong_to_the_host(node, roots):
    """In a namespace the size is refused by name, and everything else is done."""
    outcome = apply(node, roots, {**WISH, "table": {"size": {"maxEntries": 7777777}}})
    assert outcome.phase == "Refused"
    refused = [result for result in outcome.results if result.reason != "Applied"]
    assert [(result.setting, result.reason) for result in refused] == [(MAX, "Unsupported")]
    assert values(node)["nf_conntrack_acct"] == "1"


def test_killed_after_the_journal(node, roots, tmp_path):
    """Killed at any moment, a later restore puts every original back."""
    script = (
        "import sys, pathlib\n"
        "from conntrack_operator.agent import way_back\n"
        "from conntrack_operator.agent.machine import Machine\n"
        "from conntrack_operator.kernel.journal import StateDirectory\n"
        "from conntrack_operator.kernel.roots import Roots\n"
        "from conntrack_operator.agent.trial import begin, finished\n"
        "from conntrack_operator.model.node import NodeSpec\n"
        "from conntrack_operator.model.policy import Settings\n"
        "roots = Roots(state=pathlib.Path(sys.argv[1]))\n"
        "wish = Settings.model_validate_json(sys.argv[2])\n"
        "other = Settings.model_validate({'timeouts': {'udp': {'stream': 61}}, 'sysctls': {'nf_conntrack_acct': 1}})\n"
        "with StateDirectory(roots) as state:\n"
        "    machine = Machine(roots)\n"
        "    def apply(revision, settings):\n"
        "        spec = NodeSpec(revision=revision, mode='Apply', node_uid='', settings=settings)\n"
        "        way_back.recover(machine, state)\n"
        "        finished(begin(machine, state, spec, list))\n"
        "    print('ready', flush=True)\n"
        "    while True:\n"
        "        apply('a', wish)\n"
        "        apply('b', other)\n"
    )
    before = values(node)
    for attempt in range(8):
        process = node.start(
            sys.executable, "-c", script, str(tmp_path), Settings.model_validate(WISH).model_dump_json()
        )
        assert process.stdout is not None
        assert process.stdout.readline().strip() in ("ready", b"ready")
        time.sleep(0.02 + 0.013 * attempt)
        os.kill(process.pid, signal.SIGKILL)
        process.wait(60)
        with (tmp_path / "lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # held until an nft that outlives it has ended, too
        assert restore(node, roots).phase == "Restored"
        assert values(node) == before, f"attempt {attempt}"
        assert table(node) is None


def test_read_only_state(node, tmp_path):
    """Without a place for the originals nothing is written to the kernel."""
    blocked = tmp_path / "blocked"
    blocked.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(blocked)], check=True)
    try:
        with pytest.raises(Unsupported, match="--state-dir"):
            apply(node, Roots(state=blocked / "state"), WISH)
    finally:
        subprocess.run(["umount", str(blocked)], check=True)
    assert values(node) == {name: original for name, (original, _) in VALUES.items()}
    assert table(node) is None
