"""A change that cuts off what the node must reach: taken back, said, counted, and not tried for ever."""

import json
import signal
import subprocess

import pytest
from tests.lab.command import conntrack_operator
from tests.lab.trials import (
    ICMP,
    PORT,
    confirmed,
    ended,
    let_go,
    notracked,
    our_table,
    policy,
    reachable,
    start,
    wait_for_trial,
    wait_until,
)

FAST = (
    "from conntrack_operator.agent import duty\n"
    "from conntrack_operator.decide import trial\n"
    "trial.RETRY_PAUSES = (1.0, 1.0)\n"
    "duty.RETRY_SECONDS = 1.0\n"
)
"""Pauses of a second between the tries."""

CUT_OFF = f"""
table inet other {{
  chain input {{
    type filter hook input priority filter; policy accept;
    ct state untracked tcp sport {PORT} drop
  }}
}}
"""
"""A firewall that takes the replies of untracked connections to the target."""


@pytest.fixture
def cut_off(netns):
    """Give a node on which a rule for the target's port would cut the target off, and the rule."""
    with reachable(netns) as (node, target):
        node.nft(CUT_OFF)
        rule = {"name": "far", "ports": [PORT], "side": "Client", "addresses": [target.end.ipv4]}
        yield node, target, {"onConflict": "Force", "acceptUntracked": "Never", "rules": [rule]}


def test_a_rule_that_cuts_off_a_probe(cut_off, tmp_path):
    """Rolled back with the probe named, exit 1; sysctls of the same change go back too."""
    node, target, notrack = cut_off
    file = policy(tmp_path / "policy.json", timeouts={"icmp": 11}, notrack=notrack)
    options = ("--state-dir", tmp_path / "state", "--trial", 15, "--soak", 0, "--probe", target.address)
    code, said = ended(start(node, "apply", "-f", file, *options), 60)
    assert code == 1, said
    assert "rolled back  ProbeFailed" in said
    assert f"{target.address} answered before the change and did not" in said
    assert said.count("rolled back") == 1, "said once"
    assert (node.sysctl(ICMP), our_table(node)) == ("30", "")
    with node.connect(target.end.ipv4, PORT):
        pass


def test_without_the_probe_it_stays(cut_off, tmp_path):
    """It is the probe that saves the node: nobody asked, nobody knew."""
    node, target, notrack = cut_off
    file = policy(tmp_path / "policy.json", notrack=notrack)
    options = ("--state-dir", tmp_path / "state", "--trial", 10, "--soak", 0)
    done = conntrack_operator("apply", "-f", file, *options, namespace=node)
    assert done.returncode == 0, done
    with node.make_socket() as asking:
        asking.settimeout(1.5)
        with pytest.raises(TimeoutError):
            asking.connect((target.end.ipv4, PORT))


def test_what_did_not_answer_before_is_not_required(netns, tmp_path):
    """A probe that failed before says nothing about the change; that is said."""
    with reachable(netns) as (node, target):
        target.close()
        file = policy(tmp_path / "policy.json", timeouts={"icmp": 11})
        options = ("--state-dir", tmp_path / "state", "--soak", 0, "--probe", target.address)
        done = conntrack_operator("apply", "-f", file, *options, namespace=node)
        assert done.returncode == 0, done
        assert f"not watched: {target.address} did not answer before the change either" in done.stderr
        assert node.sysctl(ICMP) == "11"


def test_back_inside_the_budget(netns, tmp_path):
    """What is away in the middle of a trial and comes back is no reason to go back."""
    with reachable(netns) as (node, target):
        rule = {"name": "far", "ports": [PORT], "side": "Client", "addresses": [target.end.ipv4]}
        file = policy(tmp_path / "policy.json", notrack={"rules": [rule]})
        options = ("--state-dir", tmp_path / "state", "--trial", 60, "--soak", 2, "--probe", target.address)
        process = start(node, "apply", "-f", file, *options, held=True)
        wait_for_trial(process)
        assert "trial" in our_table(node)
        target.close()
        let_go(process)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(5)
        target.open()
        code, said = ended(process, 90)
        assert code == 0, said
        assert notracked(node, target)


def test_no_loop(cut_off, tmp_path):
    """An agent tries three times and parks; it is not dead: a new policy is tried, and the old one after a retry."""
    node, target, notrack = cut_off
    file, state = tmp_path / "policy.json", tmp_path / "state"
    trial = {"timeoutSeconds": 10, "soakSeconds": 0}
    policy(file, timeouts={"icmp": 11}, notrack=notrack, trial=trial)
    options = ("--state-dir", state, "--probe", target.address)
    agent = start(node, "agent", "--policy", file, *options, first=FAST)

    def journal():
        return json.loads((state / "journal.json").read_text()) if (state / "journal.json").exists() else {}

    def failures():
        document = journal()
        return 0 if document.get("trial") else (document.get("failures") or {}).get("count", 0)

    def attempt():
        document = journal()
        return (document.get("trial") or document["failures"])["attempt"]

    wait_until(lambda: failures() == 3, 120, "three failures")
    parked, first = (state / "journal.json").stat().st_mtime_ns, attempt()
    assert (node.sysctl(ICMP), our_table(node)) == ("30", "")
    with pytest.raises(subprocess.TimeoutExpired):
        agent.wait(3)  # three times as long as it is between two tries here
    assert (state / "journal.json").stat().st_mtime_ns == parked, "parked: nothing is tried any more"
    policy(file, timeouts={"icmp": 11}, notrack=notrack, trial=trial, rollout={"retry": "again"})
    wait_until(lambda: attempt() != first, 60, "another try of the same, asked for by rollout.retry")
    policy(file, timeouts={"icmp": 12}, trial=trial)
    # Not before it is confirmed: an agent that is told to end takes a trial back.
    wait_until(lambda: confirmed(state) == {ICMP: 12}, 60, "the next policy")
    assert failures() == 0
    agent.send_signal(signal.SIGTERM)
    code, said = ended(agent, 60)
    assert code == 0
    assert "it failed 3 times and is not tried again until" in said
    assert node.sysctl(ICMP) == "12"
