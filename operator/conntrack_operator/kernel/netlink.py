"""Netlink: the smallest layer over AF_NETLINK that connection tracking needs, on the standard library.

Owns message framing, dumps and the translation of the kernel's refusals into this package's errors. It knows
nothing of what a message means: `kernel.counters` and `kernel.flows` do. Framing: include/uapi/linux/netlink.h and
include/uapi/linux/netfilter/nfnetlink.h. Headers are in the machine's byte order, what attributes carry is big-endian.
"""

import errno
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import NamedTuple, Self

from conntrack_operator.errors import ConntrackOperatorError, Retry, Unsupported

from . import autoload

NETLINK_ROUTE = 0
NETLINK_SOCK_DIAG = 4
NETLINK_NETFILTER = 12
CTNETLINK = 1  # NFNL_SUBSYS_CTNETLINK
_MODULES = {CTNETLINK: autoload.CTNETLINK, 10: autoload.NF_TABLES}  # NFNL_SUBSYS_NFTABLES
_DIAG_MODULES = {socket.IPPROTO_TCP: autoload.TCP_DIAG, socket.IPPROTO_UDP: autoload.UDP_DIAG}

NLM_F_REQUEST = 0x1
NLM_F_ACK = 0x4
NLM_F_DUMP_INTR = 0x10
NLM_F_DUMP = 0x300

NLMSG_NOOP = 1
NLMSG_ERROR = 2
NLMSG_DONE = 3

HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, port id
GENERIC = struct.Struct("=BBH")  # family, version, resource id
BODY = HEADER.size + GENERIC.size
"""Where the attributes of a netfilter message begin, in bytes."""

ATTRIBUTE = struct.Struct("=HH")  # length with this header, type
ATTRIBUTE_TYPE = 0x3FFF  # NLA_TYPE_MASK: without NLA_F_NESTED and NLA_F_NET_BYTEORDER

RECEIVE_BYTES = 65_536
"""One read. The kernel fills at most 32 KiB a read of a dump (netlink_recvmsg, net/netlink/af_netlink.c)."""

BATCH = 64
"""Edits in one datagram. All may be refused, and the refusals, about 1 KiB each, wait in a buffer of 208 KiB."""

TIMEOUT_SECONDS = 5
"""Longest wait for one answer; a kernel that answers takes micro- to milliseconds."""

_ERROR = struct.Struct("=i")
_PERMISSION = (errno.EPERM, errno.EACCES)
_ABSENT = (errno.EINVAL, errno.EOPNOTSUPP, errno.EPROTONOSUPPORT, errno.EAFNOSUPPORT, errno.ENOSYS)


class Attribute(NamedTuple):
    """One attribute: its type without flag bits, and where its payload lies in the buffer."""

    type: int
    start: int
    end: int


def attributes(buffer: bytes, start: int, end: int) -> Iterator[Attribute]:
    """Yield the attributes between two offsets of `buffer`. Raises errors.Retry when one runs over the end."""
    while end - start >= ATTRIBUTE.size:
        length, kind = ATTRIBUTE.unpack_from(buffer, start)
        if length < ATTRIBUTE.size or start + length > end:
            raise Retry("the kernel's netlink answer is cut short inside an attribute; ask again")
        yield Attribute(kind & ATTRIBUTE_TYPE, start + ATTRIBUTE.size, start + length)
        start += aligned(length)


def aligned(length: int) -> int:
    """Return `length` rounded up to 4 bytes, as messages and attributes are laid out."""
    return (length + 3) & ~3


def attribute(kind: int, payload: bytes) -> bytes:
    """Return one attribute, padded. `kind` includes NLA_F_NESTED (0x8000) where it is a nest."""
    length = ATTRIBUTE.size + len(payload)
    return ATTRIBUTE.pack(length, kind) + payload + bytes(aligned(length) - length)


def message(kind: int, flags: int, sequence: int, family: int = 0, payload: bytes = b"") -> bytes:
    """Return one netfilter request: netlink header, family, attributes."""
    return HEADER.pack(BODY + len(payload), kind, flags, sequence, 0) + GENERIC.pack(family, 0, 0) + payload


def error_for(number: int) -> ConntrackOperatorError:
    """Return the error that stands for the kernel's errno, as one sentence with the remedy."""
    text = os.strerror(number)
    if number in _PERMISSION:
        return Unsupported(f"reading connection tracking needs the NET_ADMIN capability ({text}); run as root")
    if number in _ABSENT:
        return Unsupported(
            f"this kernel does not answer ctnetlink requests ({text}); load its module: modprobe nf_conntrack_netlink"
        )
    if number == errno.ENOBUFS:
        return Retry("the kernel had no memory left for its netlink answer (ENOBUFS); ask again")
    return Retry(f"the kernel refused a netlink request: {text}; ask again")


def ends(buffer: bytes, at: int) -> bool:
    """Judge the message at `at`: true for the end of a dump or an acknowledgement, false for data or a no-op.

    Raises errors.Unsupported or errors.Retry for an error message, a failed or interrupted dump, or a cut message.
    """
    if at + HEADER.size > len(buffer):
        raise Retry("the kernel's netlink answer is cut short; ask again")
    length, kind, flags, _, _ = HEADER.unpack_from(buffer, at)
    if length < HEADER.size or at + length > len(buffer):
        raise Retry("the kernel's netlink answer is cut short; ask again")
    if flags & NLM_F_DUMP_INTR:
        raise Retry("the kernel's table changed its shape while it was read; ask again")
    if kind not in (NLMSG_ERROR, NLMSG_DONE):
        return False
    if length >= HEADER.size + _ERROR.size:  # both carry a negative errno, or 0
        (status,) = _ERROR.unpack_from(buffer, at + HEADER.size)
        if status < 0:
            raise error_for(-status) from OSError(-status, os.strerror(-status))
    return True


def _module_behind(protocol: int, request: bytes) -> str | None:
    """Return the module that answers `request`; None where it is none that the kernel would load for it."""
    if protocol == NETLINK_NETFILTER:
        return _MODULES.get(HEADER.unpack_from(request)[1] >> 8)
    if protocol == NETLINK_SOCK_DIAG:  # struct inet_diag_req_v2: family, then protocol
        return _DIAG_MODULES.get(request[HEADER.size + 1])
    return None


class Netlink:
    """One socket to the kernel's netfilter or another `protocol`, in the network namespace of the thread that made it.

    Any capability to open it; ctnetlink answers only with NET_ADMIN over the namespace. Linux 2.6.14 and newer.
    Raises errors.Unsupported when the kernel has no netfilter netlink at all; `autoload.NotLoaded`, which is one, where
    opening it, or a request, would load a kernel module within `autoload.loading_nothing`.
    """

    def __init__(self, protocol: int = NETLINK_NETFILTER) -> None:
        self._protocol = protocol
        if protocol == NETLINK_NETFILTER:
            autoload.about_to_ask(autoload.NFNETLINK)
        try:
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        except OSError as error:
            raise error_for(error.errno or errno.EPROTONOSUPPORT) from None
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", TIMEOUT_SECONDS, 0))
        self._socket.bind((0, 0))
        self._socket.connect((0, 0))  # a connected netlink socket hears the kernel alone
        self._buffer = bytearray(RECEIVE_BYTES)
        self._view = memoryview(self._buffer)
        self._sequence = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket; a dump that is under way stops in the kernel too."""
        self._socket.close()

    def messages(
        self, kind: int, *, dump: bool = False, family: int = 0, payload: bytes = b"", subsystem: int = CTNETLINK
    ) -> Iterator[bytes]:
        """Send one request and yield the messages of the answer, each with its header.

        `kind` is the message type of `subsystem`, `dump` asks for all objects. Raises errors.Unsupported (no module,
        no permission) and errors.Retry (interrupted, cut short, no answer within 5 seconds).
        """
        flags = NLM_F_REQUEST | (NLM_F_DUMP if dump else NLM_F_ACK)
        yield from self.answer(message(subsystem << 8 | kind, flags, self.next_sequence(), family, payload))

    def answer(self, request: bytes) -> Iterator[bytes]:
        """Send a request made with `next_sequence` and yield the messages of the answer. Raises as `messages` does."""
        for datagram in self.datagrams(request):
            at = 0
            while at < len(datagram):
                if ends(datagram, at):
                    return
                length, what, *_ = HEADER.unpack_from(datagram, at)
                if what != NLMSG_NOOP:
                    yield datagram[at : at + length]
                at += aligned(length)

    def outcomes(self, kind: int, flags: int, bodies: Sequence[tuple[int, bytes]]) -> list[int]:
        """Send one ctnetlink request for each of at most BATCH (family, attributes); return their errnos, 0 for done.

        All go in one datagram, and the kernel answers only what it refuses, and the last. Raises errors.Unsupported
        without the permission, and errors.Retry without an answer.
        """
        if not bodies:
            return []
        first = self._sequence + 1
        parts = []
        for number, (family, payload) in enumerate(bodies, 1):
            asked = NLM_F_REQUEST | flags | (NLM_F_ACK if number == len(bodies) else 0)
            parts.append(message(CTNETLINK << 8 | kind, asked, self.next_sequence(), family, payload))
        found = [0] * len(bodies)
        for datagram in self.datagrams(b"".join(parts), first):
            length, what, _, sequence, _ = HEADER.unpack_from(datagram)
            if what != NLMSG_ERROR or length < HEADER.size + _ERROR.size:
                raise Retry("the kernel answered an edit with something else than its outcome; try again")
            number = -_ERROR.unpack_from(datagram, HEADER.size)[0]
            if number in _PERMISSION:  # said once for the whole datagram
                raise error_for(number)
            found[sequence - first] = number
            if sequence == self._sequence:
                break
        return found

    def next_sequence(self) -> int:
        """Return the number for the next request; answers to an older one are thrown away."""
        self._sequence = self._sequence % 0xFFFF_FFFF + 1
        return self._sequence

    def datagrams(self, request: bytes, first: int | None = None) -> Iterator[bytes]:
        """Send a request made with `next_sequence` and yield the answer's datagrams as they come, without end.

        Each holds whole messages; the reader watches for the one that `ends` the answer and stops asking. Where the
        request is several, `first` is the number of the first of them.
        """
        numbers = range(self._sequence if first is None else first, self._sequence + 1)
        if module := _module_behind(self._protocol, request):
            autoload.about_to_ask(module)
        try:
            self._socket.send(request)
            while True:
                datagram = self._receive()
                if HEADER.unpack_from(datagram)[3] in numbers:
                    yield datagram
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EWOULDBLOCK):
                raise Retry(f"the kernel gave no netlink answer within {TIMEOUT_SECONDS} seconds; ask again") from None
            raise error_for(error.errno or errno.EIO) from None

    def _receive(self) -> bytes:
        # MSG_TRUNC makes the kernel report the full length of a datagram that does not fit.
        length = self._socket.recv_into(self._buffer, 0, socket.MSG_TRUNC)
        if not HEADER.size <= length <= RECEIVE_BYTES:
            raise Retry(f"a netlink answer of {length} bytes cannot be right or does not fit; ask again")
        return bytes(self._view[:length])
