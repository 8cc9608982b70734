"""Surroundings: what else on a node looks at, translates or answers the packets that a policy is about, as data.

The world side reads them (`kernel.firewall`, `kernel.surroundings`); preflight, the placing of accept rules and the
audit behind `tracking: Disabled` are functions of them. nftables, iptables-nft and iptables-legacy come out as the same
chains, so that no decision knows which of them a host uses.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field

from .base import Model

Tool = Literal["nftables", "iptables-nft", "iptables-legacy"]

Verdict = Literal[
    "accept", "drop", "reject", "return", "jump", "goto", "dnat", "redirect", "snat", "masquerade", "notrack", "tproxy",
    "queue", "helper", "none",
]  # fmt: skip
"""What a rule does with a packet that matches; `none` goes on to the next rule (counters, marks, logs)."""

UNREAD = "FirewallUnread"
"""Reason of a firewall's problem: something of it could not be read, this time or at all."""

PortRanges = tuple[tuple[int, int], ...]
"""Sorted, disjoint ranges of ports, both ends included."""


@dataclass(frozen=True)
class Match:
    """What a rule looks at. None means that it does not: any value will do."""

    families: frozenset[int] = frozenset({4, 6})
    protocols: frozenset[str] | None = None
    """tcp, udp, sctp, icmp and the like, in lower case."""
    source_ports: PortRanges | None = None
    destination_ports: PortRanges | None = None
    sources: tuple[str, ...] | None = None
    """Networks in CIDR form; a negated match is told by `other`."""
    destinations: tuple[str, ...] | None = None
    in_interfaces: tuple[str, ...] | None = None
    out_interfaces: tuple[str, ...] | None = None
    states: frozenset[str] | None = None
    """Connection states that match: new, established, related, invalid, untracked; also `dnat` and `snat`."""
    other: bool = False
    """There are further conditions that this does not tell: the rule may match less than it seems to."""
    segments: frozenset[str] | None = None
    """Which packets of one flow match, `first` (a bare SYN), `later`, both or neither, where TCP flags or a rate decide
    that; None where all of them fare alike. `other` is set beside it: there is more to flags and rates than this."""


@dataclass(frozen=True)
class FirewallRule:
    """One rule. `tracks` is true when it needs connection tracking in any way (state, mark, helper, NAT)."""

    match: Match
    verdict: Verdict
    text: str
    """The rule as its own tool prints it, for people."""
    target: str = ""
    """The chain it jumps or goes to."""
    to_ports: PortRanges | None = None
    """Ports that a translation leads to."""
    to_addresses: tuple[str, ...] = ()
    fully_random: bool = False
    tracks: bool = False
    handle: int = 0
    """nftables' handle, the rule's number from 1 in iptables."""
    comment: str = ""


@dataclass(frozen=True)
class FirewallChain:
    """One chain with its rules in order. A base chain has type, hook, priority and policy; others have none of them.

    iptables' built-in chains are base chains: hook `input` for INPUT and so on, with the priority of their table.
    """

    tool: Tool
    family: Literal["ip", "ip6", "inet"]
    table: str
    name: str
    rules: tuple[FirewallRule, ...] = ()
    type: str = ""
    """filter, nat, route; for iptables what the table is for."""
    hook: str = ""
    priority: int = 0
    policy: Literal["accept", "drop", ""] = ""

    @property
    def place(self) -> str:
        """Where it is, as a person would look for it: `nftables inet filter input`."""
        return f"{self.tool} {self.family} {self.table} {self.name}"


@dataclass(frozen=True)
class Firewall:
    """Every chain of this network namespace but our own table's, and what could not be read."""

    chains: tuple[FirewallChain, ...] = ()
    owned: frozenset[tuple[str, str]] = frozenset()
    """(family, table) of tables with an owner flag: nobody else can put rules into them (EPERM, tried on 6.18)."""
    problems: tuple[tuple[str, str], ...] = ()
    """(reason, sentence with the remedy) for what could not be looked at, such as LegacyIptablesNeedsNetRaw."""
    nat: bool = False
    """Whether any chain of type nat, with rules or without, is on a hook here, or that could not be told."""


class Service(Model):
    """One way in which Kubernetes translates a port on this node. The controller lists those that touch its rules."""

    name: str
    """Namespace and name of the Service, or of the pod for HostPort: shop/web."""
    kind: Literal["NodePort", "LoadBalancer", "ExternalIP", "ClusterIP", "HostPort", "TargetPort"]
    """How the port is translated. TargetPort: where packets to the Service end, in a pod on this node's own network."""
    protocol: Literal["TCP", "UDP", "SCTP"]
    """Protocol of the port."""
    port: Annotated[int, Field(ge=1, le=65535)]
    """The port as packets on this node have it."""
    addresses: list[str] = []
    """Addresses it is translated at; none means every address of the node."""


@dataclass(frozen=True)
class FailsafePort:
    """A port that this node lives by, as found on it: losing it is losing the node."""

    port: int
    protocol: str
    side: Literal["Server", "Client"]
    what: str
    """Who uses it: `kubelet`, `sshd`, `the API server`."""


@dataclass(frozen=True)
class LoadedModule:
    """One line of /proc/modules."""

    name: str
    references: int
    """Who holds it: modules, rules, sockets, in every network namespace."""
    users: tuple[str, ...] = ()
    """Modules among the holders."""


@dataclass(frozen=True)
class TrackingState:
    """Whether connections are tracked here, and where the code that does it is (kernel.tracking reads it)."""

    presence: Literal["absent", "built in", "loaded"] = "built in"
    """nf_conntrack: no part of this kernel now, compiled into it, or a module."""
    families: frozenset[int] | None = None
    """IP versions (4, 6) of which a connection over loopback was tracked; None when that could not be tried.

    Whatever needs tracking, in a chain that packets reach or not, switches it on for its IP version in the whole
    network namespace (nf_ct_netns_get; tried on 6.18), so an empty set is proof that nothing is tracked.
    """
    modules: tuple[LoadedModule, ...] = ()
    """nf_conntrack and the loaded modules that need it, directly or not."""
    may_unload: bool = False
    """Whether this process may unload modules (CAP_SYS_MODULE, and kernel.modules_disabled is 0)."""


@dataclass(frozen=True)
class Surroundings:
    """All of it, as read at one moment."""

    firewall: Firewall = Firewall()
    services: tuple[Service, ...] = ()
    failsafe: tuple[FailsafePort, ...] = ()
    translated: Mapping[tuple[str, int], str] = field(default_factory=dict)
    """Live entries that NAT has changed and this node serves, before or after it: one example in words for each
    (protocol in capitals, serving port)."""
    translated_elsewhere: Mapping[tuple[str, int], str] = field(default_factory=dict)
    """The same of entries that others serve: what this node forwards or asks for. They concern Forward and Client."""
    local_addresses: tuple[str, ...] | None = None
    """Addresses of this node in this network namespace; None where nobody looked, and then any may be its own."""
    routes: bool = True
    """Whether this node forwards packets of others, of either IP version (net.ipv4.ip_forward and its like)."""
    local_port_range: tuple[int, int] = (32768, 60999)
    """net.ipv4.ip_local_port_range: where the node's own connections take their source ports from."""
    other_entries: int = 0
    """Entries in the tables of other network namespaces; they use the same memory."""
    keepalive_seconds: int | None = None
    """net.ipv4.tcp_keepalive_time."""
    kube_proxy: bool = False
    """Whether one runs here."""
    timed_elements: bool = True
    """Whether timed set elements expire on this kernel, as tested once a boot (kernel.nftables.self_test)."""
    modules: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Loaded modules that need nf_conntrack, with those that use them (/proc/modules)."""
    tracking: TrackingState = TrackingState()
