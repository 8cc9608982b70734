"""Loading NOTRACK rules into a namespace, sending real packets through it, and asking the kernel what it tracked.

SCTP goes over raw sockets with packets made here: conntrack knows SCTP on kernels that have no SCTP sockets.
"""

import contextlib
import functools
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tests.lab.namespaces import Namespace

from conntrack_operator.decide.notrack import Installed, Ruleset, installed_from, ruleset_for
from conntrack_operator.kernel import nftables
from conntrack_operator.model.notrack import NotrackRule

SCTP = 132
"""IPPROTO_SCTP."""
_SCTP_STATES = ("closed", "cookie_wait", "cookie_echoed")


def load(namespace: Namespace, *rules: NotrackRule) -> Ruleset:
    """Put the table for `rules` into `namespace` and return what was asked for."""
    ruleset = ruleset_for(rules)
    with namespace.inside():
        nftables.run_script(ruleset.script())
    return ruleset


def installed(namespace: Namespace) -> Installed | None:
    """Return our table as the kernel of `namespace` has it."""
    with namespace.inside():
        listing = nftables.read_table()
    return installed_from(listing) if listing is not None else None


def bypassed(namespace: Namespace) -> dict[tuple[str, str], int]:
    """Return packets by (label, part), those that are not zero."""
    with namespace.inside():
        return {(row.label, row.part): row.packets for row in nftables.read_bypassed() if row.packets}


def tracked(namespace: Namespace, *words: str) -> list[str]:
    """Return the lines of both families' conntrack entries that contain all of `words`."""
    lines = [line for family in ("ipv4", "ipv6") for line in _entries(namespace, family)]
    return [line for line in lines if all(word in line.split() for word in words)]


def _entries(namespace: Namespace, family: str) -> list[str]:
    return namespace.run("conntrack", "-L", "-f", family).stdout.splitlines()


def keep_sctp(namespace: Namespace) -> None:
    """Have entries of SCTP handshakes stay for minutes: 3 s, the kernel's own, are short for who looks at them."""
    for state in _SCTP_STATES:
        namespace.sysctl(f"net.netfilter.nf_conntrack_sctp_timeout_{state}", 600)


@contextlib.contextmanager
def connected(
    server: Namespace, client: Namespace, address: str, port: int, source_port: int = 0
) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Hold an open TCP connection; give the client's end and the server's."""
    with (
        server.listen(address, port) as listener,
        client.connect(address, port, source_port) as near,
        listener.accept()[0] as far,
    ):
        yield near, far


@contextlib.contextmanager
def tcp(server: Namespace, client: Namespace, address: str, port: int, source_port: int = 0) -> Iterator[None]:
    """Hold an open TCP connection over which both sides have sent ten messages."""
    with connected(server, client, address, port, source_port) as (near, far):
        far.settimeout(30)
        near.settimeout(30)
        for _ in range(10):
            near.sendall(b"question")
            assert far.recv(64) == b"question"
            far.sendall(b"answer")
            assert near.recv(64) == b"answer"
        yield


@contextlib.contextmanager
def udp(server: Namespace, client: Namespace, address: str, port: int, source_port: int = 0) -> Iterator[None]:
    """Hold a UDP flow in which both sides have sent ten packets."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with server.make_socket(family, socket.SOCK_DGRAM) as far, client.make_socket(family, socket.SOCK_DGRAM) as near:
        far.bind((address, port))
        if source_port:
            near.bind(("", source_port))
        near.connect((address, port))
        for _ in range(10):
            near.send(b"question")
            question, sender = far.recvfrom(64)
            assert question == b"question"
            far.sendto(b"answer", sender)
            assert near.recv(64) == b"answer"
        yield


@contextlib.contextmanager
def sctp(server: Namespace, client: Namespace, address: str, port: int, source_port: int = 0) -> Iterator[None]:
    """Hold an SCTP exchange of INIT and INIT ACK, ten times."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with raw(server, family) as far, raw(client, family) as near:
        source_port = source_port or 40000
        for number in range(10):
            near.sendto(sctp_packet(source_port, port, chunk=1, tag=number), (address, 0))
            payload, sender = _payload(far)
            assert struct.unpack("!HH", payload[:4]) == (source_port, port)
            far.sendto(sctp_packet(port, source_port, chunk=2, tag=number), (sender, 0))
            assert struct.unpack("!HH", _payload(near)[0][:4]) == (port, source_port)
        yield


EXCHANGES: dict[str, Callable[..., contextlib.AbstractContextManager[None]]] = {"TCP": tcp, "UDP": udp, "SCTP": sctp}
"""How to talk, by protocol: (server, client, address, port, source_port)."""


def raw(namespace: Namespace, family: int) -> socket.socket:
    """Return a raw SCTP socket of `namespace`, with a 30 s timeout. The caller closes it."""
    with namespace.inside():
        made = socket.socket(family, socket.SOCK_RAW, SCTP)
    made.settimeout(30)
    return made


def _payload(receiver: socket.socket) -> tuple[bytes, str]:
    packet, (sender, *_) = receiver.recvfrom(2048)
    # Raw IPv4 sockets hand out the IP header, IPv6 ones do not.
    return (packet[(packet[0] & 15) * 4 :] if receiver.family == socket.AF_INET else packet), sender


def sctp_packet(source: int, destination: int, chunk: int, tag: int) -> bytes:
    """Return an SCTP packet of one INIT (1) or INIT ACK (2) chunk, with its checksum (RFC 9260)."""
    body = struct.pack("!BBHIIHHI", chunk, 0, 20, tag + 1, 65536, 1, 1, tag + 1)
    verification = 0 if chunk == 1 else tag + 1
    header = struct.pack("!HHI", source, destination, verification)
    return header + struct.pack("<I", _crc32c(header + bytes(4) + body)) + body


@functools.cache
def _crc_table() -> list[int]:
    table = []
    for byte in range(256):
        value = byte
        for _ in range(8):
            value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return table


def _crc32c(data: bytes) -> int:
    value = 0xFFFFFFFF
    for byte in data:
        value = (value >> 8) ^ _crc_table()[(value ^ byte) & 0xFF]
    return value ^ 0xFFFFFFFF


@dataclass(frozen=True)
class Transfer:
    """What arrived of a transfer, and in what time."""

    received_bytes: int
    seconds: float

    @property
    def rate(self) -> float:
        """Bytes a second."""
        return self.received_bytes / self.seconds


def transfer(sender: socket.socket, receiver: socket.socket, size_bytes: int, patience_seconds: float) -> Transfer:
    """Send over a connected pair; give up when nothing arrives for `patience_seconds`."""
    receiver.settimeout(patience_seconds)
    sender.settimeout(patience_seconds)
    chunk = bytes(65536)

    def send() -> None:
        left = size_bytes
        with contextlib.suppress(OSError):
            while left > 0:
                left -= sender.send(chunk[: min(left, len(chunk))])

    started = time.monotonic()
    thread = threading.Thread(target=send)
    thread.start()
    received = 0
    with contextlib.suppress(TimeoutError):
        while received < size_bytes:
            received += len(receiver.recv(1 << 18))
    seconds = time.monotonic() - started
    thread.join()
    return Transfer(received, seconds)
