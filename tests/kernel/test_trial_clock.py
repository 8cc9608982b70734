"""A wall clock that jumps has no influence on a trial: neither confirmed earlier, nor undone, nor kept for longer."""

import re
import time
from pathlib import Path

import pytest
from tests.lab.trials import ICMP, ended, let_go, policy, reachable, start, wait_for_trial

import conntrack_operator

JUMPING = (
    "import time\n"
    "import datetime as module\n"
    "real, jumps = time.time, [0]\n"
    "def jumping():\n"
    "    jumps[0] += 1\n"
    "    return real() + (86400.0 if jumps[0] % 2 else -86400.0 * 365)\n"
    "time.time = jumping\n"
    "class Jumping(module.datetime):\n"
    "    @classmethod\n"
    "    def now(cls, zone=None):\n"
    "        return cls.fromtimestamp(jumping(), zone)\n"
    "module.datetime = Jumping\n"
)
"""Puts the command on a wall clock that is a day ahead and a year behind by turns."""


def test_the_wall_clock_jumps(netns, tmp_path):
    """The soak takes its time and the change is confirmed."""
    with reachable(netns) as (node, target):
        file = policy(
            tmp_path / "policy.json", timeouts={"icmp": 11}, notrack={"rules": [{"name": "w", "ports": [80]}]}
        )
        options = ("--state-dir", tmp_path / "state", "--soak", 4, "--probe", target.address)
        began = time.monotonic()  # however late this process looks, the soak is in between
        code, said = ended(start(node, "apply", "-f", file, *options, first=JUMPING), 60)
        assert code == 0, said
        assert time.monotonic() - began > 4
        assert node.sysctl(ICMP) == "11"


def test_a_trial_that_fails_while_the_clock_jumps(netns, tmp_path):
    """Its deadline is where it was, neither a day earlier nor a year later."""
    with reachable(netns) as (node, target):
        file = policy(tmp_path / "policy.json", timeouts={"icmp": 11})
        options = ("--state-dir", tmp_path / "state", "--trial", 12, "--soak", 2, "--probe", target.address)
        began = time.monotonic()
        process = start(node, "apply", "-f", file, *options, first=JUMPING, held=True)
        wait_for_trial(process)
        target.close()
        let_go(process)
        code, said = ended(process, 60)
        assert code == 1, said
        assert "rolled back" in said  # by its probe, or by its deadline where this machine slept
        assert time.monotonic() - began > 2
        assert node.sysctl(ICMP) == "30"


@pytest.mark.parametrize(
    "module",
    ["agent/trial.py", "agent/duty.py", "agent/machine.py", "agent/sight.py", "agent/writing.py", "kernel/journal.py"],
)
def test_no_wall_clock(module):
    """What times a trial does not even ask for the wall clock."""
    text = (Path(conntrack_operator.__file__).parent / module).read_text(encoding="utf-8")
    assert not re.search(r"time\.time\(|datetime|CLOCK_REALTIME", text)
