"""side: Client, seen from the kernel of the node that connects out, and what a stranger at the server's port gains."""

import socket

import pytest
from tests.lab.bypass import EXCHANGES, bypassed, keep_sctp, load, raw, sctp_packet, tcp, tracked
from tests.lab.namespaces import Lab

from conntrack_operator.model.notrack import NotrackRule

PROTOCOLS = ("TCP", "UDP", "SCTP")
FAMILIES = ("ipv4", "ipv6")


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("family", FAMILIES)
def test_connections_out_to_the_servers_are_untracked(netns: Lab, protocol: str, family: str) -> None:
    """No entry for the named server's port, both directions counted; other ports and other servers are tracked."""
    node, server = netns.namespace(), netns.namespace()
    _, named = netns.link(node, server)
    _, another = netns.link(node, server)
    node.track()
    keep_sctp(node)
    address, talk = getattr(named, family), EXCHANGES[protocol]
    load(node, NotrackRule(name="db", protocol=protocol, ports=[5432], side="Client", addresses=[address]))
    with talk(server, node, address, 5432, 41001):
        assert tracked(node, "dport=5432") == []
    parts = bypassed(node)
    assert set(parts) == {("db", "requests"), ("db", "replies")}
    assert min(parts.values()) >= 10
    with talk(server, node, address, 5433, 41002):
        assert len(tracked(node, "dport=5433")) == 1
    with talk(server, node, getattr(another, family), 5432, 41003):
        assert len(tracked(node, "dport=5432")) == 1
    assert bypassed(node) == parts


@pytest.mark.parametrize("family", FAMILIES)
def test_peers_and_interfaces_narrow_to_this_nodes_end(netns: Lab, family: str) -> None:
    """Peers are this node's own addresses here; a rule that names another one, or another interface, does nothing."""
    node, server = netns.namespace(), netns.namespace()
    mine, named = netns.link(node, server)
    node.track()
    address = getattr(named, family)
    stranger = "192.0.2.1" if family == "ipv4" else "2001:db8::1"
    cases = (
        ({"peers": [getattr(mine, family)]}, 0),
        ({"peers": [stranger]}, 1),
        ({"interfaces": [mine.interface]}, 0),
        ({"interfaces": ["absent0"]}, 1),
    )
    for number, (narrowed, entries) in enumerate(cases):
        node.run("conntrack", "-F")
        load(node, NotrackRule(name="db", ports=[5432], side="Client", addresses=[address], **narrowed))
        with tcp(server, node, address, 5432, 41001 + number):
            assert len(tracked(node, "dport=5432")) == entries, narrowed


@pytest.mark.parametrize("family", FAMILIES)
def test_an_inbound_bare_syn_from_the_servers_port_is_tracked(netns: Lab, family: str) -> None:
    """Whoever holds the server's address and connects from its port is judged by the firewall like anybody else."""
    node, server = netns.namespace(), netns.namespace()
    mine, named = netns.link(node, server)
    node.track()
    load(node, NotrackRule(name="https", ports=[443], side="Client", addresses=[getattr(named, family)]))
    node.nft(
        "table inet lab_syn { chain in { type filter hook input priority 0; tcp dport 2222 ct state new counter; }\n}"
    )
    with tcp(node, server, getattr(mine, family), 2222, 443):
        assert len(tracked(node, "sport=443", "dport=2222")) == 1
    counted = node.run("nft", "list", "table", "inet", "lab_syn").stdout
    assert "packets 1 " in counted


@pytest.mark.parametrize("family", FAMILIES)
def test_an_inbound_sctp_init_from_the_servers_port_is_tracked(netns: Lab, family: str) -> None:
    """The same for SCTP: an INIT from the server's port makes an entry, an INIT ACK from there makes none.

    Nobody listens, so the node answers both with an ICMP error: untracked about the one, tracked about the other.
    """
    node, server = netns.namespace(), netns.namespace()
    mine, named = netns.link(node, server)
    node.track()
    keep_sctp(node)
    load(
        node, NotrackRule(name="m3ua", protocol="SCTP", ports=[2905], side="Client", addresses=[getattr(named, family)])
    )
    address = getattr(mine, family)
    with EXCHANGES["UDP"](node, server, address, 9):
        pass  # so that both ends know each other's hardware address
    before = {("m3ua", "replies"): 1, ("m3ua", "errors"): 1}
    kind = socket.AF_INET6 if family == "ipv6" else socket.AF_INET
    with raw(server, kind) as sender:
        sender.sendto(sctp_packet(2905, 40000, chunk=2, tag=1), (address, 0))
        assert tracked(node, "sctp") == []
        assert bypassed(node) == before
        sender.sendto(sctp_packet(2905, 40000, chunk=1, tag=1), (address, 0))
        assert len(tracked(node, "sctp", "sport=2905", "dport=40000")) == 1
    assert bypassed(node) == before


def test_who_connects_in_to_the_same_port_is_tracked(netns: Lab) -> None:
    """A Client rule says nothing about this node's own server on that port."""
    node, other = netns.namespace(), netns.namespace()
    mine, named = netns.link(node, other)
    node.track()
    load(node, NotrackRule(name="db", ports=[5432], side="Client", addresses=[named.ipv4]))
    with tcp(node, other, mine.ipv4, 5432):
        assert len(tracked(node, "dport=5432")) == 1
    assert bypassed(node) == {}
