"""The mender on a real kernel: what was confirmed comes back within seconds, its rival is named, a war ends."""

import time

import pytest
from tests.lab.walls import ESTABLISHED, NEIGHBOURS, Rule, Wall

from conntrack_operator.agent.machine import Machine
from conntrack_operator.agent.mending import Mender
from conntrack_operator.agent.trial import begin, finished
from conntrack_operator.errors import Retry
from conntrack_operator.kernel import nftables
from conntrack_operator.kernel.journal import StateDirectory
from conntrack_operator.kernel.roots import Roots
from conntrack_operator.model.node import NodeSpec
from conntrack_operator.model.policy import Settings

STREAM = "net.netfilter.nf_conntrack_udp_timeout_stream"
WISH = {
    "timeouts": {"udp": {"stream": 60}},
    "notrack": {"rules": [{"name": "web", "ports": [80]}]},
    "trial": {"timeoutSeconds": 30, "soakSeconds": 0},
}

WEB = Rule("accept", protocol="tcp", port=80)
PUBLISHED = "table ip docker { chain p { type nat hook prerouting priority -100; tcp dport 80 dnat to 192.0.2.9; }; }"


class Node:
    """A namespace with confirmed settings, its mender, and a clock of its own for the mender."""

    def __init__(self, node, path, document):
        self.node, self.roots = node, Roots(state=path, etc=path / "etc", usr=path / "usr", run=path / "run")
        self.machine = Machine(self.roots)
        self.spec = NodeSpec(revision="r", mode="Apply", node_uid="", settings=Settings.model_validate(document))
        self.now = 0.0
        with node.inside(), StateDirectory(self.roots) as state:
            assert finished(begin(self.machine, state, self.spec, list)).phase == "Current"
            self.mender = Mender(self.machine)
            self.mender.settled(self.machine.look(self.spec.settings, (), self.machine.journal(state)))
        self.mend()

    def mend(self):
        """Let two seconds pass for the mender, and mend."""
        self.now += 2.0
        with self.node.inside(), StateDirectory(self.roots) as state:
            confirmed = self.machine.read_confirmed(state)
            assert confirmed is not None
            return self.mender.mend(state, confirmed, self.spec, self.now)

    def has_table(self):
        """Tell whether our table is there."""
        with self.node.inside():
            return nftables.read_table() is not None


@pytest.fixture
def node(netns, tmp_path):
    """Return a node with an address, a timeout and a rule."""
    namespace = netns.namespace()
    netns.link(namespace, netns.namespace())
    return Node(namespace, tmp_path, WISH)


def test_a_quiet_node_is_left_alone(node):
    """Nothing moved, nothing said."""
    assert [node.mend() for _ in range(10)] == [None] * 10


def test_a_sysctl_comes_back_and_its_writer_is_named(node):
    """A value that a file of this machine has is traced to the file and its line."""
    conf = node.roots.etc / "sysctl.d/90-udp.conf"
    conf.parent.mkdir(parents=True)
    conf.write_text("# tuning\nnet.netfilter.nf_conntrack_udp_timeout_stream = 180\n")
    node.node.sysctl(STREAM, 180)
    started = time.process_time()
    mended = node.mend()
    assert time.process_time() - started < 5  # at work: a pause is none
    assert node.node.sysctl(STREAM) == "60"
    assert mended.outcome.phase == "Current"
    (sentence,) = mended.said
    assert sentence.startswith(
        f"nf_conntrack_udp_timeout_stream was changed from 60 to 180, likely by sysctl.d ({conf}:2)"
    )
    assert dict(node.mender.repairs.totals) == {STREAM: 1}
    (warning,) = mended.warnings
    assert (warning.setting, warning.reason) == (STREAM, "Repaired")
    assert warning.message == f"{sentence} (put right 1 time since the agent started)"
    assert node.mend() is None


def test_other_people_s_changes_cost_one_look_at_our_own(node, monkeypatch):
    """Who changes rules of his own every second makes us read our table, not everybody's, and nothing is said."""
    looks = []
    real = node.machine.look
    monkeypatch.setattr(node.machine, "look", lambda *arguments: looks.append(1) or real(*arguments))
    for number in range(4):
        node.node.nft(f"add table inet theirs{number}\n")
        assert node.mend() is None
    assert len(looks) <= 1  # theirs is looked at every ten seconds
    node.node.nft("delete table inet conntrack_operator\n")
    assert node.mend().outcome.phase == "Current"


@pytest.mark.parametrize("script", ["flush ruleset\n", "delete table inet conntrack_operator\n"])
def test_the_table_comes_back(node, script):
    """Flushed or deleted, at the next look it is there again, counted once."""
    node.node.nft(script)
    mended = node.mend()
    assert mended.outcome.phase == "Current"
    assert node.has_table()
    assert dict(node.mender.repairs.totals) == {"notrack": 1}
    assert node.mend() is None
    assert node.mend() is None


def test_a_war_ends_in_contended(node):
    """The fourth time in an hour it is left; Contended is said, with who; peace ends it."""
    for _ in range(3):
        node.node.sysctl(STREAM, 180)
        assert node.mend().outcome.phase == "Current"
    node.node.sysctl(STREAM, 180)
    mended = node.mend()
    assert mended.outcome.phase == "Contended"
    assert node.node.sysctl(STREAM) == "180"
    (result,) = [result for result in mended.outcome.results if result.reason == "Contended"]
    assert result.setting == STREAM
    assert "somebody unknown" in result.message
    assert node.mend() is None
    node.node.sysctl(STREAM, 60)
    node.now += 60
    assert node.mend().outcome.phase == "Current"


def test_a_war_about_accepts_goes_on_for_the_port_s_sake(netns, tmp_path):
    """A firewall reloaded again and again: our accepts are back each time, Contended is said, an hour of peace ends it.

    A rule in force without its accepts is a port that does not answer.
    """
    wall = Wall("nftables", {"input": (ESTABLISHED, NEIGHBOURS, WEB), "output": (ESTABLISHED, NEIGHBOURS)})
    namespace = netns.namespace()
    netns.link(namespace, netns.namespace())
    wall.load(namespace)
    node = Node(namespace, tmp_path, WISH)
    for turn in range(5):
        wall.remove(namespace)
        wall.load(namespace)
        assert "conntrack_operator" not in wall.listing(namespace)
        mended = node.mend()
        assert "jump conntrack_operator_output_replies" in wall.listing(namespace)
        assert mended.outcome.phase == ("Current" if turn < 3 else "Contended")
    (result,) = [result for result in mended.outcome.results if result.reason == "Contended"]
    assert result.setting == "notrack.acceptUntracked"
    assert "put back each time all the same" in result.message
    assert node.mender.left == {"notrack.acceptUntracked"}
    node.now += 100
    assert node.mend().outcome.phase == "Contended"
    node.now += 3600
    assert node.mend().outcome.phase == "Current"
    assert node.mender.left == frozenset()


def test_tracking_switched_on_again(netns, tmp_path):
    """With tracking: Disabled a rule that tracks is named at the next look."""
    node = Node(netns.namespace(), tmp_path, {"tracking": "Disabled"})
    assert node.mend() is None
    node.node.track()
    mended = node.mend()
    assert mended.outcome.phase == "Refused"
    assert {result.reason for result in mended.outcome.results} == {"TrackingNeeded"}
    assert any("lab_tracking" in result.message for result in mended.outcome.results)


def test_what_could_not_be_looked_at_is_looked_at_again(node, monkeypatch):
    """A look that fails, and a firewall that cannot be read once, cost seconds: a movement is never lost."""
    node.node.nft("table inet host { chain input { type filter hook input priority 0; }; }")
    with monkeypatch.context() as broken:
        broken.setattr(Machine, "look", lambda *_: (_ for _ in ()).throw(Retry("nft did not finish")))
        node.node.nft("delete table inet conntrack_operator\n")
        with pytest.raises(Retry):
            node.mend()
    assert node.mend().outcome.phase == "Current"
    assert node.has_table()
    node.node.nft(PUBLISHED)
    with monkeypatch.context() as blind:

        def unread(*_arguments):
            raise Retry("gone meanwhile")

        blind.setattr("conntrack_operator.kernel.firewall_nft.read_table", unread)
        node.now += 10
        assert node.mend() is None
        assert node.has_table()
    assert "NATConflict" in {result.reason for result in node.mend().outcome.results}
    assert not node.has_table()


def test_a_war_does_not_hold_a_withdrawal_up(node):
    """Repaired three times in an hour, a rule still goes when translation comes, and is back afterwards, uncounted."""
    for _ in range(3):
        node.node.nft("delete table inet conntrack_operator\n")
        assert node.mend().outcome.phase == "Current"
    node.now += 10
    node.node.nft(PUBLISHED)
    assert [result.reason for result in node.mend().outcome.results if result.setting == "notrack/web"] == [
        "NATConflict"
    ]
    assert not node.has_table()
    node.now += 10
    node.node.nft("delete table ip docker\n")
    assert node.mend().outcome.phase == "Current"
    assert node.has_table()
    assert dict(node.mender.repairs.totals) == {"notrack": 3}
