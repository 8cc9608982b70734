"""Diagnosis, second question: who fills the table, and what does that usually mean? Pure.

Asked only of a table that is or was short of room: a table that is half empty may hold whatever it likes.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from conntrack_operator.model.catalogue import BY_FIELD

from .finding import Finding, percent
from .symptoms import Symptoms
from .talkers import By, Row
from .timeouts import words

HEAVY = 0.4
"""A share from which one kind of entry is the reason, and not part of a mixture."""
LEAKING = 0.2
"""Half-closed and unanswered connections are rare where all is well."""
DOMINANT = 0.5
FAILSAFE_PORTS = frozenset({22, 53, 179, 443, 2379, 2380, 6443, 10250})
"""ssh, DNS, BGP, the API server, etcd, kubelet: never suggested for NOTRACK by a program."""


@dataclass(frozen=True)
class Fillers:
    """What fills the table: findings, and what a policy could do about each."""

    findings: tuple[Finding, ...] = ()
    timeouts: tuple[tuple[str, int], ...] = ()
    """Fields below `spec.timeouts` and seconds that make such entries leave sooner."""
    notrack_port: str = ""
    """A service port whose flows could go untracked, as `80/TCP`; empty when there is none."""


@dataclass(frozen=True)
class _Shorter:
    """A timeout that is longer than these entries need."""

    field: str
    seconds: int


@dataclass(frozen=True)
class _Kind:
    """Entries in certain states: how many are too many, what they mean, which timeout holds them."""

    reason: str
    states: tuple[str, ...]
    share: float
    what: str
    meaning: str
    shorter: tuple[_Shorter, ...]
    otherwise: str


_KINDS = (
    _Kind(
        "FinishedConnections",
        ("TCP TIME_WAIT", "TCP LAST_ACK", "TCP FIN_WAIT", "TCP CLOSE"),
        HEAVY,
        "finished connections (TIME_WAIT and the like)",
        "Many short connections: each stays after its end until its timeout.",
        (_Shorter("tcp.timeWait", 30), _Shorter("tcp.finWait", 60)),
        "Keep connections open between requests, or leave the service's port untracked.",
    ),
    _Kind(
        "HalfClosedConnections",
        ("TCP CLOSE_WAIT",),
        LEAKING,
        "half-closed connections (CLOSE_WAIT)",
        "A program here or behind this node does not close its sockets.",
        (_Shorter("tcp.closeWait", 3600),),
        "Find the program (ss -tn state close-wait) and mend or restart it; below 1h the timeout cuts connections.",
    ),
    _Kind(
        "UnansweredHandshakes",
        ("TCP SYN_SENT", "TCP SYN_RECV", "TCP SYN_SENT2"),
        LEAKING,
        "handshakes nobody answers (SYN_SENT, SYN_RECV)",
        "A scan, a SYN flood, or clients of a backend that is gone. The kernel throws these out first.",
        (_Shorter("tcp.synSent", 60), _Shorter("tcp.synRecv", 30)),
        "Find the source (top --by source) and stop it before this node.",
    ),
    _Kind(
        "UnansweredUDP",
        ("UDP UNREPLIED",),
        LEAKING,
        "UDP without an answer (UNREPLIED)",
        "A scan, DNS that is not answered, or one-way traffic such as syslog and statsd.",
        (_Shorter("udp.unreplied", 15),),
        "Find the port (top --by port); one-way traffic is best left untracked.",
    ),
    _Kind(
        "AnsweredUDP",
        ("UDP REPLIED", "UDP ASSURED"),
        HEAVY,
        "answered UDP flows",
        "Mostly DNS: each lookup is a flow of its own and stays until its timeout.",
        (_Shorter("udp.unreplied", 15), _Shorter("udp.stream", 60)),
        "A node-local DNS cache makes them one; or leave the port untracked.",
    ),
)


def fillers_of(symptoms: Symptoms) -> Fillers:
    """Return who fills the table of `symptoms`, which is or was short of room."""
    findings: list[Finding] = []
    timeouts: dict[str, int] = {}
    shares = _shares(symptoms)
    for kind in _KINDS:
        share = sum(shares.get(state, 0.0) for state in kind.states)
        if share >= kind.share:
            longer = [each for each in kind.shorter if _now(symptoms, each.field) > each.seconds]
            timeouts.update((each.field, each.seconds) for each in longer)
            findings.append(_finding_of_kind(kind, share, longer, symptoms))
    idle = _idle(symptoms, shares)
    if idle is not None:
        share, established = idle
        if established > DAY:
            timeouts["tcp.established"] = max(DAY, 2 * (symptoms.keepalive_seconds or 0))
        findings.append(_finding_of_idle(share, established, symptoms))
    findings.extend(_one_source(symptoms))
    port = _one_port(symptoms)
    notrack = ""
    if port is not None:
        notrack = port.key if _may_go_untracked(port.key, symptoms) else ""
        findings.append(_finding_of_port(port, symptoms, untracked=bool(notrack)))
    return Fillers(tuple(findings), tuple(timeouts.items()), notrack)


DAY = 86400


def _shares(symptoms: Symptoms) -> Mapping[str, float]:
    return {row.key: row.share for row in _rows(symptoms, "state")}


def _rows(symptoms: Symptoms, by: By) -> tuple[Row, ...]:
    top = symptoms.top.get(by)
    return top.rows if top else ()


def _now(symptoms: Symptoms, field: str) -> int:
    """Return the timeout's value now; 0 where the kernel has none, so that nothing is made of it."""
    return symptoms.facts.sysctls.get(BY_FIELD[f"timeouts.{field}"].dotted, 0)


def _finding_of_kind(kind: _Kind, share: float, longer: list[_Shorter], symptoms: Symptoms) -> Finding:
    summary = f"{share:.0%} of the entries are {kind.what}."
    if not longer:
        return Finding("warning", kind.reason, summary, kind.meaning, kind.otherwise)
    shorter = ", ".join(
        f"timeouts.{each.field}: {words(each.seconds)} (now {words(_now(symptoms, each.field))})" for each in longer
    )
    return Finding("warning", kind.reason, summary, kind.meaning, f"{shorter}. {kind.otherwise}")


def _idle(symptoms: Symptoms, shares: Mapping[str, float]) -> tuple[float, int] | None:
    """Return the share of the table that is open and silent, and the timeout that keeps it; None when it is small."""
    traits, established = symptoms.traits, _now(symptoms, "tcp.established")
    if not traits.sampled or not established or shares.get("TCP ESTABLISHED", 0.0) < LEAKING:
        return None
    share = traits.idle / traits.sampled
    return (share, established) if share >= LEAKING else None


def _finding_of_idle(share: float, established: int, symptoms: Symptoms) -> Finding:
    keepalive = words(symptoms.keepalive_seconds or 7200)
    remedy = "Close idle connections in the programs, or switch their TCP keepalive on."
    if established > DAY:
        remedy = (
            f"timeouts.tcp.established: 24h (now {words(established)}, the kernel's 5 days; kube-proxy writes 24h)."
            " Entries already there keep their old timeout until their next packet."
        )
    return Finding(
        "warning",
        "IdleConnections",
        f"{share:.0%} of the entries are open connections without a packet for more than {keepalive}.",
        "Peers that went away without a word, or pools without TCP keepalive; each keeps its entry until the timeout.",
        remedy,
    )


def _one_source(symptoms: Symptoms) -> Iterator[Finding]:
    rows = _rows(symptoms, "source")
    if rows and rows[0].share >= DOMINANT:
        address = rows[0].key
        yield Finding(
            "warning",
            "OneSource",
            f"One source, {address}, holds {rows[0].share:.0%} of the entries ({rows[0].entries:,}).",
            "A gateway or load balancer with many clients behind it; else a program that leaks connections, or a scan.",
            f"Look at what it does: conntrack -L -s {address} | head. Stop or limit it there.",
        )


def _one_port(symptoms: Symptoms) -> Row | None:
    rows = _rows(symptoms, "port")
    return rows[0] if rows and rows[0].share >= DOMINANT and "/" in rows[0].key else None


def _may_go_untracked(key: str, symptoms: Symptoms) -> bool:
    """Tell whether all that was seen of this port is this machine's own TCP service, without any NAT."""
    port, _, protocol = key.partition("/")
    traits = symptoms.traits.ports.get(key)
    if protocol != "TCP" or not port.isdigit() or int(port) in FAILSAFE_PORTS or not symptoms.facts.initial_namespace:
        return False
    return traits is not None and traits.entries > 0 and traits.local == traits.entries and traits.translated == 0


def _finding_of_port(row: Row, symptoms: Symptoms, *, untracked: bool) -> Finding:
    traits = symptoms.traits.ports.get(row.key)
    name = row.key.partition("/")[0]
    if row.key == "53/UDP":
        detail = "DNS: each lookup is a flow of its own."
        remedy = "A node-local DNS cache (NodeLocal DNSCache leaves its own flows untracked)."
    elif untracked:
        detail = "All that were looked at are connections to this node itself, without NAT."
        remedy = f"Leave it untracked: notrack.rules: [{{name: port-{name}, ports: [{name}]}}]."
    elif traits and traits.translated:
        detail = f"{percent(traits.translated, traits.entries):.0f}% of those looked at are translated (NAT)."
        remedy = "NAT needs tracking, so NOTRACK would break them: more entries, or shorter timeouts."
    elif traits and not traits.local:
        detail = "They pass through this node, or leave it; neither end was found here."
        remedy = "Where nothing translates or filters them by state: a notrack rule with side: Forward or Client."
    else:
        detail = "Connections to this port are the bulk of the table."
        remedy = "More entries, or shorter timeouts; a port that must never fail is best tracked."
    return Finding(
        "warning", "OnePort", f"One service port, {row.key}, has {row.share:.0%} of the entries.", detail, remedy
    )
