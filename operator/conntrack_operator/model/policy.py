"""ConntrackPolicy: what people want from the nodes a selector names.

Everything here is read by people through `kubectl explain`, so the docstrings are documentation. Merged fields carry no
defaults: a default nobody wrote would win a merge. What an absent field means is said by its docstring and applied by
the node's agent, or for rollout by the controller.
"""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field, StrictBool

from .base import API_VERSION, Model
from .notrack import Notrack
from .rules import Rule
from .selector import LabelSelector
from .status import PolicyStatus
from .sysctls import Sysctls
from .table import Table
from .timeouts import TCPBehaviour, Timeouts
from .values import IntOrPercent

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
    Absent: 5, or what a timeoutSeconds below 15 leaves of it."""

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
