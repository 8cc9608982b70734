"""Live sockets of this network namespace, by sock_diag: both families, whoever owns them. Any user may ask.

Linux 3.3 and newer with the modules tcp_diag and udp_diag, which the kernel loads by itself where they exist.
Kernel files: net/ipv4/inet_diag.c (inet_diag_dump_icsk), net/ipv4/udp_diag.c; include/uapi/linux/inet_diag.h.
"""

import errno
import socket
import struct
from collections.abc import Iterator
from typing import NamedTuple

from conntrack_operator.decide.flow_matching import Path
from conntrack_operator.errors import ConntrackOperatorError, Retry, Unsupported

from .netlink import HEADER, NETLINK_SOCK_DIAG, NLM_F_DUMP, NLM_F_REQUEST, Netlink

ESTABLISHED, SYN_RECV, FIN_WAIT1, FIN_WAIT2, CLOSE_WAIT, LAST_ACK, CLOSING = 1, 3, 4, 5, 8, 9, 11
_LISTEN = 10
"""States in which packets still go (enum in include/net/tcp_states.h). A connected UDP socket is ESTABLISHED."""

_SOCK_DIAG_BY_FAMILY = 20
_REQUEST = struct.Struct("=BBBBI48x")  # inet_diag_req_v2: family, protocol, extensions, padding, states, no socket
_ANSWER = struct.Struct("=BB6x16s16s")  # inet_diag_msg: family, state, 2 bytes, ports, addresses; more follows
_INODE = struct.Struct("=68xI")  # its last field
_PORT_PAIR = struct.Struct(">HH")
_MAPPED = bytes(10) + b"\xff\xff"
_ABSENT = (errno.ENOENT, errno.EINVAL, errno.EOPNOTSUPP, errno.EPROTONOSUPPORT, errno.ENOSYS)


class Connection(NamedTuple):
    """A connected socket. Addresses as packets carry them: one of IPv4 on an IPv6 socket has 4 bytes."""

    state: int
    """One of the states above."""
    local: bytes
    local_port: int
    remote: bytes
    remote_port: int

    def inbound(self, protocol: int) -> Path:
        """Return the way of its packets to this node."""
        return Path(protocol, self.remote, self.remote_port, self.local, self.local_port)


def read_connections(protocol: int, states: frozenset[int], ports: bytes) -> Iterator[Connection]:
    """Yield the sockets of an IP protocol in one of `states` with a local or remote port whose byte in `ports` is set.

    `ports` are 65,536 bytes. About 1 µs a socket that is not wanted. Raises Unsupported when this kernel lists no
    sockets of the protocol, and Retry when its answer is cut short.
    """
    for family in (socket.AF_INET, socket.AF_INET6):
        yield from connections_in(_sockets(family, protocol, states), ports)


class Listening(NamedTuple):
    """A TCP socket that waits for connections."""

    address: bytes
    """As packets carry it: one of IPv4 on an IPv6 socket has 4 bytes."""
    port: int
    inode: int


def read_listening() -> Iterator[Listening]:
    """Yield the listening TCP sockets of both families. Raises as `read_connections` does.

    The kernel looks through its listeners alone, where /proc/net/tcp takes it through every connection: 0.1 ms in
    place of 8 ms where there are none.
    """
    for family in (socket.AF_INET, socket.AF_INET6):
        for message in _sockets(family, socket.IPPROTO_TCP, frozenset({_LISTEN})):
            if len(message) < HEADER.size + _INODE.size:
                raise Retry("the kernel's list of sockets is cut short; ask again")
            port, _ = _PORT_PAIR.unpack_from(message, HEADER.size + 4)
            found, _, local, _ = _ANSWER.unpack_from(message, HEADER.size)
            yield Listening(_packed(found, local), port, *_INODE.unpack_from(message, HEADER.size))


def _sockets(family: int, protocol: int, states: frozenset[int]) -> Iterator[bytes]:
    with Netlink(NETLINK_SOCK_DIAG) as netlink:
        body = _REQUEST.pack(family, protocol, 0, 0, sum(1 << state for state in states))
        flags = NLM_F_REQUEST | NLM_F_DUMP
        header = HEADER.pack(HEADER.size + len(body), _SOCK_DIAG_BY_FAMILY, flags, netlink.next_sequence(), 0)
        yield from _answer(netlink, header + body)


def connections_in(messages: Iterator[bytes], ports: bytes) -> Iterator[Connection]:
    """Decode the messages of a sock_diag dump, as `read_connections` says."""
    for message in messages:
        if len(message) < HEADER.size + _ANSWER.size:
            raise Retry("the kernel's list of sockets is cut short; ask again")
        local_port, remote_port = _PORT_PAIR.unpack_from(message, HEADER.size + 4)
        if ports[local_port] or ports[remote_port]:
            family, state, local, remote = _ANSWER.unpack_from(message, HEADER.size)
            yield Connection(state, _packed(family, local), local_port, _packed(family, remote), remote_port)


def _packed(family: int, address: bytes) -> bytes:
    if family == socket.AF_INET:
        return address[:4]
    return address[12:] if address.startswith(_MAPPED) else address


def _answer(netlink: Netlink, request: bytes) -> Iterator[bytes]:
    """Yield the messages of the answer; a refusal is told in the words of sockets."""
    try:
        yield from netlink.answer(request)
    except ConntrackOperatorError as error:
        if isinstance(error.__cause__, OSError) and error.__cause__.errno in _ABSENT:
            raise Unsupported(
                f"this kernel does not list its sockets ({error.__cause__.strerror});"
                " load its modules: modprobe -a tcp_diag udp_diag"
            ) from error
        raise
