"""The agents: one DaemonSet and the rights its pods need, as constant documents.

Nothing in them comes from a policy, so that editing a policy never restarts an agent, and an agent outlives the label
its node was selected by. It runs on every Linux node; one without a NodeConntrack only measures. What an installation
may change about them is in model.agent_config.
"""

from typing import Any

from conntrack_operator.model.agent_config import AgentConfig

NAME = "conntrack-operator-agent"
MANAGED_BY = "conntrack-operator"
CONTAINER = "agent"

HOST_SYSCTLS = "/proc/sys/net"
"""On the host. A process sees there the sysctls of its own network namespace, hence hostNetwork."""

PROC_ROOT = "/host/proc"
"""Where the pod sees them: outside /proc, which container runtimes mount read-only and AppArmor guards. The agent reads
the machine-wide files that are not here (meminfo, cpuinfo) from its own /proc (kernel.roots)."""

STATE = "/var/lib/conntrack-operator"

SELECTOR = {"app.kubernetes.io/name": "conntrack-operator", "app.kubernetes.io/component": "agent"}
# No app.kubernetes.io/instance: Argo CD would take the objects for its own and delete them.
LABELS = {**SELECTOR, "app.kubernetes.io/managed-by": MANAGED_BY}


HOST_IP = "HOST_IP"
"""The environment variable with the node's address: metrics are served there, and the kubelet is asked there."""

XTABLES_LOCK = "/run/xtables.lock"
"""Shared by everybody on the node who runs iptables-legacy."""

AS_BUILT = AgentConfig()


def agent_documents(namespace: str, image: str, config: AgentConfig = AS_BUILT) -> list[dict[str, Any]]:
    """Return what the agents are made of, in the order it is to be created; deletion goes the other way."""
    return [
        {"kind": "ServiceAccount", "metadata": _metadata(namespace)},
        {"kind": "ClusterRole", "metadata": _metadata(), "rules": _rules()},
        {
            "kind": "ClusterRoleBinding",
            "metadata": _metadata(),
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": NAME},
            "subjects": [{"kind": "ServiceAccount", "name": NAME, "namespace": namespace}],
        },
        {"kind": "DaemonSet", "metadata": _metadata(namespace), "spec": _daemon_set_spec(image, config)},
    ]


def _metadata(namespace: str = "") -> dict[str, Any]:
    return {"name": NAME, **({"namespace": namespace} if namespace else {}), "labels": dict(LABELS)}


def _rules() -> list[dict[str, Any]]:
    """Return the least an agent can live on. It reads its own object and writes its own status."""
    return [
        {"apiGroups": ["conntrack-operator.io"], "resources": ["nodeconntracks"], "verbs": ["get", "list", "watch"]},
        {"apiGroups": ["conntrack-operator.io"], "resources": ["nodeconntracks/status"], "verbs": ["patch"]},
    ]


def _daemon_set_spec(image: str, config: AgentConfig) -> dict[str, Any]:
    metadata: dict[str, Any] = {"labels": {**config.labels, **LABELS}}
    if config.annotations:
        metadata["annotations"] = dict(config.annotations)
    return {
        "selector": {"matchLabels": dict(SELECTOR)},
        "updateStrategy": _update_strategy(config),
        "template": {"metadata": metadata, "spec": _pod(image, config)},
    }


def _update_strategy(config: AgentConfig) -> dict[str, Any]:
    if config.update_strategy.type == "OnDelete":
        return {"type": "OnDelete"}
    # A new image reaches all nodes soon, but a broken one does not: the first pods that are not ready hold it up.
    return {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": config.update_strategy.max_unavailable}}


def _pod(image: str, config: AgentConfig) -> dict[str, Any]:
    volumes = [
        {"name": "sysctls", "hostPath": {"path": HOST_SYSCTLS, "type": "Directory"}},
        {"name": "state", "hostPath": {"path": STATE, "type": "DirectoryOrCreate"}},
    ]
    if config.iptables_legacy:
        volumes.append({"name": "xtables-lock", "hostPath": {"path": XTABLES_LOCK, "type": "FileOrCreate"}})
    optional = {
        "priorityClassName": config.priority_class_name,
        "affinity": config.affinity,
        "tolerations": config.tolerations,
        "imagePullSecrets": [secret.document() for secret in config.image_pull_secrets],
    }
    return {
        "serviceAccountName": NAME,
        "hostNetwork": True,
        "dnsPolicy": "ClusterFirstWithHostNet",
        "nodeSelector": {**config.node_selector, "kubernetes.io/os": "linux"},
        "terminationGracePeriodSeconds": 10,
        "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [_container(image, config)],
        "volumes": volumes,
        **{field: value for field, value in optional.items() if value},
    }


def _container(image: str, config: AgentConfig) -> dict[str, Any]:
    args = ["agent", "--proc-root", PROC_ROOT, "--state-dir", STATE, "--top-talkers", str(config.top_talkers)]
    mounts = [{"name": "sysctls", "mountPath": f"{PROC_ROOT}/sys/net"}, {"name": "state", "mountPath": STATE}]
    if config.iptables_legacy:
        mounts.append({"name": "xtables-lock", "mountPath": XTABLES_LOCK})
    container: dict[str, Any] = {
        "name": CONTAINER,
        "image": image,
        # Its last words, should it end by itself, are then seen in its pod, and told by the policies.
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "args": args,
        "env": [
            {"name": "NODE_NAME", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
            {"name": HOST_IP, "valueFrom": {"fieldRef": {"fieldPath": "status.hostIP"}}},
        ],
        "resources": dict(config.resources),
        "securityContext": _rights(config),
        "volumeMounts": mounts,
    }
    if config.image_pull_policy:
        container["imagePullPolicy"] = config.image_pull_policy
    if config.metrics_port:
        # On the node's own network every address would be all of its networks, among them those towards the world. The
        # kubelet's probe and Prometheus ask at the pod's address, which is this one. In brackets it may be IPv6.
        args += ["--metrics-address", f"[$({HOST_IP})]:{config.metrics_port}"]
        # No liveness probe: an agent that hangs is worth more than one that is ended in the middle of a trial.
        container["ports"] = [{"name": "metrics", "containerPort": config.metrics_port}]
        # Often, since the waves wait for it.
        container["readinessProbe"] = {
            "httpGet": {"path": "/readyz", "port": "metrics"}, "initialDelaySeconds": 2, "periodSeconds": 3,
        }  # fmt: skip
    return container


def _rights(config: AgentConfig) -> dict[str, Any]:
    # uid 0 owns the sysctl files; of all of root's capabilities only NET_ADMIN is left, for netlink and nft.
    added = ["NET_ADMIN", *["NET_RAW"] * config.iptables_legacy, *["SYSLOG"] * config.kernel_log]
    rights: dict[str, Any] = {
        "runAsUser": 0,
        "runAsGroup": 0,
        "privileged": config.privileged,
        # The API server refuses the two together.
        "allowPrivilegeEscalation": config.privileged,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"], "add": added},
    }
    if config.privileged:
        del rights["capabilities"]  # it has all of them
    if config.se_linux_options:
        rights["seLinuxOptions"] = dict(config.se_linux_options)
    return rights
