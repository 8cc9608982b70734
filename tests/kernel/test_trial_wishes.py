"""An agent in the middle of a trial: it hears what is wanted now, and what is confirmed outlives it."""

import contextlib
import json
import signal
import statistics
import threading
import time

import pytest
from tests.lab.trials import ICMP, confirmed, ended, our_table, policy, reachable, start, wait_until

from conntrack_operator.agent.duty import Duty
from conntrack_operator.agent.loop import Agent
from conntrack_operator.agent.machine import Machine
from conntrack_operator.agent.mailbox import Delivery, Mailbox
from conntrack_operator.agent.meter import Meter
from conntrack_operator.agent.probes import Probe
from conntrack_operator.kernel.journal import StateDirectory
from conntrack_operator.kernel.roots import Roots
from conntrack_operator.model.node import NodeSpec
from conntrack_operator.model.policy import Settings

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
        wait_until((state / "confirmed.json").exists, 60, "the first policy")
        policy(file, timeouts={"icmp": 11, "generic": 77}, notrack=WEB, trial=SLOW)
        wait_until(lambda: node.sysctl(ICMP) == "11" and "trial" in our_table(node), 60, "the trial")
        yield node, running, file, state


def test_a_new_policy_in_a_trial(agent):
    """The trial is taken back and the new policy tried at once; the one given up counts as no failure."""
    node, running, file, state = agent
    policy(file, timeouts={"icmp": 12}, trial={"timeoutSeconds": 60, "soakSeconds": 0})
    # The trial that was under way would last for another 40 s at least.
    wait_until(lambda: node.sysctl(ICMP) == "12", 30, "the new policy")
    wait_until(lambda: confirmed(state) == {ICMP: 12}, 60, "confirmation")
    assert (node.sysctl(GENERIC), our_table(node)) == ("600", "")
    journal = json.loads((state / "journal.json").read_text())
    assert "failures" not in journal
    assert journal["originals"][ICMP]["value"] == 30
    running.send_signal(signal.SIGTERM)
    assert ended(running, 60)[0] == 0


def test_told_to_end_in_a_trial(agent):
    """SIGTERM: the trial is taken back, what was confirmed before stays, and the agent ends well."""
    node, running, _, state = agent
    running.send_signal(signal.SIGTERM)
    code, said = ended(running, 60)
    assert code == 0, said
    assert (node.sysctl(ICMP), node.sysctl(GENERIC), our_table(node)) == ("10", "600", "")
    assert "trial" not in json.loads((state / "journal.json").read_text())


def test_somebody_else_writes_what_is_confirmed(netns, tmp_path):
    """A value that was confirmed is put right within seconds, and without another trial."""
    with reachable(netns) as (node, target):
        file, state = tmp_path / "policy.json", tmp_path / "state"
        policy(file, timeouts={"icmp": 10}, notrack=WEB, trial={"timeoutSeconds": 20, "soakSeconds": 0})
        running = start(node, "agent", "--policy", file, "--state-dir", state, "--probe", target.address)
        wait_until((state / "confirmed.json").exists, 60, "the policy")
        node.sysctl(ICMP, 99)
        wait_until(lambda: node.sysctl(ICMP) == "10", 30, "the sysctl is put right")
        node.run("nft", "delete", "table", "inet", "conntrack_operator")
        wait_until(lambda: our_table(node) != "", 30, "the table is put back")
        assert "failures" not in json.loads((state / "journal.json").read_text())
        running.send_signal(signal.SIGTERM)
        code, said = ended(running, 60)
        assert code == 0, said
        assert "Trial" not in said.partition("Current")[2]


@contextlib.contextmanager
def at_work(node, state):
    """Give the mailbox of an agent that works on the node, with a probe that always passes."""
    mailbox, failures = Mailbox(), []

    def work():
        roots = Roots(state=state)
        try:
            with node.inside(), StateDirectory(roots) as directory, Meter(roots) as meter:
                probes = [Probe("target", lambda _seconds: True)]
                Agent(
                    duty=Duty(Machine(roots), directory, lambda: probes),
                    mailbox=mailbox,
                    meter=meter,
                    write_status=lambda _status: None,
                    top_talkers=lambda _entries: [],
                ).run()
        except BaseException as error:
            failures.append(error)
            raise

    agent = threading.Thread(target=work, daemon=True)
    agent.start()
    try:
        yield mailbox
    finally:
        mailbox.stop()
        agent.join(60)
    assert not agent.is_alive()
    assert failures == []


@pytest.mark.parametrize("each", [False, True])
def test_many_wishes_in_a_row(netns, tmp_path, each):
    """Of 30 wishes in a row the last is in the kernel within 5 s, and then confirmed; nothing is left of the others.

    They come faster than anybody could obey (a tenth of a second apart), or each in the trial of the one before: then
    the 5 s are what most take, since any one may come while the machine does something else.
    """
    node, took = netns.namespace(), []
    node.track()

    def in_kernel(number):
        return node.sysctl(ICMP) == str(100 + number)

    with at_work(node, tmp_path) as mailbox:
        for number in range(1, 31):
            # The port moves too, so that every wish has rules on trial.
            document = {
                "timeouts": {"icmp": 100 + number},
                "notrack": {"rules": [{"name": "web", "ports": [8000 + number]}]},
                "trial": {"timeoutSeconds": 30, "soakSeconds": 3},
            }
            spec = NodeSpec(
                revision=f"r{number}", mode="Apply", node_uid="", settings=Settings.model_validate(document)
            )
            mailbox.put(Delivery(spec, uid="node"))
            began = time.monotonic()
            if each:
                wait_until(lambda: in_kernel(number), 60, f"wish {number}")  # noqa: B023 - called at once
                took.append(time.monotonic() - began)
            else:
                time.sleep(0.1)
        wait_until(lambda: in_kernel(30) and "8030" in our_table(node), 60, "the last wish")
        took.append(time.monotonic() - began)
        wait_until(lambda: confirmed(tmp_path) == {ICMP: 130}, 60, "confirmation")
        wait_until(lambda: "expires" not in our_table(node), 30, "the end of the trial")
        assert statistics.median(took) < (5 if each else 15)
        journal = json.loads((tmp_path / "journal.json").read_text())
        assert "trial" not in journal
        assert "failures" not in journal
        assert journal["originals"][ICMP]["value"] == 30
        table = our_table(node)
        assert "8030" in table
        assert [port for port in range(8001, 8030) if str(port) in table] == []
    assert node.sysctl(ICMP) == "130"
