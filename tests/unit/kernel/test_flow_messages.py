"""What ctnetlink is told, byte for byte as nfnetlink_conntrack.h has it."""

import socket
import struct
from ipaddress import ip_address

import pytest

from conntrack_operator.decide.flow_matching import Path
from conntrack_operator.kernel import sockets
from conntrack_operator.kernel.flow_messages import LIVES, TCP, UDP, family_of, liberal, living, tuples
from conntrack_operator.kernel.netlink import attributes

PATH4 = Path(TCP, ip_address("10.0.0.1").packed, 40000, ip_address("192.0.2.1").packed, 80)
PATH6 = Path(UDP, ip_address("fd00::1").packed, 40000, ip_address("fd00::2").packed, 53)


def tree(body: bytes, nests: object) -> dict[int, object]:
    """Return the attributes of `body` by type; `nests` says which hold others, and which of those."""
    inside = nests if isinstance(nests, dict) else {}
    return {
        kind: tree(body[start:end], inside[kind]) if kind in inside else body[start:end]
        for kind, start, end in attributes(body, 0, len(body))
    }


TUPLE = {1: True, 2: True}


def test_a_liberal_mark_names_both_directions_and_no_state() -> None:
    """Flags and mask 0x08 twice, in nests that say they are nests."""
    assert tree(liberal(), {4: {1: True}}) == {4: {1: {4: b"\x08\x08", 5: b"\x08\x08"}}}
    length, kind, inner, inner_kind = struct.unpack_from("=HHHH", liberal())
    assert (length, kind, inner, inner_kind) == (24, 0x8004, 20, 0x8001)


@pytest.mark.parametrize(("path", "first"), [(PATH4, 1), (PATH6, 3)])
def test_both_tuples_are_mirror_images(path: Path, first: int) -> None:
    """Addresses under the types of their family, ports in network order."""
    near, far = struct.pack(">H", 40000), struct.pack(">H", path.destination_port)
    protocol = bytes([path.protocol])
    assert tree(tuples(path), {1: TUPLE, 2: TUPLE}) == {
        1: {1: {first: path.source, first + 1: path.destination}, 2: {1: protocol, 2: near, 3: far}},
        2: {1: {first: path.destination, first + 1: path.source}, 2: {1: protocol, 2: far, 3: near}},
    }
    assert family_of(path) == (socket.AF_INET if first == 1 else socket.AF_INET6)


@pytest.mark.parametrize(
    ("state", "expected", "status", "timeout"),
    [
        (sockets.SYN_RECV, 2, 0x0A, "syn_recv"),
        (sockets.ESTABLISHED, 3, 0x0E, "established"),
        (sockets.FIN_WAIT1, 4, 0x0E, "fin_wait"),
        (sockets.FIN_WAIT2, 5, 0x0E, "close_wait"),
        (sockets.CLOSE_WAIT, 5, 0x0E, "close_wait"),
        (sockets.CLOSING, 6, 0x0E, "last_ack"),
        (sockets.LAST_ACK, 6, 0x0E, "last_ack"),
    ],
)
def test_a_tcp_socket_gives_its_entrys_state(state: int, expected: int, status: int, timeout: str) -> None:
    """Confirmed, replied, assured unless half-open; the timeout of that state, in seconds."""
    life = LIVES[TCP][state]
    assert life.timeout == f"tcp_timeout_{timeout}"
    assert tree(living(TCP, life, 4711), {4: {1: True}}) == {
        3: struct.pack(">I", status),
        7: struct.pack(">I", 4711),
        4: {1: {1: bytes([expected]), 4: b"\x08\x08", 5: b"\x08\x08"}},
    }


def test_a_udp_socket_gives_no_protocol_state() -> None:
    """Status and timeout are all there is to it."""
    life = LIVES[UDP][sockets.ESTABLISHED]
    assert life.timeout == "udp_timeout_stream"
    assert tree(living(UDP, life, 120), {}) == {3: struct.pack(">I", 0x0E), 7: struct.pack(">I", 120)}
