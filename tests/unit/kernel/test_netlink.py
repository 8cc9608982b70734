"""Netlink framing, against hand-made answers of a kernel that is cut short, refuses, or lies."""

import errno
import socket
import struct
from collections.abc import Iterator

import pytest

from conntrack_operator.errors import ConntrackOperatorError, Retry, Unsupported
from conntrack_operator.kernel.netlink import (
    BODY,
    RECEIVE_BYTES,
    Netlink,
    attribute,
    attributes,
    ends,
    error_for,
    message,
)


def answer(kind: int, payload: bytes = b"", flags: int = 0, sequence: int = 1, length: int | None = None) -> bytes:
    """Return one message as a kernel would send it; `length` overrides what its header claims."""
    size = 16 + len(payload) if length is None else length
    return struct.pack("=IHHII", size, kind, flags, sequence, 0) + payload


def done(status: int = 0, sequence: int = 1) -> bytes:
    """Return the end of a dump."""
    return answer(3, struct.pack("=i", status), sequence=sequence)


def error(number: int, sequence: int = 1) -> bytes:
    """Return an NLMSG_ERROR; 0 is an acknowledgement."""
    return answer(2, struct.pack("=i", -number) + bytes(16), sequence=sequence)


@pytest.fixture
def kernel() -> Iterator[tuple[Netlink, socket.socket]]:
    """Give a Netlink whose other end is in the test's hand."""
    netlink = Netlink()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    netlink._socket.close()
    netlink._socket = ours
    ours.settimeout(0.2)
    with netlink, theirs:
        theirs.settimeout(1)
        yield netlink, theirs


def test_attributes_are_walked_with_flags_removed_and_padding_skipped() -> None:
    """Lengths that are no multiple of four and the NESTED flag do not disturb the walk; unknown types are yielded."""
    body = attribute(0x8001, b"abcde") + attribute(999, b"") + attribute(2, b"xy")
    found = [(kind, body[start:end]) for kind, start, end in attributes(body, 0, len(body))]
    assert found == [(1, b"abcde"), (999, b""), (2, b"xy")]


@pytest.mark.parametrize(
    "body",
    [struct.pack("=HH", 12, 1) + b"1234", struct.pack("=HH", 3, 1), struct.pack("=HH", 0, 0) + bytes(8)],
    ids=["longer than the buffer", "shorter than its header", "length zero"],
)
def test_a_broken_attribute_is_an_error_and_no_endless_loop(body: bytes) -> None:
    """An attribute whose length cannot be true ends the walk with errors.Retry."""
    with pytest.raises(Retry, match="cut short inside an attribute"):
        list(attributes(body, 0, len(body)))


@pytest.mark.parametrize(
    ("number", "kind", "words"),
    [
        (errno.EPERM, Unsupported, "NET_ADMIN.*run as root"),
        (errno.EINVAL, Unsupported, "modprobe nf_conntrack_netlink"),
        (errno.EOPNOTSUPP, Unsupported, "modprobe nf_conntrack_netlink"),
        (errno.ENOBUFS, Retry, "ENOBUFS"),
        (errno.EBUSY, Retry, "busy"),
    ],
)
def test_each_errno_says_what_to_do(number: int, kind: type[ConntrackOperatorError], words: str) -> None:
    """What a person can cure is Unsupported with the cure; what passes by itself is Retry."""
    found = error_for(number)
    assert type(found) is kind
    assert "\n" not in str(found)
    with pytest.raises(kind, match=f"(?i){words}"):
        raise found
    with pytest.raises(kind):
        ends(error(number), 0)


@pytest.mark.parametrize(
    ("datagram", "verdict"),
    [(done(), True), (error(0), True), (answer(3), True), (answer(0x100, bytes(8)), False), (answer(1), False)],
    ids=["done", "acknowledged", "done without status", "data", "no-op"],
)
def test_the_end_of_an_answer_is_recognised(datagram: bytes, verdict: bool) -> None:
    """DONE and an acknowledgement end an answer, data and no-ops do not."""
    assert ends(datagram, 0) is verdict


@pytest.mark.parametrize(
    ("datagram", "words"),
    [
        (b"1234", "cut short"),
        (answer(0x100, length=400), "cut short"),
        (answer(0x100, length=8), "cut short"),
        (answer(0x100, bytes(8), flags=0x10), "while it was read"),
        (done(-errno.EINTR), "Interrupted"),
    ],
    ids=["no header", "longer than the datagram", "shorter than a header", "dump interrupted", "dump failed"],
)
def test_a_broken_or_interrupted_answer_asks_for_another_try(datagram: bytes, words: str) -> None:
    """None of these may be taken for data or for a normal end."""
    with pytest.raises(Retry, match=words):
        ends(datagram, 0)


def test_a_dump_is_read_over_datagrams_to_its_end(kernel: tuple[Netlink, socket.socket]) -> None:
    """Messages come out in order, several a datagram; no-ops and answers to an older request are left out."""
    netlink, far = kernel
    far.send(answer(0x100, b"old!" * 2, sequence=77))
    far.send(answer(0x100, b"one_") + answer(1) + answer(0x100, b"two_"))
    far.send(answer(0x100, b"3rd_") + done())
    assert [found[16:] for found in netlink.messages(1, dump=True)] == [b"one_", b"two_", b"3rd_"]
    assert far.recv(100) == message(0x101, 0x301, 1)


def test_an_error_after_data_is_not_lost(kernel: tuple[Netlink, socket.socket]) -> None:
    """A dump that fails half way raises, so nobody takes half a table for a whole one."""
    netlink, far = kernel
    far.send(answer(0x100, b"one_"))
    far.send(done(-errno.ENOMEM))
    reader = netlink.messages(1, dump=True)
    assert next(reader)[16:] == b"one_"
    with pytest.raises(Retry, match="memory"):
        next(reader)


def test_silence_and_oversize_are_errors(kernel: tuple[Netlink, socket.socket]) -> None:
    """A kernel that says nothing, or more than the buffer holds, never blocks or truncates in silence."""
    netlink, far = kernel
    netlink._socket.setblocking(False)
    with pytest.raises(Retry, match="no netlink answer within"):
        list(netlink.messages(1))
    far.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * RECEIVE_BYTES)
    far.send(bytes(RECEIVE_BYTES + 1))
    with pytest.raises(Retry, match="does not fit"):
        list(netlink.messages(1))


def test_a_request_has_the_kernels_layout() -> None:
    """Header, family and attributes stand where nfnetlink.h has them."""
    request = message(0x101, 0x301, 9, family=socket.AF_INET6, payload=attribute(18, b"\x00\x05"))
    assert struct.unpack_from("=IHHII", request) == (28, 0x101, 0x301, 9, 0)
    assert request[16:BODY] == bytes([socket.AF_INET6, 0, 0, 0])
    assert request[BODY:] == struct.pack("=HH", 6, 18) + b"\x00\x05\x00\x00"


def refused(sequence: int, number: int) -> bytes:
    """Return the outcome of one request of several."""
    return answer(2, struct.pack("=i", -number) + bytes(16), sequence=sequence)


def test_outcomes_are_told_apart_by_their_numbers(kernel: tuple[Netlink, socket.socket]) -> None:
    """The kernel speaks of what it refuses and of the last; the others are done. An older answer is thrown away."""
    netlink, theirs = kernel
    netlink.next_sequence()
    for said in (refused(1, errno.EIO), refused(3, errno.ENOENT), refused(5, 0)):
        theirs.send(said)
    assert netlink.outcomes(0, 0x400, [(2, b""), (10, b"abcd"), (2, b""), (2, b"")]) == [0, errno.ENOENT, 0, 0]
    sent, parts = theirs.recv(1000), []
    while sent:
        (length,) = struct.unpack_from("=I", sent)
        parts.append(struct.unpack_from("=HHI4xB", sent, 4))
        sent = sent[length:]
    assert parts == [(0x100, 0x401, 2, 2), (0x100, 0x401, 3, 10), (0x100, 0x401, 4, 2), (0x100, 0x405, 5, 2)]


def test_a_missing_permission_is_said_once_for_all_edits(kernel: tuple[Netlink, socket.socket]) -> None:
    """nfnetlink answers the first request alone (nfnetlink_rcv in net/netfilter/nfnetlink.c)."""
    netlink, theirs = kernel
    theirs.send(refused(1, errno.EPERM))
    with pytest.raises(Unsupported, match="NET_ADMIN"):
        netlink.outcomes(2, 0, [(2, b"")] * 3)


def test_no_edits_are_not_sent(kernel: tuple[Netlink, socket.socket]) -> None:
    """An empty datagram would get no answer."""
    netlink, _ = kernel
    assert netlink.outcomes(2, 0, []) == []
