"""A running agent, and somebody who flushes, deletes and empties what it confirmed: all is back within seconds."""

import json
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.lab import trials
from tests.lab.command import PROGRAM
from tests.lab.namespaces import Lab, Namespace
from tests.lab.programs import Program, wait_until
from tests.lab.walls import ESTABLISHED, NEIGHBOURS, Rule, Tool, Wall

PORT = 8080
REPAIR_SECONDS = 5
"""What is promised. One time of three must be within it: a pause of the machine is no fault of the agent."""
TIMES = 3
"""Repairs of one thing before it is a war."""
STREAM = "net.netfilter.nf_conntrack_udp_timeout_stream"
TABLE = "table inet conntrack_operator"
WEB = Rule("accept", protocol="tcp", port=PORT)
WALL = {"input": (ESTABLISHED, NEIGHBOURS, WEB), "output": (ESTABLISHED, NEIGHBOURS)}


@dataclass
class Node:
    """A server behind a stateful firewall, with an agent that keeps its port untracked, and a client."""

    namespace: Namespace
    client: Namespace
    address: str
    agent: Program
    wall: Wall
    state: Path

    def serves(self) -> bool:
        """Tell whether a client's connection comes about and leaves no entry."""
        try:
            with self.namespace.listen(self.address, PORT) as listener, self.client.make_socket() as near:
                near.settimeout(0.5)
                near.connect((self.address, PORT))
                with listener.accept()[0] as far:
                    far.sendall(b"hello")
                    assert near.recv(16) == b"hello"
                    listing = self.namespace.run("conntrack", "-L", "-p", "tcp").stdout
                    return f"sport={near.getsockname()[1]} dport={PORT} " not in listing
        except OSError:
            return False

    def said(self, *words: str) -> int:
        """Return how many lines of the agent's log have all of `words`."""
        return sum(all(word in line for word in words) for line in self.agent.log.read_text().splitlines())

    def comes_back_after(self, harm: Callable[[], None], what: str) -> None:
        """Fail unless, after `harm`, the port is served without tracking within REPAIR_SECONDS."""
        for _ in range(TIMES):
            # An agent that looks right now would have it back before anybody saw the harm.
            self.agent.send(signal.SIGSTOP)
            try:
                harm()
                assert not self.serves()
            finally:
                self.agent.send(signal.SIGCONT)
            took = self.agent.wait_until(self.serves, 60, what)
            print(f"{what}: back after {took:.1f} s")
            if took <= REPAIR_SECONDS:
                return
        pytest.fail(f"{what}: never back within {REPAIR_SECONDS} s")


@pytest.fixture
def node(netns: Lab, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Node]:
    """Give a node whose firewall is the parameter's kind, with everything confirmed."""
    tool: Tool = getattr(request, "param", "nftables")
    namespace, client = netns.namespace(), netns.namespace()
    near, _ = netns.link(namespace, client)
    wall = Wall(tool, WALL)
    wall.load(namespace)
    settings = {
        "timeouts": {"udp": {"stream": 77}},
        "notrack": {"rules": [{"name": "web", "ports": [PORT]}]},
        "trial": {"timeoutSeconds": 20, "soakSeconds": 0},
    }
    policy, state = trials.policy(tmp_path / "policy.json", **settings), tmp_path / "state"
    command = [*PROGRAM, "agent", "--policy", str(policy), "--state-dir", str(state)]
    agent = Program("agent", command, tmp_path / "agent.log", inside=namespace.inside)
    made = Node(namespace, client, near.ipv4, agent, wall, state)
    agent.start()
    try:
        agent.wait_until(lambda: "Current" in agent.log.read_text(), 60, "all is confirmed")
        agent.wait_until(made.serves, 30, "the port is served")
        yield made
    finally:
        print(agent.tail())
        agent.stop()


@pytest.mark.parametrize(
    "script",
    [
        f"delete {TABLE}\n",
        "flush chain inet conntrack_operator prerouting\ndelete chain inet conntrack_operator prerouting\n",
    ],
)
def test_what_is_deleted_of_our_table_is_back(node: Node, script: str) -> None:
    """The table, or one chain of it, deleted by somebody: within seconds it is there, said once, and traffic flows."""
    node.comes_back_after(lambda: node.namespace.nft(script), script.splitlines()[-1])
    node.agent.wait_until(lambda: node.said("WARNING", "nftables"), 30, "it is said")


def test_a_flush_of_everything_takes_nothing_of_ours_away(node: Node) -> None:
    """After nft flush ruleset and the firewall's own reload our rules and accepts are back, and the flush is named."""

    def flush() -> None:
        node.namespace.nft("flush ruleset\n")
        node.wall.load(node.namespace)

    node.comes_back_after(flush, "nft flush ruleset")
    node.agent.wait_until(lambda: node.said("WARNING", "the whole ruleset was flushed"), 30, "it is said")


@pytest.mark.parametrize("node", ["iptables-nft", "iptables-legacy"], indirect=True)
def test_accepts_that_a_firewall_s_reload_took_are_back(node: Node) -> None:
    """iptables -F, then the firewall's own rules again: accepts of ours are put in once more."""
    time.sleep(4)  # the agent looks at everything once right after it has confirmed; that look is not the one meant

    def reload() -> None:
        for hook in WALL:
            node.wall.flush(node.namespace, hook)
        node.wall.load(node.namespace)

    node.comes_back_after(reload, "iptables -F")
    node.agent.wait_until(lambda: node.said("WARNING", "accept rules of ours"), 30, "it is said")


def test_a_sysctl_and_a_war_about_it(node: Node) -> None:
    """A value somebody writes is put right three times, then left to them: Contended, and everything else stays."""
    took = []
    for turn in range(TIMES):
        node.namespace.sysctl(STREAM, 100 + turn)
        took.append(wait_until(lambda: node.namespace.sysctl(STREAM) == "77", 60, "the confirmed value is back", 0.05))
        # Said once it has read its value back: another one before that would make the repair a failed one.
        repaired = f"changed from 77 to {100 + turn}"
        node.agent.wait_until(lambda repaired=repaired: node.said(STREAM.rpartition(".")[2], repaired), 30, repaired)
    assert min(took) <= REPAIR_SECONDS, took
    node.namespace.sysctl(STREAM, 103)
    node.agent.wait_until(lambda: node.said("Contended"), 60, "the agent says Contended")
    assert node.namespace.sysctl(STREAM) == "103"
    assert node.said("udp_timeout_stream", "changed from 77 to 100") == 1
    node.agent.wait_until(node.serves, 30, "the port is served")
    assert json.loads((node.state / "journal.json").read_text())["originals"][STREAM]["value"] == 120
