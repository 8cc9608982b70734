"""side: Server, seen from the kernel of the node that listens: what is tracked, what is not, and what is counted."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address

import pytest
from tests.lab.bypass import EXCHANGES, bypassed, installed, keep_sctp, load, tcp, tracked, udp
from tests.lab.namespaces import End, Lab, Namespace

from conntrack_operator.model.notrack import NotrackRule

PROTOCOLS = ("TCP", "UDP", "SCTP")
FAMILIES = ("ipv4", "ipv6")


@dataclass(frozen=True)
class Pair:
    """A node that tracks, with rules or without, and somebody else on a link to it."""

    node: Namespace
    other: Namespace
    node_end: End
    other_end: End


@pytest.fixture
def pair(netns: Lab) -> Pair:
    """Give two linked namespaces; the node has tracking switched on by a `ct state` rule."""
    node, other = netns.namespace(), netns.namespace()
    node_end, other_end = netns.link(node, other)
    node.track()
    keep_sctp(node)
    return Pair(node, other, node_end, other_end)


@contextlib.contextmanager
def _counted(pair: Pair, protocol: str, port: int) -> Iterator[dict[str, int]]:
    """Count the port's packets with rules of our own, apart from the table under test."""
    name = protocol.lower()
    pair.node.nft(
        "table inet lab_count {\n"
        f" chain in {{ type filter hook prerouting priority -310; {name} dport {port} counter; }}\n"
        f" chain out {{ type filter hook postrouting priority 300; {name} sport {port} counter; }}\n}}"
    )
    seen: dict[str, int] = {}
    yield seen
    words = pair.node.run("nft", "list", "table", "inet", "lab_count").stdout.split()
    seen["requests"], seen["replies"] = (int(words[at + 1]) for at, word in enumerate(words) if word == "packets")


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_port_is_untracked_with_the_rule_and_tracked_without(pair: Pair, protocol: str, family: str) -> None:
    """No entry of the port in the node's table, both directions counted to the packet; without the rule, an entry."""
    talk, address = EXCHANGES[protocol], getattr(pair.node_end, family)
    with talk(pair.node, pair.other, address, 8080, 41001):
        assert len(tracked(pair.node, "dport=8080", f"dst={ip_address(address)}")) == 1
    pair.node.run("conntrack", "-F")

    load(pair.node, NotrackRule(name="web", protocol=protocol, ports=["8000-8100"]))
    with _counted(pair, protocol, 8080) as seen, talk(pair.node, pair.other, address, 8080, 41002):
        assert tracked(pair.node, "dport=8080") == []
    label = f"{protocol.lower()}/server"
    assert bypassed(pair.node) == {(label, part): packets for part, packets in seen.items()}
    assert seen["requests"] >= 10
    assert seen["replies"] >= 10


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("family", FAMILIES)
def test_other_ports_and_protocols_are_left_alone(pair: Pair, protocol: str, family: str) -> None:
    """The ports beside the range, and the same port of the other protocols, are tracked as before."""
    load(pair.node, NotrackRule(name="web", protocol=protocol, ports=["8000-8100"]))
    address = getattr(pair.node_end, family)
    for port in (7999, 8101):
        with EXCHANGES[protocol](pair.node, pair.other, address, port, 41001):
            assert len(tracked(pair.node, f"dport={port}")) == 1
    for other in PROTOCOLS:
        if other != protocol:
            with EXCHANGES[other](pair.node, pair.other, address, 8080, 41002):
                assert len(tracked(pair.node, other.lower(), "dport=8080")) == 1
    assert bypassed(pair.node) == {}


def test_udp_is_counted_to_the_packet(pair: Pair) -> None:
    """Ten questions and ten answers are ten and ten in the rule's counters."""
    load(pair.node, NotrackRule(name="dns", protocol="UDP", ports=[53]))
    with udp(pair.node, pair.other, pair.node_end.ipv4, 53):
        pass
    assert bypassed(pair.node) == {("udp/server", "requests"): 10, ("udp/server", "replies"): 10}


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("family", FAMILIES)
def test_own_outgoing_connections_work_and_stay_tracked(pair: Pair, protocol: str, family: str) -> None:
    """The node connects out to the very port it serves, through a firewall that lets only known replies in."""
    load(pair.node, NotrackRule(name="web", protocol=protocol, ports=[8080]))
    pair.node.nft(
        "table inet lab_firewall { chain input { type filter hook input priority 1; policy drop;\n"
        ' iifname "lo" accept\n ct state established,related accept\n'
        " icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept\n }\n}"
    )
    with EXCHANGES[protocol](pair.other, pair.node, getattr(pair.other_end, family), 8080, 41001):
        assert len(tracked(pair.node, "dport=8080", "sport=41001")) == 1
    assert bypassed(pair.node) == {}


@pytest.mark.parametrize("family", FAMILIES)
def test_addresses_narrow_to_the_serving_address(netns: Lab, pair: Pair, family: str) -> None:
    """Of two addresses of the node only the named one is untracked."""
    second, _ = netns.link(pair.node, pair.other)
    named, other = getattr(pair.node_end, family), getattr(second, family)
    load(pair.node, NotrackRule(name="web", ports=[8080], addresses=[named]))
    with tcp(pair.node, pair.other, named, 8080, 41001):
        assert tracked(pair.node, "dport=8080") == []
    with tcp(pair.node, pair.other, other, 8080, 41002):
        assert len(tracked(pair.node, "dport=8080")) == 1
    assert set(bypassed(pair.node)) == {("web", "requests"), ("web", "replies")}


@pytest.mark.parametrize("family", FAMILIES)
def test_peers_narrow_to_the_other_end(netns: Lab, pair: Pair, family: str) -> None:
    """Of two clients only the one inside the peers' network is untracked; both reach the same address."""
    _, outside = netns.link(pair.node, pair.other)
    address = getattr(pair.node_end, family)
    size = "/28" if family == "ipv4" else "/124"
    network = getattr(pair.other_end, family).removesuffix("2") + ("0" if family == "ipv4" else "") + size
    load(pair.node, NotrackRule(name="web", protocol="UDP", ports=[8080], peers=[network]))
    with udp(pair.node, pair.other, address, 8080, 41001):
        assert tracked(pair.node, "dport=8080") == []
    with _sending_from(pair, getattr(outside, family)), udp(pair.node, pair.other, address, 8080, 41002):
        assert len(tracked(pair.node, "dport=8080")) == 1


@contextlib.contextmanager
def _sending_from(pair: Pair, source: str) -> Iterator[None]:
    """Make the other namespace choose `source` for the node's first address."""
    version = ["-6"] if ":" in source else []
    target = pair.node_end.ipv6 if version else pair.node_end.ipv4
    route = [target, "dev", pair.other_end.interface, "src", source]
    pair.other.run("ip", *version, "route", "add", *route, *(["metric", "1"] if version else []))
    yield


@pytest.mark.parametrize("family", FAMILIES)
def test_interfaces_narrow_to_where_packets_come_in_and_go_out(netns: Lab, pair: Pair, family: str) -> None:
    """Of two links only the named one is untracked, both directions."""
    second, _ = netns.link(pair.node, pair.other)
    load(pair.node, NotrackRule(name="web", ports=[8080], interfaces=[second.interface, "absent0"]))
    with tcp(pair.node, pair.other, getattr(pair.node_end, family), 8080, 41001):
        assert len(tracked(pair.node, "dport=8080")) == 1
    pair.node.run("conntrack", "-F")
    with tcp(pair.node, pair.other, getattr(second, family), 8080, 41002):
        assert tracked(pair.node, "dport=8080") == []
    assert set(bypassed(pair.node)) == {("web", "requests"), ("web", "replies")}


@pytest.mark.parametrize("family", FAMILIES)
def test_an_address_of_one_version_leaves_the_other_tracked(pair: Pair, family: str) -> None:
    """A rule with an IPv4 address says nothing about IPv6, and the other way round."""
    other = "ipv6" if family == "ipv4" else "ipv4"
    load(pair.node, NotrackRule(name="web", ports=[8080], addresses=[getattr(pair.node_end, family)]))
    with tcp(pair.node, pair.other, getattr(pair.node_end, other), 8080):
        assert len(tracked(pair.node, "dport=8080")) == 1


@pytest.mark.parametrize("family", FAMILIES)
def test_loopback_is_exempt(pair: Pair, family: str) -> None:
    """The node talking to itself, over 127.0.0.1, ::1 or its own address, is tracked."""
    load(pair.node, NotrackRule(name="web", ports=[8080]))
    own = "127.0.0.1" if family == "ipv4" else "::1"
    for address in (own, getattr(pair.node_end, family)):
        with tcp(pair.node, pair.node, address, 8080):
            assert len(tracked(pair.node, "dport=8080", f"dst={ip_address(address)}")) == 1
    assert bypassed(pair.node) == {}


def test_routed_packets_of_the_same_port_stay_tracked(netns: Lab) -> None:
    """A router with side: Server tracks what it routes: neither end is local."""
    way = netns.routed()
    way.router.track()
    load(way.router, NotrackRule(name="web", ports=[8080]))
    with tcp(way.server, way.client, way.server_end.ipv4, 8080):
        assert len(tracked(way.router, "dport=8080")) == 1
    assert bypassed(way.router) == {}


def test_rules_of_three_protocols_stand_side_by_side(pair: Pair) -> None:
    """Each counts its own packets, and what was asked for is what is there."""
    rules = [NotrackRule(name=f"web-{name.lower()}", protocol=name, ports=[8080]) for name in PROTOCOLS]
    ruleset = load(pair.node, *rules)
    for protocol, talk in EXCHANGES.items():
        before = bypassed(pair.node)
        with talk(pair.node, pair.other, pair.node_end.ipv6, 8080, 41001):
            grown = {key for key, packets in bypassed(pair.node).items() if packets != before.get(key)}
        assert grown == {(f"{protocol.lower()}/server", part) for part in ("requests", "replies")}
    assert tracked(pair.node, "dport=8080") == []
    assert installed(pair.node) == ruleset.expected
