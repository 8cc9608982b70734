"""What ctnetlink is told about entries: the attributes of edits, as bytes. Reads and sends nothing.

include/uapi/linux/netfilter/nfnetlink_conntrack.h and nf_conntrack_tcp.h; numbers are big-endian.
"""

import socket
import struct
from typing import NamedTuple

from conntrack_operator.decide.flow_matching import Path

from . import sockets
from .netlink import attribute

TCP, UDP = 6, 17

_NEST = 0x8000
_TUPLE_ORIGINAL, _TUPLE_REPLY, _STATUS, _PROTOINFO, _TIMEOUT = 1, 2, 3, 4, 7
_LIBERAL = 0x08  # IP_CT_TCP_FLAG_BE_LIBERAL
_SEEN_REPLY, _ASSURED, _CONFIRMED = 0x2, 0x4, 0x8  # enum ip_conntrack_status


class Life(NamedTuple):
    """How an entry stands for a socket's state."""

    state: int
    """enum tcp_conntrack; nothing for UDP."""
    timeout: str
    """The sysctl, without its prefix, that says how long the kernel keeps such an entry."""
    default_seconds: int
    """The kernel's own, where the sysctl cannot be read."""
    assured: bool = True
    """Whether a full table keeps it. The kernel assures no connection before it is established."""


_CLOSE_WAIT = Life(5, "tcp_timeout_close_wait", 60)
_LAST_ACK = Life(6, "tcp_timeout_last_ack", 30)

LIVES = {
    TCP: {
        sockets.SYN_RECV: Life(2, "tcp_timeout_syn_recv", 60, assured=False),
        sockets.ESTABLISHED: Life(3, "tcp_timeout_established", 432_000),
        sockets.FIN_WAIT1: Life(4, "tcp_timeout_fin_wait", 120),
        # One side has closed and the other may send for hours: the entry's state for that is the same on both sides.
        sockets.FIN_WAIT2: _CLOSE_WAIT,
        sockets.CLOSE_WAIT: _CLOSE_WAIT,
        sockets.CLOSING: _LAST_ACK,
        sockets.LAST_ACK: _LAST_ACK,
    },
    UDP: {sockets.ESTABLISHED: Life(0, "udp_timeout_stream", 120)},
}
"""By IP protocol and state of the socket: connections over which packets still go."""


def family_of(path: Path) -> int:
    """Return the address family of a path, as netlink numbers it."""
    return socket.AF_INET if len(path.source) == 4 else socket.AF_INET6


def tuples(path: Path) -> bytes:
    """Return both tuples of an entry whose first packet went `path` and that nobody translates."""
    return _tuple(_TUPLE_ORIGINAL, path) + _tuple(_TUPLE_REPLY, path.back)


def liberal() -> bytes:
    """Return what makes a TCP entry accept packets outside its window, both ways; its state stays."""
    return _protoinfo(b"")


def living(protocol: int, life: Life, timeout_seconds: int | None) -> bytes:
    """Return what an entry of a live connection must show. Without a timeout it keeps the one it has."""
    status = _CONFIRMED | _SEEN_REPLY | (_ASSURED if life.assured else 0)
    told = attribute(_STATUS, struct.pack(">I", status))
    if timeout_seconds is not None:
        told += attribute(_TIMEOUT, struct.pack(">I", timeout_seconds))
    return told + (_protoinfo(attribute(1, bytes([life.state]))) if protocol == TCP else b"")


def _protoinfo(state: bytes) -> bytes:
    flags = bytes([_LIBERAL, _LIBERAL])  # struct nf_ct_tcp_flags: flags, mask
    inside = state + attribute(4, flags) + attribute(5, flags)
    return attribute(_PROTOINFO | _NEST, attribute(1 | _NEST, inside))


def _tuple(kind: int, path: Path) -> bytes:
    first = 1 if len(path.source) == 4 else 3
    addresses = attribute(first, path.source) + attribute(first + 1, path.destination)
    protocol = attribute(1, bytes([path.protocol]))
    protocol += attribute(2, struct.pack(">H", path.source_port))
    protocol += attribute(3, struct.pack(">H", path.destination_port))
    return attribute(kind | _NEST, attribute(1 | _NEST, addresses) + attribute(2 | _NEST, protocol))
