"""An agent that is frozen or dead in the middle of a trial: the kernel itself lets the rules go, nothing is kept."""

import contextlib
import json
import signal
import subprocess
import time
from typing import NamedTuple

import pytest
from tests.lab.command import conntrack_operator
from tests.lab.namespaces import Namespace
from tests.lab.trials import ICMP, PORT, Reachable, ended, notracked, policy, reachable, start, wait_until

TRIAL = 15


class OnTrial(NamedTuple):
    """A node in the middle of a trial; `deadline` on CLOCK_BOOTTIME."""

    node: Namespace
    target: Reachable
    process: "subprocess.Popen[str]"
    state: tuple[object, ...]
    deadline: float


def folder(path):
    """Make a folder and return it."""
    path.mkdir()
    return path


@contextlib.contextmanager
def on_trial(netns, tmp_path):
    """Give a node, its target and an `apply` in the middle of its trial: rule in force, sysctl written."""
    with reachable(netns) as (node, target):
        rule = {"name": "far", "ports": [PORT], "side": "Client", "addresses": [target.end.ipv4]}
        file = policy(tmp_path / "policy.json", timeouts={"icmp": 11}, notrack={"rules": [rule]})
        state = ("--state-dir", tmp_path / "state")
        options = ("--trial", TRIAL, "--soak", 2, "--probe", target.address)
        assert not notracked(node, target)
        process = start(node, "apply", "-f", file, *state, *options)
        # The target is gone as soon as it was looked at before the change, so that the trial goes on.
        wait_until((tmp_path / "state/journal.json").exists, 20, "the journal")
        target.close()
        wait_until(lambda: node.sysctl(ICMP) == "11", 30, "the sysctl")
        target.open()
        wait_until(lambda: notracked(node, target), 30, "the rule")
        target.close()
        deadline = json.loads((tmp_path / "state/journal.json").read_text())["trial"]["deadline"]
        yield OnTrial(node, target, process, state, deadline)


def sleep_until(deadline):
    """Sleep until then on CLOCK_BOOTTIME."""
    time.sleep(max(0, deadline - time.clock_gettime(time.CLOCK_BOOTTIME)))


@pytest.fixture
def trial(netns, tmp_path):
    """Give one node on trial."""
    with on_trial(netns, tmp_path) as made:
        yield made


def test_frozen_and_killed_in_a_trial(netns, tmp_path):
    """SIGSTOP, and SIGKILL on another node: the rules are gone by the deadline with nobody to remove them.

    Woken after it, the one takes all back; of the other the next start puts the sysctls back.
    """
    with contextlib.ExitStack() as stack:
        # One wait for both deadlines.
        frozen = stack.enter_context(on_trial(netns, folder(tmp_path / "frozen")))
        frozen.process.send_signal(signal.SIGSTOP)
        frozen.target.open()
        assert notracked(frozen.node, frozen.target)
        killed = stack.enter_context(on_trial(netns, folder(tmp_path / "killed")))
        killed.process.kill()
        killed.process.wait(10)
        killed.target.open()
        assert notracked(killed.node, killed.target)
        sleep_until(max(each.deadline for each in (frozen, killed)) + 1)
        for each in (frozen, killed):
            assert not notracked(each.node, each.target), "the kernel let the rule go"
            assert each.node.sysctl(ICMP) == "11", "sysctls cannot expire"
        frozen.process.send_signal(signal.SIGCONT)
        code, said = ended(frozen.process, 20)
        assert code == 1
        assert "rolled back" in said
        assert frozen.node.sysctl(ICMP) == "30"
        assert not notracked(frozen.node, frozen.target)
        assert conntrack_operator("restore", *killed.state, namespace=killed.node).returncode == 0
        assert killed.node.sysctl(ICMP) == "30"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_interrupted_in_a_trial(trial, number):
    """Ctrl-C and SIGTERM take everything back at once, and say so."""
    node, target, process, _, deadline = trial
    process.send_signal(number)
    code, said = ended(process, 10)
    assert time.clock_gettime(time.CLOCK_BOOTTIME) < deadline
    assert code == 1
    assert "rolled back  Aborted" in said
    assert node.sysctl(ICMP) == "30"
    target.open()
    assert not notracked(node, target)
