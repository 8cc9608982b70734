"""Picking entries out of a dump by their ports, and what finds them again."""

import struct
from ipaddress import ip_address

import pytest

from conntrack_operator.decide.flow_matching import Path
from conntrack_operator.errors import Retry
from conntrack_operator.kernel.flow_selection import Entry, Selection
from conntrack_operator.kernel.netlink import attribute

NEST = 0x8000
WANTED = {6: bytes(port == 80 for port in range(65_536))}
HERE = {4: "192.0.2.1", 6: "2001:db8::1"}


def tuple_of(kind: int, source: str, destination: str, proto: bytes, zone: int) -> bytes:
    """Return CTA_TUPLE_ORIG or CTA_TUPLE_REPLY."""
    first = 3 if ":" in source else 1
    addresses = attribute(first, ip_address(source).packed) + attribute(first + 1, ip_address(destination).packed)
    tail = attribute(3, struct.pack(">H", zone)) if zone else b""
    return attribute(NEST | kind, attribute(NEST | 1, addresses) + attribute(NEST | 2, proto) + tail)


def proto_of(protocol: int, source_port: int, destination_port: int) -> bytes:
    """Return what CTA_TUPLE_PROTO holds."""
    ports = attribute(2, struct.pack(">H", source_port)) + attribute(3, struct.pack(">H", destination_port))
    return attribute(1, bytes([protocol])) + ports


def flow(
    source: str = "10.0.0.1",
    port: int = 80,
    protocol: int = 6,
    number: int = 7,
    zones: tuple[int, int, int] = (0, 0, 0),
    reply_source: str = "",
) -> bytes:
    """Return one message of a dump; `zones` are those of the original direction, the reply's, and both."""
    here = HERE[ip_address(source).version]
    body = tuple_of(1, source, here, proto_of(protocol, 40000, port), zones[0])
    body += tuple_of(2, reply_source or here, source, proto_of(protocol, port, 40000), zones[1])
    body += attribute(18, struct.pack(">H", zones[2])) if zones[2] else b""
    body += attribute(3, struct.pack(">I", 0x18E)) + attribute(7, bytes(4)) + attribute(12, struct.pack(">I", number))
    return struct.pack("=IHHIIBBH", 20 + len(body), 0x100, 2, 1, 99, 10 if ":" in source else 2, 0, 0) + body


def icmp() -> bytes:
    """Return an echo, whose identifier stands elsewhere than a port and whose type is no port."""
    proto = attribute(1, b"\x01") + attribute(4, struct.pack(">H", 80)) + attribute(5, b"\x08") + attribute(6, b"\0")
    body = tuple_of(1, "10.0.0.1", HERE[4], proto, 0) + tuple_of(2, HERE[4], "10.0.0.1", proto, 0)
    body += attribute(3, bytes(4)) + attribute(12, bytes(4))
    return struct.pack("=IHHIIBBH", 20 + len(body), 0x100, 2, 1, 99, 2, 0, 0) + body


END = struct.pack("=IHHIIi", 20, 3, 2, 1, 99, 0)


def taken(*datagrams: bytes) -> list[Entry]:
    """Return what is picked out."""
    selection = Selection(WANTED)
    return [entry for datagram in datagrams for entry in selection.take(datagram)]


def test_wanted_ports_are_found_among_all_kinds() -> None:
    """Both families, other ports, other protocols and ICMP between; over the border of a read."""
    found = taken(
        icmp() + flow() + flow(port=81) + flow("fd00::7"),
        flow(protocol=17) + flow("10.0.0.2") + icmp() + flow("fd00::8", port=8080) + flow("fd00::9"),
    )
    sources = [str(ip_address(entry.original.source)) for entry in found]
    assert sources == ["10.0.0.1", "fd00::7", "10.0.0.2", "fd00::9"]
    assert [entry.family for entry in found] == [2, 10, 2, 10]


def test_an_entry_is_read_in_full() -> None:
    """Both directions, status, and the attributes that find it again: tuple, zone, id."""
    (entry,) = taken(flow(zones=(0, 0, 9), number=0x01020304, reply_source="10.9.9.9"))
    there, near = ip_address(HERE[4]).packed, ip_address("10.0.0.1").packed
    assert entry.original == Path(6, near, 40000, there, 80)
    assert entry.reply == Path(6, ip_address("10.9.9.9").packed, 80, near, 40000)
    assert (entry.status, entry.zone) == (0x18E, 9)
    assert entry.identity == tuple_of(1, "10.0.0.1", HERE[4], proto_of(6, 40000, 80), 0) + attribute(18, b"\0\x09")
    assert entry.number == attribute(12, b"\1\2\3\4")


@pytest.mark.parametrize("zones", [(5, 0, 0), (0, 5, 0)])
def test_a_zone_of_one_direction_is_named_by_that_directions_tuple(zones: tuple[int, int, int]) -> None:
    """The kernel looks up the tuple it is given, with the zone that stands in it."""
    (entry,) = taken(flow(zones=zones))
    there = tuple_of(1, "10.0.0.1", HERE[4], proto_of(6, 40000, 80), 5)
    back = tuple_of(2, HERE[4], "10.0.0.1", proto_of(6, 80, 40000), 5)
    assert entry.identity == (there if zones[0] else back)
    assert entry.zone == 5


def test_the_end_is_seen() -> None:
    """What comes behind it is not looked at."""
    selection = Selection(WANTED)
    assert len(list(selection.take(flow() + END + flow()))) == 1
    assert selection.complete


@pytest.mark.parametrize(
    "broken",
    [flow()[:-8], flow() + flow()[:30], struct.pack("=IHHIIBBH", 20, 0x100, 2, 1, 99, 2, 0, 0), bytes(40), b"\0"],
)
def test_a_broken_answer_is_asked_for_again(broken: bytes) -> None:
    """Cut inside a message, between two, a message without a body, nonsense: never a wrong entry."""
    with pytest.raises(Retry):
        taken(broken)
