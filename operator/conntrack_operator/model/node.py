"""NodeConntrack: what ONE node must do (spec, written by the controller) and what it is (status, by its agent)."""

from typing import Annotated, Any, Literal

from pydantic import Field

from .base import API_VERSION, Model, Reported
from .policy import ObjectMeta, Rollout, Settings
from .reading import object_from
from .status import Conditions
from .surroundings import Service

MAX_STATUS_BYTES = 4096
"""A status is at most this long as JSON; what is least needed is left out first."""

SERVICES_MAX = 64
"""Services named in a spec; one is enough to refuse a rule."""

Phase = Literal["Current", "Trial", "RolledBack", "Refused", "Contended", "Restored"]


class PolicyUse(Model):
    """One policy's share in a node's settings, with what must be honoured after the policy is gone."""

    name: str
    """Name of the policy."""
    revision: str
    """Revision of the policy that was merged: which of its versions this node has been given."""
    fields: list[str]
    """Fields of the settings this policy decided, for example table.size or notrack.rules[web]."""
    on_delete: Literal["Restore", "Keep"] = "Restore"
    """What to do with these fields when no policy sets them any more."""
    rollout: Rollout | None = None
    """How its withdrawal travels when the policy is gone: the policy's rollout, without paused and retry, which
    nobody could change any more."""


class Withdrawal(Model):
    """A policy this node has given up while others still have it, so that its withdrawal can travel in waves."""

    name: str
    """Name of the policy."""
    revision: str
    """Revision of the policy that no longer means this node; empty when the policy is gone."""


class NodeSpec(Model):
    """What this node must do. Written by the controller alone."""

    revision: str
    """Hash of mode and settings. The status repeats it when the node has acted on it."""
    attempt: str = ""
    """Changes when a policy's rollout.retry does: a node that gave up tries again. With Restore it tells one restore
    from the next. Empty: nobody asked."""
    mode: Literal["Hold", "Apply", "Restore"]
    """Hold: change nothing and report; the node keeps what it has confirmed, if anything, until its turn comes, and
    makes the preview where there is one. Apply: make the settings true. Restore: put the original values back and
    remove the rules, but for what onDelete: Keep leaves."""
    node_uid: Annotated[str, Field(alias="nodeUID")]
    """UID of the Node this was written for; a new node of the same name is another node."""
    policies: list[PolicyUse] = []
    """The policies that were merged, highest priority first. With Restore: those that were merged last."""
    withdrawn: list[Withdrawal] = []
    """Policies this node has given up and others not yet. No part of the revision."""
    settings: Settings = Settings()
    """The merged policies. Sizes are still rules, since only the node knows its RAM and CPUs."""
    preview: Settings | None = None
    """The same with the Observe policies merged in, when there are some: planned, never applied."""
    previewed: dict[str, str] = {}
    """The Observe policies in the preview, by name, each with its revision."""
    services: Annotated[list[Service], Field(max_length=SERVICES_MAX)] = []
    """Services that translate a port of these rules on this node, at most 64. The rules are refused, or withdrawn, for
    them (NATConflict). No part of the revision: they come and go."""


class Result(Reported):
    """What became of one setting."""

    setting: str
    """A sysctl's full dotted name, notrack/<rule>, tracking, or node: what concerns the node as a whole."""
    wanted: str
    """The value the settings ask for."""
    observed: str
    """The value read back from the kernel."""
    reason: str
    """Applied, or why not: refused (NATConflict, BelowUse ...), failed (WriteFailed, ReadBackDiffers), taken back
    (ProbeFailed, TrialExpired, AgentKilled ...), or Contended."""
    message: str = ""
    """When it was not applied: what is in the way, and the remedy."""


class Warned(Reported):
    """Something that was done as asked and may surprise somebody."""

    setting: str
    """A sysctl's full dotted name, notrack/<rule>, or a field of the settings."""
    reason: str
    """Why, as one word for programs, such as BelowKeepalive, or that of a conflict that onConflict: Force overrules."""
    message: str
    """What will happen, and what to write instead."""


class Usage(Reported):
    """The table's use when the status was written."""

    entries: int
    """Entries in the table."""
    max_entries: int
    """Entries it may hold."""
    percent: int
    """entries / maxEntries, in percent, rounded down."""
    drops_per_second: int = 0
    """New connections the kernel dropped because the table was full, rounded up."""
    early_drops_per_second: int = 0
    """Unassured entries it threw away to make room, rounded up."""
    insert_failed_per_second: int = 0
    """Entries that could not be inserted, mostly clashes of two packets of one flow, rounded up."""
    seconds_to_full: int | None = None
    """Seconds until the table is full at the present rate; absent when it is not filling."""


class Talker(Reported):
    """One of the keys that hold most entries."""

    by: Literal["source", "destination", "port", "state"]
    """What the entries were counted by."""
    key: str
    """The address, port or state."""
    entries: int
    """Entries, estimated from a sample where the table is large."""
    percent: int
    """Share of all entries, in percent."""


class Transition(Reported):
    """One change of phase."""

    time: str
    """When, as RFC 3339."""
    phase: Phase
    """The phase it changed to."""
    reason: str
    """Why, as one word for programs."""
    revision: str
    """The revision of the spec it was about."""
    message: str = ""
    """Why, as a sentence for people."""


class PreviewChange(Reported):
    """One thing the previewed settings would change."""

    setting: str
    """A sysctl's full dotted name, or notrack/<rule>."""
    from_: Annotated[str, Field(alias="from")]
    """The value now."""
    to: str
    """The value it would get."""


class PreviewRefusal(Reported):
    """One thing this node would refuse."""

    setting: str
    """A sysctl's full dotted name, or notrack/<rule>."""
    reason: str
    """Why, as one word for programs."""
    message: str
    """Why, and what to write instead."""


class Preview(Reported):
    """What the Observe policies would change on this node."""

    changes: list[PreviewChange] = []
    """What would change."""
    refused: list[PreviewRefusal] = []
    """What would be refused."""
    warnings: list[Warned] = []
    """What would be done as asked and may surprise somebody, and what could not be looked at without loading it."""
    omitted: int = 0
    """Changes and refusals that had no room in the status; the agent's log has them all."""
    revision: str = ""
    """Hash of the settings it was made for, the spec's preview."""


class NodeStatus(Reported):
    """What this node is. Written by its agent alone, rarely."""

    observed_revision: str = ""
    """The revision this status speaks of."""
    observed_attempt: str = ""
    """The attempt this status speaks of."""
    node_uid: Annotated[str, Field(alias="nodeUID")] = ""
    """UID of the Node the agent acted for."""
    boot_id: Annotated[str, Field(alias="bootID")] = ""
    """The kernel's boot id at that time."""
    phase: Phase | None = None
    """Current: as asked, which with mode Hold is nothing. Trial: a change is made and not confirmed yet. RolledBack: it
    was taken back, what was confirmed before is in force, and results say which probe failed and whether it is tried
    again. Refused: some setting was refused, see results; the others are in force. Contended: somebody keeps changing a
    setting back, so that it is tried once an hour only. Restored: the originals are back."""
    conditions: Conditions = []
    """Conditions of the node."""
    observed: dict[str, int] = {}
    """Values read back from the kernel that follow from the settings: buckets."""
    results: list[Result] = []
    """What became of each setting."""
    warnings: list[Warned] = []
    """What was done as asked and may surprise somebody: short timeouts, conflicts that Force overrules, accept rules
    that found no place."""
    preview: Preview | None = None
    usage: Usage | None = None
    top_talkers: list[Talker] = []
    """Who holds most entries. Addresses are personal data; the agent's --top-talkers 0 leaves them out."""
    history: Annotated[list[Transition], Field(max_length=10)] = []
    """The last ten changes of phase, newest last."""
    heartbeat_time: str = ""
    """When the agent last wrote."""


class NodeConntrack(Model):
    """What one node's connection tracking must be, and is. Made by the controller, named like the node."""

    api_version: Literal["conntrack-operator.io/v1alpha1"] = API_VERSION
    kind: Literal["NodeConntrack"] = "NodeConntrack"
    metadata: ObjectMeta
    spec: NodeSpec
    status: NodeStatus | None = None


def node_from(document: Any) -> NodeConntrack:
    """Return the object in `document`, as the API server sent it. Raises errors.Invalid with every problem.

    A field of the spec that this version does not know is a problem too: it must never be ignored in silence.
    """
    return object_from(document, NodeConntrack)
