"""Status of a ConntrackPolicy: what people read to learn whether their policy is kept, and how full the nodes are.

The controller alone writes it, from the statuses of the nodes. The lists are capped, since one policy may
match thousands of nodes and the whole story of a node is in its own NodeConntrack.
"""

from typing import Annotated, Literal

from pydantic import Field

from .base import Reported

HOTTEST_MAX = 5
"""Nodes named in `hottest`, fullest first."""

FAILURES_MAX = 10
"""Nodes named in `failures`; `nodes` counts them all."""

PREVIEWED_MAX = 10
"""Settings named in `preview`, changes and refusals each."""


class Condition(Reported):
    """One thing that is true, false or unknown of the object, and since when."""

    type: str
    """What the condition speaks of, such as Ready."""
    status: Literal["True", "False", "Unknown"]
    """Whether it holds."""
    reason: str
    """Why, as one word for programs."""
    message: str = ""
    """Why, as a sentence for people."""
    last_transition_time: Annotated[str, Field(json_schema_extra={"format": "date-time"})]
    """When the status of this condition last changed, as RFC 3339 (2026-01-31T12:00:00Z)."""
    observed_generation: int | None = None
    """Generation of the object the condition was judged for."""


Conditions = Annotated[
    list[Condition],
    Field(json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]}),
]
"""Conditions, one of each type; the API server merges them by it."""


class NodeCounts(Reported):
    """How many nodes the policy selects, and what has become of it there. Every matched node is in one other count."""

    matched: int = 0
    """Nodes whose labels match the selector."""
    current: int = 0
    """Nodes that are as the policy says."""
    updating: int = 0
    """Nodes where a change is on trial."""
    pending: int = 0
    """Nodes that wait for their turn, also while the rollout is paused or has halted; that are not Ready or have no
    working agent; and those that were told and have not answered yet."""
    refused: int = 0
    """Nodes that refuse some setting of this policy, or where somebody keeps changing it (Contended); failures says
    why."""
    rolled_back: int = 0
    """Nodes that tried a change and took it back; failures names the probe. They try three times, then again when the
    policy or its rollout.retry changes."""
    unknown: int = 0
    """Nodes whose agent has been silent for 15 minutes or more."""


class FleetUsage(Reported):
    """The tables of all matched nodes together."""

    entries: int = 0
    """Entries in all tables."""
    max_entries: int = 0
    """Entries all tables may hold."""
    peak_percent: int = 0
    """Use of the fullest table, in percent."""
    peak_node: str = ""
    """Node with the fullest table."""
    drops_per_second: int = 0
    """New connections dropped each second because a table was full, all nodes together."""


class HotNode(Reported):
    """One of the nodes with the fullest tables."""

    node: str
    """Name of the node."""
    percent: int
    """Use of its table, in percent."""
    entries: int
    """Entries in its table."""
    max_entries: int
    """Entries its table may hold."""
    drops_per_second: int = 0
    """New connections dropped each second because the table was full."""
    seconds_to_full: int | None = None
    """Seconds until the table is full at the present rate. Absent while it is not filling."""


class NodeFailure(Reported):
    """One node that is not as the policy says."""

    node: str
    """Name of the node."""
    reason: str
    """Why, as one word for programs."""
    message: str = ""
    """Why, and what to do about it."""


class PreviewedSetting(Reported):
    """One setting that an Observe policy would change, or that nodes would refuse."""

    setting: str
    """A sysctl's full dotted name, or notrack/<rule>."""
    nodes: int
    """Nodes it is about."""
    example: str
    """One of them."""
    what: str
    """On that node: from and to what value it would change, or the reason and the sentence of its refusal."""


class PolicyPreview(Reported):
    """What an Observe policy would do, from the previews of its nodes."""

    nodes: int = 0
    """Nodes that have answered."""
    changing: int = 0
    """Nodes among them where something would change."""
    refusing: int = 0
    """Nodes among them where something would be refused."""
    unchanged: int = 0
    """Nodes among them where nothing would change and nothing would be refused."""
    changes: Annotated[list[PreviewedSetting], Field(max_length=PREVIEWED_MAX)] = []
    """What would change, by setting, most nodes first, at most 10."""
    refused: Annotated[list[PreviewedSetting], Field(max_length=PREVIEWED_MAX)] = []
    """What would be refused, by setting and reason, most nodes first, at most 10."""


class PolicyStatus(Reported):
    """What has become of the policy on its nodes. Written by the controller."""

    observed_generation: int = -1
    """Generation of the policy this status speaks of. -1 means that nobody has judged it yet."""
    revision: str = ""
    """The policy's revision as it is now; a NodeConntrack's spec.policies tells which one its node has."""
    conditions: Conditions = []
    """Ready, Reconciling, Stalled, Degraded, Conflicted and Saturated."""
    nodes: NodeCounts | None = None
    """How many nodes match, and how far they are."""
    usage: FleetUsage | None = None
    """How full the tables of these nodes are."""
    hottest: Annotated[list[HotNode], Field(max_length=HOTTEST_MAX)] = []
    """The nodes with the fullest tables, fullest first, at most 5."""
    failures: Annotated[list[NodeFailure], Field(max_length=FAILURES_MAX)] = []
    """Nodes that are not as the policy says, at most 10 of them."""
    preview: PolicyPreview | None = None
    """With mode Observe: what would change."""
