"""side: Forward, seen from the kernel of a router between two others."""

import pytest
from tests.lab.bypass import EXCHANGES, bypassed, keep_sctp, load, tcp, tracked, udp
from tests.lab.namespaces import Lab, Routed

from conntrack_operator.model.notrack import NotrackRule

PROTOCOLS = ("TCP", "UDP", "SCTP")
FAMILIES = ("ipv4", "ipv6")


@pytest.fixture
def way(netns: Lab) -> Routed:
    """Give client - router - server, with tracking switched on in the router."""
    made = netns.routed()
    made.router.track()
    keep_sctp(made.router)
    return made


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("family", FAMILIES)
def test_routed_connections_are_untracked_with_the_rule_and_tracked_without(
    way: Routed, protocol: str, family: str
) -> None:
    """The router has an entry without the rule and none with it; a port beside it stays tracked."""
    talk, address = EXCHANGES[protocol], getattr(way.server_end, family)
    with talk(way.server, way.client, address, 8080, 41001):
        assert len(tracked(way.router, "dport=8080")) == 1
    way.router.run("conntrack", "-F")
    load(way.router, NotrackRule(name="web", protocol=protocol, ports=[8080], side="Forward"))
    with talk(way.server, way.client, address, 8080, 41002):
        assert tracked(way.router, "dport=8080") == []
    parts = bypassed(way.router)
    assert set(parts) == {(f"{protocol.lower()}/forward", part) for part in ("requests", "replies")}
    assert min(parts.values()) >= 10
    with talk(way.server, way.client, address, 8081, 41003):
        assert len(tracked(way.router, "dport=8081")) == 1
    assert bypassed(way.router) == parts


def test_udp_is_counted_to_the_packet(way: Routed) -> None:
    """Ten questions and ten answers are ten and ten."""
    load(way.router, NotrackRule(name="dns", protocol="UDP", ports=[53], side="Forward"))
    with udp(way.server, way.client, way.server_end.ipv6, 53):
        pass
    assert bypassed(way.router) == {("udp/forward", "requests"): 10, ("udp/forward", "replies"): 10}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_routers_own_connections_stay_tracked(way: Routed, family: str) -> None:
    """The router connecting out, and being connected to, on the rule's port: one end is local, so both are tracked."""
    load(way.router, NotrackRule(name="web", ports=[8080], side="Forward"))
    with tcp(way.server, way.router, getattr(way.server_end, family), 8080, 41001):
        assert len(tracked(way.router, "dport=8080", "sport=41001")) == 1
    with tcp(way.router, way.client, getattr(way.router_near, family), 8080, 41002):
        assert len(tracked(way.router, "dport=8080", "sport=41002")) == 1
    assert bypassed(way.router) == {}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("interface", ["router_near", "router_far"])
def test_an_interface_covers_both_directions_whichever_side_it_is_on(way: Routed, family: str, interface: str) -> None:
    """Packets that come in by the interface and packets that leave by it: requests and replies are both untracked."""
    named = getattr(way, interface).interface
    load(way.router, NotrackRule(name="web", ports=[8080], side="Forward", interfaces=[named, "absent0"]))
    with tcp(way.server, way.client, getattr(way.server_end, family), 8080):
        assert tracked(way.router, "dport=8080") == []
    assert set(bypassed(way.router)) == {("web", "requests"), ("web", "replies")}


@pytest.mark.parametrize("family", FAMILIES)
def test_an_interface_the_packets_do_not_pass_leaves_them_tracked(netns: Lab, way: Routed, family: str) -> None:
    """A third link of the router is named; the connection crosses the two others."""
    third, _ = netns.link(way.router, way.client)
    load(way.router, NotrackRule(name="web", ports=[8080], side="Forward", interfaces=[third.interface]))
    with tcp(way.server, way.client, getattr(way.server_end, family), 8080):
        assert len(tracked(way.router, "dport=8080")) == 1
    assert bypassed(way.router) == {}


@pytest.mark.parametrize("family", FAMILIES)
def test_addresses_are_the_serving_end_and_peers_the_other(way: Routed, family: str) -> None:
    """Named the right way round the connection is untracked, the wrong way round it is tracked."""
    serving, other = getattr(way.server_end, family), getattr(way.client_end, family)
    cases = (
        ({"addresses": [serving]}, 0),
        ({"addresses": [other]}, 1),
        ({"peers": [other]}, 0),
        ({"peers": [serving]}, 1),
        ({"addresses": [serving], "peers": [other]}, 0),
        ({"addresses": [other], "peers": [serving]}, 1),
    )
    for number, (narrowed, entries) in enumerate(cases):
        way.router.run("conntrack", "-F")
        load(way.router, NotrackRule(name="web", ports=[8080], side="Forward", **narrowed))
        with tcp(way.server, way.client, serving, 8080, 41001 + number):
            assert len(tracked(way.router, "dport=8080")) == entries, narrowed
