"""How the agents' pods are made: the file that the chart writes and the controller reads with --agent-config.

Nothing here comes from a policy. What it says of places (affinity, tolerations, resources) is Kubernetes' own and is
taken as it stands: the API server judges it, as it would in a DaemonSet written by hand.
"""

from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import Field, StrictBool

from .base import API_VERSION, Model
from .rules import Rule
from .values import IntOrPercent

IDENTITY: Final = ("app.kubernetes.io/name", "app.kubernetes.io/component")
"""Labels by which the DaemonSet knows its pods, which therefore nobody else may set."""


class SecretName(Model):
    """A Secret with the credentials of an image registry, in the operator's namespace."""

    name: Annotated[str, Field(min_length=1, max_length=253)]
    """The Secret's name."""


class UpdateStrategy(Model):
    """How agents that run are replaced when their pods are to be made another way. Settings in the kernel stay."""

    type: Literal["RollingUpdate", "OnDelete"] = "RollingUpdate"
    """RollingUpdate replaces them at once; OnDelete leaves each until somebody deletes its pod."""
    max_unavailable: IntOrPercent = "10%"
    """How many may be without an agent at a time, for RollingUpdate."""

    api_rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="!(self.maxUnavailable in [0, '0%', '00%'])",
            holds=lambda strategy: strategy.max_unavailable not in {0, "0%", "00%"},
            sentence="0 would replace no agent ever; write at least 1",
            field=".maxUnavailable",
        ),
    )


class AgentConfig(Model):
    """The pods of the agents: where they run, with what, and what they may do beyond NET_ADMIN."""

    api_version: Literal["conntrack-operator.io/v1alpha1"] = API_VERSION
    """Always conntrack-operator.io/v1alpha1."""
    kind: Literal["AgentConfig"] = "AgentConfig"
    """Always AgentConfig."""
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] | None = None
    """When the image is pulled; absent is Kubernetes' own rule, by the tag."""
    image_pull_secrets: list[SecretName] = []
    """Secrets for the image's registry."""
    node_selector: dict[str, str] = {}
    """Labels of the nodes that get an agent, beside kubernetes.io/os=linux."""
    affinity: dict[str, Any] = {}
    """A pod's affinity."""
    tolerations: list[dict[str, Any]] = [{"operator": "Exists"}]
    """A pod's tolerations; every taint by default, since every node has a table."""
    priority_class_name: str = "system-node-critical"
    """A PriorityClass; empty for none."""
    resources: dict[str, Any] = {"requests": {"cpu": "10m", "memory": "64Mi"}, "limits": {"memory": "256Mi"}}
    """A container's resources."""
    labels: dict[str, str] = {}
    """Further labels of the pods."""
    annotations: dict[str, str] = {}
    """Annotations of the pods."""
    update_strategy: UpdateStrategy = UpdateStrategy()
    """How running agents are replaced."""
    top_talkers: Annotated[int, Field(strict=True, ge=0, le=20)] = 5
    """How many of the busiest addresses, ports and states a node reports; 0 for none: addresses are personal data."""
    metrics_port: Annotated[int, Field(strict=True, ge=1024, le=65535)] | None = None
    """The port at the node's address where the agent serves metrics and answers probes; absent, it does neither.

    Lower ones ask for NET_BIND_SERVICE, which it has not (ip_unprivileged_port_start of the node, by default 1024).
    """
    iptables_legacy: StrictBool = False
    """Give NET_RAW and the xtables lock, which iptables-legacy needs (NET_ADMIN alone is refused: tried)."""
    kernel_log: StrictBool = False
    """Give SYSLOG, so that doctor can read the kernel's log."""
    se_linux_options: dict[str, str] = {}
    """A container's seLinuxOptions, where SELinux keeps it from the host's sysctls."""
    privileged: StrictBool = False
    """Run privileged, for what NET_ADMIN does not allow: unloading modules."""

    api_rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="!('app.kubernetes.io/name' in self.labels) && !('app.kubernetes.io/component' in self.labels)",
            holds=lambda config: not any(label in config.labels for label in IDENTITY),
            sentence=f"{' and '.join(IDENTITY)} are how the DaemonSet knows its pods; leave them out",
            field=".labels",
        ),
    )
