"""acceptUntracked on real firewalls of three kinds: who gets through beside NOTRACK rules, and who must not."""

import contextlib
import socket
from collections.abc import Iterator, Sequence

import pytest
from tests.lab.bypass import load, tcp, tracked, transfer, udp
from tests.lab.namespaces import End, Lab, Namespace
from tests.lab.walls import ESTABLISHED, NEIGHBOURS, TOOLS, Rule, Wall

from conntrack_operator.decide.accepts import Accepts, AcceptUntracked, accepts_for
from conntrack_operator.kernel.accepts import read_accepts, remove_accepts, write_accepts
from conntrack_operator.model.policy import NotrackRule

FAMILIES = ("ipv4", "ipv6")
SILENCE_SECONDS = 1.0
"""How long to wait for what must not come. What must come is given 5 seconds."""

pytestmark = pytest.mark.parametrize("tool", TOOLS)


def _accept(namespace: Namespace, wall: Wall, rules: Sequence[NotrackRule], which: AcceptUntracked) -> Accepts:
    """Put the accepts in, and see that they are in place by reading back."""
    accepts = accepts_for(rules, which, wall.firewall(namespace))
    with namespace.inside():
        write_accepts(accepts)
        assert read_accepts() == accepts.standing
    assert accepts.refused == ()
    return accepts


def _talks(server: Namespace, client: Namespace, address: str, port: int, source_port: int = 0) -> bool:
    """Tell whether a TCP connection comes about and both sides hear each other."""
    with server.listen(address, port) as listener, client.make_socket(_family(address)) as near:
        near.settimeout(SILENCE_SECONDS)
        if source_port:
            near.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            near.bind(("", source_port))
        try:
            near.connect((address, port))
        except OSError:
            return False
        with listener.accept()[0] as far:
            far.settimeout(SILENCE_SECONDS)
            near.sendall(b"question")
            try:
                far.recv(64)
                far.sendall(b"answer")
                return near.recv(64) == b"answer"
            except TimeoutError:
                return False


def _hears(server: Namespace, client: Namespace, address: str, port: int, source_port: int = 0) -> bool:
    """Tell whether a datagram of `client` comes to the server's socket."""
    kind = socket.SOCK_DGRAM
    with server.make_socket(_family(address), kind) as far, client.make_socket(_family(address), kind) as near:
        far.bind((address, port))
        if source_port:
            near.bind(("", source_port))
        far.settimeout(SILENCE_SECONDS)
        near.sendto(b"question", (address, port))
        with contextlib.suppress(TimeoutError):
            return far.recv(64) == b"question"
        return False


def _family(address: str) -> int:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


class Site:
    """A node with a guest whom its firewall lets in and a stranger whom it does not."""

    def __init__(self, netns: Lab) -> None:
        self.node, self.guest, self.stranger = (netns.namespace() for _ in range(3))
        self.to_guest, self.guest_end = netns.link(self.node, self.guest)
        self.to_stranger, self.stranger_end = netns.link(self.node, self.stranger)

    def wall(self, tool: str, *before: Rule, states: tuple[str, ...] = ()) -> Wall:
        """Put up: input drops all but the guest's TCP 80 and UDP 5353, in these states; output only answers."""
        ends = (self.guest_end.ipv4, self.guest_end.ipv6)
        guests = [Rule("accept", states, end, *port) for end in ends for port in (("tcp", 80), ("udp", 5353))]
        wall = Wall(tool, {"input": [ESTABLISHED, NEIGHBOURS, *before, *guests], "output": [ESTABLISHED, NEIGHBOURS]})
        wall.load(self.node)
        return wall


WEB = NotrackRule(name="web", ports=[80])
DNS = NotrackRule(name="dns", ports=[5353], protocol="UDP")
NEW = ("new",)


def _guest_is_served(site: Site, family: str) -> None:
    with (
        tcp(site.node, site.guest, getattr(site.to_guest, family), 80),
        udp(site.node, site.guest, getattr(site.to_guest, family), 5353),
    ):
        assert tracked(site.node, "dport=80") == []
        assert tracked(site.node, "dport=5353") == []


def _stranger_is_refused(site: Site, family: str) -> None:
    address = getattr(site.to_stranger, family)
    assert not _talks(site.node, site.stranger, address, 80)
    assert not _hears(site.node, site.stranger, address, 5353)


@pytest.mark.parametrize("family", FAMILIES)
def test_replies_serve_those_who_were_let_in_and_nobody_else(netns: Lab, tool: str, family: str) -> None:
    """Requests are accepted statelessly: with Never the guest hears nothing, with Replies everything; no stranger."""
    site = Site(netns)
    wall = site.wall(tool)
    _stranger_is_refused(site, family)
    load(site.node, WEB, DNS)
    _accept(site.node, wall, [WEB, DNS], "Never")
    assert not _talks(site.node, site.guest, getattr(site.to_guest, family), 80)
    _stranger_is_refused(site, family)
    _accept(site.node, wall, [WEB, DNS], "Replies")
    _guest_is_served(site, family)
    _stranger_is_refused(site, family)


@pytest.mark.parametrize("family", FAMILIES)
def test_requests_accepted_by_state_need_both(netns: Lab, tool: str, family: str) -> None:
    """`new` accepts no untracked request; Both does, for the rule's peers alone."""
    site = Site(netns)
    wall = site.wall(tool, states=NEW)
    peers = [site.guest_end.ipv4, site.guest_end.ipv6]
    rules = [rule.model_copy(update={"peers": peers}) for rule in (WEB, DNS)]
    load(site.node, *rules)
    _accept(site.node, wall, rules, "Replies")
    assert not _talks(site.node, site.guest, getattr(site.to_guest, family), 80)
    _accept(site.node, wall, rules, "Both")
    _guest_is_served(site, family)
    _stranger_is_refused(site, family)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("verdict", ["drop", "reject"])
def test_both_behind_an_explicit_drop_lets_in_nobody_it_names(netns: Lab, tool: str, family: str, verdict: str) -> None:
    """With Both and no peers anybody may come, but for those whom a rule refuses by name."""
    site = Site(netns)
    named = [Rule(verdict, source=end) for end in (site.stranger_end.ipv4, site.stranger_end.ipv6)]
    wall = site.wall(tool, *named, states=NEW)
    load(site.node, WEB, DNS)
    _accept(site.node, wall, [WEB, DNS], "Both")
    _guest_is_served(site, family)
    _stranger_is_refused(site, family)


@pytest.mark.parametrize("family", FAMILIES)
def test_both_without_peers_is_for_anybody(netns: Lab, tool: str, family: str) -> None:
    """What the two tests above would miss if nothing were ever accepted: without a drop the stranger is let in."""
    site = Site(netns)
    wall = site.wall(tool, states=NEW)
    load(site.node, WEB)
    _accept(site.node, wall, [WEB], "Both")
    assert _talks(site.node, site.stranger, getattr(site.to_stranger, family), 80)


class Outing:
    """A node that connects out to a named server, and an attacker; both try the node's port 22 from port 443."""

    def __init__(self, netns: Lab, tool: str) -> None:
        self.node, self.server, self.attacker = (netns.namespace() for _ in range(3))
        self.to_server, self.server_end = netns.link(self.node, self.server)
        self.to_attacker, self.attacker_end = netns.link(self.node, self.attacker)
        out = [Rule("accept", protocol=protocol, port=443) for protocol in ("tcp", "udp")]
        self.wall = Wall(tool, {"input": [ESTABLISHED, NEIGHBOURS], "output": [ESTABLISHED, NEIGHBOURS, *out]})
        self.wall.load(self.node)
        addresses = [self.server_end.ipv4, self.server_end.ipv6]
        self.rules = [
            NotrackRule(
                name=f"out-{protocol.lower()}", protocol=protocol, ports=[443], side="Client", addresses=addresses
            )
            for protocol in ("TCP", "UDP")
        ]
        load(self.node, *self.rules)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("which", ["Replies", "Both"])
def test_a_client_rule_opens_nothing_inbound(netns: Lab, tool: str, family: str, which: AcceptUntracked) -> None:
    """The node talks to its server; neither it nor anybody else reaches port 22 from port 443."""
    outing = Outing(netns, tool)
    server = getattr(outing.server_end, family)
    assert not _talks(outing.server, outing.node, server, 443)
    _accept(outing.node, outing.wall, outing.rules, which)
    with tcp(outing.server, outing.node, server, 443), udp(outing.server, outing.node, server, 443):
        assert tracked(outing.node, "dport=443") == []
    for outside, end in ((outing.server, outing.to_server), (outing.attacker, outing.to_attacker)):
        assert not _talks(outing.node, outside, getattr(end, family), 22, 443)
    assert not _hears(outing.node, outing.attacker, getattr(outing.to_attacker, family), 22, 443)
