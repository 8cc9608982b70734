"""An agent in the middle of a trial: it hears what is wanted now, and what is confirmed outlives it."""

import json
import signal
import time

import pytest
from tests.lab.trials import ICMP, ended, our_table, policy, reachable, start, wait_until

GENERIC = "net.netfilter.nf_conntrack_generic_timeout"
SLOW = {"timeoutSeconds": 60, "soakSeconds": 40}
WEB = {"rules": [{"name": "web", "ports": [80]}]}


@pytest.fixture
def agent(netns, tmp_path):
    """Give an agent that confirmed one policy and is in the trial of the next."""
    with reachable(netns) as (node, target):
        file, state = tmp_path / "policy.json", tmp_path / "state"
        policy(file, timeouts={"icmp": 10}, trial={"timeoutSeconds": 20, "soakSeconds": 0})
        running = start(node, "agent", "--policy", file, "--state-dir", state, "--probe", target.address)
        wait_until((state / "confirmed.json").exists, 30, "the first policy")
        policy(file, timeouts={"icmp": 11, "generic": 77}, notrack=WEB, trial=SLOW)
        wait_until(lambda: node.sysctl(ICMP) == "11" and "trial" in our_table(node), 20, "the trial")
        yield node, running, file, state


def test_a_new_policy_in_a_trial(agent):
    """The trial is taken back and the new policy tried at once; the one given up counts as no failure."""
    node, running, file, state = agent
    began = time.monotonic()
    policy(file, timeouts={"icmp": 12}, trial={"timeoutSeconds": 20, "soakSeconds": 0})
    wait_until(lambda: node.sysctl(ICMP) == "12", 20, "the new policy")
    assert time.monotonic() - began < 20
    wait_until(lambda: json.loads((state / "confirmed.json").read_text())["sysctls"] == {ICMP: 12}, 20, "confirmation")
    assert (node.sysctl(GENERIC), our_table(node)) == ("600", "")
    journal = json.loads((state / "journal.json").read_text())
    assert "failures" not in journal
    assert journal["originals"][ICMP]["value"] == 30
    running.send_signal(signal.SIGTERM)
    assert ended(running, 10)[0] == 0


def test_told_to_end_in_a_trial(agent):
    """SIGTERM: the trial is taken back, what was confirmed before stays, and the agent ends well."""
    node, running, _, state = agent
    running.send_signal(signal.SIGTERM)
    code, said = ended(running, 10)
    assert code == 0, said
    assert (node.sysctl(ICMP), node.sysctl(GENERIC), our_table(node)) == ("10", "600", "")
    assert "trial" not in json.loads((state / "journal.json").read_text())


def test_somebody_else_writes_what_is_confirmed(netns, tmp_path):
    """A value that was confirmed is put right within seconds, and without another trial."""
    with reachable(netns) as (node, target):
        file, state = tmp_path / "policy.json", tmp_path / "state"
        policy(file, timeouts={"icmp": 10}, notrack=WEB, trial={"timeoutSeconds": 20, "soakSeconds": 0})
        running = start(node, "agent", "--policy", file, "--state-dir", state, "--probe", target.address)
        wait_until((state / "confirmed.json").exists, 30, "the policy")
        node.sysctl(ICMP, 99)
        wait_until(lambda: node.sysctl(ICMP) == "10", 8, "the sysctl is put right")
        node.run("nft", "delete", "table", "inet", "conntrack_operator")
        wait_until(lambda: our_table(node) != "", 8, "the table is put back")
        assert "failures" not in json.loads((state / "journal.json").read_text())
        running.send_signal(signal.SIGTERM)
        code, said = ended(running, 10)
        assert code == 0, said
        assert "Trial" not in said.partition("Current")[2]
