"""A closer look at some of the table's entries: idle ones, and whose end of a service port is this machine.

Entries come in hash order, so the first are a fair sample. Each is decoded by its layout: about 5 µs. Needs NET_ADMIN.
"""

import socket
from collections.abc import Collection, Mapping
from pathlib import Path

from conntrack_operator.decide.symptoms import PortTraits, Traits
from conntrack_operator.decide.talkers import OFFLOAD, TCP_STATES, protocol_name
from conntrack_operator.model.catalogue import PREFIX as SYSCTL

from .flow_counting import PREFIX, PREFIXES_MAX, layout_among
from .flow_layout import Layout
from .flows import CT_GET
from .netlink import Netlink
from .roots import Roots

ENTRIES = 16_384
"""Looked at. The half width of a share of one half is then 0.8 percentage points."""
TRANSLATED = 1 << 4 | 1 << 5  # IPS_SRC_NAT, IPS_DST_NAT
_ESTABLISHED = TCP_STATES.index("ESTABLISHED")


def read_traits(
    local: Collection[bytes], sysctls: Mapping[str, int], idle_seconds: int, limit: int = ENTRIES
) -> Traits:
    """Look at the first `limit` entries. `local` are this namespace's addresses, packed.

    An entry's idle time is what its timeout has run down, so entries made before the timeout was changed are not
    counted. Raises errors.Unsupported and errors.Retry as `flows.sample` does.
    """
    established = sysctls.get(f"{SYSCTL}nf_conntrack_tcp_timeout_established", 0)
    # With unacknowledged data a shorter timeout runs: what is left of it says nothing about silence.
    shorter = max(
        sysctls.get(f"{SYSCTL}nf_conntrack_tcp_timeout_{name}", 0) for name in ("unacknowledged", "max_retrans")
    )
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


def local_addresses(roots: Roots) -> frozenset[bytes]:
    """Return the addresses of this network namespace, packed, from /proc/net: without those of the loopback network."""
    found = set(_ipv4_in(roots.proc / "net/fib_trie"))
    try:
        for line in (roots.proc / "net/if_inet6").read_text().splitlines():
            found.add(bytes.fromhex(line.split()[0]))
    except (OSError, ValueError, IndexError):
        pass
    return frozenset(found)


def _ipv4_in(path: Path) -> "set[bytes]":
    """Return the addresses that the routing trie calls `host LOCAL`; each stands a line above."""
    found: set[bytes] = set()
    try:
        address = ""
        with path.open() as lines:
            for line in lines:
                bare = line.strip()
                if bare.startswith(("|--", "+--")):
                    address = bare[3:].strip().partition("/")[0]
                elif bare.startswith("/32 host LOCAL") and address:
                    found.add(socket.inet_aton(address))
    except OSError:
        pass
    return found


def _is_translated(layout: Layout, entry: bytes) -> bool:
    """Tell whether answers look otherwise than the mirror image of the request."""
    pairs = (
        ("original.source", "reply.destination"),
        ("original.destination", "reply.source"),
        ("original.source_port", "reply.destination_port"),
        ("original.destination_port", "reply.source_port"),
    )
    return any(layout.value(entry, there) != layout.value(entry, back) for there, back in pairs)
