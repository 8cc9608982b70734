"""Layouts: a message is read by the offsets of another only when every header says that it is alike."""

import struct

import pytest

from conntrack_operator.decide.talkers import Sample, top_of
from conntrack_operator.errors import Retry
from conntrack_operator.kernel.flow_counting import Counting
from conntrack_operator.kernel.flow_layout import Layout
from conntrack_operator.kernel.netlink import attribute

NEST = 0x8000


def tuple_of(kind: int, source: bytes, destination: bytes, proto: bytes, zone: int | None = None) -> bytes:
    """Return CTA_TUPLE_ORIG or CTA_TUPLE_REPLY."""
    first = 1 if len(source) == 4 else 3
    ip = attribute(NEST | 1, attribute(first, source) + attribute(first + 1, destination))
    tail = attribute(3, struct.pack(">H", zone)) if zone is not None else b""
    return attribute(NEST | kind, ip + attribute(NEST | 2, proto) + tail)


def ports(protocol: int, source: int, destination: int) -> bytes:
    """Return the attributes of CTA_TUPLE_PROTO."""
    port = struct.Struct(">H").pack
    return attribute(1, bytes([protocol])) + attribute(2, port(source)) + attribute(3, port(destination))


def entry(body: bytes, family: int = 2, sequence: int = 7) -> bytes:
    """Return one message of a dump."""
    return struct.pack("=IHHIIBBH", 20 + len(body), 0x100, 2, sequence, 99, family, 0, 0) + body


def flow(
    protocol: int = 17, source: bytes = b"\x0a\0\0\1", port: int = 53, extra: bytes = b"", status: int = 8
) -> bytes:
    """Return a flow to 192.0.2.1 whose status comes before, `extra` after it."""
    there = tuple_of(1, source, b"\xc0\0\2\1", ports(protocol, 40000, port))
    back = tuple_of(2, b"\xc0\0\2\1", source, ports(protocol, port, 40000))
    return entry(there + back + attribute(3, struct.pack(">I", status)) + extra)


def counted(*datagrams: bytes) -> Sample:
    """Return what the reader makes of these datagrams."""
    counting = Counting(("source", "destination", "port", "state", "zone"))
    for datagram in datagrams:
        counting.take(datagram, None)
    counting.finish()
    return Sample(counting.entries, complete=True, tallies=counting.tallies)


def keys(sample: Sample, by: str) -> dict[str, int]:
    """Return key -> entries for one question."""
    return {row.key: row.entries for row in top_of(sample, by, 100, 0).rows}  # type: ignore[arg-type]


TCP_INFO = attribute(NEST | 4, attribute(NEST | 1, attribute(1, b"\x03")))


def test_fields_are_found_in_every_nest() -> None:
    """Addresses, ports, state, status and zone of both directions have their place."""
    message = flow(6, extra=TCP_INFO + attribute(18, b"\0\5"), status=14)
    layout = Layout(message)
    assert layout.value(message, "original.source") == b"\x0a\0\0\1"
    assert layout.value(message, "reply.source") == b"\xc0\0\2\1"
    assert layout.number(message, "original.destination_port") == 53
    assert layout.number(message, "tcp_state") == 3
    assert layout.number(message, "status") == 14
    assert layout.number(message, "zone") == 5
    assert layout.number(message, "sctp_state") is None
    assert layout.protocol == 6


@pytest.mark.parametrize(
    ("other", "alike"),
    [
        (flow(source=b"\x0a\0\0\2", port=99, status=0xFFFF, extra=attribute(8, b"abcd")), True),
        (flow(extra=attribute(8, b"1234"))[:8] + b"\1\2\3\4\5\6\7\x08" + flow(extra=attribute(8, b"1234"))[16:], True),
        (flow(extra=attribute(9, b"1234")), False),
        (flow(extra=attribute(8, b"")), False),
        (flow(protocol=136, extra=attribute(8, b"1234")), False),
        (flow(extra=attribute(8, b"123")), False),
    ],
    ids=[
        "other values",
        "other request",
        "other attribute",
        "shorter",
        "other protocol",
        "same length, shorter payload",
    ],
)
def test_a_layout_holds_for_other_values_and_for_nothing_else(other: bytes, alike: bool) -> None:
    """Values may differ; a type, a length or the protocol may not, even when the messages are equally long."""
    layout = Layout(flow(extra=attribute(8, b"1234")))
    if len(other) == layout.stride:
        assert layout.holds_for(other, 1) is alike
    else:
        with pytest.raises(Retry, match="cut short"):
            layout.holds_for(other, 1)


def test_one_stranger_in_a_block_is_noticed() -> None:
    """Not only the first message of a block is compared, but each."""
    usual = flow(extra=attribute(8, b"1234"))
    layout = Layout(usual)
    assert layout.holds_for(usual * 256, 256)
    for place in (0, 1, 255):
        block = [usual] * 256
        block[place] = flow(extra=attribute(9, b"1234"))
        assert not layout.holds_for(b"".join(block), 256)


def test_messages_of_one_length_and_many_layouts_are_each_read_by_their_own() -> None:
    """A mark in one, a zone and a label in another, the zone first or last: same length, every key still right."""
    zone = attribute(18, b"\0\5")  # 8 bytes, as the mark
    mark = attribute(8, b"\0\0\0\x09")
    label = attribute(22, b"\0\0\0\x2a")
    variants = [flow(extra=mark + zone), flow(extra=zone + mark), flow(extra=label + mark), flow(6, extra=mark + label)]
    assert len({len(variant) for variant in variants}) == 1
    sample = counted(*(b"".join(variants) for _ in range(300)))
    assert sample.sampled == 1200
    assert keys(sample, "zone") == {"5": 600, "0": 600}
    assert keys(sample, "port") == {"53/UDP": 900, "53/TCP": 300}
    assert keys(sample, "source") == {"10.0.0.1": 1200}
    assert keys(sample, "state") == {"UDP UNREPLIED": 900, "TCP UNREPLIED": 300}


def test_ipv6_udp_and_ipv4_tcp_of_one_length_are_told_apart() -> None:
    """Linux 6.18 really has these two at 212 bytes; here both are built to one length."""
    six = tuple_of(1, bytes(15) + b"\1", bytes(15) + b"\2", ports(17, 1, 53))
    six += tuple_of(2, bytes(15) + b"\2", bytes(15) + b"\1", ports(17, 53, 1)) + attribute(3, b"\0\0\0\x0e")
    udp = entry(six, family=10)
    tcp = flow(6, extra=attribute(22, bytes(len(udp) - len(flow(6)) - len(TCP_INFO) - 4)) + TCP_INFO)
    assert len(udp) == len(tcp)
    sample = counted((udp + tcp) * 100)
    assert keys(sample, "source") == {"::1": 100, "10.0.0.1": 100}
    assert keys(sample, "state") == {"UDP ASSURED": 100, "TCP ESTABLISHED": 100}


def test_flows_without_ports_and_with_a_zone_in_one_direction() -> None:
    """ESP has no port, GRE's keys are none, ICMP shows its type; a zone of the original direction counts as zone."""
    esp = tuple_of(1, b"\1\1\1\1", b"\2\2\2\2", attribute(1, b"\x32"), zone=3)
    gre = tuple_of(1, b"\1\1\1\1", b"\2\2\2\2", ports(47, 0, 12))
    icmp = attribute(1, b"\1") + attribute(4, b"\0\7") + attribute(5, b"\x08") + attribute(6, b"\0")
    ping = tuple_of(1, b"\1\1\1\1", b"\2\2\2\2", icmp)
    sample = counted(*(entry(body + attribute(3, b"\0\0\0\x08")) for body in (esp, gre, ping)))
    assert keys(sample, "port") == {"ESP": 1, "GRE": 1, "type 8/ICMP": 1}
    assert keys(sample, "zone") == {"3": 1, "0": 2}


def test_a_message_without_anything_known_is_counted_as_unknown() -> None:
    """A kernel with new attributes alone does not stop the count."""
    sample = counted(entry(attribute(77, bytes(12))))
    assert sample.sampled == 1
    assert keys(sample, "source") == {"unknown": 1}


@pytest.mark.parametrize("cut", [1, 4, 17, 30, 100])
def test_a_datagram_that_is_cut_is_refused(cut: int) -> None:
    """Wherever a datagram ends too early, the answer is an error and no wrong count."""
    whole = flow() + flow()
    with pytest.raises(Retry, match="cut short"):
        counted(flow(), whole[: len(flow()) + cut])


def test_a_limit_stops_within_a_datagram() -> None:
    """The reader takes exactly as many entries as it may."""
    counting = Counting(("source",))
    assert counting.take(flow() * 10, 4) is False
    counting.finish()
    assert counting.entries == 4
    assert sum(tally.counts.total() for tally in counting.tallies.values()) == 4


def test_the_end_of_the_dump_may_share_a_datagram_with_flows() -> None:
    """Flows before NLMSG_DONE are counted, and the end is seen."""
    counting = Counting(("source",))
    assert counting.take(flow() * 3 + struct.pack("=IHHIIi", 20, 3, 2, 7, 99, 0), None) is True
    assert counting.entries == 3
