"""An agent that is frozen or dead in the middle of a trial: the kernel itself lets the rules go, nothing is kept."""

import json
import signal
import time

import pytest
from tests.lab.command import conntrack_operator
from tests.lab.trials import ICMP, PORT, ended, notracked, policy, reachable, start, wait_until

TRIAL = 15


@pytest.fixture
def trial(netns, tmp_path):
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
        wait_until(lambda: node.sysctl(ICMP) == "11", 10, "the sysctl")
        target.open()
        wait_until(lambda: notracked(node, target), 10, "the rule")
        target.close()
        deadline = json.loads((tmp_path / "state/journal.json").read_text())["trial"]["deadline"]
        yield node, target, process, state, deadline


def sleep_until(deadline):
    """Sleep until then on CLOCK_BOOTTIME."""
    time.sleep(max(0, deadline - time.clock_gettime(time.CLOCK_BOOTTIME)))


def test_frozen_in_a_trial(trial):
    """SIGSTOP: the rules are gone by the deadline with nobody to remove them; woken after it, it takes all back."""
    node, target, process, _, deadline = trial
    process.send_signal(signal.SIGSTOP)
    target.open()
    assert notracked(node, target)
    sleep_until(deadline + 1)
    assert not notracked(node, target), "the kernel let the rule go"
    assert node.sysctl(ICMP) == "11", "sysctls cannot expire"
    process.send_signal(signal.SIGCONT)
    code, said = ended(process, 20)
    assert code == 1
    assert "rolled back" in said
    assert node.sysctl(ICMP) == "30"
    assert not notracked(node, target)


def test_killed_in_a_trial(trial):
    """SIGKILL: the rules are gone by the deadline with no process alive; the next start puts the sysctls back."""
    node, target, process, state, deadline = trial
    process.kill()
    process.wait(10)
    target.open()
    assert notracked(node, target)
    sleep_until(deadline + 1)
    assert not notracked(node, target)
    assert node.sysctl(ICMP) == "11"
    assert conntrack_operator("restore", *state, namespace=node).returncode == 0
    assert node.sysctl(ICMP) == "30"


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
