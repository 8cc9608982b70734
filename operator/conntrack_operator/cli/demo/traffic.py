"""The demo's packets: a name server that answers, and clients that ask. Runs as child processes of the demo.

Clients are many addresses and source ports, so their queries are written as whole frames to a packet socket: one
system call a query, some hundred thousand a second. The answers come from an ordinary UDP socket. Standard library
alone, so that a child starts in a blink. Frames: RFC 791, RFC 768, RFC 1035.
"""

import contextlib
import ctypes
import errno
import json
import signal
import socket
import struct
import sys
from dataclasses import asdict, dataclass

PORT = 53
FIRST_PORT = 1024
FLOWS_MAX = 64_000
"""Of one client address: source ports from 1024 upwards."""
REPORT_EVERY = 8192
QUERY = struct.pack(">6H", 0x1234, 0x0100, 1, 0, 0, 0) + b"\x04demo\x04test\0" + struct.pack(">2H", 1, 1)
"""Header with one question, and the question: demo.test, type A, class IN."""

_STAGE_GONE = (errno.ENODEV, errno.ENXIO, errno.ENETDOWN, errno.EADDRNOTAVAIL)
_PR_SET_PDEATHSIG = 1  # include/uapi/linux/prctl.h
_SO_RCVBUFFORCE, _SO_SNDBUFFORCE = 33, 32  # include/uapi/asm-generic/socket.h
_RECEIVE_BUFFER_BYTES = 256 << 20
_ANSWERED = b"\x81\x80"
"""The flags of an answer: response, recursion desired and available, no error."""
_SOURCE_PORT_AT = 14 + 20


@dataclass(frozen=True)
class Asking:
    """What `ask` needs to know. `clients` are addresses with the number of flows each begins."""

    interface: str
    from_mac: str
    to_mac: str
    server: str
    clients: tuple[tuple[str, int], ...]


def asked_by(asking: Asking) -> list[str]:
    """Return the program that sends these queries and prints how many it has sent, line by line."""
    return [sys.executable, "-m", __name__, "ask", json.dumps(asdict(asking))]


def answered_by(address: str) -> list[str]:
    """Return the program that is a name server on `address`; it prints a line when it is ready."""
    return [sys.executable, "-m", __name__, "answer", address]


def answer(address: str) -> None:
    """Answer every query with an empty answer, until killed."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BUFFER_BYTES)
        server.bind((address, PORT))
        print("ready", flush=True)
        receive, send = server.recvfrom, server.sendto
        while True:
            query, client = receive(512)
            # EPERM: netfilter dropped the answer, as it does where a table is full. The next one may get through.
            with contextlib.suppress(PermissionError):
                send(query[:2] + _ANSWERED + query[4:], client)


def ask(asking: Asking) -> None:
    """Send one query for each flow."""
    sent = 0
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as wire:
        wire.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _RECEIVE_BUFFER_BYTES)
        wire.bind((asking.interface, 0))
        send, write = wire.send, struct.Struct(">H").pack_into
        for client, flows in asking.clients:
            frame = _frame(asking, client)
            for port in range(FIRST_PORT, FIRST_PORT + flows):
                write(frame, _SOURCE_PORT_AT, port)
                send(frame)
                sent += 1
                if sent % REPORT_EVERY == 0:
                    print(sent, flush=True)
    print(sent, flush=True)


def _frame(asking: Asking, client: str) -> bytearray:
    udp_bytes = 8 + len(QUERY)
    header = struct.pack(
        ">BBHHHBBH4s4s",
        0x45, 0, 20 + udp_bytes, 0, 0x4000, 64, socket.IPPROTO_UDP, 0,
        socket.inet_aton(client), socket.inet_aton(asking.server),
    )  # fmt: skip
    header = header[:10] + struct.pack(">H", _checksum(header)) + header[12:]
    ethernet = bytes.fromhex(asking.to_mac.replace(":", "") + asking.from_mac.replace(":", "")) + b"\x08\x00"
    # A UDP checksum of 0 means none: only the source port changes from frame to frame.
    return bytearray(ethernet + header + struct.pack(">4H", 0, PORT, udp_bytes, 0) + QUERY)


def _checksum(header: bytes) -> int:
    total: int = sum(struct.unpack(">10H", header))
    while total > 0xFFFF:
        total = (total >> 16) + (total & 0xFFFF)
    return ~total & 0xFFFF


if __name__ == "__main__":
    # Whatever becomes of the demo, its children go with it, and with them the namespaces.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    try:
        if sys.argv[1] == "ask":
            ask(Asking(**json.loads(sys.argv[2])))
        else:
            answer(sys.argv[2])
    except OSError as error:
        # Begun just when the demo was interrupted: the stage is gone, and nobody is left who wants to hear of it.
        if error.errno not in _STAGE_GONE:
            raise
        sys.exit(1)
