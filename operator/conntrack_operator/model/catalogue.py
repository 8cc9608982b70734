"""The catalogue: every nf_conntrack_* sysctl, what it means, and which field of a policy sets it.

The kernel registers them in net/netfilter/nf_conntrack_standalone.c (the 6.18 tree unless an entry says otherwise). Scope tells
where a key can be written: `Initial` keys are 0444 outside the initial network namespace, `Namespace` keys
are everywhere their own. Timeouts are shown in seconds and kept in jiffies (proc_dointvec_jiffies).
"""

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BeforeValidator

from .rules import Rule
from .values import DURATION_MAX_SECONDS, INT_MAX

PREFIX = "net.netfilter."

Unit = Literal["seconds", "entries", "buckets", "bytes", "boolean", "count", "mode", "protocol"]
Scope = Literal["Initial", "Namespace"]


@dataclass(frozen=True)
class Sysctl:
    """One key. `field` is the path below `spec` that sets it; empty when it is written under `spec.sysctls`."""

    name: str
    unit: Unit
    minimum: int
    maximum: int
    scope: Scope
    since: str
    """First kernel release that has it."""
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


def _timeout(name: str, field: str, meaning: str, since: str = "2.6.12", until: str = "", source: str = "") -> Sysctl:
    return Sysctl(
        name=name,
        unit="seconds",
        minimum=1,
        maximum=DURATION_MAX_SECONDS,
        scope="Namespace",
        since=since,
        until=until,
        field=f"timeouts.{field}",
        meaning=meaning,
        source=source or Sysctl.source,
    )


CATALOGUE: tuple[Sysctl, ...] = (
    Sysctl(
        "nf_conntrack_max", "entries", 1, INT_MAX, "Initial", "2.6.12", "table.size",
        "Entries each network namespace may hold. 0 means no limit and is refused here.",
    ),
    Sysctl(
        "nf_conntrack_buckets", "buckets", 1, INT_MAX, "Initial", "2.6.12", "table.entriesPerBucket",
        "Hash buckets, rounded up to a page of them. Writable since 4.8.",
    ),
    Sysctl(
        "nf_conntrack_count", "entries", 0, INT_MAX, "Namespace", "2.6.12", "",
        "Entries in the table now.", writable=False,
    ),
    Sysctl(
        "nf_conntrack_expect_max", "entries", 1, INT_MAX, "Initial", "2.6.12", "",
        "Expected connections (FTP data and the like) that may wait.",
    ),
    Sysctl(
        "nf_conntrack_checksum", "boolean", 0, 1, "Namespace", "2.6.20", "",
        "Call packets with a wrong checksum INVALID.",
    ),
    Sysctl(
        "nf_conntrack_log_invalid", "protocol", 0, 255, "Namespace", "2.6.12", "",
        "Log INVALID packets of this IP protocol; 255 logs all, 0 none.",
    ),
    Sysctl("nf_conntrack_acct", "boolean", 0, 1, "Namespace", "2.6.27", "", "Count packets and bytes of every flow."),
    Sysctl("nf_conntrack_timestamp", "boolean", 0, 1, "Namespace", "2.6.38", "", "Note when every flow began and ended."),
    Sysctl(
        "nf_conntrack_events", "mode", 0, 2, "Namespace", "2.6.37", "",
        "Report changes by ctnetlink: 0 never, 1 always, 2 while somebody listens (since 5.19).",
    ),
    Sysctl(
        "nf_conntrack_helper", "boolean", 0, 1, "Namespace", "3.5", "",
        "Attach helpers to flows automatically.", until="6.0",
    ),
    Sysctl(
        "nf_conntrack_tcp_loose", "boolean", 0, 1, "Namespace", "2.6.13", "tcp.loose",
        "Pick up TCP connections that were open before tracking saw them.",
    ),
    Sysctl(
        "nf_conntrack_tcp_be_liberal", "boolean", 0, 1, "Namespace", "2.6.13", "tcp.beLiberal",
        "Call only out-of-window resets INVALID.",
    ),
    Sysctl(
        "nf_conntrack_tcp_ignore_invalid_rst", "boolean", 0, 1, "Namespace", "5.14", "",
        "Do not call resets with a bad sequence number INVALID.",
    ),
    Sysctl(
        "nf_conntrack_tcp_max_retrans", "count", 0, 255, "Namespace", "2.6.13", "",
        "Retransmissions without an answer before the shorter timeout applies.",
    ),
    Sysctl(
        "nf_conntrack_frag6_timeout", "seconds", 1, DURATION_MAX_SECONDS, "Namespace", "2.6.15", "",
        "Seconds IPv6 fragments wait for the rest.", source="net/ipv6/netfilter/nf_conntrack_reasm.c",
    ),
    Sysctl(
        "nf_conntrack_frag6_low_thresh", "bytes", 0, INT_MAX, "Namespace", "2.6.15", "",
        "Memory of waiting IPv6 fragments to shrink to.", source="net/ipv6/netfilter/nf_conntrack_reasm.c",
    ),
    Sysctl(
        "nf_conntrack_frag6_high_thresh", "bytes", 0, INT_MAX, "Namespace", "2.6.15", "",
        "Memory waiting IPv6 fragments may take.", source="net/ipv6/netfilter/nf_conntrack_reasm.c",
    ),
    _timeout("nf_conntrack_tcp_timeout_syn_sent", "tcp.synSent", "A SYN was seen, no answer yet."),
    _timeout("nf_conntrack_tcp_timeout_syn_recv", "tcp.synRecv", "SYN and SYN-ACK were seen."),
    _timeout("nf_conntrack_tcp_timeout_established", "tcp.established", "An open connection with no packets."),
    _timeout("nf_conntrack_tcp_timeout_fin_wait", "tcp.finWait", "One side has closed."),
    _timeout("nf_conntrack_tcp_timeout_close_wait", "tcp.closeWait", "The other side has closed."),
    _timeout("nf_conntrack_tcp_timeout_last_ack", "tcp.lastAck", "Both have closed, the last ACK is missing."),
    _timeout("nf_conntrack_tcp_timeout_time_wait", "tcp.timeWait", "Closed, waiting for stray packets."),
    _timeout("nf_conntrack_tcp_timeout_close", "tcp.close", "A reset was seen."),
    _timeout("nf_conntrack_tcp_timeout_max_retrans", "tcp.maxRetrans", "Retransmissions without an answer."),
    _timeout("nf_conntrack_tcp_timeout_unacknowledged", "tcp.unacknowledged", "Data is not acknowledged.", "2.6.30"),
    _timeout("nf_conntrack_udp_timeout", "udp.unreplied", "UDP in one direction, or a short exchange."),
    _timeout("nf_conntrack_udp_timeout_stream", "udp.stream", "UDP in both directions for more than two seconds."),
    _timeout("nf_conntrack_icmp_timeout", "icmp", "ICMP echo and the like."),
    _timeout("nf_conntrack_icmpv6_timeout", "icmpv6", "ICMPv6 echo and the like."),
    _timeout("nf_conntrack_generic_timeout", "generic", "Protocols without a tracker of their own."),
    _timeout("nf_conntrack_gre_timeout", "gre.unreplied", "GRE in one direction.", "5.1"),
    _timeout("nf_conntrack_gre_timeout_stream", "gre.stream", "GRE in both directions.", "5.1"),
    _timeout("nf_conntrack_sctp_timeout_closed", "sctp.closed", "SCTP closed.", "2.6.15"),
    _timeout("nf_conntrack_sctp_timeout_cookie_wait", "sctp.cookieWait", "SCTP INIT was seen.", "2.6.15"),
    _timeout("nf_conntrack_sctp_timeout_cookie_echoed", "sctp.cookieEchoed", "SCTP COOKIE ECHO was seen.", "2.6.15"),
    _timeout("nf_conntrack_sctp_timeout_established", "sctp.established", "An open SCTP association.", "2.6.15"),
    _timeout("nf_conntrack_sctp_timeout_shutdown_sent", "sctp.shutdownSent", "SCTP SHUTDOWN was sent.", "2.6.15"),
    _timeout("nf_conntrack_sctp_timeout_shutdown_recd", "sctp.shutdownRecd", "SCTP SHUTDOWN came in.", "2.6.15"),
    _timeout(
        "nf_conntrack_sctp_timeout_shutdown_ack_sent", "sctp.shutdownAckSent", "SCTP SHUTDOWN ACK was sent.", "2.6.15"
    ),
    _timeout("nf_conntrack_sctp_timeout_heartbeat_sent", "sctp.heartbeatSent", "SCTP HEARTBEAT was sent.", "4.4"),
    _timeout("nf_conntrack_dccp_timeout_request", "dccp.request", "DCCP request.", "2.6.26", "6.17"),
    _timeout("nf_conntrack_dccp_timeout_respond", "dccp.respond", "DCCP respond.", "2.6.26", "6.17"),
    _timeout("nf_conntrack_dccp_timeout_partopen", "dccp.partopen", "DCCP partopen.", "2.6.26", "6.17"),
    _timeout("nf_conntrack_dccp_timeout_open", "dccp.open", "DCCP open.", "2.6.26", "6.17"),
    _timeout("nf_conntrack_dccp_timeout_closereq", "dccp.closereq", "DCCP closereq.", "2.6.26", "6.17"),
    _timeout("nf_conntrack_dccp_timeout_closing", "dccp.closing", "DCCP closing.", "2.6.26", "6.17"),
    _timeout("nf_conntrack_dccp_timeout_timewait", "dccp.timewait", "DCCP timewait.", "2.6.26", "6.17"),
)

BY_NAME = {entry.name: entry for entry in CATALOGUE}
BY_FIELD = {entry.field: entry for entry in CATALOGUE if entry.field}
OTHER = {entry.name: entry for entry in CATALOGUE if not entry.field and entry.writable}
"""The keys that `spec.sysctls` takes: those that have no field of their own."""


def _number_in(value: Any) -> int | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 10:
        return int(value)
    return value if isinstance(value, int) else None


def complaint_about(key: str) -> str:
    """Return why `key` may not stand in spec.sysctls and what to write instead; empty when it may."""
    if key in OTHER:
        return ""
    old = ""
    today = key
    if key.startswith("ip_conntrack_"):
        today = "nf_" + key.removeprefix("ip_")
        old = f"{key} is an old name of {today}; "
    entry = BY_NAME.get(today)
    if entry is None:
        return f"{key} is not an nf_conntrack sysctl this version knows; it takes {', '.join(OTHER)}"
    if not entry.writable:
        return f"{old}{today} cannot be written; remove it"
    if entry.field:
        return f"{old}{today} has a field of its own; write spec.{entry.field}"
    return f"{old}write {today}"


def _complaints(value: Any) -> str:
    if not isinstance(value, dict):
        return ""
    return next((text for key in value if (text := complaint_about(str(key)))), "")


def _value_complaint(value: Any) -> str:
    if not isinstance(value, dict):
        return ""
    for key, entry in OTHER.items():
        if key in value:
            number = _number_in(value[key])
            if number is None or not entry.minimum <= number <= entry.maximum:
                return f"{key} must be a whole number from {entry.minimum} to {entry.maximum}"
    return ""


def judged() -> BeforeValidator:
    """Return the validator of spec.sysctls: known keys alone, values in range, held as numbers."""

    def judge(value: Any) -> Any:
        for rule in _RULES:
            rule.check(value)
        return {key: _number_in(number) for key, number in value.items()} if isinstance(value, dict) else value

    return BeforeValidator(judge)


_RULES = (
    Rule(
        cel=f"self.all(key, key in {sorted(OTHER)})",
        holds=lambda value: not _complaints(value),
        sentence=f"takes only {', '.join(OTHER)}",
        explain=_complaints,
    ),
    Rule(
        cel="true",
        holds=lambda value: not _value_complaint(value),
        sentence="value out of range",
        explain=_value_complaint,
    ),
)


def json_schema() -> dict[str, Any]:
    """Return the schema of spec.sysctls."""
    return {
        "type": "object",
        "maxProperties": len(OTHER),
        "additionalProperties": {
            "x-kubernetes-int-or-string": True,
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            "maxLength": 10,
        },
        "x-kubernetes-validations": [rule.as_validation() for rule in _RULES],
    }
