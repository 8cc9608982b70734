"""Journals that cannot be believed, disks that take nothing, and nodes that rebooted in a trial."""

import contextlib
import json
import signal
import subprocess
import time

import pytest
from tests.lab.command import PROGRAM, assert_one_sentence, conntrack_operator
from tests.lab.programs import Program
from tests.lab.trials import (
    ICMP,
    ended,
    let_go,
    our_table,
    policy,
    reachable,
    start,
    wait_for_trial,
    wait_until,
)

WEB = {"rules": [{"name": "web", "ports": [80]}]}


@pytest.fixture
def node(netns):
    """Give a tracking namespace."""
    made = netns.namespace()
    made.track()
    return made


def applied(node, tmp_path, icmp=11, *options):
    """Apply a timeout and a rule; return what the command did."""
    file = policy(tmp_path / "policy.json", timeouts={"icmp": icmp}, notrack=WEB)
    return conntrack_operator("apply", "-f", file, "--state-dir", tmp_path / "state", *options, namespace=node)


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda data: data[: len(data) // 2], id="truncated"),
        pytest.param(lambda _: b"", id="empty"),
        pytest.param(lambda data: data.replace(b"originals", b"origonals"), id="corrupt"),
        pytest.param(lambda data: data.replace(b'"version":1', b'"version":2'), id="of another version"),
        pytest.param(lambda _: b"\x00" * 512, id="zeros, as a crashed file system leaves them"),
    ],
)
def test_a_journal_that_cannot_be_believed(node, tmp_path, spoil):
    """apply and restore say which file and what to do, and change nothing; an agent stays, and says so too."""
    assert applied(node, tmp_path).returncode == 0
    path = tmp_path / "state/journal.json"
    path.write_bytes(spoil(path.read_bytes()))
    spoilt, table = path.read_bytes(), our_table(node)
    words = (str(path), "is damaged or of another version", "repaired, or removed")
    assert_one_sentence(applied(node, tmp_path, 12), *words)
    assert_one_sentence(conntrack_operator("restore", "--state-dir", tmp_path / "state", namespace=node), *words)
    command = [*PROGRAM, "agent", "--policy", tmp_path / "policy.json", "--state-dir", tmp_path / "state"]
    agent = Program("agent", [*map(str, command)], tmp_path / "agent.log", inside=node.inside)
    agent.start()
    agent.wait_until(lambda: "JournalUnreadable" in agent.tail(), 60, "it is said")
    time.sleep(0.5)
    assert agent.running, "an agent lives with it"
    assert agent.stop(60) == 0
    assert (node.sysctl(ICMP), our_table(node), path.read_bytes()) == ("11", table, spoilt)


@pytest.fixture
def small_disk(tmp_path):
    """Give a file system of 64 KB in place of the state directory, and a way to fill it."""
    place = tmp_path / "state"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)], check=True)

    def fill():
        with (place / "filler").open("wb", buffering=0) as filler, contextlib.suppress(OSError):
            while filler.write(b"x" * 1024):
                pass

    try:
        yield fill
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def test_disk_full_before_a_change(node, tmp_path, small_disk):
    """Where the originals cannot be kept the kernel is not touched."""
    small_disk()
    done = applied(node, tmp_path)
    assert_one_sentence(done, "state", "No space left on device", "free some space")
    assert (node.sysctl(ICMP), our_table(node)) == ("30", "")


def test_disk_full_at_the_confirmation(netns, tmp_path, small_disk):
    """A change that cannot be confirmed on disk is taken back, and the next start finds nothing left to do."""
    with reachable(netns) as (node, target):
        file = policy(tmp_path / "policy.json", timeouts={"icmp": 11}, notrack=WEB)
        options = ("--state-dir", tmp_path / "state", "--probe", target.address)
        process = start(node, "apply", "-f", file, *options, "--soak", 1, held=True)
        wait_for_trial(process)
        assert "trial" in our_table(node)
        small_disk()
        let_go(process)
        code, said = ended(process, 90)
        assert code == 1
        assert "StateUnwritable" in said
        assert (node.sysctl(ICMP), our_table(node)) == ("30", "")
        (tmp_path / "state/filler").unlink()
        done = conntrack_operator("restore", "--state-dir", tmp_path / "state", namespace=node)
        assert done.returncode == 0, done
        assert (node.sysctl(ICMP), our_table(node)) == ("30", "")


@pytest.mark.usefixtures("small_disk")
def test_read_only_before_a_change(node, tmp_path):
    """A read-only state directory: one sentence, and nothing written to the kernel."""
    subprocess.run(["mount", "-o", "remount,ro", str(tmp_path / "state")], check=True)
    done = applied(node, tmp_path)
    assert_one_sentence(done, "cannot be written", "Read-only file system", "mount it writable")
    assert (node.sysctl(ICMP), our_table(node)) == ("30", "")


def test_another_boot(node, tmp_path):
    """A journal of another boot says nothing about today's values; they are the originals."""
    assert applied(node, tmp_path).returncode == 0
    path = tmp_path / "state/journal.json"
    document = json.loads(path.read_text())
    path.write_text(json.dumps(document | {"bootID": "another boot"}))
    done = conntrack_operator("restore", "--state-dir", tmp_path / "state", namespace=node)
    assert done.returncode == 0
    assert node.sysctl(ICMP) == "11", "nobody knows what was before"
    assert json.loads(path.read_text())["originals"] == {}


def test_rebooted_in_a_trial(netns, tmp_path):
    """A trial of another boot is over: it counts as a failure, and what was confirmed before is put in force."""
    node = netns.namespace()
    node.track()
    state = tmp_path / "state"
    assert applied(node, tmp_path).returncode == 0
    # As after a boot: the kernel's own values, no table, another boot id, and a trial in the journal.
    node.sysctl(ICMP, 30)
    node.run("nft", "delete", "table", "inet", "conntrack_operator")
    path = state / "journal.json"
    document = json.loads(path.read_text())
    trial = {"revision": "r", "attempt": "", "deadline": 1e9, "before": {ICMP: 11}, "written": {ICMP: 12}}
    path.write_text(json.dumps(document | {"bootID": "another boot", "trial": trial}))
    good = policy(tmp_path / "good.json", timeouts={"icmp": 11}, notrack=WEB)
    agent = start(node, "agent", "--policy", good, "--state-dir", state)
    wait_until(lambda: node.sysctl(ICMP) == "11" and our_table(node) != "", 60, "what was confirmed")
    wait_until(lambda: "another boot" not in path.read_text(), 60, "a journal of this boot")
    assert json.loads(path.read_text())["failures"]["reason"] == "NodeRebooted"
    agent.send_signal(signal.SIGTERM)
    assert ended(agent, 60)[0] == 0
