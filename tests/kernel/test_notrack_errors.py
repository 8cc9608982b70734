"""ICMP errors about untracked packets: path MTU discovery and refusals work behind firewalls that drop INVALID."""

import errno
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from tests.lab.bypass import Transfer, bypassed, connected, load, tracked, transfer, udp
from tests.lab.namespaces import End, Lab, Namespace

from conntrack_operator.decide.notrack import ruleset_for
from conntrack_operator.kernel import nftables
from conntrack_operator.model.notrack import NotrackRule

FAMILIES = ("ipv4", "ipv6")
NARROW = {"ipv4": 1000, "ipv6": 1280}
"""MTU of the narrow hop; an IPv6 link cannot be narrower than 1280."""

IP_RECVERR, IPV6_RECVERR = 11, 25  # include/uapi/linux/in.h, in6.h: time exceeded reaches only who asks for errors

FULL_BYTES = 40_000_000
STUCK_SECONDS = 1.5

FIREWALL = """table inet lab_firewall {
  chain input { type filter hook input priority 1; ct state invalid counter drop; ct state related counter; }
  chain output { type filter hook output priority 1; ct state invalid counter drop; ct state related counter; }
  chain forward { type filter hook forward priority 1; ct state invalid counter drop; ct state related counter; }
}
"""


@dataclass(frozen=True)
class Path:
    """server - gateway - router =narrow= client. Only the client's end of the narrow link is wide, so its MSS is."""

    server: Namespace
    gateway: Namespace
    router: Namespace
    client: Namespace
    server_end: End
    client_end: End


def _path(lab: Lab, narrow_mtu: int) -> Path:
    server, gateway, router, client = (lab.namespace() for _ in range(4))
    server_end, gateway_near = lab.link(server, gateway)
    gateway_far, router_near = lab.link(gateway, router)
    router_far, client_end = lab.link(router, client)
    lab.forward(gateway)
    lab.forward(router)
    lab.route(server, gateway_near)
    lab.route(gateway, router_near)
    lab.route(client, router_far)
    for network in (server_end.ipv4.removesuffix("1") + "0/24", server_end.ipv6.removesuffix("1") + "/64"):
        version = ["-6"] if ":" in network else []
        via = gateway_far.ipv6 if version else gateway_far.ipv4
        router.run("ip", *version, "route", "add", network, "via", via)
    router.run("ip", "link", "set", router_far.interface, "mtu", str(narrow_mtu))
    return Path(server, gateway, router, client, server_end, client_end)


def _load_without_errors(namespace: Namespace, rule: NotrackRule) -> None:
    lines = ruleset_for([rule]).script().splitlines(keepends=True)
    with namespace.inside():
        nftables.run_script("".join(line for line in lines if "_errors" not in line or "jump" not in line))


def _download(path: Path, family: str, size_bytes: int = FULL_BYTES, patience_seconds: float = 20) -> Transfer:
    address = getattr(path.server_end, family)
    with connected(path.server, path.client, address, 8080) as (near, far):
        return transfer(far, near, size_bytes, patience_seconds)


def _upload(path: Path, family: str, size_bytes: int = FULL_BYTES, patience_seconds: float = 20) -> Transfer:
    """Send the same way, but the far end is the one that listens."""
    address = getattr(path.client_end, family)
    with connected(path.client, path.server, address, 8080) as (near, far):
        return transfer(near, far, size_bytes, patience_seconds)


CASES = (
    pytest.param("Server", "server", _download, id="Server"),
    pytest.param("Client", "server", _upload, id="Client"),
    pytest.param("Forward", "gateway", _download, id="Forward-error-passes-through"),
    pytest.param("Forward", "router", _download, id="Forward-error-made-here"),
)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("side", "where", "move"), CASES)
def test_a_large_transfer_crosses_a_narrow_hop_at_full_rate(
    netns: Lab, family: str, side: str, where: str, move: Callable[..., Transfer], record_property: Callable[..., None]
) -> None:
    """40 MB pass as fast as without rules and firewall; without the rules for ICMP errors they get stuck."""
    path = _path(netns, NARROW[family])
    node: Namespace = getattr(path, where)
    addresses = [getattr(path.client_end, family)] if side == "Client" else None
    rule = NotrackRule(name="web", ports=[8080], side=side, addresses=addresses)
    plain = _best(move, path, family)

    _forget_path_mtu(path, family)
    node.nft(FIREWALL)
    _load_without_errors(node, rule)
    stuck = move(path, family, 1_000_000, STUCK_SECONDS)
    assert stuck.received_bytes < 100_000, "the narrow hop or the firewall does not do what this test needs"

    _forget_path_mtu(path, family)
    load(node, rule)
    full = _best(move, path, family, enough=plain.rate / 2)
    assert tracked(node, "dport=8080") == []
    label = "web" if addresses else f"tcp/{side.lower()}"
    assert bypassed(node)[label, "errors"] >= 1
    record_property("ratio", round(full.rate / plain.rate, 2))
    assert full.rate > plain.rate / 2, f"{full.rate:.0f} B/s with the rules, {plain.rate:.0f} B/s without"


def _best(move: Callable[..., Transfer], path: Path, family: str, enough: float = 0) -> Transfer:
    # The machine does other things too: the fastest of three says what the path can do, or of thirty while none is
    # faster than `enough`. A path that cannot be fast is slow every time.
    transfers: list[Transfer] = []
    while len(transfers) < 3 or (len(transfers) < 30 and max(one.rate for one in transfers) <= enough):
        transfers.append(move(path, family))
        assert transfers[-1].received_bytes == FULL_BYTES
    return max(transfers, key=lambda one: one.rate)


def _forget_path_mtu(path: Path, family: str) -> None:
    path.server.run("ip", "-6" if family == "ipv6" else "-4", "route", "flush", "cache")


@pytest.fixture
def node_and_other(netns: Lab) -> tuple[Namespace, Namespace, End, End]:
    """Give a node with a firewall that drops INVALID, and somebody on a link to it."""
    node, other = netns.namespace(), netns.namespace()
    ends = netns.link(node, other)
    for address in (ends[0].ipv4, ends[0].ipv6):
        with udp(node, other, address, 9):
            pass  # both know each other's hardware address now: no packet of a test waits for that
    node.nft(FIREWALL)
    # One error a second is the kernel's default for each destination; these tests ask faster.
    node.sysctl("net.ipv4.icmp_ratelimit", 0)
    node.sysctl("net.ipv6.icmp.ratelimit", 0)
    return node, other, *ends


def _refused(asker: Namespace, address: str, port: int, source_port: int = 0, hops: int = 64) -> bool:
    """Tell whether an ICMP error comes back for a UDP packet; for one of too few hops the error says so."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with asker.make_socket(family, socket.SOCK_DGRAM) as near:
        near.settimeout(1)
        if family == socket.AF_INET:
            near.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, hops)
            near.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
        else:
            near.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, hops)
            near.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVERR, 1)
        near.bind(("", source_port))
        near.connect((address, port))
        near.send(b"question")
        try:
            near.recv(64)
        except TimeoutError:
            return False
        except OSError as error:
            return error.errno in (errno.ECONNREFUSED, errno.EHOSTUNREACH)
    return False


def _related(node: Namespace) -> int:
    words = node.run("nft", "list", "table", "inet", "lab_firewall").stdout.split()
    counts = [int(words[at + 3]) for at, word in enumerate(words) if word == "related" and words[at + 2] == "packets"]
    assert len(counts) == 3
    return sum(counts)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_refusal_by_this_node_leaves_it(node_and_other: tuple[Namespace, Namespace, End, End], family: str) -> None:
    """A closed port of a Server rule answers port unreachable through output; without our error rules it is dropped."""
    node, other, end, _ = node_and_other
    rule = NotrackRule(name="dns", protocol="UDP", ports=[53])
    address = getattr(end, family)
    _load_without_errors(node, rule)
    assert not _refused(other, address, 53)
    load(node, rule)
    assert _refused(other, address, 53)
    assert bypassed(node) == {("udp/server", "requests"): 1, ("udp/server", "errors"): 1}
    assert _related(node) == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_a_refusal_by_the_server_arrives(node_and_other: tuple[Namespace, Namespace, End, End], family: str) -> None:
    """The server of a Client rule refuses; the error comes in through prerouting."""
    node, _, _, end = node_and_other
    address = getattr(end, family)
    rule = NotrackRule(name="dns", protocol="UDP", ports=[53], side="Client", addresses=[address])
    _load_without_errors(node, rule)
    assert not _refused(node, address, 53)
    load(node, rule)
    assert _refused(node, address, 53)
    assert bypassed(node) == {("dns", "requests"): 1, ("dns", "errors"): 1}


@pytest.mark.parametrize("family", FAMILIES)
def test_errors_about_tracked_flows_stay_tracked(
    node_and_other: tuple[Namespace, Namespace, End, End], family: str
) -> None:
    """Beside the port, beside the protocol and beside the direction, errors are RELATED as ever."""
    node, other, end, far = node_and_other
    load(node, NotrackRule(name="web", protocol="UDP", ports=[5000]), NotrackRule(name="tcp", ports=[5001]))
    mine, theirs = getattr(end, family), getattr(far, family)
    # Our own question to the same port elsewhere: its error quotes 5000 as destination, which we only serve.
    for number, (asker, address, port) in enumerate(
        [(other, mine, 5002), (other, mine, 5001), (node, theirs, 5000), (node, theirs, 5002)], start=1
    ):
        assert _refused(asker, address, port), (address, port)
        assert _related(node) == number
    assert bypassed(node) == {}


@pytest.mark.parametrize("family", FAMILIES)
def test_errors_are_narrowed_like_the_packets_they_quote(
    node_and_other: tuple[Namespace, Namespace, End, End], family: str
) -> None:
    """With addresses, peers or interfaces that do not match, the flow is tracked and its error RELATED."""
    node, other, end, far = node_and_other
    mine, theirs = getattr(end, family), getattr(far, family)
    stranger = "192.0.2.1" if family == "ipv4" else "2001:db8::1"
    cases = (
        ({"addresses": [mine]}, True),
        ({"addresses": [stranger]}, False),
        ({"peers": [theirs]}, True),
        ({"peers": [stranger]}, False),
        ({"addresses": [mine], "peers": [theirs]}, True),
        ({"addresses": [mine], "peers": [stranger]}, False),
        ({"interfaces": [end.interface]}, True),
        ({"interfaces": ["absent0"]}, False),
    )
    for narrowed, untracked in cases:
        before = _related(node)
        load(node, NotrackRule(name="dns", protocol="UDP", ports=[53], **narrowed))
        assert _refused(other, mine, 53), narrowed
        expected = {("dns", "requests"): 1, ("dns", "errors"): 1} if untracked else {}
        assert bypassed(node) == expected, narrowed
        assert _related(node) - before == (0 if untracked else 1), narrowed


@pytest.mark.parametrize("family", FAMILIES)
def test_routed_and_own_errors_are_not_mixed_up(netns: Lab, family: str) -> None:
    """A router serves a port and routes the same port for others: a rule for one leaves the other RELATED."""
    way = netns.routed()
    near, far = getattr(way.client_end, family), getattr(way.server_end, family)
    for listener, talker, address in ((way.server, way.client, far), (way.client, way.router, near)):
        with udp(listener, talker, address, 9):
            pass
    way.router.nft(FIREWALL)
    for namespace in (way.client, way.router, way.server):
        namespace.sysctl("net.ipv4.icmp_ratelimit", 0)
        namespace.sysctl("net.ipv6.icmp.ratelimit", 0)
    own = getattr(way.router_near, family)
    routed: tuple[dict[str, Any], ...] = (
        {"asker": way.client, "address": far, "port": 53},  # refused by the server, the error is routed
        {"asker": way.server, "address": near, "port": 4444, "source_port": 53},  # a reply that is refused
        {"asker": way.client, "address": far, "port": 53, "hops": 1},  # the router's own error about a routed packet
    )
    local: tuple[dict[str, Any], ...] = (
        {"asker": way.client, "address": own, "port": 53},  # the router's own refusal
        {"asker": way.router, "address": near, "port": 4444, "source_port": 53},  # the router is refused
    )
    for side, untracked, related in (("Server", local, routed), ("Forward", routed, local)):
        load(way.router, NotrackRule(name="dns", protocol="UDP", ports=[53], side=side))
        before = _related(way.router)
        for number, packet in enumerate(related, start=1):
            assert _refused(**packet), (side, packet)
            assert _related(way.router) == before + number, (side, packet)
            assert bypassed(way.router) == {}, (side, packet)
        for number, packet in enumerate(untracked, start=1):
            assert _refused(**packet), (side, packet)
            assert bypassed(way.router)[f"udp/{side.lower()}", "errors"] == number, (side, packet)
        assert _related(way.router) == before + len(related)
