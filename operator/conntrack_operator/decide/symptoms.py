"""Symptoms: what `doctor` looks at on one machine, as frozen data. Pure; `kernel` fills them in, `diagnosis` judges.

What could not be looked at is a sentence in `unseen`, never a zero: an unreadable log is not an empty one.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from conntrack_operator.model.facts import Facts

from .talkers import By, Top


@dataclass(frozen=True)
class TableUse:
    """The table of this network namespace, and its counters since the namespace began."""

    entries: int
    max_entries: int
    """0 means no limit."""
    drop: int = 0
    """New connections' packets dropped. The kernel counts here those of a full table, and those that lost a collision
    (nf_ct_resolve_clash in nf_conntrack_core.c), which it counts in insert_failed as well."""
    early_drop: int = 0
    """Entries thrown out to make room. Only a full table does that."""
    insert_failed: int = 0
    invalid: int = 0
    search_restart: int = 0
    dropped_now: int = 0
    """Growth of `lost_to_full` while we looked."""
    thrown_out_now: int = 0
    """Growth of `early_drop` while we looked."""
    watched_seconds: float = 0.0
    """How long we looked for growth."""

    @property
    def lost_to_full(self) -> int:
        """Packets that a full table cost, at least: those of collisions are taken off."""
        return max(0, self.drop - self.insert_failed)


@dataclass(frozen=True)
class FullLine:
    """One line of the kernel log that says that a table is full."""

    at_seconds: float
    """Wall clock, seconds since 1970."""
    namespace: int | None = None
    """Inode of the network namespace where the kernel names it: since 6.18 for all but the initial one."""


@dataclass(frozen=True)
class KernelLog:
    """What the kernel log still holds about full tables, oldest first. Rate-limited: a few lines of many."""

    lines: tuple[FullLine, ...] = ()
    problem: str = ""
    """Why the log could not be read; empty when it could."""


WriterKind = Literal["sysctl.d", "modprobe.d", "TuneD", "kube-proxy", "conntrack-operator"]


@dataclass(frozen=True)
class Writer:
    """Somebody who writes one nf_conntrack setting, now or at the next boot."""

    kind: WriterKind
    where: str
    """File and line, or process: where a person finds it."""
    setting: str
    """The sysctl's full dotted name."""
    value: int | None
    """What it writes; None when that cannot be told."""
    key: str = ""
    """The key of its own configuration that decides the value; empty when it is the setting itself."""


@dataclass(frozen=True)
class NamespaceUse:
    """The table of another network namespace, mostly a pod's own."""

    inode: int
    name: str
    """What a person knows it by: a process in it, or its name under /run/netns."""
    entries: int
    max_entries: int
    drop: int = 0
    early_drop: int = 0
    insert_failed: int = 0
    began_seconds: float = 0.0
    """When its oldest process started, seconds since 1970; 0 when it has none. The log's older lines were another's."""

    @property
    def lost_to_full(self) -> int:
        """Packets that a full table cost, at least."""
        return max(0, self.drop - self.insert_failed)


@dataclass(frozen=True)
class Allowance:
    """What a network card of EC2 says of the connection tracking behind security groups."""

    interface: str
    exceeded: int
    """Packets dropped since the driver started, as the instance's allowance of tracked connections was used up."""
    available: int | None = None
    """Connections that still fit; None where the driver is too old to say."""
    exceeded_now: int = 0
    """Growth of `exceeded` while we looked."""


@dataclass(frozen=True)
class PinnedMap:
    """Cilium's own table: a BPF map pinned in the file system."""

    name: str
    max_entries: int | None = None
    entries: int | None = None
    """None where it could not be counted."""


@dataclass(frozen=True)
class ZoneLimit:
    """Entries of one conntrack zone and the limit Open vSwitch holds it to; limit 0 means none."""

    zone: int
    limit: int
    entries: int


@dataclass(frozen=True)
class Elsewhere:
    """Tables that are not this one, and can be full in its place."""

    namespaces: tuple[NamespaceUse, ...] = ()
    allowances: tuple[Allowance, ...] = ()
    maps: tuple[PinnedMap, ...] = ()
    zones: tuple[ZoneLimit, ...] = ()


@dataclass(frozen=True)
class PortTraits:
    """Entries of one service port among those looked at closely."""

    entries: int
    local: int
    """Whose serving end is this machine."""
    translated: int
    """Whose addresses or ports NAT changed."""


@dataclass(frozen=True)
class Traits:
    """A closer look at the first entries of the table."""

    sampled: int = 0
    idle: int = 0
    """ESTABLISHED TCP entries that saw no packet for longer than the TCP keepalive time."""
    ports: Mapping[str, PortTraits] = field(default_factory=dict)
    """By service port, as `80/TCP`."""


@dataclass(frozen=True)
class Symptoms:
    """All that is known of one machine when it is asked what is wrong."""

    facts: Facts
    table: TableUse
    top: Mapping[By, Top] = field(default_factory=dict)
    traits: Traits = Traits()
    log: KernelLog = KernelLog()
    own_inode: int = 0
    """Inode of the network namespace that was looked at."""
    own_began_seconds: float = 0.0
    """When the oldest process in it started, seconds since 1970; 0 when that is not known."""
    keepalive_seconds: int | None = None
    """net.ipv4.tcp_keepalive_time; None when it cannot be read."""
    writers: tuple[Writer, ...] = ()
    elsewhere: Elsewhere = Elsewhere()
    node: str = ""
    """Name of this node, for the policy's selector."""
    now_seconds: float = 0.0
    """Wall clock when it was looked at, seconds since 1970."""
    unseen: tuple[str, ...] = ()
    """What could not be looked at, and why: one sentence each."""
