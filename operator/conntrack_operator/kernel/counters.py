"""Counters: how full the table is and what it threw away, from ctnetlink's statistics.

Why not /proc: `nf_conntrack_stat_*` needs CONFIG_NF_CONNTRACK_PROCFS, which many distributions leave out
(node_exporter #2491). Kernel file: net/netfilter/nf_conntrack_netlink.c (ctnetlink_ct_stat_cpu_fill_info,
ctnetlink_stat_ct_fill_info). Speaks of one network namespace, that of the thread that opened the reader.
"""

import struct
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from conntrack_operator.errors import Retry, Unsupported

from .netlink import BODY, Netlink, attributes

GET_STATS_CPU = 4  # IPCTNL_MSG_CT_GET_STATS_CPU, Linux 3.5
GET_STATS = 5  # IPCTNL_MSG_CT_GET_STATS, Linux 3.5

GLOBAL_ENTRIES = 1  # CTA_STATS_GLOBAL_ENTRIES
GLOBAL_MAX_ENTRIES = 2  # CTA_STATS_GLOBAL_MAX_ENTRIES, Linux 4.18

WRAP = 2**32
"""Each CPU's counter is 32 bits wide and wraps; differences of sums are right modulo this."""

_NUMBER = struct.Struct(">I")

# enum ctattr_stats_cpu. Types 1, 3, 5, 6 and 7 (searched, new, ignore, delete, delete_list) are no longer used.
_FIELDS = {
    2: "found",
    4: "invalid",
    8: "insert",
    9: "insert_failed",
    10: "drop",
    11: "early_drop",
    12: "error",
    13: "search_restart",
    14: "clash_resolve",
    15: "chain_toolong",
}


@dataclass(frozen=True)
class Counters:
    """One reading. Counts are since this network namespace was made, all CPUs together, 0 where the kernel has none."""

    entries: int
    """Entries in the table now, expired ones that wait for their removal included."""
    max_entries: int
    """Entries the table may hold; 0 means no limit."""
    drop: int = 0
    """Packets of new flows dropped: the table was full and nothing could be thrown out; or they lost a collision, which
    insert_failed counts too."""
    early_drop: int = 0
    """Unassured entries thrown out to make room."""
    insert_failed: int = 0
    """Entries not inserted, mostly since an equal one was faster."""
    invalid: int = 0
    """Packets that fit no flow and could start none."""
    found: int = 0
    """Searches that met an entry while a unique tuple was looked for."""
    search_restart: int = 0
    """Searches begun anew, since the table was resized or an entry moved."""
    insert: int = 0
    """Entries inserted by ctnetlink; packets are no longer counted here (since Linux 4.10)."""
    error: int = 0
    """ICMP errors that could not be matched to a flow, and failed resets."""
    clash_resolve: int = 0
    """Clashes of two entries that were settled without loss. Linux 5.9 and newer."""
    chain_toolong: int = 0
    """Entries refused since their hash chain was too long. Linux 5.15 and newer."""


class CounterReader:
    """Reads the counters again and again over one open socket.

    Needs NET_ADMIN, nf_conntrack_netlink and Linux 4.18 (which reports the maximum); the constructor and `read` raise
    errors.Unsupported otherwise, errors.Retry for a passing fault. Not for use by two threads at once.
    """

    def __init__(self) -> None:
        self._netlink = Netlink()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket."""
        self._netlink.close()

    def read(self) -> Counters:
        """Return the counters as they are now. Two requests, about 0.1 ms of CPU on two CPUs."""
        sums = _sums_of(list(self._netlink.messages(GET_STATS_CPU, dump=True)))
        table = _sums_of(list(self._netlink.messages(GET_STATS)))
        if GLOBAL_ENTRIES not in table:
            raise Retry("the kernel answered without the number of conntrack entries; ask again")
        if GLOBAL_MAX_ENTRIES not in table:
            raise Unsupported("this kernel does not tell the table's maximum by ctnetlink; Linux 4.18 or newer does")
        counts = {name: sums[kind] for kind, name in _FIELDS.items() if kind in sums}
        return Counters(entries=table[GLOBAL_ENTRIES], max_entries=table[GLOBAL_MAX_ENTRIES], **counts)


def read_counters() -> Counters:
    """Return the counters of this thread's network namespace, once. Raises as `CounterReader` does."""
    with CounterReader() as reader:
        return reader.read()


def _sums_of(answers: list[bytes]) -> dict[int, int]:
    """Return the sum of each 32-bit attribute over all messages, by attribute type."""
    sums: dict[int, int] = {}
    for body in answers:
        for kind, start, end in attributes(body, BODY, len(body)):
            if end - start == _NUMBER.size:
                sums[kind] = sums.get(kind, 0) + _NUMBER.unpack_from(body, start)[0]
    return sums
