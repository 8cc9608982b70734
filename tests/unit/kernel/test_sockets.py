"""Sockets out of sock_diag's messages, as a kernel writes them."""

import errno
import socket
import struct
from ipaddress import ip_address

import pytest

from conntrack_operator.errors import Retry, Unsupported
from conntrack_operator.kernel.netlink import Netlink
from conntrack_operator.kernel.sockets import ESTABLISHED, Connection, connections_in, read_connections

PORTS = bytes(port in (80, 443) for port in range(65_536))


def listed(local: str, local_port: int, remote: str, remote_port: int, family: int = socket.AF_INET) -> bytes:
    """Return one message: inet_diag_msg of 72 bytes behind its header."""
    ends = b"".join(ip_address(address).packed.ljust(16, b"\0") for address in (local, remote))
    body = struct.pack("=BBBB", family, ESTABLISHED, 0, 0) + struct.pack(">HH", local_port, remote_port) + ends
    return struct.pack("=IHHII", 88, 20, 2, 1, 0) + body + bytes(32)


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (listed("192.0.2.1", 80, "10.0.0.1", 40000), ("192.0.2.1", 80, "10.0.0.1", 40000)),
        (listed("192.0.2.1", 40000, "10.0.0.1", 443), ("192.0.2.1", 40000, "10.0.0.1", 443)),
        (listed("192.0.2.1", 40000, "10.0.0.1", 81), None),
        (listed("fd00::1", 80, "fd00::2", 40000, socket.AF_INET6), ("fd00::1", 80, "fd00::2", 40000)),
        (
            listed("::ffff:192.0.2.1", 80, "::ffff:10.0.0.1", 40000, socket.AF_INET6),
            ("192.0.2.1", 80, "10.0.0.1", 40000),
        ),
    ],
)
def test_a_socket_is_told_by_either_port(message: bytes, expected: tuple[str, int, str, int] | None) -> None:
    """IPv4 on an IPv6 socket is IPv4; a socket with neither port is none of ours."""
    found = [
        (state, str(ip_address(local)), local_port, str(ip_address(remote)), remote_port)
        for state, local, local_port, remote, remote_port in connections_in(iter([message]), PORTS)
    ]
    assert found == ([(ESTABLISHED, *expected)] if expected else [])


def test_the_way_in_goes_from_the_remote_end() -> None:
    """So that a server's connection is a request."""
    path = Connection(ESTABLISHED, b"\xc0\0\2\1", 80, b"\x0a\0\0\1", 40000).inbound(6)
    assert path == (6, b"\x0a\0\0\1", 40000, b"\xc0\0\2\1", 80)


def test_a_message_that_is_cut_short_is_no_socket() -> None:
    """Asking again is the remedy."""
    with pytest.raises(Retry, match="cut short"):
        list(connections_in(iter([listed("192.0.2.1", 80, "10.0.0.1", 1)[:50]]), PORTS))


@pytest.mark.parametrize(
    ("number", "expected", "words"),
    [(errno.ENOENT, Unsupported, "modprobe -a tcp_diag udp_diag"), (errno.ENOBUFS, Retry, "ask again")],
)
def test_a_kernel_that_lists_no_sockets_is_told_from_one_that_is_busy(
    monkeypatch: pytest.MonkeyPatch, number: int, expected: type[Exception], words: str
) -> None:
    """The first needs its modules, the second another try."""
    refusal = struct.pack("=IHHIIi", 36, 2, 0, 1, 0, -number) + bytes(16)
    monkeypatch.setattr(Netlink, "datagrams", lambda *_: iter([refusal]))
    with pytest.raises(expected, match=words):
        list(read_connections(6, frozenset({ESTABLISHED}), PORTS))
