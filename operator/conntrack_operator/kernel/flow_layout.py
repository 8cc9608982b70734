"""Layout of a conntrack message: where its fields lie, and how to tell that another message is laid out the same.

The kernel writes each attribute only when there is something to write (zone, helper, accounting, label, an offloaded
flow without protocol state ...), so messages of one length need not be alike: IPv6/UDP and IPv4/TCP both have 212
bytes on Linux 6.18. A layout is therefore known by every header on the way: length and type of each attribute, family
and protocol. `Layout.holds_for` compares these for a whole block of messages at once, as one large integer, in C.
Kernel file: net/netfilter/nf_conntrack_netlink.c (ctnetlink_fill_info).
"""

from functools import lru_cache
from typing import Any

from conntrack_operator.errors import Retry

from .netlink import ATTRIBUTE, BODY, aligned, attributes

BLOCK_MESSAGES = 256
"""Messages that are compared and unpacked at once; more saves nothing."""

_IP = {1: "source", 2: "destination", 3: "source", 4: "destination"}
_PROTO = {1: "protocol", 2: "source_port", 3: "destination_port"}
_PROTO |= {4: "icmp_id", 5: "icmp_type", 6: "icmp_code"}
_PROTO |= {7: "icmp_id", 8: "icmp_type", 9: "icmp_code"}  # of ICMPv6


def _tuple(direction: str) -> dict[int, Any]:
    def named(names: dict[int, str]) -> dict[int, str]:
        return {kind: f"{direction}.{name}" for kind, name in names.items()}

    return {1: named(_IP), 2: named(_PROTO), 3: f"{direction}.zone"}


# include/uapi/linux/netfilter/nfnetlink_conntrack.h: a name is a field, a dict a nest to look into.
_ENTRY: dict[int, Any] = {
    1: _tuple("original"),
    2: _tuple("reply"),
    3: "status",
    4: {1: {1: "tcp_state"}, 3: {1: "sctp_state"}},
    7: "timeout",
    18: "zone",
}

_FIXED = (*range(8), *range(16, BODY))  # of the headers all but sequence and port id


class Layout:
    """Where the fields of one kind of conntrack message lie: `fields` maps names like `original.source` to slices.

    `whole` maps the types of the outermost attributes to where they lie, headers and padding included.
    """

    def __init__(self, sample: bytes) -> None:
        if len(sample) < BODY:
            raise Retry("the kernel's list of flows holds a message without a body; ask again")
        self.length = len(sample)
        self.stride = aligned(len(sample))
        self.fields: dict[str, slice] = {}
        self._mask = bytearray(self.stride)
        for at in _FIXED:
            self._mask[at] = 0xFF
        self._look(sample, BODY, len(sample), _ENTRY)
        self.whole = {
            kind: slice(first - ATTRIBUTE.size, first + aligned(last - first))
            for kind, first, last in attributes(sample, BODY, len(sample))
        }
        self.protocol = sample[self.fields["original.protocol"].start] if "original.protocol" in self.fields else 0
        if "original.protocol" in self.fields:
            self._mask[self.fields["original.protocol"]] = b"\xff"
        self._template = bytes(value & mask for value, mask in zip(sample, self._mask, strict=False))
        self._template += bytes(self.stride - self.length)
        self._comparison = lru_cache(maxsize=2)(self._compare_with)  # whole blocks, and what is left at the end

    def _look(self, sample: bytes, start: int, end: int, names: dict[int, Any]) -> None:
        for kind, first, last in attributes(sample, start, end):
            self._mask[first - ATTRIBUTE.size : first] = b"\xff" * ATTRIBUTE.size
            name = names.get(kind)
            if isinstance(name, dict):
                self._look(sample, first, last, name)
            elif name is not None:
                self.fields[name] = slice(first, last)

    def _compare_with(self, count: int) -> tuple[int, int]:
        return int.from_bytes(bytes(self._mask) * count, "big"), int.from_bytes(self._template * count, "big")

    def holds_for(self, block: bytes, count: int) -> bool:
        """Tell whether `block` is `count` messages, `stride` bytes each, that are all laid out like this."""
        if len(block) != count * self.stride:
            raise Retry("the kernel's list of flows is cut short; ask again")
        mask, template = self._comparison(count)
        return int.from_bytes(block, "big") & mask == template

    def value(self, message: bytes, name: str) -> bytes:
        """Return a field's raw bytes, empty when these messages do not have it."""
        where = self.fields.get(name)
        return message[where] if where else b""

    def number(self, message: bytes, name: str) -> int | None:
        """Return a field as a number, None when these messages do not have it."""
        where = self.fields.get(name)
        return int.from_bytes(message[where], "big") if where else None
