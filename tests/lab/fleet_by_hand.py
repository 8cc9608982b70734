"""Policies and nodes of a cluster without agents: the test answers in their place."""

import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.lab.cluster import Cluster
from tests.lab.programs import Program, wait_until

NAMESPACE = "conntrack-system"


def controller(folder: Path, kubeconfig: Path, **nerves: object) -> Program:
    """Return a controller, not started; with `nerves`, one of tests.lab.watchful that has them."""
    module = (
        ["tests.lab.watchful", *(f"{nerve}={value}" for nerve, value in nerves.items()), "--"]
        if nerves
        else ["conntrack_operator"]
    )
    command = [
        sys.executable, "-m", *module, "controller",
        "--kubeconfig", str(kubeconfig), "--namespace", NAMESPACE, "--agent-image", "registry.example/agent:test",
    ]  # fmt: skip
    return Program("controller", command, folder / "controller.log")


def apply(cluster: Cluster, name: str, role: str, **spec: Any) -> None:
    """Apply a policy for the nodes with `role`."""
    fields = {"mode": "Enforce", "nodeSelector": {"matchLabels": {"role": role}}, "tcp": {"loose": True}, **spec}
    document = {
        "apiVersion": "conntrack-operator.io/v1alpha1",
        "kind": "ConntrackPolicy",
        "metadata": {"name": name},
        "spec": fields,
    }
    cluster.kubectl("apply", "-f", "-", input=document)


def spec_of(cluster: Cluster, node: str) -> dict[str, Any]:
    """Return what the node is asked to do; empty when it has no object."""
    return (cluster.get("nodeconntrack", node) or {}).get("spec", {})


def identity(cluster: Cluster, node: str) -> tuple[str, int]:
    """Return the object's uid and how often its spec was written: the same twice means that nothing was, in between."""
    found = cluster.get("nodeconntrack", node)
    assert found, f"{node} has no NodeConntrack"
    return found["metadata"]["uid"], found["metadata"]["generation"]


def names(cluster: Cluster, node: str) -> list[str]:
    """Return the policies whose settings the node is asked for."""
    spec = spec_of(cluster, node)
    return [use["name"] for use in spec.get("policies", [])] if spec.get("mode") == "Apply" else []


def answer(cluster: Cluster, node: str, unless: str = "") -> dict[str, Any]:
    """Say in the node's place that it has done what its spec asks; return that spec, empty when it has none.

    A spec of mode `unless` is not answered.
    """
    spec = spec_of(cluster, node)
    if not spec or spec["mode"] == unless:
        return spec
    status = {
        "observedRevision": spec["revision"],
        "observedAttempt": spec.get("attempt", ""),
        "nodeUID": spec["nodeUID"],
        "phase": "Restored" if spec["mode"] == "Restore" else "Current",
        "heartbeatTime": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "usage": {"entries": 400, "maxEntries": 1000, "percent": 40},
    }
    patch = json.dumps({"status": status})
    cluster.kubectl("patch", "nct", node, "--subresource=status", "--type=merge", "-p", patch, check=False)
    return spec


def settle(cluster: Cluster, node: str, *policies: str, seconds: float = 60) -> None:
    """Answer in the node's place until it is asked for the settings of these policies, and has answered that."""

    def is_asked() -> bool:
        answer(cluster, node)
        return names(cluster, node) == list(policies)

    wait_until(is_asked, seconds, f"{node} is asked for {', '.join(policies)}")
    answer(cluster, node)
