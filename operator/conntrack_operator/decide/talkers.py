"""Talkers: who holds the table's entries, from counts of raw keys, with an honest error where they are a sample.

Pure arithmetic and names; `kernel.flows` does the counting. Keys stay the kernel's raw bytes until here,
so that text is made for the few winners and not for a million entries.
"""

import heapq
import ipaddress
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, get_args

from conntrack_operator.model.node import Talker

By = Literal["source", "destination", "port", "state", "zone"]
BY: tuple[By, ...] = get_args(By)
STATUS_BY: tuple[Literal["source", "destination", "port", "state"], ...] = ("source", "destination", "port", "state")
"""What a node's status tells; zones are a matter for `top`."""

SAMPLE_ENTRIES = 65_536
"""Entries of a sample. The half width of a share of one half is then at most 0.4 percentage points."""

KEYS_MAX = 262_144
"""Different keys that are counted one by one; beyond this the rarest are let go and the error says so."""

Z_95 = 1.959964
"""Standard normal quantile of 97.5 %: what lies inside plus and minus this is 95 %."""

PROTOCOLS = {
    1: "ICMP", 6: "TCP", 17: "UDP", 33: "DCCP", 41: "IPv6-in-IP", 47: "GRE", 50: "ESP", 51: "AH",
    58: "ICMPv6", 89: "OSPF", 112: "VRRP", 132: "SCTP", 136: "UDPLITE",
}  # fmt: skip
"""Names of IP protocol numbers, as a person expects them."""

# enum tcp_conntrack (include/uapi/linux/netfilter/nf_conntrack_tcp.h)
TCP_STATES = (
    "NONE", "SYN_SENT", "SYN_RECV", "ESTABLISHED", "FIN_WAIT", "CLOSE_WAIT", "LAST_ACK", "TIME_WAIT", "CLOSE",
    "SYN_SENT2",
)  # fmt: skip
# enum sctp_conntrack (include/uapi/linux/netfilter/nf_conntrack_sctp.h)
SCTP_STATES = (
    "NONE", "CLOSED", "COOKIE_WAIT", "COOKIE_ECHOED", "ESTABLISHED", "SHUTDOWN_SENT", "SHUTDOWN_RECD",
    "SHUTDOWN_ACK_SENT", "HEARTBEAT_SENT", "HEARTBEAT_ACKED",
)  # fmt: skip

# enum ip_conntrack_status (include/uapi/linux/netfilter/nf_conntrack_common.h)
SEEN_REPLY = 1 << 1
ASSURED = 1 << 2
OFFLOAD = 1 << 14

Form = Literal["address", "port", "icmp type", "no port", "tcp state", "sctp state", "status", "zone"]


class Kind(NamedTuple):
    """What a tally's raw keys are: the question they answer, their IP protocol (0 = any) and how to read the bytes."""

    by: By
    protocol: int
    form: Form


@dataclass
class Tally:
    """Counts raw keys in bounded memory. A count is right, or short by at most `undercount` once keys were let go."""

    capacity: int = KEYS_MAX
    counts: Counter[bytes] = field(default_factory=Counter)
    undercount: int = 0

    def add(self, keys: Iterable[bytes]) -> None:
        """Count each of `keys` once."""
        self.counts.update(keys)
        if len(self.counts) > self.capacity:
            self._let_go()

    def add_one(self, key: bytes, times: int) -> None:
        """Count `key` several times."""
        self.counts[key] += times

    def _let_go(self) -> None:
        # Misra-Gries: taking the same from all keys and dropping what is used up keeps every large key.
        cut = sorted(self.counts.values())[len(self.counts) // 2]
        self.counts = Counter({key: count - cut for key, count in self.counts.items() if count > cut})
        self.undercount += cut


@dataclass(frozen=True)
class Sample:
    """What was counted: `sampled` entries, all of the table when `complete`."""

    sampled: int
    complete: bool
    tallies: Mapping[Kind, Tally]


@dataclass(frozen=True)
class Row:
    """One key, with its entries scaled to the whole table."""

    key: str
    """Address, `80/TCP`, `TCP ESTABLISHED` or number of the zone."""
    entries: int
    """Entries of the table that have this key."""
    share: float
    """Fraction of the table's entries, 0 to 1."""
    error: float
    """Half width of the 95 % interval of `share`, in the same unit; 0 when every entry was counted."""


@dataclass(frozen=True)
class Top:
    """The keys with most entries, largest first."""

    sampled: int
    """Entries that were read."""
    entries: int
    """Entries of the table."""
    rows: tuple[Row, ...]


def top_of(sample: Sample, by: By, count: int, total_entries: int) -> Top:
    """Return the `count` largest keys of `sample`, scaled to a table of `total_entries` (ignored when complete)."""
    total = sample.sampled if sample.complete else max(total_entries, sample.sampled)
    rows = [_row(key, seen, missed, sample.sampled, total) for key, seen, missed in _largest(sample, by, count)]
    return Top(sampled=sample.sampled, entries=total, rows=tuple(rows))


def talkers_in(sample: Sample, count: int, total_entries: int) -> list[Talker]:
    """Return the `count` largest sources, destinations, ports and states each, as a node's status shows them."""
    return [
        Talker(by=by, key=row.key, entries=row.entries, percent=int(row.share * 100))
        for by in STATUS_BY
        for row in top_of(sample, by, count, total_entries).rows
    ]


def half_width(seen: int, sampled: int, total: int) -> float:
    """Return half the width of the 95 % Wilson interval of seen / sampled, a sample without repeats of `total`.

    Wilson's interval keeps a width where all or none of a sample has the key; the plain one would call that exact.
    """
    if sampled >= total:
        return 0.0
    share = seen / sampled
    z2 = Z_95 * Z_95
    spread = math.sqrt(share * (1 - share) / sampled + z2 / (4 * sampled * sampled))
    return Z_95 * spread / (1 + z2 / sampled) * math.sqrt((total - sampled) / (total - 1))


def protocol_name(protocol: int) -> str:
    """Return the name of an IP protocol number, or `protocol 99`."""
    return PROTOCOLS.get(protocol, f"protocol {protocol}")


def state_name(form: Form, raw: bytes) -> str:
    """Return a flow's state without its protocol: ESTABLISHED and the like, or what the status bits say."""
    number = int.from_bytes(raw, "big")
    if form in ("tcp state", "sctp state"):
        names = TCP_STATES if form == "tcp state" else SCTP_STATES
        return names[number] if number < len(names) else f"state {number}"
    if number & OFFLOAD:
        return "OFFLOADED"
    if number & ASSURED:
        return "ASSURED"
    return "REPLIED" if number & SEEN_REPLY else "UNREPLIED"


def key_text(kind: Kind, raw: bytes) -> str:
    """Return a raw key as people read it."""
    match kind.form:
        case "address":
            return str(ipaddress.ip_address(raw)) if len(raw) in (4, 16) else "unknown"
        case "zone":
            return str(int.from_bytes(raw, "big"))
        case "port":
            return f"{int.from_bytes(raw, 'big')}/{protocol_name(kind.protocol)}"
        case "icmp type":
            return f"type {int.from_bytes(raw, 'big')}/{protocol_name(kind.protocol)}"
        case "no port":
            return protocol_name(kind.protocol)
        case _:
            return f"{protocol_name(kind.protocol)} {state_name(kind.form, raw)}"


def _row(key: str, seen: int, missed: int, sampled: int, total: int) -> Row:
    share = seen / sampled
    error = half_width(seen, sampled, total) + missed / sampled
    return Row(key=key, entries=round(share * total), share=share, error=min(error, 1.0))


def _largest(sample: Sample, by: By, count: int) -> list[tuple[str, int, int]]:
    """Return (text, entries seen, entries it may be short of), largest first, equal ones in the order of their text."""
    merged: dict[str, tuple[int, int]] = {}
    for kind, raw, seen, missed in _candidates(sample, by, count):
        text = key_text(kind, raw)
        before = merged.get(text, (0, 0))
        merged[text] = (before[0] + seen, before[1] + missed)
    ranked = sorted(merged.items(), key=lambda item: (-item[1][0], item[0]))
    return [(text, seen, missed) for text, (seen, missed) in ranked[:count]]


def _candidates(sample: Sample, by: By, count: int) -> Iterator[tuple[Kind, bytes, int, int]]:
    for kind, tally in sample.tallies.items():
        if kind.by != by:
            continue
        # Many status words read the same, so all of those count; elsewhere one raw key is one text.
        keep = len(tally.counts) if by == "state" else count
        best = heapq.nsmallest(keep, tally.counts.items(), key=lambda item: (-item[1], item[0]))
        yield from ((kind, raw, seen, tally.undercount) for raw, seen in best)
