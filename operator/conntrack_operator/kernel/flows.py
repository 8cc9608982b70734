"""Flows: the entries of the table, read by a ctnetlink dump and counted as they come. Never /proc/net/nf_conntrack.

The kernel hands entries out in hash order, so the first of them are a fair sample of all: closing the socket there
ends the dump. Counting works on raw bytes in blocks of equal layout and keeps no flow, so memory grows with the number
of different keys (bounded by `talkers.KEYS_MAX`), not with the table. One network namespace, that of the
calling thread. Needs NET_ADMIN and nf_conntrack_netlink; Linux 2.6.14, kernel file net/netfilter/nf_conntrack_netlink.c
(ctnetlink_dump_table). A table that is resized meanwhile may show an entry twice or not at all.
"""

import socket
import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from conntrack_operator.decide.talkers import BY, SAMPLE_ENTRIES, By, Form, Kind, Sample, Tally, state_name
from conntrack_operator.errors import Retry

from .flow_layout import BLOCK_MESSAGES, Layout
from .netlink import CTNETLINK, HEADER, NLM_F_DUMP, NLM_F_REQUEST, Netlink, aligned, ends, message

CT_GET = 1  # IPCTNL_MSG_CT_GET

PREFIX = 32
"""Bytes from the start of a message to its source address: headers alone, the same for all entries of one family and
length within one dump. Messages are first sorted by these."""

_PREFIXES_MAX = 4096  # a kernel that orders attributes otherwise would make every prefix different
_GRE = 47  # its tuple carries call keys in place of ports


class Ends(NamedTuple):
    """One direction of a flow. Ports or ICMP numbers are None where the protocol has none."""

    source: str
    destination: str
    source_port: int | None
    destination_port: int | None
    icmp_type: int | None
    icmp_code: int | None
    icmp_id: int | None


class Flow(NamedTuple):
    """One entry of the table."""

    family: int
    """4 or 6."""
    protocol: int
    """IP protocol number."""
    original: Ends
    """As the first packet was seen."""
    reply: Ends
    """As answers must look; differs from the mirror image of `original` by what is translated."""
    state: str
    """ESTABLISHED and the like for TCP and SCTP, else ASSURED, REPLIED or UNREPLIED."""
    status: int
    """Bits of enum ip_conntrack_status."""
    zone: int
    """Conntrack zone of the original direction, 0 when none was set."""


def sample(limit: int | None = SAMPLE_ENTRIES, by: Sequence[By] = BY) -> Sample:
    """Count the first `limit` entries of both families, or all of them (None), by the given questions.

    65,536 entries cost about 0.15 s of CPU, 1,000,000 by one question 3 s; fewer questions cost less. Raises
    errors.Unsupported (no permission, no module) and errors.Retry (an interrupted or broken answer).
    """
    counting = _Counting(by)
    complete = False
    with Netlink() as netlink:
        request = message(CTNETLINK << 8 | CT_GET, NLM_F_REQUEST | NLM_F_DUMP, netlink.next_sequence())
        for datagram in netlink.datagrams(request):
            room = None if limit is None else limit - counting.entries
            complete = counting.take(datagram, room)
            if complete or counting.entries == limit:
                break
    counting.finish()
    return Sample(sampled=counting.entries, complete=complete, tallies=counting.tallies)


def read_flows(limit: int | None = None) -> Iterator[Flow]:
    """Yield the table's entries one by one, decoded in full: about 10 µs each. Raises as `sample` does."""
    layouts: dict[bytes, list[Layout]] = {}
    with Netlink() as netlink:
        for number, entry in enumerate(netlink.messages(CT_GET, dump=True)):
            if number == limit:
                return
            known = layouts.setdefault(entry[:PREFIX], [])
            yield _flow(_layout_among(known, entry), entry)
            if len(layouts) > _PREFIXES_MAX:
                layouts.clear()


def _flow(layout: Layout, entry: bytes) -> Flow:
    status = layout.number(entry, "status") or 0
    form, field = _state(layout)
    zone = layout.number(entry, "zone") or layout.number(entry, "original.zone") or 0
    return Flow(
        family=6 if len(layout.value(entry, "original.source")) == 16 else 4,
        protocol=layout.protocol,
        original=_ends(layout, entry, "original"),
        reply=_ends(layout, entry, "reply"),
        state=state_name(form, layout.value(entry, field)),
        status=status,
        zone=zone,
    )


def _ends(layout: Layout, entry: bytes, direction: str) -> Ends:
    source, destination = (
        _address(layout.value(entry, f"{direction}.{end}")) for end in ("source", "destination")
    )
    numbers = (layout.number(entry, f"{direction}.{name}") for name in Ends._fields[2:])
    return Ends(source, destination, *numbers)


def _address(raw: bytes) -> str:
    families = {4: socket.AF_INET, 16: socket.AF_INET6}
    return socket.inet_ntop(families[len(raw)], raw) if len(raw) in families else ""


def _state(layout: Layout) -> tuple[Form, str]:
    if "tcp_state" in layout.fields:
        return "tcp state", "tcp_state"
    if "sctp_state" in layout.fields:
        return "sctp state", "sctp_state"
    return "status", "status"


def _column(by: By, layout: Layout) -> tuple[Kind, str, bytes]:
    """Return what answers `by` in messages of this layout: the kind of key, its field, and its value when absent."""
    match by:
        case "source" | "destination":
            return Kind(by, 0, "address"), f"original.{by}", b""
        case "zone":
            return Kind(by, 0, "zone"), "zone" if "zone" in layout.fields else "original.zone", b"\0\0"
        case "state":
            form, field = _state(layout)
            return Kind(by, layout.protocol, form), field, b""
        case "port":
            if "original.icmp_type" in layout.fields:
                return Kind(by, layout.protocol, "icmp type"), "original.icmp_type", b""
            if "original.destination_port" in layout.fields and layout.protocol != _GRE:
                return Kind(by, layout.protocol, "port"), "original.destination_port", b""
            return Kind(by, layout.protocol, "no port"), "", b""


class _Counter:
    """Counts blocks of one layout: unpacks all wanted columns at once and hands each to its tally."""

    def __init__(self, layout: Layout, by: Sequence[By], tallies: dict[Kind, Tally]) -> None:
        self.layout = layout
        self._constants: list[tuple[Tally, bytes]] = []
        columns: list[tuple[int, int, Tally]] = []
        for question in by:
            kind, name, absent = _column(question, layout)
            tally = tallies.setdefault(kind, Tally())
            where = layout.fields.get(name)
            if where is None:
                self._constants.append((tally, absent))
            else:
                columns.append((where.start, where.stop, tally))
        columns.sort(key=lambda column: column[0])
        self._tallies = [tally for _, _, tally in columns]
        at, form = 0, "="
        for start, end, _ in columns:
            form += f"{start - at}x{end - start}s"
            at = end
        self._unpack = struct.Struct(f"{form}{layout.stride - at}x").iter_unpack

    def count(self, block: bytes, messages: int) -> None:
        if self._tallies:
            for tally, column in zip(self._tallies, zip(*self._unpack(block), strict=True), strict=True):
                tally.add(column)
        for tally, key in self._constants:
            tally.add_one(key, messages)


class _Pile:
    """Messages with the same first 32 bytes that wait to be counted, and the layouts met among them."""

    def __init__(self, stride: int) -> None:
        self.stride = stride
        self.waiting: list[bytes] = []
        self.layouts: list[Layout] = []


class _Counting:
    """One pass over the table."""

    def __init__(self, by: Sequence[By]) -> None:
        self.tallies: dict[Kind, Tally] = {}
        self.entries = 0
        self._by = by
        self._piles: dict[bytes, _Pile] = {}
        self._counters: dict[Layout, _Counter] = {}

    def take(self, datagram: bytes, room: int | None) -> bool:
        """Sort a datagram's messages into piles, at most `room` of them; true when the dump ended in it."""
        piles = self._piles
        at, size = 0, len(datagram)
        taken = 0
        while at < size and taken != room:
            # This loop runs once per entry: everything else is done per block.
            pile = piles.get(datagram[at : at + PREFIX])
            if pile is None:
                if ends(datagram, at):
                    self.entries += taken
                    return True
                pile = self._new_pile(datagram, at)
            pile.waiting.append(datagram[at : at + pile.stride])
            at += pile.stride
            taken += 1
        if at > size:
            raise Retry("the kernel's list of flows is cut short; ask again")
        self.entries += taken
        for pile in list(piles.values()):
            while len(pile.waiting) >= BLOCK_MESSAGES:
                self._count(pile, pile.waiting[:BLOCK_MESSAGES])
                del pile.waiting[:BLOCK_MESSAGES]
        return False

    def finish(self) -> None:
        """Count what still waits."""
        for pile in self._piles.values():
            if pile.waiting:
                self._count(pile, pile.waiting)
        self._piles.clear()

    def _new_pile(self, datagram: bytes, at: int) -> _Pile:
        if len(self._piles) >= _PREFIXES_MAX:
            self.finish()
        (length, kind, *_) = HEADER.unpack_from(datagram, at)
        if kind >> 8 != CTNETLINK:
            raise Retry("the kernel answered with something else than flows; ask again")
        pile = _Pile(aligned(length))
        self._piles[datagram[at : at + PREFIX]] = pile
        return pile

    def _count(self, pile: _Pile, messages: list[bytes]) -> None:
        block = b"".join(messages)
        first = _layout_among(pile.layouts, messages[0])
        if first.holds_for(block, len(messages)):
            self._counter(first).count(block, len(messages))
            return
        by_layout: dict[Layout, list[bytes]] = {}
        for entry in messages:
            by_layout.setdefault(_layout_among(pile.layouts, entry), []).append(entry)
        for layout, alike in by_layout.items():
            self._counter(layout).count(b"".join(alike), len(alike))

    def _counter(self, layout: Layout) -> _Counter:
        counter = self._counters.get(layout)
        if counter is None:
            counter = self._counters[layout] = _Counter(layout, self._by, self.tallies)
        return counter


def _layout_among(known: list[Layout], entry: bytes) -> Layout:
    for layout in known:
        if layout.holds_for(entry, 1):
            return layout
    layout = Layout(entry)
    known.append(layout)
    return layout
