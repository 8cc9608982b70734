"""A closer look at some of the table's entries: idle ones, and whose end of a service port is this machine.

Entries come in hash order, so the first are a fair sample. Each is decoded by its layout: about 5 µs. Needs NET_ADMIN.
"""

import ipaddress
from collections.abc import Collection, Mapping

from conntrack_operator.decide.flow_matching import TRANSLATED
from conntrack_operator.decide.symptoms import PortTraits, Traits
from conntrack_operator.decide.talkers import OFFLOAD, TCP_STATES, protocol_name
from conntrack_operator.model.catalogue import PREFIX as SYSCTL

from .flow_counting import PREFIX, PREFIXES_MAX, layout_among
from .flow_layout import Layout
from .flows import CT_GET
from .netlink import Netlink

ENTRIES = 16_384
"""Looked at. The half width of a share of one half is then 0.8 percentage points."""
_ESTABLISHED = TCP_STATES.index("ESTABLISHED")


def read_traits(
    local_addresses: Collection[str], sysctls: Mapping[str, int], idle_seconds: int, limit: int = ENTRIES
) -> Traits:
    """Look at the first `limit` entries. `local_addresses` are those of this namespace.

    An entry's idle time is what its timeout has run down, so entries made before the timeout was changed are not
    counted. Raises errors.Unsupported and errors.Retry as `flows.sample` does.
    """
    established = sysctls.get(f"{SYSCTL}nf_conntrack_tcp_timeout_established", 0)
    # With unacknowledged data a shorter timeout runs: what is left of it says nothing about silence.
    shorter = max(
        sysctls.get(f"{SYSCTL}nf_conntrack_tcp_timeout_{name}", 0) for name in ("unacknowledged", "max_retrans")
    )
    local = frozenset(ipaddress.ip_address(address).packed for address in local_addresses)
    layouts: dict[bytes, list[Layout]] = {}
    ports: dict[str, list[int]] = {}
    sampled = idle = 0
    with Netlink() as netlink:
        for entry in netlink.messages(CT_GET, dump=True):
            if sampled == limit:
                break
            sampled += 1
            if len(layouts) > PREFIXES_MAX:
                layouts.clear()
            layout = layout_among(layouts.setdefault(entry[:PREFIX], []), entry)
            left, status = layout.number(entry, "timeout") or 0, layout.number(entry, "status") or 0
            open_tcp = layout.number(entry, "tcp_state") == _ESTABLISHED and not status & OFFLOAD
            idle += open_tcp and shorter < left < established - idle_seconds
            port = layout.number(entry, "original.destination_port")
            if port is not None:
                counts = ports.setdefault(f"{port}/{protocol_name(layout.protocol)}", [0, 0, 0])
                counts[0] += 1
                # The reply comes from the serving end itself, also where NAT hides it.
                counts[1] += layout.value(entry, "reply.source") in local
                counts[2] += bool(status & TRANSLATED) or _is_translated(layout, entry)
    return Traits(sampled, idle, {key: PortTraits(*counts) for key, counts in ports.items()})


def _is_translated(layout: Layout, entry: bytes) -> bool:
    """Tell whether answers look otherwise than the mirror image of the request."""
    pairs = (
        ("original.source", "reply.destination"),
        ("original.destination", "reply.source"),
        ("original.source_port", "reply.destination_port"),
        ("original.destination_port", "reply.source_port"),
    )
    return any(layout.value(entry, there) != layout.value(entry, back) for there, back in pairs)
