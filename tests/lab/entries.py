"""Entries written straight into a namespace's conntrack table by ctnetlink, fast enough for a million of them.

For tests and benchmarks alone: the package reads tables and never makes flows up. Messages are built here by hand, so
that the reader under test is not also the judge.
"""

import errno
import os
import socket
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from tests.lab.namespaces import Namespace, packed

TCP, UDP, SCTP, ICMP, ICMPV6, GRE = 6, 17, 132, 1, 58, 47
ESTABLISHED, FIN_WAIT, TIME_WAIT, SYN_SENT = 3, 4, 7, 1  # enum tcp_conntrack
SEEN_REPLY, ASSURED, CONFIRMED = 0x2, 0x4, 0x8  # enum ip_conntrack_status

_NEST = 0x8000
_CREATE = 0x1 | 0x400 | 0x200  # NLM_F_REQUEST | NLM_F_CREATE | NLM_F_EXCL
_ACK = 0x4
_BATCH = 128


@dataclass(frozen=True)
class Entry:
    """One flow. `status` and `state` are the kernel's numbers; `icmp` is (type, code, id) instead of ports."""

    source: str
    destination: str
    protocol: int = TCP
    source_port: int = 40000
    destination_port: int = 80
    state: int = ESTABLISHED
    status: int = SEEN_REPLY | ASSURED
    zone: int = 0
    timeout_seconds: int = 3600
    mark: int = 0
    icmp: tuple[int, int, int] | None = None
    reply_source: str = ""
    """Where answers come from when it is not the destination (DNAT)."""


def inject(namespace: Namespace, entries: Iterable[Entry]) -> int:
    """Create the entries; return how many. Raises OSError with the kernel's errno when it refuses one."""
    return _send(namespace, (_message(entry) for entry in entries))


def inject_many(namespace: Namespace, like: Entry, count: int, sources: int = 256) -> int:
    """Create `count` TCP or UDP entries like one, spread evenly over `sources` addresses from its source upwards."""
    first = int.from_bytes(packed(like.source), "big")
    width = len(packed(like.source))
    # Where source and source port stand is found with values that occur nowhere else in the message.
    marked = replace(like, source="fd5c:5d5e:5f60:6162::7374" if width == 16 else "93.94.95.96", source_port=0x7879)
    template = _message(marked)
    address_at = _all_of(template, packed(marked.source))
    port_at = _all_of(template, b"\x78\x79")
    assert len(address_at) == len(port_at) == 2

    def messages() -> Iterator[bytes]:
        entry = bytearray(template)
        for number in range(count):
            address = (first + number % sources).to_bytes(width, "big")
            port = struct.pack(">H", 1024 + number // sources)
            for at in address_at:
                entry[at : at + width] = address
            for at in port_at:
                entry[at : at + 2] = port
            yield bytes(entry)

    return _send(namespace, messages())


def _all_of(text: bytes, what: bytes) -> list[int]:
    found = []
    at = text.find(what)
    while at >= 0:
        found.append(at)
        at = text.find(what, at + 1)
    return found


def _send(namespace: Namespace, messages: Iterable[bytes]) -> int:
    with namespace.inside():
        netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12)
    sent = 0
    with netlink:
        netlink.bind((0, 0))
        netlink.settimeout(10)
        batch: list[bytes] = []
        for message in messages:
            batch.append(message)
            if len(batch) == _BATCH:
                sent += _commit(netlink, batch)
                batch = []
        if batch:
            sent += _commit(netlink, batch)
    return sent


def _commit(netlink: socket.socket, batch: list[bytes]) -> int:
    # The last of a batch asks for an answer: errors of those before it have arrived by then.
    last = bytearray(batch[-1])
    struct.pack_into("=H", last, 6, _CREATE | _ACK)
    netlink.send(b"".join(batch[:-1]) + bytes(last))
    while True:
        answer = netlink.recv(65536)
        _, kind, _, _, _, status = struct.unpack_from("=IHHIIi", answer)
        if kind != 2:
            raise OSError(errno.EPROTO, "ctnetlink answered with something else than an acknowledgement")
        if status:
            raise OSError(-status, os.strerror(-status))
        return len(batch)


def _attribute(kind: int, payload: bytes) -> bytes:
    length = 4 + len(payload)
    return struct.pack("=HH", length, kind) + payload + bytes(-length % 4)


def _tuple(kind: int, source: str, destination: str, proto: bytes) -> bytes:
    first = 3 if ":" in source else 1
    addresses = _attribute(first, packed(source)) + _attribute(first + 1, packed(destination))
    return _attribute(kind | _NEST, _attribute(1 | _NEST, addresses) + _attribute(2 | _NEST, proto))


def _ports(protocol: int, source_port: int, destination_port: int) -> bytes:
    return (
        _attribute(1, bytes([protocol]))
        + _attribute(2, struct.pack(">H", source_port))
        + _attribute(3, struct.pack(">H", destination_port))
    )


def _icmp(protocol: int, kind: int, code: int, number: int) -> bytes:
    first = 7 if protocol == ICMPV6 else 4
    return (
        _attribute(1, bytes([protocol]))
        + _attribute(first, struct.pack(">H", number))
        + _attribute(first + 1, bytes([kind]))
        + _attribute(first + 2, bytes([code]))
    )


def _message(entry: Entry) -> bytes:
    if entry.icmp:
        answer = {8: 0, 128: 129}[entry.icmp[0]]
        there = _icmp(entry.protocol, *entry.icmp)
        back = _icmp(entry.protocol, answer, *entry.icmp[1:])
    else:
        there = _ports(entry.protocol, entry.source_port, entry.destination_port)
        back = _ports(entry.protocol, entry.destination_port, entry.source_port)
    body = _tuple(1, entry.source, entry.destination, there)
    body += _tuple(2, entry.reply_source or entry.destination, entry.source, back)
    body += _attribute(3, struct.pack(">I", entry.status | CONFIRMED))
    body += _attribute(7, struct.pack(">I", entry.timeout_seconds))
    if entry.protocol == TCP:
        body += _attribute(4 | _NEST, _attribute(1 | _NEST, _attribute(1, bytes([entry.state]))))
    if entry.protocol == SCTP:
        tags = _attribute(2, b"\0\0\0\1") + _attribute(3, b"\0\0\0\2")
        body += _attribute(4 | _NEST, _attribute(3 | _NEST, _attribute(1, bytes([entry.state])) + tags))
    if entry.zone:
        body += _attribute(18, struct.pack(">H", entry.zone))
    if entry.mark:
        body += _attribute(8, struct.pack(">I", entry.mark))
    family = socket.AF_INET6 if ":" in entry.source else socket.AF_INET
    return struct.pack("=IHHIIBBH", 20 + len(body), 0x100, _CREATE, 1, 0, family, 0, 0) + body
