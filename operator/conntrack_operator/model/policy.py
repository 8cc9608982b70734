"""ConntrackPolicy: what people want from the nodes a selector names.

Everything here is read by people through `kubectl explain`, so the docstrings are documentation. Merged fields carry no
defaults: a default nobody wrote would win a merge. What an absent field means is said by its docstring and applied by
the node's agent, or for rollout by the controller.
"""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field, StrictBool

from .base import API_VERSION, Model
from .rules import Rule
from .selector import LabelSelector
from .status import PolicyStatus
from .sysctls import Sysctls
from .timeouts import TCPBehaviour, Timeouts
from .values import Entries, InterfaceName, IntOrPercent, Network, Ports


def _present(value: Model, *names: str) -> int:
    return sum(getattr(value, name) is not None for name in names)


class MemorySize(Model):
    """Size the table by memory: as many entries as fit, with their buckets, into a share of the node's RAM."""

    percent: Annotated[int, Field(strict=True, ge=1, le=100)]
    """Share of the node's RAM that a full table and its buckets may take, in percent. A table over half of the RAM
    is refused (MemoryBudget)."""
    floor: Entries | None = None
    """Never fewer entries than this, whatever the RAM. Absent: no floor."""
    ceiling: Entries | None = None
    """Never more entries than this, whatever the RAM. Absent: no ceiling."""

    api_rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="!has(self.floor) || !has(self.ceiling) || self.floor <= self.ceiling",
            holds=lambda size: size.floor is None or size.ceiling is None or size.floor <= size.ceiling,
            sentence="floor must not be above ceiling; raise ceiling or lower floor",
            field=".floor",
        ),
    )


class PerCoreSize(Model):
    """Size the table by processors, as kube-proxy does: entries times the number of CPUs."""

    entries: Entries
    """Entries for each CPU of the node."""
    floor: Entries | None = None
    """Never fewer entries than this, whatever the number of CPUs. Absent: no floor."""


class KernelFormulaSize(Model):
    """The classic formula: RAM in bytes / 16384 / (word bits / 32), at least 65536 above 1 GiB. Write {}."""


class Size(Model):
    """How many entries the table may hold. Exactly one of the keys. Absent: the size is left alone.

    Write `maxEntries` when you know the number, `memory` when the nodes differ in RAM (what most people should have),
    `perCore` to stay with what kube-proxy computes, `kernelFormula` for the formula of the old howtos. A table that
    would take more than half of the node's RAM when full is refused (MemoryBudget).
    """

    max_entries: Entries | None = None
    """The number of entries itself: `net.netfilter.nf_conntrack_max`."""
    per_core: PerCoreSize | None = None
    memory: MemorySize | None = None
    kernel_formula: KernelFormulaSize | None = None

    api_rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel=(
                "[has(self.maxEntries), has(self.perCore), has(self.memory), has(self.kernelFormula)]"
                ".filter(present, present).size() == 1"
            ),
            holds=lambda size: _present(size, "max_entries", "per_core", "memory", "kernel_formula") == 1,
            sentence="needs exactly one of maxEntries, perCore, memory and kernelFormula; remove the others",
        ),
    )


class Table(Model):
    """The connection-tracking table: how many entries, in how many hash buckets."""

    size: Size | None = None
    entries_per_bucket: Annotated[int, Field(strict=True, ge=1, le=64)] | None = None
    """Hash buckets = entries / this. 1 is what kernels since 5.15 do themselves, 8 the classic chain length:
    fewer buckets save 8 bytes each and cost time in every lookup. Written, it is followed exactly; a change halts
    packets for a moment. Absent: 1 when the size is set here, but what is within a factor of two stays."""
    allow_shrink: StrictBool | None = None
    """Let the size go below the node's current value. Without it a smaller size is refused (ShrinkNotAllowed);
    with it, never below 1.25 times the entries in use (BelowUse). Absent: false."""


RuleName = Annotated[
    str,
    Field(max_length=63, pattern=r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$"),
]
NamePattern = Annotated[str, Field(min_length=1, max_length=63)]


class PodPorts(Model):
    """Take the ports from the host-network pods that run on each node, and follow them as they come and go.

    What the containers of such pods declare in ports counts, for the protocol of the rule, from the moment a pod is
    bound to the node until it has ended; a port stays 20 s longer, so that a pod that is replaced does not withdraw its
    rule. A node without such a pod does not get the rule. Needs a cluster: a policy in a file cannot follow pods.
    """

    namespace: Annotated[str, Field(min_length=1, max_length=63)]
    """Namespace of the pods."""
    selector: LabelSelector
    """Labels of the pods; must not be empty."""
    port_names: Annotated[list[NamePattern], Field(min_length=1, max_length=64)] | None = None
    """Names of the container ports that count. Absent: every declared port."""


class NotrackRule(Model):
    """Ports whose connections are not tracked at all, in both directions."""

    name: RuleName
    """Name of the rule, unique in the policy. It appears in results and in nftables comments; where two policies on a
    node use it, as <policy>-<rule>."""
    protocol: Literal["TCP", "UDP", "SCTP"] | None = None
    """TCP, UDP or SCTP. Absent: TCP."""
    ports: Annotated[list[Ports], Field(min_length=1, max_length=1024)] | None = None
    """Ports of the serving end: numbers from 1 to 65535 and ranges such as "8000-8100". Ports that this node lives by
    are refused (FailsafePort): those that its kubelet, API server, etcd, sshd or BGP listen on, and 53, 443 and the API
    server's on the Client side."""
    pods: PodPorts | None = None
    side: Literal["Server", "Client", "Forward"] | None = None
    """Where this node stands. Server: it listens on the ports. Client: it connects out to them. Forward: it routes
    packets between two others. Both directions are always covered, and the ICMP errors about them. Absent: Server."""
    addresses: Annotated[list[Network], Field(min_length=1, max_length=64)] | None = None
    """Addresses or networks of the serving end. Absent: any (Server: any address of this node). Required for Client."""
    peers: Annotated[list[Network], Field(min_length=1, max_length=64)] | None = None
    """Addresses or networks of the other end. Absent: anyone."""
    interfaces: Annotated[list[InterfaceName], Field(min_length=1, max_length=16)] | None = None
    """Interfaces the packets come in or go out by. Absent: any. The loopback interface is always exempt."""

    api_rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="has(self.ports) != has(self.pods)",
            holds=lambda rule: _present(rule, "ports", "pods") == 1,
            sentence="needs either ports (a list of ports) or pods (whose ports to follow), and not both",
        ),
        Rule(
            cel="!has(self.side) || self.side != 'Client' || has(self.addresses)",
            holds=lambda rule: rule.side != "Client" or rule.addresses is not None,
            sentence="side: Client needs addresses, the servers this node connects to; write at least one",
            field=".side",
        ),
    )


class Notrack(Model):
    """Connections that bypass the table altogether: NOTRACK rules at raw priority, both directions.

    The rules of several policies add up; the other fields are merged by priority.
    """

    accept_untracked: Literal["Never", "Replies", "Both"] | None = None
    """Which untracked packets of the rules to let through firewalls on the node that accept by connection state.

    Replies: those from the serving end, so that requests still pass the firewall's own rules and nobody gets in who
    was kept out before. Both: requests too, behind every rule that refuses somebody. Never: none. Exactly the ports,
    addresses, peers and interfaces of the rules are accepted, in chains of our own, only where the firewall would drop
    them, and they go with the rules. A rule that loses packets all the same is refused (StatefulAccept, OwnedTable).
    Absent: Replies."""
    on_conflict: Literal["Refuse", "Force"] | None = None
    """What to do with a rule that would break something on the node. Refuse: leave it out, or withdraw it when the
    conflict appears later, and say why. Force: install it and warn; the trial still takes it back when it cuts
    something off.

    Conflicts are NAT or a Service on a port of the rule (NATConflict), source ports that may fall into it
    (SourcePortOverlap, UDP and SCTP) and a firewall that accepts by state alone (StatefulAccept). Force does not
    override what would cost the node (FailsafePort) or what cannot be done or seen (OwnedTable, Unsupported,
    FirewallUnread, LegacyIptablesNeedsNetRaw). Absent: Refuse."""
    drop_existing: StrictBool | None = None
    """Delete the entries that the rules make stale, once they are confirmed; entries that NAT has changed stay.

    With false they stay until their timeouts, though no packet reaches them any more. Absent: true."""
    rules: Annotated[list[NotrackRule], Field(min_length=1, max_length=16)] | None = None
    """The rules: at most 16, each with at most 1024 ports or ranges, and a name of its own."""

    api_rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="!has(self.rules) || self.rules.all(rule, self.rules.exists_one(other, other.name == rule.name))",
            holds=lambda notrack: (
                notrack.rules is None or len({rule.name for rule in notrack.rules}) == len(notrack.rules)
            ),
            sentence="two rules have the same name; give each rule a name of its own",
            field=".rules",
        ),
    )


TRIAL_SECONDS = 60
"""What an absent trial.timeoutSeconds means."""
SOAK_SECONDS = 5
"""What an absent trial.soakSeconds means, where the timeout leaves room for it."""
TRIAL_MARGIN_SECONDS = 10
"""What a trial needs besides its soak: making the change, two rounds of probes, and confirming before the deadline."""


def _leaves_margin(trial: "Trial") -> bool:
    timeout = TRIAL_SECONDS if trial.timeout_seconds is None else trial.timeout_seconds
    return trial.soak_seconds is None or trial.soak_seconds + TRIAL_MARGIN_SECONDS <= timeout


class Trial(Model):
    """How a change is tried before it is kept: made, watched by probes on fresh connections, then confirmed or undone.

    What answered before the change must answer after it: in a cluster the API server, its ClusterIP, DNS and the
    kubelet. Until the change is confirmed the kernel itself lets NOTRACK rules expire at the deadline, so that they go
    even if the agent is gone; sysctls then go back when it starts again. Three failures park a change until the policy
    changes or rollout.retry does. What was confirmed on the node before is put back without a trial.
    """

    timeout_seconds: Annotated[int, Field(strict=True, ge=10, le=3600)] | None = None
    """Seconds from the beginning of a change to its deadline: unconfirmed by then, it is undone. Absent: 60."""
    soak_seconds: Annotated[int, Field(strict=True, ge=0, le=600)] | None = None
    """Seconds the probes must keep passing before the change is confirmed; at least 10 less than timeoutSeconds.
    Absent: 5, or 0 where timeoutSeconds is 10."""

    api_rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel=(
                "!has(self.soakSeconds) || self.soakSeconds + 10 <= (has(self.timeoutSeconds) ? self.timeoutSeconds"
                " : 60)"
            ),
            holds=_leaves_margin,
            sentence=(
                "soakSeconds must be at least 10 less than timeoutSeconds (60 when absent), which the change, its"
                " probes and the confirmation need; lower soakSeconds or raise timeoutSeconds"
            ),
            field=".soakSeconds",
        ),
    )


CANARY, MAX_UNAVAILABLE, MAX_FAILURES, ROLLOUT_SOAK_SECONDS = 1, "10%", "2%", 30
"""What an absent field of a rollout means."""


class Rollout(Model):
    """How a change of the policy travels over the nodes: a few first, then all others in waves.

    The change may be the policy's first appearance, an edit of anything but rollout and onDelete, or its withdrawal,
    also by deleting it. A node whose turn has not come keeps what it has. Nodes that are not Ready, or have no working
    agent, wait until they are back and hold nobody up. What must not wait does not: a rule is withdrawn at once where
    NAT would break it, and a node that joins the cluster gets the last revision that went well. Changes of rollout and
    onDelete themselves act at once.
    """

    canary: Annotated[int, Field(strict=True, ge=0, le=1000)] | None = None
    """Nodes that go first and alone, no more at a time than maxUnavailable. The others wait until these are current and
    have stayed so for soakSeconds. If one of these rolls the change back for good, or never answers, no other node is
    touched. 0: no canary. Absent: 1."""
    max_unavailable: IntOrPercent | None = None
    """Nodes that may be on their way at the same time, out of those that are Ready with a working agent; rounded up, at
    least 1. Absent: 10%."""
    max_failures: IntOrPercent | None = None
    """Nodes that may roll the change back, out of all it is about; rounded down. With more of them the rollout halts,
    and the others are spared. A refusal is no failure. Absent: 2%."""
    soak_seconds: Annotated[int, Field(strict=True, ge=0, le=86400)] | None = None
    """Seconds the canary must stay current before the others follow. Absent: 30."""
    paused: StrictBool | None = None
    """True: release no further node, neither for a change nor for a withdrawal. What is under way goes on to its end.
    The withdrawal of a deleted policy is never paused. Absent: false."""
    retry: Annotated[str, Field(max_length=63)] | None = None
    """Any new text makes nodes that rolled a change back and gave up try it again, up to three times, and ends
    Contended. It changes no setting. Absent: they do not try again by themselves."""


class Settings(Model):
    """What a node's connection tracking should be: the part of a policy that is merged field by field."""

    table: Table | None = None
    timeouts: Timeouts | None = None
    tcp: TCPBehaviour | None = None
    sysctls: Sysctls | None = None
    """Any other nf_conntrack sysctl by its name, as a whole number, such as nf_conntrack_acct: 1.

    A sysctl that has a field of its own (the table's size, timeouts, tcp) is refused here, and so are the old
    ip_conntrack names; the refusal says what to write."""
    tracking: Literal["Enabled", "Disabled"] | None = None
    """Enabled: track connections as soon as something needs it. Disabled: track nothing at all. Absent: Enabled.

    A node refuses Disabled while a rule, NAT, kube-proxy, a helper or a module on it needs tracking, and names each
    with its remedy (TrackingNeeded). When nothing does, it says whether nothing is tracked, unloads nf_conntrack where
    that is a module and the agent may, and goes on watching. NOTRACK rules wait meanwhile."""
    notrack: Notrack | None = None
    trial: Trial | None = None


class PolicySpec(Settings):
    """What is wanted, and where. Policies that match the same node are merged field by field; higher priority wins."""

    mode: Literal["Enforce", "Observe"]
    """Enforce: make it so, node by node as rollout says. Observe: plan it on every matching node, report what would
    change and what would be refused, and change nothing; nodes that have it from Enforce give it up."""
    node_selector: LabelSelector
    """The nodes, by label. Required and never empty: for every node write matchLabels: {kubernetes.io/os: linux}."""
    priority: Annotated[int, Field(strict=True, ge=-1_000_000, le=1_000_000)] | None = None
    """Higher wins, field by field. Ties: the older policy, then the name. Absent: 0."""
    rollout: Rollout | None = None
    on_delete: Literal["Restore", "Keep"] | None = None
    """When the policy goes, or no longer means a node: Restore puts the original values back and removes its rules,
    Keep leaves both as they are. A value that somebody else has written since is left alone. Absent: Restore."""


_SUBDOMAIN = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"  # RFC 1123, as Kubernetes reads it


class ObjectMeta(Model):
    """The part of Kubernetes' object metadata that this package reads; the rest is let through."""

    model_config = ConfigDict(extra="ignore")

    name: Annotated[str, Field(min_length=1, max_length=253, pattern=_SUBDOMAIN)]
    uid: str | None = None
    generation: int | None = None
    creation_timestamp: str | None = None
    deletion_timestamp: str | None = None
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None
    resource_version: str | None = None
    owner_references: list[dict[str, Any]] | None = None


class ConntrackPolicy(Model):
    """Sizes, spares and watches the connection-tracking table of every node that matches."""

    api_version: Literal["conntrack-operator.io/v1alpha1"] = API_VERSION
    kind: Literal["ConntrackPolicy"] = "ConntrackPolicy"
    metadata: ObjectMeta
    spec: PolicySpec
    status: PolicyStatus | None = None
