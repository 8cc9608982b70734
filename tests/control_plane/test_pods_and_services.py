"""Pods and Services through the controller and a real control plane: ports that follow, translations that are told."""

import itertools
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.lab.answering import answering
from tests.lab.cluster import NAMESPACE, Cluster
from tests.lab.controller import IMAGE, started
from tests.lab.fleet_by_hand import apply, are_told, condition, soon, spec_of
from tests.lab.programs import Program

from conntrack_operator.controller.host_pods import GRACE_SECONDS

APPS = "apps"
ADDRESS = "192.0.2.11"
NUMBERS = itertools.count(1)
PODS = {"namespace": APPS, "selector": {"matchLabels": {"app": "envoy"}}}


@pytest.fixture(scope="module")
def controller(cluster: Cluster, crds: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """Give a running controller, the same for all tests of this file."""
    del crds
    cluster.clear()
    cluster.make_namespace(APPS)
    program = started(cluster, tmp_path_factory.mktemp("controller"))
    with answering(cluster, everything=True):
        yield program
    program.stop()
    cluster.clear()
    cluster.kubectl("delete", "namespace", APPS, "--wait=true")


@pytest.fixture(autouse=True)
def node(controller: Program, cluster: Cluster) -> Iterator[str]:
    """Give a node with an address, of a name no other test has had, a controller that runs, and nothing else."""
    if not controller.running:
        controller.start()
    name = f"n{next(NUMBERS)}"
    cluster.add_node(name, role="web")
    addresses = [{"type": "InternalIP", "address": ADDRESS}]
    cluster.patch({"status": {"addresses": addresses}}, "node", name, subresource="status")
    yield name
    cluster.kubectl("delete", "pods", "--all", "-n", APPS, "--force", "--grace-period=0", "--wait=true")
    cluster.delete_all(
        ("services", "-n", APPS), ("endpointslices", "-n", APPS), "conntrackpolicies", "nodeconntracks", "nodes"
    )


def rule(**fields: Any) -> dict[str, Any]:
    """Return the `notrack` part of a policy with one rule named web."""
    return {"rules": [{"name": "web", **fields}]}


def make_pod(cluster: Cluster, node: str, name: str, *ports: dict[str, Any], **spec: Any) -> None:
    """Create a host-network pod of the app envoy on a node, as a scheduler would have placed it."""
    container = {"name": "main", "image": "registry.example/app:1", "ports": list(ports)}
    document = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": APPS, "labels": {"app": "envoy"}},
        "spec": {"nodeName": node, "hostNetwork": True, "containers": [container], **spec},
    }
    cluster.kubectl("create", "-f", "-", input=document)


def port(number: int, name: str = "", **fields: Any) -> dict[str, Any]:
    """Return a container's port."""
    return {"containerPort": number, **({"name": name} if name else {}), **fields}


def make_service(cluster: Cluster, name: str, port: int = 80, **spec: Any) -> dict[str, Any]:
    """Create a Service; return it as stored."""
    document = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": APPS},
        "spec": {"ports": [{"port": port}], **spec},
    }
    cluster.kubectl("create", "-f", "-", input=document)
    found = cluster.get("service", name, "-n", APPS)
    assert found
    return found


def ports_at(cluster: Cluster, node: str) -> list[Any]:
    """Return the ports of the node's rules."""
    rules = spec_of(cluster, node).get("settings", {}).get("notrack", {}).get("rules", [])
    assert not any("pods" in each for each in rules)
    return [number for each in rules for number in each["ports"]]


def services_at(cluster: Cluster, node: str) -> list[tuple[str, str, int]]:
    """Return what the node is told of Services: name, kind and port."""
    return [(each["name"], each["kind"], each["port"]) for each in spec_of(cluster, node).get("services", [])]


def has_answered(cluster: Cluster, node: str) -> bool:
    """Tell whether the node's status is about what it is asked for."""
    found = cluster.get("nct", node) or {"spec": {}}
    return bool((found.get("status") or {}).get("observedRevision", "") == found["spec"].get("revision"))


def test_ports_follow_pods(cluster: Cluster, node: str) -> None:
    """A pod brings its ports to its node alone within seconds, with a new revision; when it has gone, they go too."""
    cluster.add_node("other", role="web")
    apply(cluster, "web", notrack=rule(pods={**PODS, "portNames": ["http", "admin"]}))
    soon(lambda: are_told(cluster, node, "other"), "the nodes are told")
    assert "notrack" not in spec_of(cluster, node)["settings"]
    before = spec_of(cluster, node)["revision"]
    make_pod(cluster, node, "envoy-1", port(8443, "other"), port(8081, "admin"), port(8080, "http"))
    soon(lambda: ports_at(cluster, node) == [8080, 8081], "the pod's ports are there")
    assert spec_of(cluster, node)["revision"] != before
    assert ports_at(cluster, "other") == []
    make_pod(cluster, node, "plain", port(8090, "http", hostPort=8090), hostNetwork=False)
    make_pod(cluster, node, "datagrams", port(8082, "http", protocol="UDP"))
    make_pod(cluster, node, "envoy-2", port(9000, "http"))
    soon(lambda: ports_at(cluster, node) == [8080, 8081, 9000], "the second pod's port is there")
    cluster.kubectl("delete", "pod", "envoy-1", "-n", APPS, "--force", "--grace-period=0")
    soon(lambda: ports_at(cluster, node) == [9000], "the first pod's ports are gone", GRACE_SECONDS + 90)


def test_a_pod_that_is_replaced_keeps_its_rule(cluster: Cluster, node: str) -> None:
    """Deleted and made anew within the grace time, as a rollout does, a pod changes nothing on its node."""
    apply(cluster, "web", notrack=rule(pods=PODS))
    make_pod(cluster, node, "envoy", port(8080))
    soon(lambda: ports_at(cluster, node) == [8080], "the pod's port is there")
    before = (cluster.get("nct", node) or {})["metadata"]["generation"]
    cluster.kubectl("delete", "pod", "envoy", "-n", APPS, "--force", "--grace-period=0")
    make_pod(cluster, node, "envoy-next", port(8080), port(8081))
    soon(lambda: ports_at(cluster, node) == [8080, 8081], "the next pod's ports are there")
    assert (cluster.get("nct", node) or {})["metadata"]["generation"] == before + 1


def test_a_node_port_comes_and_goes(cluster: Cluster, node: str) -> None:
    """A NodePort on a rule's port is told to the node within seconds, without a new revision, until it is gone."""
    apply(cluster, "web", notrack=rule(ports=["30080-30090"]))
    soon(lambda: ports_at(cluster, node), "the node is told")
    before = spec_of(cluster, node)["revision"]
    make_service(cluster, "elsewhere", type="NodePort", ports=[{"port": 80, "nodePort": 30095}])
    make_service(cluster, "shop", type="NodePort", ports=[{"port": 80, "nodePort": 30080}])
    soon(lambda: services_at(cluster, node) == [(f"{APPS}/shop", "NodePort", 30080)], "the Service is told")
    assert spec_of(cluster, node)["revision"] == before
    cluster.kubectl("delete", "service", "shop", "-n", APPS)
    soon(lambda: services_at(cluster, node) == [], "the Service is gone")


def test_a_target_port_on_the_node_itself(cluster: Cluster, node: str) -> None:
    """A Service that ends at the node's own address on a rule's port is told, to the node that has the address."""
    cluster.add_node("other", role="web")
    apply(cluster, "web", notrack=rule(ports=[8080]))
    soon(lambda: ports_at(cluster, node) and ports_at(cluster, "other"), "the nodes are told")
    endpoints = {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": "shop-1", "namespace": APPS, "labels": {"kubernetes.io/service-name": "shop"}},
        "addressType": "IPv4",
        "ports": [{"name": "", "port": 8080, "protocol": "TCP"}],
        "endpoints": [{"addresses": [address], "nodeName": node} for address in (ADDRESS, "10.1.2.3")],
    }
    cluster.kubectl("create", "-f", "-", input=endpoints)
    make_service(cluster, "shop")
    soon(lambda: services_at(cluster, node) == [(f"{APPS}/shop", "TargetPort", 8080)], "the target is told")
    assert spec_of(cluster, node)["services"][0]["addresses"] == [ADDRESS]
    assert not spec_of(cluster, "other").get("services")
    cluster.kubectl("delete", "service", "shop", "-n", APPS)
    soon(lambda: services_at(cluster, node) == [], "without the Service its endpoints are nothing")


def test_a_cluster_ip_among_a_client_s_servers(cluster: Cluster, node: str) -> None:
    """What the node connects to is told when it is a Service's address."""
    address = make_service(cluster, "database", port=5432)["spec"]["clusterIP"]
    apply(cluster, "web", notrack=rule(ports=[5432], side="Client", addresses=["10.96.0.0/16"]))
    soon(lambda: services_at(cluster, node) == [(f"{APPS}/database", "ClusterIP", 5432)], "the Service is told")
    assert spec_of(cluster, node)["services"][0]["addresses"] == [address]
    apply(cluster, "web", notrack=rule(ports=[5432], side="Client", addresses=["192.0.2.0/24"]))
    soon(lambda: services_at(cluster, node) == [], "the rule is about other servers now")


def test_a_restart_repeats_no_write(cluster: Cluster, node: str, controller: Program) -> None:
    """Started again, the controller finds the same pods and Services and writes nothing."""
    apply(cluster, "web", notrack=rule(pods=PODS))
    make_pod(cluster, node, "envoy", port(30070))
    make_service(cluster, "shop", type="NodePort", ports=[{"port": 80, "nodePort": 30070}])
    soon(lambda: ports_at(cluster, node) == [30070] and services_at(cluster, node), "the node is told")
    soon(lambda: has_answered(cluster, node), "the node has answered, which it does not do again")
    cluster.kubectl("wait", "--for=condition=Ready", "--timeout=90s", "ctp/web")
    before = cluster.get("nct", node)
    controller.send(signal.SIGTERM)
    assert controller.process
    assert controller.process.wait(60) == 0
    controller.start()
    # The one policy that is new shows that everything has been looked at.
    apply(cluster, "later", nodeSelector={"matchLabels": {"role": "none"}})
    soon(lambda: condition(cluster, "later", "Ready").get("reason") == "NoNodeMatches", "it has looked at everything")
    assert cluster.get("nct", node) == before


RULES = [
    {"apiGroups": ["conntrack-operator.io"], "resources": ["conntrackpolicies"], "verbs": ["get", "list", "watch"]},
    {"apiGroups": ["conntrack-operator.io"], "resources": ["conntrackpolicies/status"], "verbs": ["patch"]},
    {
        "apiGroups": ["conntrack-operator.io"],
        "resources": ["nodeconntracks"],
        "verbs": ["get", "list", "watch", "create", "patch", "delete"],
    },
    {"apiGroups": ["conntrack-operator.io"], "resources": ["nodeconntracks/status"], "verbs": ["patch"]},
    {"apiGroups": [""], "resources": ["nodes"], "verbs": ["get", "list", "watch"]},
    {"apiGroups": [""], "resources": ["events", "serviceaccounts"], "verbs": ["get", "create", "patch", "delete"]},
    {"apiGroups": [""], "resources": ["namespaces"], "verbs": ["get"]},
    {"apiGroups": ["apiextensions.k8s.io"], "resources": ["customresourcedefinitions"], "verbs": ["get"]},
    {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["get", "create", "patch"]},
    {"apiGroups": ["apps"], "resources": ["daemonsets"], "verbs": ["get", "create", "patch", "delete"]},
    {"apiGroups": ["apps"], "resources": ["controllerrevisions"], "verbs": ["list", "create", "patch", "delete"]},
    {
        "apiGroups": ["rbac.authorization.k8s.io"],
        "resources": ["clusterroles", "clusterrolebindings"],
        "verbs": ["get", "create", "patch", "delete"],
    },
]
"""What the controller may do, without the sight of pods and Services (docs/architecture.md)."""

SIGHT = [
    {"apiGroups": [""], "resources": ["pods", "services"], "verbs": ["list", "watch"]},
    {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"]},
]


def test_what_may_not_be_seen_is_said(cluster: Cluster, node: str, controller: Program, tmp_path: Path) -> None:
    """Without a right to list pods and Services the rest goes on, nothing is withdrawn, and the policy says so."""
    apply(cluster, "web", notrack=rule(pods=PODS))
    make_pod(cluster, node, "envoy", port(30060))
    make_service(cluster, "shop", type="NodePort", ports=[{"port": 80, "nodePort": 30060}])
    soon(lambda: ports_at(cluster, node) == [30060] and services_at(cluster, node), "the node is told")
    before = spec_of(cluster, node)
    controller.stop()
    cluster.kubectl("create", "serviceaccount", "limited", "-n", APPS)
    role = {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": "limited"}}
    cluster.kubectl("apply", "-f", "-", input={**role, "rules": RULES})
    cluster.kubectl(
        "create", "clusterrolebinding", "limited", "--clusterrole=limited", f"--serviceaccount={APPS}:limited"
    )
    limited = cluster.kubeconfig_for(cluster.token("limited", APPS))
    command = [
        sys.executable, "-m", "conntrack_operator", "controller",
        "--kubeconfig", str(limited), "--namespace", NAMESPACE, "--agent-image", IMAGE,
    ]  # fmt: skip
    program = Program("limited", command, tmp_path / "controller.log")
    program.start()
    try:
        soon(lambda: condition(cluster, "web", "Degraded").get("reason") == "ControllerMayNotSee", "it is said")
        said = condition(cluster, "web", "Degraded")["message"]
        assert "may not list endpointslices and pods and services" in said
        apply(cluster, "web", notrack=rule(pods=PODS), timeouts={"icmp": "7s"})
        soon(lambda: spec_of(cluster, node)["settings"].get("timeouts"), "the rest goes on")
        assert ports_at(cluster, node) == [30060]
        assert spec_of(cluster, node)["services"] == before["services"]
        cluster.kubectl("apply", "-f", "-", input={**role, "rules": [*RULES, *SIGHT]})
        soon(lambda: condition(cluster, "web", "Degraded").get("status") == "False", "with the rights all is well")
        make_pod(cluster, node, "envoy-2", port(30061))
        soon(lambda: ports_at(cluster, node) == [30060, 30061], "pods are seen")
        assert "orbidden" not in (condition(cluster, "web", "Ready")["message"])
    finally:
        program.stop()
        cluster.kubectl("delete", "clusterrole,clusterrolebinding", "limited")
