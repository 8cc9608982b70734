"""Live entries that NAT has changed, at some ports: proof that a port is translated, whoever does it.

The kernel filters by status since 5.15 (ctnetlink_alloc_filter, net/netfilter/nf_conntrack_netlink.c); an older one
sends everything and it is filtered here. Needs NET_ADMIN.
"""

import socket
import struct
from collections.abc import Collection
from typing import NamedTuple

from conntrack_operator.decide.talkers import protocol_name
from conntrack_operator.model.surroundings import PortRanges

from .flow_counting import PREFIX, PREFIXES_MAX, layout_among
from .flow_layout import Layout
from .flows import CT_GET
from .netlink import Netlink, attribute

ENTRIES_MAX = 65_536
"""Looked at for each kind of translation; entries come in hash order, so these are a fair sample of more."""
STATUS, STATUS_MASK = 3, 26  # CTA_STATUS, CTA_STATUS_MASK
SOURCE_NAT, DESTINATION_NAT = 1 << 4, 1 << 5  # IPS_SRC_NAT, IPS_DST_NAT

Key = tuple[str, int]
"""Protocol in capitals, serving port."""


class Translated(NamedTuple):
    """One example in words for each (protocol, serving port)."""

    here: dict[Key, str]
    """The serving end, before or after translation, is an address of this node."""
    elsewhere: dict[Key, str]
    """Others serve: what this node asks for, or forwards."""


def read_translated(interest: PortRanges, local: Collection[bytes]) -> Translated:
    """Look for translated entries whose serving port is one of `interest`. `local` are this node's addresses, packed.

    At most 65,536 of each kind (SNAT, DNAT) are looked at. Raises errors.Unsupported and errors.Retry as
    `flows.sample` does.
    """
    found = Translated({}, {})
    for bit in (DESTINATION_NAT, SOURCE_NAT):
        layouts: dict[bytes, list[Layout]] = {}
        number = struct.pack(">I", bit)
        payload = attribute(STATUS, number) + attribute(STATUS_MASK, number)
        with Netlink() as netlink:
            for count, entry in enumerate(netlink.messages(CT_GET, dump=True, payload=payload)):
                if count == ENTRIES_MAX:
                    break
                if len(layouts) > PREFIXES_MAX:
                    layouts.clear()
                layout = layout_among(layouts.setdefault(entry[:PREFIX], []), entry)
                if (layout.number(entry, "status") or 0) & bit:
                    _look(layout, entry, interest, local, found)
    return found


def _look(layout: Layout, entry: bytes, interest: PortRanges, local: Collection[bytes], found: Translated) -> None:
    for port_field, address_field in (
        ("original.destination_port", "original.destination"),
        ("reply.source_port", "reply.source"),
    ):
        port = layout.number(entry, port_field)
        if port is None or not any(first <= port <= last for first, last in interest):
            continue
        side = found.here if layout.value(entry, address_field) in local else found.elsewhere
        side.setdefault((protocol_name(layout.protocol).upper(), port), _words(layout, entry))


def _words(layout: Layout, entry: bytes) -> str:
    ends = [
        _end(layout, entry, *names)
        for names in (
            ("original.source", "original.source_port"),
            ("original.destination", "original.destination_port"),
            ("reply.source", "reply.source_port"),
            ("reply.destination", "reply.destination_port"),
        )
    ]
    return f"{ends[0]} to {ends[1]} is answered by {ends[2]} to {ends[3]}"


def _end(layout: Layout, entry: bytes, address: str, port: str) -> str:
    raw = layout.value(entry, address)
    family = socket.AF_INET if len(raw) == 4 else socket.AF_INET6
    text = socket.inet_ntop(family, raw) if len(raw) in (4, 16) else "?"
    return f"[{text}]:{layout.number(entry, port)}" if ":" in text else f"{text}:{layout.number(entry, port)}"
