"""The catalogue: every nf_conntrack_* sysctl, what it means, what it takes, and which field of a policy sets it.

The kernel registers them in net/netfilter/nf_conntrack_standalone.c unless an entry names another file. Ranges are
what the kernel's handler takes on every machine, less what would switch tracking off: its proc_dointvec_jiffies takes
zero and negative timeouts, which forget a flow at once, and ends at INT_MAX jiffies,
which is 2147483 s with the quickest clock (HZ=1000) and more with others. `tests/kernel/test_catalogue.py` holds the
table against the running kernel.
"""

from dataclasses import dataclass
from typing import Any, Literal

from .values import DURATION_MAX_SECONDS, INT_MAX

PREFIX = "net.netfilter."

Unit = Literal["seconds", "entries", "buckets", "bytes", "boolean", "count", "mode", "protocol"]
Scope = Literal["Initial", "Namespace"]
"""Where a key can be written. Initial: in the initial network namespace alone, 0444 in all others. Namespace: each has
its own."""

UINT_MAX = 4_294_967_295


@dataclass(frozen=True)
class Sysctl:
    """One key. `field` is the path below `spec` that sets it; empty when it is written under `spec.sysctls`."""

    name: str
    unit: Unit
    minimum: int
    maximum: int
    scope: Scope
    since: str
    """First kernel release that has it; nf_conntrack itself, as successor of ip_conntrack, came with 2.6.15."""
    field: str
    meaning: str
    until: str = ""
    """First kernel release that no longer has it; empty while it lives."""
    writable: bool = True
    source: str = "net/netfilter/nf_conntrack_standalone.c"

    @property
    def dotted(self) -> str:
        """The full name, as `sysctl` prints it."""
        return PREFIX + self.name


_FRAG6 = "net/ipv6/netfilter/nf_conntrack_reasm.c"
_HELPER = "net/netfilter/nf_conntrack_helper.c"
_ECACHE = "net/netfilter/nf_conntrack_ecache.c"
_UDPLITE = "net/netfilter/nf_conntrack_proto_udplite.c"


def _key(  # noqa: PLR0913, PLR0917 - the columns of a table
    name: str, unit: Unit, minimum: int, maximum: int, since: str, field: str, meaning: str, /, **rest: Any
) -> Sysctl:
    return Sysctl(
        name=f"nf_conntrack_{name}",
        unit=unit,
        minimum=minimum,
        maximum=maximum,
        since=since,
        field=field,
        meaning=meaning,
        **{"scope": "Namespace", **rest},
    )


def _timeout(name: str, since: str, field: str, meaning: str, /, **rest: Any) -> Sysctl:
    field = f"timeouts.{field}" if field else ""
    return _key(name, "seconds", 1, DURATION_MAX_SECONDS, since, field, meaning, **rest)


# One key a line can be read against the kernel's own table; the formatter would make it ten lines a key.
# fmt: off
CATALOGUE: tuple[Sysctl, ...] = (
    # name, unit, minimum, maximum, since, field, meaning
    _key("max", "entries", 1, INT_MAX, "2.6.15", "table.size",
         "Entries each network namespace may hold. The kernel takes 0 for no limit; refused here.", scope="Initial"),
    _key("buckets", "buckets", 1, INT_MAX, "2.6.15", "table.entriesPerBucket",
         "Hash buckets, rounded up to a page of them. Writable since 4.8.", scope="Initial"),
    _key("count", "entries", 0, INT_MAX, "2.6.15", "",
         "Entries in the table now.", writable=False),
    _key("expect_max", "entries", 1, INT_MAX, "2.6.15", "",
         "Expected connections (FTP data and the like) that may wait.", scope="Initial"),
    _key("frag6_low_thresh", "bytes", 0, UINT_MAX, "2.6.15", "",
         "Memory of waiting IPv6 fragments to shrink to; at most frag6_high_thresh.", source=_FRAG6),
    _key("frag6_high_thresh", "bytes", 0, UINT_MAX, "2.6.15", "",
         "Memory waiting IPv6 fragments may take; at least frag6_low_thresh.", source=_FRAG6),
    _key("checksum", "boolean", 0, 1, "2.6.18", "",
         "Call packets with a wrong checksum INVALID."),
    _key("log_invalid", "protocol", 0, 255, "2.6.15", "",
         "Log INVALID packets of this IP protocol; 255 logs all, 0 none."),
    _key("acct", "boolean", 0, 1, "2.6.27", "",
         "Count packets and bytes of every flow."),
    _key("timestamp", "boolean", 0, 1, "2.6.38", "",
         "Note when every flow began and ended. Needs CONFIG_NF_CONNTRACK_TIMESTAMP."),
    _key("events", "mode", 0, 2, "2.6.31", "",
         "Report changes by ctnetlink: 0 never, 1 always, 2 while somebody listens (since 5.19)."),
    _key("helper", "boolean", 0, 1, "3.5", "",
         "Attach helpers to flows automatically.", until="6.0", source=_HELPER),
    _key("tcp_loose", "boolean", 0, 1, "2.6.15", "tcp.loose",
         "Pick up TCP connections that were open before tracking saw them."),
    _key("tcp_be_liberal", "boolean", 0, 1, "2.6.15", "tcp.beLiberal",
         "Call only out-of-window resets INVALID."),
    _key("tcp_ignore_invalid_rst", "boolean", 0, 1, "5.14", "",
         "Do not call out-of-window resets INVALID."),
    _key("tcp_max_retrans", "count", 0, 255, "2.6.15", "",
         "Retransmissions without an answer before the shorter timeout applies."),
    _key("dccp_loose", "boolean", 0, 1, "2.6.26", "",
         "Pick up DCCP connections that were open before tracking saw them.", until="6.17"),
    # name, since, field below timeouts (none: spec.sysctls), meaning
    _timeout("tcp_timeout_syn_sent", "2.6.15", "tcp.synSent", "A SYN was seen, no answer yet."),
    _timeout("tcp_timeout_syn_recv", "2.6.15", "tcp.synRecv", "SYN and SYN-ACK were seen."),
    _timeout("tcp_timeout_established", "2.6.15", "tcp.established", "An open connection with no packets."),
    _timeout("tcp_timeout_fin_wait", "2.6.15", "tcp.finWait", "One side has closed."),
    _timeout("tcp_timeout_close_wait", "2.6.15", "tcp.closeWait", "The other side has closed."),
    _timeout("tcp_timeout_last_ack", "2.6.15", "tcp.lastAck", "Both have closed, the last ACK is missing."),
    _timeout("tcp_timeout_time_wait", "2.6.15", "tcp.timeWait", "Closed, waiting for stray packets."),
    _timeout("tcp_timeout_close", "2.6.15", "tcp.close", "A reset was seen."),
    _timeout("tcp_timeout_max_retrans", "2.6.15", "tcp.maxRetrans", "Retransmissions without an answer."),
    _timeout("tcp_timeout_unacknowledged", "2.6.30", "tcp.unacknowledged", "Data is not acknowledged."),
    _timeout("udp_timeout", "2.6.15", "udp.unreplied", "UDP in one direction, or a short exchange."),
    _timeout("udp_timeout_stream", "2.6.15", "udp.stream", "UDP in both directions for more than two seconds."),
    _timeout("icmp_timeout", "2.6.15", "icmp", "ICMP echo and the like."),
    _timeout("icmpv6_timeout", "2.6.15", "icmpv6", "ICMPv6 echo and the like."),
    _timeout("generic_timeout", "2.6.15", "generic", "Protocols without a tracker of their own."),
    _timeout("gre_timeout", "5.1", "gre.unreplied", "GRE in one direction."),
    _timeout("gre_timeout_stream", "5.1", "gre.stream", "GRE in both directions."),
    _timeout("sctp_timeout_closed", "2.6.15", "sctp.closed", "SCTP closed."),
    _timeout("sctp_timeout_cookie_wait", "2.6.15", "sctp.cookieWait", "SCTP INIT was seen."),
    _timeout("sctp_timeout_cookie_echoed", "2.6.15", "sctp.cookieEchoed", "SCTP COOKIE ECHO was seen."),
    _timeout("sctp_timeout_established", "2.6.15", "sctp.established", "An open SCTP association."),
    _timeout("sctp_timeout_shutdown_sent", "2.6.15", "sctp.shutdownSent", "SCTP SHUTDOWN was sent."),
    _timeout("sctp_timeout_shutdown_recd", "2.6.15", "sctp.shutdownRecd", "SCTP SHUTDOWN came in."),
    _timeout("sctp_timeout_shutdown_ack_sent", "2.6.15", "sctp.shutdownAckSent", "SCTP SHUTDOWN ACK was sent."),
    _timeout("sctp_timeout_heartbeat_sent", "4.3", "sctp.heartbeatSent", "SCTP HEARTBEAT was sent."),
    _timeout("sctp_timeout_heartbeat_acked", "4.3", "", "SCTP HEARTBEAT was answered.", until="6.2"),
    _timeout("dccp_timeout_request", "2.6.26", "dccp.request", "DCCP request.", until="6.17"),
    _timeout("dccp_timeout_respond", "2.6.26", "dccp.respond", "DCCP respond.", until="6.17"),
    _timeout("dccp_timeout_partopen", "2.6.26", "dccp.partopen", "DCCP partopen.", until="6.17"),
    _timeout("dccp_timeout_open", "2.6.26", "dccp.open", "DCCP open.", until="6.17"),
    _timeout("dccp_timeout_closereq", "2.6.26", "dccp.closereq", "DCCP closereq.", until="6.17"),
    _timeout("dccp_timeout_closing", "2.6.26", "dccp.closing", "DCCP closing.", until="6.17"),
    _timeout("dccp_timeout_timewait", "2.6.26", "dccp.timewait", "DCCP timewait.", until="6.17"),
    _timeout("frag6_timeout", "2.6.15", "", "Seconds IPv6 fragments wait for the rest.", source=_FRAG6),
    # trackers and timers of the past
    _timeout("udplite_timeout", "2.6.24", "", "UDP-Lite in one direction; udp_timeout since.",
             until="4.11", source=_UDPLITE),
    _timeout("udplite_timeout_stream", "2.6.24", "", "UDP-Lite in both directions; udp_timeout_stream since.",
             until="4.11", source=_UDPLITE),
    _timeout("events_retry_timeout", "2.6.31", "", "Between two tries to deliver a destroy event.",
             until="3.17", source=_ECACHE),
)
# fmt: on

BY_NAME = {entry.name: entry for entry in CATALOGUE}
BY_FIELD = {entry.field: entry for entry in CATALOGUE if entry.field}
OTHER = {entry.name: entry for entry in CATALOGUE if not entry.field and entry.writable}
"""The keys that `spec.sysctls` takes: those that have no field of their own."""
