"""The lab itself: if it lied, every kernel test would."""

from tests.lab.namespaces import Lab


def test_traffic_crosses_a_router_in_both_families_and_is_tracked(netns: Lab) -> None:
    """Namespaces are routed as promised, and `track` makes the router's table fill."""
    way = netns.routed()
    way.router.track()
    for address in (way.server_end.ipv4, way.server_end.ipv6):
        with way.server.listen(address, 8080) as listener, way.client.connect(address, 8080) as client:
            accepted, _ = listener.accept()
            with accepted:
                client.sendall(b"x")
                assert accepted.recv(1) == b"x"
    assert int(way.router.sysctl("net.netfilter.nf_conntrack_count")) >= 2
    assert way.client.sysctl("net.netfilter.nf_conntrack_count") == "0"
