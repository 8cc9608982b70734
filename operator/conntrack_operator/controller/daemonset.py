"""The agents: one DaemonSet and the rights its pods need, as constant documents.

Nothing in them comes from a policy, so that editing a policy never restarts an agent, and an agent outlives the label
its node was selected by. It runs on every Linux node; one without a NodeConntrack only measures.
"""

from typing import Any

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


def agent_documents(namespace: str, image: str) -> list[dict[str, Any]]:
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
        {"kind": "DaemonSet", "metadata": _metadata(namespace), "spec": _daemon_set_spec(image)},
    ]


def _metadata(namespace: str = "") -> dict[str, Any]:
    return {"name": NAME, **({"namespace": namespace} if namespace else {}), "labels": dict(LABELS)}


def _rules() -> list[dict[str, Any]]:
    """Return the least an agent can live on. It reads its own object and writes its own status."""
    return [
        {"apiGroups": ["conntrack-operator.io"], "resources": ["nodeconntracks"], "verbs": ["get", "list", "watch"]},
        {"apiGroups": ["conntrack-operator.io"], "resources": ["nodeconntracks/status"], "verbs": ["patch"]},
    ]


def _daemon_set_spec(image: str) -> dict[str, Any]:
    return {
        "selector": {"matchLabels": dict(SELECTOR)},
        # A new image reaches all nodes soon, but a broken one does not: the first pods that are not ready hold it up.
        "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "10%"}},
        "template": {
            "metadata": {"labels": dict(LABELS)},
            "spec": {
                "serviceAccountName": NAME,
                "hostNetwork": True,
                "dnsPolicy": "ClusterFirstWithHostNet",
                "priorityClassName": "system-node-critical",
                "nodeSelector": {"kubernetes.io/os": "linux"},
                "tolerations": [{"operator": "Exists"}],
                "terminationGracePeriodSeconds": 10,
                "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}},
                "containers": [_container(image)],
                "volumes": [
                    {"name": "sysctls", "hostPath": {"path": HOST_SYSCTLS, "type": "Directory"}},
                    {"name": "state", "hostPath": {"path": STATE, "type": "DirectoryOrCreate"}},
                ],
            },
        },
    }


def _container(image: str) -> dict[str, Any]:
    return {
        "name": CONTAINER,
        "image": image,
        # Its last words, should it end by itself, are then seen in its pod, and told by the policies.
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "args": ["agent", "--proc-root", PROC_ROOT, "--state-dir", STATE],
        "env": [{"name": "NODE_NAME", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}],
        "resources": {"requests": {"cpu": "10m", "memory": "64Mi"}, "limits": {"memory": "256Mi"}},
        "securityContext": {
            # uid 0 owns the sysctl files; of all of root's capabilities only NET_ADMIN is left, for netlink and nft.
            "runAsUser": 0,
            "runAsGroup": 0,
            "privileged": False,
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"], "add": ["NET_ADMIN"]},
        },
        "volumeMounts": [
            {"name": "sysctls", "mountPath": f"{PROC_ROOT}/sys/net"},
            {"name": "state", "mountPath": STATE},
        ],
    }
