"""Picking the few entries out of a table that somebody wants: by their ports, on raw bytes, as the dump comes.

A million entries cannot be decoded one by one on a node that has work to do. The kernel writes the original tuple
first, in one order (nf_conntrack_netlink.c, ctnetlink_dump_tuples), so protocol and ports stand at known places behind
the first 32 bytes, which tell family and length; they are looked up in a table of bytes, and only what is found
there is decoded by its layout. Nothing is kept but one read of the dump, at most 32 KiB.
"""

import struct
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from conntrack_operator.decide.flow_matching import Path
from conntrack_operator.errors import Retry

from .facts import COUNT
from .flow_counting import PREFIX, PREFIXES_MAX, layout_among
from .flow_layout import Layout
from .flows import CT_GET
from .netlink import BODY, CTNETLINK, HEADER, NLM_F_DUMP, NLM_F_REQUEST, Netlink, aligned, ends, message
from .roots import Roots
from .sysctl import read_sysctls

# Protocol number and ports, from the start of a message with addresses of 4 and of 16 bytes. Each attribute has a
# header of 4 and is padded to 4: tuple, addresses, two of them, protocol, its number, source port, destination port.
_PEEKS = {width: struct.Struct(f">{BODY + 4 + 4 + 2 * (4 + width) + 4 + 4}xB7xH6xH").unpack_from for width in (4, 16)}
_WIDTHS = {2: 4, 10: 16}  # AF_INET, AF_INET6
_TUPLE_ORIGINAL, _TUPLE_REPLY, _ID, _ZONE = 1, 2, 12, 18

_ENDS = ("source", "destination", "source_port", "destination_port")  # in the kernel's order
_Peek = Callable[[bytes, int], tuple[int, int, int]]


class Entry(NamedTuple):
    """One entry that has ports, and what finds it again."""

    family: int
    """AF_INET or AF_INET6, as the kernel numbers them."""
    original: Path
    """As the first packet was seen."""
    reply: Path
    """As answers must look; differs from the way back of `original` by what is translated."""
    status: int
    """Bits of enum ip_conntrack_status."""
    zone: int
    """Conntrack zone, 0 when none was set."""
    identity: bytes
    """The attributes by which ctnetlink finds this entry: tuple and zone."""
    number: bytes
    """CTA_ID, the attribute that tells it from a later entry with the same tuple and zone."""


def read_entries(ports: Mapping[int, bytes]) -> Iterator[Entry]:
    """Yield the entries of both families whose original source or destination port is wanted.

    `ports` are 65,536 bytes by IP protocol number, 1 for a port that is wanted. Raises errors.Unsupported (no
    permission, no module) and errors.Retry (an interrupted or broken answer). Needs NET_ADMIN and nf_conntrack_netlink.

    All network namespaces share one hash, and the kernel walks it all: with no entry here it is not asked. Tried on
    6.18: 9 ms for 262,144 empty buckets, 230 ms where they hold a million entries of others.
    """
    if not ports or read_sysctls(Roots(), [COUNT]).get(COUNT) == 0:
        return
    with Netlink() as netlink:
        request = message(CTNETLINK << 8 | CT_GET, NLM_F_REQUEST | NLM_F_DUMP, netlink.next_sequence())
        selection = Selection(ports)
        for datagram in netlink.datagrams(request):
            yield from selection.take(datagram)
            if selection.complete:
                return


class Selection:
    """One pass over the table: `complete` once the end of the dump was taken. Reads no socket."""

    def __init__(self, ports: Mapping[int, bytes]) -> None:
        self.complete = False
        self._ports = ports
        self._kinds: dict[bytes, _Kind] = {}

    def take(self, datagram: bytes) -> Iterator[Entry]:
        """Yield the wanted entries of a datagram."""
        kinds, wanted = self._kinds, self._ports
        at, size = 0, len(datagram)
        while at < size:
            # This loop runs once per entry of the table.
            kind = kinds.get(datagram[at : at + PREFIX])
            if kind is None:
                if ends(datagram, at):
                    self.complete = True
                    return
                kind = self._new_kind(datagram, at)
            protocol, source_port, destination_port = kind.peek(datagram, at)
            ports = wanted.get(protocol)
            if ports is not None and (ports[destination_port] or ports[source_port]):
                yield kind.entry(datagram[at : at + kind.length])
            at += kind.stride
        if at > size:
            raise Retry("the kernel's list of flows is cut short; ask again")

    def _new_kind(self, datagram: bytes, at: int) -> "_Kind":
        if len(self._kinds) >= PREFIXES_MAX:
            self._kinds.clear()
        (length, what, *_) = HEADER.unpack_from(datagram, at)
        width = _WIDTHS.get(datagram[at + HEADER.size])
        if what >> 8 != CTNETLINK or width is None or length < BODY + 20 + 2 * width + 32:
            raise Retry("the kernel answered with something else than flows; ask again")
        kind = self._kinds[datagram[at : at + PREFIX]] = _Kind(length, width)
        return kind


class _Kind:
    """Messages with the same first 32 bytes: where their ports stand, and the layouts met among them."""

    def __init__(self, length: int, width: int) -> None:
        self.length = length
        self.stride = aligned(length)
        self.peek: _Peek = _PEEKS[width]
        self._layouts: list[Layout] = []
        self._readers: dict[Layout, Callable[[bytes], Entry]] = {}

    def entry(self, found: bytes) -> Entry:
        layout = layout_among(self._layouts, found)
        reader = self._readers.get(layout)
        if reader is None:
            reader = self._readers[layout] = _reader(layout)
        return reader(found)


def _reader(layout: Layout) -> Callable[[bytes], Entry]:
    """Return a decoder for entries of `layout`: one unpacking, and slices."""
    names = [f"{direction}.{end}" for direction in ("original", "reply") for end in _ENDS]
    try:
        places = [layout.fields[name] for name in [*names, "status"]]
        number = layout.whole[_ID]
    except KeyError as error:
        raise Retry(f"the kernel's list of flows holds one without {error}; ask again") from None
    at, form = 0, ">"
    for place in places:
        letters = {1: "B", 2: "H", 4: "4s", 16: "16s"}
        form += f"{place.start - at}x" + letters[place.stop - place.start]
        at = place.stop
    unpack = struct.Struct(form).unpack_from
    protocol = layout.protocol
    # A zone of the reply direction alone stands in the reply's tuple, and is found by that alone.
    first = _TUPLE_REPLY if "reply.zone" in layout.fields else _TUPLE_ORIGINAL
    identity = [layout.whole[kind] for kind in (first, _ZONE) if kind in layout.whole]
    zone = next(
        (layout.fields[name] for name in ("zone", "original.zone", "reply.zone") if name in layout.fields), None
    )

    def read(found: bytes) -> Entry:
        source, destination, source_port, destination_port, *back, status = unpack(found)
        return Entry(
            found[HEADER.size],
            Path(protocol, source, source_port, destination, destination_port),
            Path(protocol, back[0], back[2], back[1], back[3]),
            int.from_bytes(status, "big"),
            int.from_bytes(found[zone], "big") if zone is not None else 0,
            b"".join([found[place] for place in identity]),
            found[number],
        )

    return read
