"""acceptUntracked on real firewalls of three kinds: who gets through beside NOTRACK rules, and who must not."""

import contextlib
import socket
import struct
import time
from collections.abc import Sequence

import pytest
from tests.lab.bypass import connected, load, tcp, tracked, transfer, udp
from tests.lab.namespaces import Lab, Namespace, packed
from tests.lab.programs import wait_until
from tests.lab.walls import ESTABLISHED, NEIGHBOURS, TOOLS, Rule, Wall

from conntrack_operator.decide.accepts import Accepts, AcceptUntracked, Standing, accepts_for
from conntrack_operator.kernel.accepts import read_accepts, remove_accepts, write_accepts
from conntrack_operator.kernel.firewall import read_firewall
from conntrack_operator.model.notrack import NotrackRule

FAMILIES = ("ipv4", "ipv6")
SILENCE_SECONDS = 0.2
"""How long to wait for what must not come."""
PATIENCE_SECONDS = 30.0
"""How long to wait for what must come."""

pytestmark = pytest.mark.parametrize("tool", TOOLS)


def _accept(namespace: Namespace, rules: Sequence[NotrackRule], which: AcceptUntracked) -> Accepts:
    """Put the accepts in, and see that they are in place and change nothing about what is to be accepted."""
    with namespace.inside():
        accepts = accepts_for(rules, which, read_firewall())
        write_accepts(accepts)
        assert read_accepts() == accepts.standing
        assert accepts_for(rules, which, read_firewall()) == accepts
    assert accepts.refused == ()
    return accepts


def _talks(
    server: Namespace,
    client: Namespace,
    address: str,
    port: int,
    source_port: int = 0,
    seconds: float = SILENCE_SECONDS,
) -> bool:
    """Tell whether a TCP connection comes about and both sides hear each other."""
    with server.listen(address, port) as listener, client.make_socket(_family(address)) as near:
        near.settimeout(seconds)
        if source_port:
            near.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            near.bind(("", source_port))
        try:
            near.connect((address, port))
        except OSError:
            return False
        with listener.accept()[0] as far:
            far.settimeout(seconds)
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
    site.wall(tool)
    _stranger_is_refused(site, family)
    load(site.node, WEB, DNS)
    _accept(site.node, [WEB, DNS], "Never")
    assert not _talks(site.node, site.guest, getattr(site.to_guest, family), 80)
    _stranger_is_refused(site, family)
    _accept(site.node, [WEB, DNS], "Replies")
    _guest_is_served(site, family)
    _stranger_is_refused(site, family)


@pytest.mark.parametrize("family", FAMILIES)
def test_requests_accepted_by_state_need_both(netns: Lab, tool: str, family: str) -> None:
    """`new` accepts no untracked request; Both does, for the rule's peers alone."""
    site = Site(netns)
    site.wall(tool, states=NEW)
    peers = [site.guest_end.ipv4, site.guest_end.ipv6]
    rules = [rule.model_copy(update={"peers": peers}) for rule in (WEB, DNS)]
    load(site.node, *rules)
    _accept(site.node, rules, "Replies")
    assert not _talks(site.node, site.guest, getattr(site.to_guest, family), 80)
    _accept(site.node, rules, "Both")
    _guest_is_served(site, family)
    _stranger_is_refused(site, family)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("verdict", ["drop", "reject"])
def test_both_behind_an_explicit_drop_lets_in_nobody_it_names(netns: Lab, tool: str, family: str, verdict: str) -> None:
    """With Both and no peers anybody may come, but for those whom a rule refuses by name."""
    site = Site(netns)
    named = [Rule(verdict, source=end) for end in (site.stranger_end.ipv4, site.stranger_end.ipv6)]
    site.wall(tool, *named, states=NEW)
    load(site.node, WEB, DNS)
    _accept(site.node, [WEB, DNS], "Both")
    _guest_is_served(site, family)
    _stranger_is_refused(site, family)


@pytest.mark.parametrize("family", FAMILIES)
def test_both_without_peers_is_for_anybody(netns: Lab, tool: str, family: str) -> None:
    """What the two tests above would miss if nothing were ever accepted: without a drop the stranger is let in."""
    site = Site(netns)
    site.wall(tool, states=NEW)
    load(site.node, WEB)
    _accept(site.node, [WEB], "Both")
    assert _talks(site.node, site.stranger, getattr(site.to_stranger, family), 80, seconds=PATIENCE_SECONDS)


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
    _accept(outing.node, outing.rules, which)
    with tcp(outing.server, outing.node, server, 443), udp(outing.server, outing.node, server, 443):
        assert tracked(outing.node, "dport=443") == []
    for outside, end in ((outing.server, outing.to_server), (outing.attacker, outing.to_attacker)):
        assert not _talks(outing.node, outside, getattr(end, family), 22, 443)
    assert not _hears(outing.node, outing.attacker, getattr(outing.to_attacker, family), 22, 443)


def _segment(source: tuple[str, int], destination: tuple[str, int], flags: int) -> bytes:
    """Return a TCP segment with eight bytes of data and its checksum (RFC 9293), over IPv4."""
    ports = struct.pack("!HH", source[1], destination[1])
    rest = struct.pack("!IIBBHHH", 1000, 2000, 5 << 4, flags, 65535, 0, 0) + b"question"
    pseudo = packed(source[0]) + packed(destination[0]) + struct.pack("!BBH", 0, socket.IPPROTO_TCP, 4 + len(rest))
    words = struct.unpack(f"!{(len(pseudo) + 4 + len(rest)) // 2}H", pseudo + ports + rest)
    total = sum(words)
    total = (total & 0xFFFF) + (total >> 16)
    total = (total & 0xFFFF) + (total >> 16)
    return ports + rest[:12] + struct.pack("!H", ~total & 0xFFFF) + rest[14:]


def _reset_comes(
    node: Namespace, outside: Namespace, source: str, address: str, flags: int, seconds: float = SILENCE_SECONDS
) -> bool:
    """Send the node's port 22 one segment from port 443; tell whether its TCP answers, which it does by a reset."""
    with outside.inside(), socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP) as raw:
        raw.settimeout(seconds)
        with node.listen(address, 22) as listener:
            listener.setblocking(False)
            raw.sendto(_segment((source, 443), (address, 22), flags), (address, 0))
            answered = False
            with contextlib.suppress(TimeoutError):
                while not answered:
                    answered = raw.recv(2048)[20:24] == struct.pack("!HH", 22, 443)
            with pytest.raises(BlockingIOError):
                listener.accept()
            return answered


def test_segments_that_open_nothing_pass_from_the_named_server_alone(netns: Lab, tool: str) -> None:
    """An attacker's ACK and SYN ACK from port 443 are dropped; the server's look like replies: reset, no connection."""
    outing = Outing(netns, tool)
    # The node's own resets to a port 443 must pass, or nothing would be seen here.
    _accept(outing.node, outing.rules, "Replies")
    for flags in (0x10, 0x12, 0x18):  # ACK, SYN ACK, PSH ACK
        ends = outing.attacker_end.ipv4, outing.to_attacker.ipv4
        assert not _reset_comes(outing.node, outing.attacker, *ends, flags)
    ends = outing.server_end.ipv4, outing.to_server.ipv4
    assert _reset_comes(outing.node, outing.server, *ends, 0x10, PATIENCE_SECONDS)
    assert not _reset_comes(outing.node, outing.server, *ends, 0x02)


PREFIX = "2001:db8:77::"


def _advertise(outside: Namespace, interface: str, times: int = 3) -> None:
    """Send router advertisements with a prefix and a default route (RFC 4861) to all nodes on the link."""
    router = struct.pack("!BBHBBHII", 134, 0, 0, 64, 0, 1800, 0, 0)
    prefix = struct.pack("!BBBBIII", 3, 4, 64, 0xC0, 86400, 14400, 0) + packed(PREFIX)
    with outside.inside(), socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as raw:
        index = socket.if_nametoindex(interface)
        raw.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
        raw.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index)
        for _ in range(times):
            raw.sendto(router + prefix, ("ff02::1", 0, 0, index))


def _learned(node: Namespace) -> bool:
    """Tell whether the node has an address of the advertised prefix or a route to its router."""
    shown = node.run("ip", "-6", "addr").stdout + node.run("ip", "-6", "route").stdout
    return PREFIX in shown or "default" in shown


def test_router_advertisements_are_no_more_welcome_than_before(netns: Lab, tool: str) -> None:
    """Untracked as they are, they are dropped before and after, with any rule and Both; without the wall they count."""
    node, outside = netns.namespace(), netns.namespace()
    mine, theirs = netns.link(node, outside)
    node.sysctl(f"net.ipv6.conf.{mine.interface}.accept_ra", 2)
    node.sysctl(f"net.ipv6.conf.{mine.interface}.autoconf", 1)
    hooks = ("input", "output", "forward")
    served = [Rule("accept", NEW, protocol=protocol, port=80) for protocol in ("tcp", "udp")]
    wall = Wall(tool, {hook: [ESTABLISHED, NEIGHBOURS, *served] for hook in hooks})
    wall.load(node)
    for link, end in ((node, mine), (outside, theirs)):
        _wait_for_link_local(link, end.interface)
    _advertise(outside, theirs.interface)
    time.sleep(SILENCE_SECONDS)
    assert not _learned(node)
    rules = [
        NotrackRule(
            name=f"{side}-{protocol}".lower(), protocol=protocol, ports=["1-65535"], side=side, addresses=["::/0"]
        )
        for side in ("Server", "Client", "Forward")
        for protocol in ("TCP", "UDP", "SCTP")
    ]
    load(node, *rules)
    accepts = _accept(node, rules, "Both")
    made = " ".join(chain.name.lower() for chain in accepts.chains)
    assert all(what in made for what in ("replies", "errors", "requests"))
    _advertise(outside, theirs.interface)
    time.sleep(SILENCE_SECONDS)
    assert not _learned(node)
    wall.remove(node)

    def learns() -> bool:
        _advertise(outside, theirs.interface)
        return _learned(node)

    wait_until(learns, PATIENCE_SECONDS, "without the wall it counts")


def _wait_for_link_local(namespace: Namespace, interface: str) -> None:
    def is_there() -> bool:
        shown = namespace.run("ip", "-6", "addr", "show", "dev", interface).stdout
        return "fe80" in shown and "tentative" not in shown

    wait_until(is_there, PATIENCE_SECONDS, "a link-local address", 0.02)


def test_nothing_is_left_of_them(netns: Lab, tool: str) -> None:
    """The firewall lists as before once they are removed; written twice they change nothing; leftovers go, too."""
    site = Site(netns)
    wall = site.wall(tool)
    before = wall.listing(site.node)
    accepts = _accept(site.node, [WEB, DNS], "Both")
    written = wall.listing(site.node)
    assert written != before
    _accept(site.node, [DNS, WEB], "Both")
    assert wall.listing(site.node) == written
    _accept(site.node, [WEB], "Replies")
    assert wall.listing(site.node) != written
    _accept(site.node, [WEB, DNS], "Both")
    with site.node.inside():
        write_accepts(Accepts(accepts.chains, ()))  # as if the jumps had gone: chains alone
        assert read_accepts().jumps == ()
        remove_accepts()
        assert read_accepts() == Standing()
        remove_accepts()
    assert wall.listing(site.node) == before


def test_what_others_do_to_them_is_seen_and_mended(netns: Lab, tool: str) -> None:
    """A flushed chain takes the jump along; a rule put in front of it shows; both are put right."""
    site = Site(netns)
    wall = site.wall(tool)
    _accept(site.node, [WEB], "Both")
    first, *rest = wall.rules["input"]
    longer = Wall(tool, {**wall.rules, "input": [first, Rule("drop", protocol="tcp", port=23), *rest]})
    longer.insert_second(site.node, "input")
    with site.node.inside():
        accepts = accepts_for([WEB], "Both", read_firewall())
        assert read_accepts() != accepts.standing
        write_accepts(accepts)
        assert read_accepts() == accepts.standing
    longer.flush(site.node, "input")
    with site.node.inside():
        assert read_accepts() != accepts.standing
    _accept(site.node, [WEB], "Both")


@pytest.mark.parametrize("family", FAMILIES)
def test_path_mtu_discovery_goes_on(netns: Lab, tool: str, family: str) -> None:
    """A server behind a firewall that accepts only established and related learns the path's MTU of 1280."""
    routed = netns.routed()
    # The client's own end stays wide, or the MSS that it announces would tell.
    routed.router.run("ip", "link", "set", routed.router_near.interface, "mtu", "1280")
    node, address = routed.server, getattr(routed.server_end, family)
    wall = Wall(tool, {"input": [ESTABLISHED, NEIGHBOURS, Rule("accept", protocol="tcp", port=80)]})
    wall.load(node)
    rule = NotrackRule(name="web", ports=[80])
    load(node, rule)
    assert _moved(node, routed.client, address, 2) == 0
    _accept(node, [rule], "Replies")
    assert _moved(node, routed.client, address, PATIENCE_SECONDS) == SIZE_BYTES


SIZE_BYTES = 1 << 19


def _moved(node: Namespace, client: Namespace, address: str, patience_seconds: float) -> int:
    with connected(node, client, address, 80) as (near, far):
        return transfer(far, near, SIZE_BYTES, patience_seconds).received_bytes


@pytest.mark.parametrize("family", FAMILIES)
def test_a_router_lets_replies_through(netns: Lab, tool: str, family: str) -> None:
    """Forward: requests pass by the router's own rule, replies by ours, and the server opens nothing from its port."""
    routed = netns.routed()
    ends = (routed.client_end.ipv4, routed.client_end.ipv6)
    guests = [Rule("accept", (), end, "tcp", 80) for end in ends]
    wall = Wall(tool, {"forward": [ESTABLISHED, *guests], "input": [ESTABLISHED, NEIGHBOURS]})
    wall.load(routed.router)
    rule = NotrackRule(name="routed", ports=[80], side="Forward")
    load(routed.router, rule)
    server, client = (getattr(end, family) for end in (routed.server_end, routed.client_end))
    assert not _talks(routed.server, routed.client, server, 80)
    _accept(routed.router, [rule], "Replies")
    with tcp(routed.server, routed.client, server, 80):
        assert tracked(routed.router, "dport=80") == []
    assert not _talks(routed.client, routed.server, client, 22, 80)


def test_sixteen_rules_of_a_thousand_ports_fit(netns: Lab, tool: str) -> None:
    """The most that a policy may ask for goes in, in one transaction a tool, and comes out."""
    node = netns.namespace()
    wall = Wall(tool, {hook: [ESTABLISHED, Rule("accept", NEW)] for hook in ("input", "output", "forward")})
    wall.load(node)
    before = wall.listing(node)
    rules = [
        NotrackRule(name=f"rule{number}", protocol=("TCP", "UDP")[number % 2], ports=[*range(1024 + number, 32768, 31)])
        for number in range(16)
    ]
    accepts = _accept(node, rules, "Both")
    assert len(accepts.chains) == (4 if tool == "nftables" else 8)
    with node.inside():
        remove_accepts()
    assert wall.listing(node) == before


NESTED = {
    "nftables": """table inet wall {
      chain input {
        type filter hook input priority filter; policy drop;
        jump early
        iifname "lo" accept
        jump zones
      }
      chain early { ct state vmap { established : accept, related : accept, invalid : drop }; }
      chain zones { goto public; }
      chain public { ip saddr 192.0.2.66 drop; tcp dport 80 ct state new accept; reject; }
      chain output {
        type filter hook output priority filter; policy drop;
        oifname { "eth*", "veth1a" } meta l4proto tcp ip daddr 10.0.0.0/8 ct state established,related accept
        ip6 daddr fd00::/8 ct state established,related accept
        tcp sport 80-90 ct state established accept
        ct state established meta mark 7 accept
      }
    }
    """,
    "iptables": """*filter
:INPUT DROP [0:0]
:OUTPUT DROP [0:0]
:early - [0:0]
:public - [0:0]
-A INPUT -j early
-A INPUT -i lo -j ACCEPT
-A INPUT -j public
-A early -m state --state RELATED,ESTABLISHED -j ACCEPT
-A public -s 192.0.2.66 -j DROP
-A public -p tcp --dport 80 -m state --state NEW -j ACCEPT
-A public -j REJECT
-A OUTPUT -o eth+ -p tcp -d 10.0.0.0/8 -m state --state RELATED,ESTABLISHED -j ACCEPT
-A OUTPUT -m iprange --dst-range 10.0.0.9-10.0.0.77 -m state --state ESTABLISHED -j ACCEPT
-A OUTPUT -p tcp -m multiport --sports 80:90,99 -m state --state ESTABLISHED -j ACCEPT
-A OUTPUT -m mark --mark 7 -m state --state ESTABLISHED -j ACCEPT
COMMIT
""",
}


def test_jumps_stand_in_the_chains_where_others_decide(netns: Lab, tool: str) -> None:
    """Chains reached by jumps and gotos, accepts with conditions of all kinds: everything loads, and stands."""
    node = netns.namespace()
    kind = tool.removeprefix("iptables-")
    if tool == "nftables":
        node.nft(NESTED[tool])
    else:
        node.run(f"iptables-{kind}-restore", text=NESTED["iptables"])
    accepts = _accept(node, [WEB, DNS], "Both")
    assert {jump.chain.lower() for jump in accepts.jumps} == {"early", "public", "output"}
    last = max(jump.index for jump in accepts.jumps if jump.chain == "public")
    assert last == 2  # between the accepts and the last reject
    with node.inside():
        remove_accepts()
        assert read_accepts() == Standing()
