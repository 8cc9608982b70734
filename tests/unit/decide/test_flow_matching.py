"""Which flows a rule leaves untracked: cases for each side, what NAT looks like, and what a withdrawal breaks."""

from ipaddress import ip_address

import pytest

from conntrack_operator.decide.flow_matching import (
    Matcher,
    Path,
    for_sockets,
    forward_withdrawal_problem,
    is_covered,
    is_translated,
    without_interfaces,
)
from conntrack_operator.model.notrack import NotrackRule

LOCAL = ("192.0.2.1", "192.0.2.9", "fd00::1", "127.0.0.1", "::1")
PROTOCOLS = {"TCP": 6, "UDP": 17, "SCTP": 132}


def path(text: str) -> Path:
    """Return the path that `TCP 10.0.0.1 40000 192.0.2.1 80` describes."""
    protocol, source, source_port, destination, destination_port = text.split()
    return Path(
        PROTOCOLS[protocol],
        ip_address(source).packed,
        int(source_port),
        ip_address(destination).packed,
        int(destination_port),
    )


def rule(**fields: object) -> NotrackRule:
    """Return a rule for ports 80 and 8000-8100 unless told otherwise."""
    return NotrackRule.model_validate({"name": "r", "ports": [80, "8000-8100"], **fields})


SERVER = rule()
NARROW = rule(addresses=["192.0.2.1/32", "fd00::/64"], peers=["10.0.0.0/8", "10.5.0.0/16"])
CLIENT = rule(side="Client", addresses=["198.51.100.0/24"])
FORWARD = rule(side="Forward")
FORWARD_NARROW = rule(side="Forward", addresses=["198.51.100.0/24"], peers=["10.0.0.0/8"])

CASES = [
    # what it is, the rule, the flow, what its first packet was
    ("a client asks", SERVER, "TCP 10.0.0.1 40000 192.0.2.1 80", "request"),
    ("the first port of a range", SERVER, "TCP 10.0.0.1 40000 192.0.2.9 8000", "request"),
    ("the last port of a range", SERVER, "TCP 10.0.0.1 40000 192.0.2.9 8100", "request"),
    ("one port below", SERVER, "TCP 10.0.0.1 40000 192.0.2.1 7999", None),
    ("one port above", SERVER, "TCP 10.0.0.1 40000 192.0.2.1 8101", None),
    ("another protocol", SERVER, "UDP 10.0.0.1 40000 192.0.2.1 80", None),
    ("the rule's protocol", rule(protocol="SCTP"), "SCTP 10.0.0.1 40000 192.0.2.1 80", "request"),
    ("IPv6", SERVER, "TCP fd00::77 40000 fd00::1 80", "request"),
    ("to an address that is not the node's", SERVER, "TCP 10.0.0.1 40000 192.0.2.2 80", None),
    ("an own connection from a port of the rule", SERVER, "TCP 192.0.2.1 8080 10.0.0.1 443", "reply"),
    ("an own connection to the rule's port", SERVER, "TCP 192.0.2.1 40000 10.0.0.1 80", None),
    ("both ports are the rule's", SERVER, "TCP 10.0.0.1 8001 192.0.2.1 80", "request"),
    ("loopback", SERVER, "TCP 127.0.0.1 40000 127.0.0.1 80", None),
    ("loopback network", SERVER, "TCP 127.0.0.5 40000 127.9.9.9 80", None),
    ("loopback, IPv6", SERVER, "TCP ::1 40000 ::1 80", None),
    ("from the node to itself", SERVER, "TCP 192.0.2.1 40000 192.0.2.9 80", None),
    ("address and peer named", NARROW, "TCP 10.5.6.7 40000 192.0.2.1 80", "request"),
    ("another address of the node", NARROW, "TCP 10.5.6.7 40000 192.0.2.9 80", None),
    ("another peer", NARROW, "TCP 11.0.0.0 40000 192.0.2.1 80", None),
    ("no peer of that IP version", NARROW, "TCP fd00::77 40000 fd00::1 80", None),
    ("picked up in the middle, narrowed", NARROW, "TCP 192.0.2.1 80 10.5.6.7 40000", "reply"),
    ("picked up, another peer", NARROW, "TCP 192.0.2.1 80 11.0.0.0 40000", None),
    ("connects out", CLIENT, "TCP 192.0.2.1 40000 198.51.100.7 80", "request"),
    ("connects out elsewhere", CLIENT, "TCP 192.0.2.1 40000 198.51.101.7 80", None),
    ("is connected to from the server's port", CLIENT, "TCP 198.51.100.7 80 192.0.2.1 22", "reply"),
    ("somebody routed connects out", CLIENT, "TCP 10.0.0.1 40000 198.51.100.7 80", None),
    ("somebody asks the client for the port", CLIENT, "TCP 198.51.100.7 40000 192.0.2.1 80", None),
    ("is routed", FORWARD, "TCP 10.0.0.1 40000 198.51.100.7 80", "request"),
    ("is routed, picked up", FORWARD, "TCP 198.51.100.7 80 10.0.0.1 40000", "reply"),
    ("to the router itself", FORWARD, "TCP 10.0.0.1 40000 192.0.2.1 80", None),
    ("from the router itself", FORWARD, "TCP 192.0.2.1 40000 198.51.100.7 80", None),
    ("to a group", rule(side="Forward", protocol="UDP"), "UDP 10.0.0.1 40000 239.1.1.1 80", None),
    ("to everybody", rule(side="Forward", protocol="UDP"), "UDP 10.0.0.1 68 255.255.255.255 80", None),
    ("to a group, IPv6", rule(side="Forward", protocol="UDP"), "UDP fd00::77 40000 ff05::2 80", None),
    ("routed and narrowed", FORWARD_NARROW, "TCP 10.0.0.1 40000 198.51.100.7 80", "request"),
    ("routed, the wrong way round", FORWARD_NARROW, "TCP 198.51.100.7 40000 10.0.0.1 80", None),
    ("interfaces cannot be told", rule(interfaces=["eth0"]), "TCP 10.0.0.1 40000 192.0.2.1 80", "request"),
]


@pytest.mark.parametrize(("given", "flow", "expected"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_the_first_packet_was_a_request_a_reply_or_nothing(given: NotrackRule, flow: str, expected: str | None) -> None:
    """Side, protocol, ports, addresses and peers decide; what does not match the quick table never matches."""
    matcher = Matcher([given], LOCAL)
    assert matcher.direction_of(path(flow)) == expected
    if expected:
        asked = path(flow)
        table = matcher.ports[asked.protocol]
        assert table[asked.destination_port] or table[asked.source_port]


def test_several_rules_add_up() -> None:
    """A flow matches when one rule matches; a request of one beats a reply of another."""
    matcher = Matcher([rule(ports=[8080]), rule(side="Client", ports=[443], addresses=["10.0.0.0/8"])], LOCAL)
    assert matcher.direction_of(path("TCP 192.0.2.1 8080 10.0.0.1 443")) == "request"
    assert matcher.direction_of(path("TCP 192.0.2.1 8080 11.0.0.1 443")) == "reply"
    assert matcher.direction_of(path("TCP 192.0.2.1 8081 11.0.0.1 443")) is None
    assert Matcher([], LOCAL).direction_of(path("TCP 10.0.0.1 40000 192.0.2.1 80")) is None


def test_the_quick_table_holds_exactly_the_ports() -> None:
    """By protocol, over all rules; both ends of the range of ports are there to be had."""
    tables = Matcher([rule(ports=[1, "65530-65535"]), rule(protocol="UDP", ports=[53])], LOCAL).ports
    assert {protocol: [port for port in range(65_536) if table[port]] for protocol, table in tables.items()} == {
        6: [1, *range(65530, 65536)],
        17: [53],
    }


@pytest.mark.parametrize(
    ("reply", "status", "expected"),
    [
        ("TCP 192.0.2.1 80 10.0.0.1 40000", 0x18E, False),
        ("TCP 10.9.9.9 80 10.0.0.1 40000", 0x18E, True),
        ("TCP 192.0.2.1 8080 10.0.0.1 40000", 0x18E, True),
        ("TCP 192.0.2.1 80 192.0.2.9 40000", 0x18E, True),
        ("TCP 192.0.2.1 80 10.0.0.1 40001", 0x18E, True),
        ("TCP 192.0.2.1 80 10.0.0.1 40000", 0x10, True),
        ("TCP 192.0.2.1 80 10.0.0.1 40000", 0x20, True),
    ],
)
def test_translation_shows_in_the_reply_or_the_status(reply: str, status: int, expected: bool) -> None:
    """Any of the four ends, or a bit of enum ip_conntrack_status; the bits that say NAT was looked at do not count."""
    assert is_translated(path("TCP 10.0.0.1 40000 192.0.2.1 80"), path(reply), status) is expected


def test_what_deleting_and_seeding_leave_out() -> None:
    """A rule with interfaces is not certain of an entry, and a routed flow has no socket."""
    bound = rule(name="bound", interfaces=["eth0"])
    assert without_interfaces([SERVER, bound, FORWARD]) == (SERVER, FORWARD)
    assert for_sockets([SERVER, CLIENT, FORWARD]) == (SERVER, CLIENT)


@pytest.mark.parametrize("side", ["Server", "Client", "Forward"])
@pytest.mark.parametrize("protocol", ["TCP", "UDP", None])
@pytest.mark.parametrize("tcp_loose", [False, True])
def test_only_routed_tcp_without_loose_breaks_when_withdrawn(side: str, protocol: str, tcp_loose: bool) -> None:
    """Everything else has sockets, or makes a new entry by itself."""
    problem = forward_withdrawal_problem([rule(side=side, protocol=protocol, addresses=["198.51.100.0/24"])], tcp_loose)
    assert (problem is not None) is (side == "Forward" and protocol != "UDP" and not tcp_loose)


def test_the_problem_is_one_sentence_with_rules_and_remedies() -> None:
    """It names the rules, what breaks, why, and both ways out."""
    rules = [rule(name=name, side="Forward") for name in ("a", "b", "c", "d", "e")]
    one, many = (
        forward_withdrawal_problem(rules[:1], tcp_loose=False),
        forward_withdrawal_problem(rules, tcp_loose=False),
    )
    assert one is not None
    assert one.startswith("rule a: ")
    assert many is not None
    assert many.startswith("rules a, b, c and 2 more: ")
    for problem in (one, many):
        for words in ("TCP connections routed", "nf_conntrack_tcp_loose is 0", "tcp.loose: true", "onConflict: Force"):
            assert words in problem
        assert "\n" not in problem


@pytest.mark.parametrize(
    ("wanted", "covered"),
    [
        ([], False),
        ([{}], True),
        ([{"name": "other", "ports": ["79-81"]}], True),
        ([{"ports": [79]}, {"name": "more", "ports": [81]}], False),
        ([{"side": "Server"}], False),
        ([{"addresses": ["198.51.100.0/24"]}], False),
        ([{"interfaces": ["eth0"]}], False),
    ],
)
def test_a_rule_is_covered_by_one_that_matches_as_much(wanted: list[dict[str, object]], covered: bool) -> None:
    """Its name does not matter, more ports do no harm; narrower in anything, it is not."""
    before = rule(name="routed", side="Forward", ports=[80])
    others = [rule(**{"name": "routed", "side": "Forward", "ports": [80], **more}) for more in wanted]
    assert is_covered(before, others) is covered
