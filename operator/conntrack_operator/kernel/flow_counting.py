"""Counting flows: a dump's datagrams in, tallies of raw keys out, at next to no cost an entry.

Messages are sorted into piles by their first 32 bytes (headers alone), joined into blocks, compared with a known layout
at once, and their columns unpacked and counted in C. No flow is kept. Reads no socket, so tests feed it by hand.
"""

import struct
from collections.abc import Sequence

from conntrack_operator.decide.talkers import By, Form, Kind, Tally
from conntrack_operator.errors import Retry

from .flow_layout import BLOCK_MESSAGES, Layout
from .netlink import CTNETLINK, HEADER, aligned, ends

PREFIX = 32
"""Bytes from the start of a message to its source address: headers alone, the same for all entries of one family and
length within one dump."""

PREFIXES_MAX = 4096
"""Piles kept at once. A kernel that orders attributes otherwise would make every prefix different."""

_GRE = 47  # its tuple carries call keys in place of ports


def state_field(layout: Layout) -> tuple[Form, str]:
    """Return where messages of this layout tell the flow's state, and how to read it."""
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
            form, field = state_field(layout)
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


class Counting:
    """One pass over the table: `entries` were taken so far, `tallies` are whole after `finish`."""

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
        self._counters.clear()

    def _new_pile(self, datagram: bytes, at: int) -> _Pile:
        if len(self._piles) >= PREFIXES_MAX:
            self.finish()
        (length, kind, *_) = HEADER.unpack_from(datagram, at)
        if kind >> 8 != CTNETLINK:
            raise Retry("the kernel answered with something else than flows; ask again")
        pile = _Pile(aligned(length))
        self._piles[datagram[at : at + PREFIX]] = pile
        return pile

    def _count(self, pile: _Pile, messages: list[bytes]) -> None:
        block = b"".join(messages)
        first = layout_among(pile.layouts, messages[0])
        if first.holds_for(block, len(messages)):
            self._counter(first).count(block, len(messages))
            return
        by_layout: dict[Layout, list[bytes]] = {}
        for entry in messages:
            by_layout.setdefault(layout_among(pile.layouts, entry), []).append(entry)
        for layout, alike in by_layout.items():
            self._counter(layout).count(b"".join(alike), len(alike))

    def _counter(self, layout: Layout) -> _Counter:
        counter = self._counters.get(layout)
        if counter is None:
            counter = self._counters[layout] = _Counter(layout, self._by, self.tallies)
        return counter


def layout_among(known: list[Layout], entry: bytes) -> Layout:
    """Return the layout of `entry`; one that was not among the known ones is added to them."""
    for layout in known:
        if layout.holds_for(entry, 1):
            return layout
    layout = Layout(entry)
    known.append(layout)
    return layout
