"""The part of a policy about connections that bypass the table. Read by people through `kubectl explain`.

None of it has a default, since a default nobody wrote would win a merge.
"""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, StrictBool

from .base import Model
from .rules import Rule, present
from .selector import LabelSelector
from .values import InterfaceName, Network, Ports

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
            holds=lambda rule: present(rule, "ports", "pods") == 1,
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
