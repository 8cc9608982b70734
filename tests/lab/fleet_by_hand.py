"""Policies and nodes of a cluster without agents: the test answers in their place (or tests.lab.answering does)."""

from collections.abc import Callable
from typing import Any

from tests.lab.answering import answer_to
from tests.lab.cluster import NAMESPACE, Cluster
from tests.lab.policies import AT_ONCE, policy
from tests.lab.programs import wait_until

REVISION_LABELS = "app.kubernetes.io/name=conntrack-operator,app.kubernetes.io/component=revision"


def apply(cluster: Cluster, name: str, role: str = "web", **spec: Any) -> None:
    """Apply a policy for the nodes with this role, of 500,000 entries and at once, unless the spec says otherwise."""
    fields = {"rollout": AT_ONCE, "table": {"size": {"maxEntries": 500_000}}, **spec}
    cluster.apply(policy(name, {"role": role}, **fields))


def spec_of(cluster: Cluster, node: str) -> dict[str, Any]:
    """Return what the node is asked to do; empty when it has no object."""
    return (cluster.get("nodeconntrack", node) or {}).get("spec", {})


def are_told(cluster: Cluster, *nodes: str) -> bool:
    """Tell whether all these nodes are asked for something."""
    return all(spec_of(cluster, node).get("mode") == "Apply" for node in nodes)


def identity(cluster: Cluster, node: str) -> tuple[str, int]:
    """Return the object's uid and how often its spec was written: the same twice means that nothing was, in between."""
    found = cluster.get("nodeconntrack", node)
    assert found, f"{node} has no NodeConntrack"
    return found["metadata"]["uid"], found["metadata"]["generation"]


def names(cluster: Cluster, node: str) -> list[str]:
    """Return the policies whose settings the node is asked for."""
    spec = spec_of(cluster, node)
    return [use["name"] for use in spec.get("policies", [])] if spec.get("mode") == "Apply" else []


def condition(cluster: Cluster, name: str, kind: str) -> dict[str, Any]:
    """Return one condition of a policy; empty when it is not there yet."""
    status = (cluster.get("conntrackpolicy", name) or {}).get("status", {})
    if status.get("observedGeneration", -1) < 0:
        return {}
    return next((each for each in status["conditions"] if each["type"] == kind), {})


def revisions(cluster: Cluster, name: str = "") -> list[dict[str, Any]]:
    """Return the revisions that are kept of a policy, or of all."""
    found = cluster.items("controllerrevisions", "-n", NAMESPACE, "-l", REVISION_LABELS)
    owner = "conntrack-operator.io/policy"
    return [each for each in found if name in ("", each["metadata"]["annotations"][owner])]


def answer(cluster: Cluster, node: str, phase: str = "", *, unless: str = "", **changes: Any) -> dict[str, Any]:
    """Write a node's status as its agent would, having done what its spec asks, or having come to `phase` with it.

    Return that spec, empty when it has none; one of mode `unless` is not answered.
    """
    spec = spec_of(cluster, node)
    if spec and spec["mode"] != unless:
        body = {"status": answer_to(spec, phase, **changes)}
        cluster.patch(body, "nodeconntrack", node, subresource="status")
    return spec


def settle(cluster: Cluster, node: str, *policies: str, seconds: float = 90) -> None:
    """Answer in the node's place until it is asked for the settings of these policies, and has answered that."""

    def is_asked() -> bool:
        answer(cluster, node)
        return names(cluster, node) == list(policies)

    wait_until(is_asked, seconds, f"{node} is asked for {', '.join(policies)}")
    answer(cluster, node)


def ready(cluster: Cluster, *policies: str) -> None:
    """Wait until these policies are Ready in their present versions."""
    for name in policies:
        cluster.kubectl("wait", "--for=condition=Ready", "--timeout=60s", f"ctp/{name}")


def soon(holds: Callable[[], object], what: str, seconds: float = 90) -> float:
    """Wait for something the controller does: usually within a second, on a busy machine later (make bench tells)."""
    return wait_until(holds, seconds, what, every=0.05)
