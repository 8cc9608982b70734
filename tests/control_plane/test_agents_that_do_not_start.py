"""Agents that do not start: their policies say why and what to do, within seconds, and no longer when it is done.

Admission refuses the pods for real, by Pod Security and by a quota; no kubelet runs here, so what a kubelet says of a
pod is written by the tests.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.lab.cluster import NAMESPACE, Cluster
from tests.lab.controller import IMAGE, started
from tests.lab.fleet_by_hand import apply, condition, soon
from tests.lab.programs import Program, wait_until

AGENT = "conntrack-operator-agent"
LABEL = "pod-security.kubernetes.io/enforce"


@pytest.fixture(scope="module", autouse=True)
def controller(cluster: Cluster, crds: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """Have a controller at work, and three nodes, two of which are meant by a policy."""
    del crds
    cluster.clear()
    cluster.delete_all(("events", "-n", "default"))  # of other tests
    for name, role in (("n1", "web"), ("n2", "web"), ("n3", "db")):
        cluster.add_node(name, role=role)
    program = started(cluster, tmp_path_factory.mktemp("controller"))
    yield program
    program.stop()
    cluster.clear()


@pytest.fixture(autouse=True)
def tidy(cluster: Cluster) -> Iterator[None]:
    """Have each test begin without policies, agents, events and limits."""
    yield
    cluster.delete_all("conntrackpolicies", ("resourcequotas", "-n", NAMESPACE))
    cluster.kubectl("label", "namespace", NAMESPACE, f"{LABEL}-")
    wait_until(lambda: are_gone(cluster), 120, "the agents are gone")
    cluster.delete_all(("events", "-n", "default"), ("events", "-n", NAMESPACE))  # after the last that may come


def are_gone(cluster: Cluster) -> bool:
    """Tell whether agents and nodes' objects are gone; the objects are deleted, since nobody says Restored here."""
    cluster.delete_all("nodeconntracks")
    return not pods(cluster) and not daemon_set(cluster) and not cluster.items("nodeconntracks")


def daemon_set(cluster: Cluster) -> dict[str, Any]:
    """Return the agents' DaemonSet, empty when there is none."""
    return cluster.get("daemonset", AGENT, "-n", NAMESPACE) or {}


def pods(cluster: Cluster) -> dict[str, dict[str, Any]]:
    """Return the agents' pods by the node they are meant for."""
    found = {}
    for each in cluster.items("pods", "-n", NAMESPACE):
        affinity = each["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
        found[affinity["nodeSelectorTerms"][0]["matchFields"][0]["values"][0]] = each
    return found


def agents_are_made(cluster: Cluster) -> None:
    """Wait until every node has a pod."""
    wait_until(lambda: set(pods(cluster)) == {"n1", "n2", "n3"}, 120, "every node has its agent's pod")


def says(cluster: Cluster, policy: str, *parts: str) -> None:
    """Wait until the policy is degraded because agents do not run, in a sentence with these parts."""

    def told() -> bool:
        found = condition(cluster, policy, "Degraded")
        return found.get("reason") == "AgentsNotRunning" and all(part in found["message"] for part in parts)

    soon(told, f"policy {policy} says {parts}", 90)


def is_cured(cluster: Cluster, policy: str) -> None:
    """Wait until no condition of the policy says anything of agents that do not run."""

    def silent() -> bool:
        found = [condition(cluster, policy, kind) for kind in ("Ready", "Reconciling", "Degraded")]
        return not any("the agents" in each["message"] for each in found)

    soon(silent, "it is cured", 90)


def are_refused(cluster: Cluster, complaint: str) -> None:
    """Wait until the API server refuses an agent's pod so: it hears of labels and quotas by watches of its own."""
    pod = {
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": NAMESPACE},
        "spec": {"hostNetwork": True, "containers": [{"name": "c", "image": IMAGE}]},
    }  # fmt: skip
    asked = ("create", "--dry-run=server", "-f", "-")
    soon(lambda: complaint in cluster.kubectl(*asked, input=pod, check=False).stderr, f"pods are refused: {complaint}")


def kubelet_says(cluster: Cluster, node: str, state: dict[str, Any], **status: Any) -> None:
    """Write the status of the agent's container on a node, as its kubelet would."""
    pod = pods(cluster)[node]["metadata"]["name"]
    container = {
        "name": "agent", "image": IMAGE, "imageID": "", "ready": "running" in state, "restartCount": 0,
        "state": state, **status,
    }  # fmt: skip
    ready = {"type": "Ready", "status": str("running" in state)}
    patch = json.dumps({"status": {"containerStatuses": [container], "conditions": [ready]}})
    cluster.kubectl("patch", "pod", pod, "-n", NAMESPACE, "--subresource=status", "--type=merge", "-p", patch)


def test_pod_security_names_the_label(cluster: Cluster) -> None:
    """A namespace that forbids host-network pods: the sentence holds the command that cures, and it does."""
    cluster.kubectl("label", "namespace", NAMESPACE, f"{LABEL}=restricted")
    are_refused(cluster, "violates PodSecurity")
    apply(cluster, "web")
    cure = f"kubectl label --overwrite namespace {NAMESPACE} {LABEL}=privileged"
    says(cluster, "web", f'on 3 of 3 nodes: violates PodSecurity "restricted:latest"; run: {cure}')
    assert cure in condition(cluster, "web", "Ready")["message"]
    assert pods(cluster) == {}
    cluster.kubectl(*cure.split()[1:])
    agents_are_made(cluster)
    is_cured(cluster, "web")
    soon(lambda: told(cluster) == ["AgentsNotRunning", "AgentsStart"], "both are told", 120)


def told(cluster: Cluster) -> list[str]:
    """Return the reasons of all events, in their order."""
    return sorted(each["reason"] for each in cluster.items("events", "-n", "default"))


def test_a_quota_is_named(cluster: Cluster) -> None:
    """No room for pods in the namespace."""
    cluster.kubectl("create", "quota", "none", "-n", NAMESPACE, "--hard=pods=0")
    # No quota controller runs here, and admission goes by what that has written.
    patch = json.dumps({"status": {"hard": {"pods": "0"}, "used": {"pods": "0"}}})
    cluster.kubectl("patch", "quota", "none", "-n", NAMESPACE, "--subresource=status", "--type=merge", "-p", patch)
    are_refused(cluster, "exceeded quota")
    apply(cluster, "web")
    says(cluster, "web", "exceeded quota: none", f"kubectl get resourcequota -n {NAMESPACE}")


def test_an_image_that_cannot_be_pulled(cluster: Cluster) -> None:
    """The policies of that node say so, others do not; a pod that is only starting is no trouble."""
    apply(cluster, "web")
    apply(cluster, "db", nodeSelector={"matchLabels": {"role": "db"}})
    agents_are_made(cluster)
    kubelet_says(cluster, "n2", {"waiting": {"reason": "ContainerCreating"}})
    kubelet_says(cluster, "n1", {"waiting": {"reason": "ErrImagePull", "message": "not found"}})
    says(
        cluster, "web", "do not run on node n1:", f"the image {IMAGE} cannot be pulled (not found)", "image.repository"
    )
    message = f'Back-off pulling image "{IMAGE}": ErrImagePull: not found'
    kubelet_says(cluster, "n1", {"waiting": {"reason": "ImagePullBackOff", "message": message}})
    kubelet_says(cluster, "n2", {"waiting": {"reason": "ErrImagePull", "message": "not found"}})
    says(cluster, "web", "do not run on 2 nodes (n1, n2):")
    # All may have been without pods for a while, at the start.
    reasons = (None, "AgentsNotRunning")
    soon(lambda: condition(cluster, "db", "Degraded").get("reason") not in reasons, "the other has no trouble")
    for node in ("n1", "n2"):
        kubelet_says(cluster, node, {"running": {"startedAt": "2026-01-01T00:00:00Z"}})
    is_cured(cluster, "web")


def test_an_agent_that_crashes_says_why(cluster: Cluster) -> None:
    """Its last words, from the second restart on."""
    apply(cluster, "web")
    agents_are_made(cluster)
    ended = {"exitCode": 1, "reason": "Error", "message": "starting\nno way to the API server: no token\n"}
    waiting = {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s"}}
    kubelet_says(cluster, "n1", waiting, restartCount=1, lastState={"terminated": ended})
    kubelet_says(cluster, "n1", waiting, restartCount=2, lastState={"terminated": ended})
    name = pods(cluster)["n1"]["metadata"]["name"]
    words = "exit code 1: no way to the API server: no token"
    says(cluster, "web", words, f"kubectl logs -n {NAMESPACE} {name} --previous")


def test_an_edit_by_hand_is_put_right_soon(cluster: Cluster) -> None:
    """Somebody changes the DaemonSet: not for long."""
    apply(cluster, "web")
    agents_are_made(cluster)
    cluster.kubectl("set", "image", f"daemonset/{AGENT}", "-n", NAMESPACE, "agent=registry.example/other:1")
    wait_until(
        lambda: daemon_set(cluster)["spec"]["template"]["spec"]["containers"][0]["image"] == IMAGE,
        60,
        "it is put right",
    )
