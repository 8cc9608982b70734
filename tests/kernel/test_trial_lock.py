"""Two agents on one node: the second changes nothing and disturbs nobody, in the middle of a trial too."""

import signal

from tests.lab.command import assert_one_sentence, conntrack_operator
from tests.lab.trials import ICMP, ended, let_go, policy, reachable, start, wait_for_trial


def test_a_second_agent_in_a_trial(netns, tmp_path):
    """It is told who is there; the first confirms as if nobody had come."""
    with reachable(netns) as (node, target):
        file = policy(tmp_path / "policy.json", timeouts={"icmp": 11})
        other = policy(tmp_path / "other.json", timeouts={"icmp": 12})
        state = ("--state-dir", tmp_path / "state")
        terms = ("--trial", 120, "--soak", 2, "--probe", target.address)
        first = start(node, "apply", "-f", file, *state, *terms, held=True)
        wait_for_trial(first)
        assert node.sysctl(ICMP) == "11"
        for command in (("apply", "-f", other), ("restore",), ("agent", "--policy", other)):
            done = conntrack_operator(*command, *state, namespace=node)
            assert "another conntrack-operator is at work on this node" in done.stderr
            assert done.returncode == 1
        assert node.sysctl(ICMP) == "11"
        assert first.poll() is None, "the trial should still be going on"
        let_go(first)
        assert ended(first, 60)[0] == 0
        assert node.sysctl(ICMP) == "11"


def test_the_next_after_a_killed_one(netns, tmp_path):
    """A dead agent's lock is free at once, and its trial is taken back by whoever comes next."""
    with reachable(netns) as (node, target):
        file = policy(tmp_path / "policy.json", timeouts={"icmp": 11})
        state = ("--state-dir", tmp_path / "state")
        first = start(node, "apply", "-f", file, *state, "--soak", 30, "--probe", target.address, held=True)
        wait_for_trial(first)
        assert node.sysctl(ICMP) == "11"
        first.send_signal(signal.SIGKILL)
        first.wait(60)
        other = policy(tmp_path / "other.json", timeouts={"generic": 77})
        done = conntrack_operator("apply", "-f", other, *state, "--soak", 0, namespace=node)
        assert done.returncode == 0, done
        assert node.sysctl(ICMP) == "30"
        assert node.sysctl("net.netfilter.nf_conntrack_generic_timeout") == "77"
        assert_one_sentence(
            conntrack_operator("apply", "-f", other, *state, "--probe", "nowhere", namespace=node),
            "--probe",
            "'nowhere' is not HOST:PORT",
        )
