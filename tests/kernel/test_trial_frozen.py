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
from tests.lab.trials import (
    ICMP,
    PORT,
    Reachable,
    ended,
    let_go,
    notracked,
    policy,
    reachable,
    start,
    wait_for_trial,
)

TRIAL_SECONDS = 15


class OnTrial(NamedTuple):
    """A node in the middle of a trial, whose process is stopped; `deadline` on CLOCK_BOOTTIME."""

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
def on_trial(netns, tmp_path, seconds=TRIAL_SECONDS):
    """Give a node, its target and an `apply` in the middle of its trial: rule in force, sysctl written."""
    with reachable(netns) as (node, target):
        rule = {"name": "far", "ports": [PORT], "side": "Client", "addresses": [target.end.ipv4]}
        file = policy(tmp_path / "policy.json", timeouts={"icmp": 11}, notrack={"rules": [rule]})
        state = ("--state-dir", tmp_path / "state")
        options = ("--trial", seconds, "--soak", 2, "--probe", target.address)
        assert not notracked(node, target)
        process = start(node, "apply", "-f", file, *state, *options, held=True)
        wait_for_trial(process)
        assert node.sysctl(ICMP) == "11"
        assert notracked(node, target)
        deadline = json.loads((tmp_path / "state/journal.json").read_text())["trial"]["deadline"]
        yield OnTrial(node, target, process, state, deadline)


def sleep_until(deadline):
    """Sleep until then on CLOCK_BOOTTIME."""
    time.sleep(max(0, deadline - time.clock_gettime(time.CLOCK_BOOTTIME)))


def test_frozen_and_killed_in_a_trial(netns, tmp_path):
    """SIGSTOP, and SIGKILL on another node: the rules are gone by the deadline with nobody to remove them.

    Woken after it, the one takes all back; of the other the next start puts the sysctls back.
    """
    with contextlib.ExitStack() as stack:
        # One wait for both deadlines.
        frozen = stack.enter_context(on_trial(netns, folder(tmp_path / "frozen")))
        killed = stack.enter_context(on_trial(netns, folder(tmp_path / "killed")))
        killed.process.kill()
        killed.process.wait(60)
        sleep_until(max(each.deadline for each in (frozen, killed)) + 1)
        for each in (frozen, killed):
            assert not notracked(each.node, each.target), "the kernel let the rule go"
            assert each.node.sysctl(ICMP) == "11", "sysctls cannot expire"
        let_go(frozen.process)
        code, said = ended(frozen.process, 60)
        assert code == 1
        assert "rolled back" in said
        assert frozen.node.sysctl(ICMP) == "30"
        assert not notracked(frozen.node, frozen.target)
        assert conntrack_operator("restore", *killed.state, namespace=killed.node).returncode == 0
        assert killed.node.sysctl(ICMP) == "30"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_interrupted_in_a_trial(netns, tmp_path, number):
    """Ctrl-C and SIGTERM take everything back at once, and say so."""
    with on_trial(netns, tmp_path, seconds=600) as (node, target, process, _, deadline):
        process.send_signal(number)
        let_go(process)
        code, said = ended(process, 60)
        assert time.clock_gettime(time.CLOCK_BOOTTIME) < deadline
        assert code == 1
        assert "rolled back  Aborted" in said
        assert node.sysctl(ICMP) == "30"
        assert not notracked(node, target)
