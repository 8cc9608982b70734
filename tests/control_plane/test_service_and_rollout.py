"""A Service that takes a NOTRACKed port: every node that may have the rule is told at once, whatever a rollout does.

Three nodes on a real control plane; the test plays their agents.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.control_plane.test_pods_and_services import (
    APPS,
    PODS,
    has_answered,
    make_pod,
    make_service,
    port,
    rule,
    services_at,
)
from tests.lab.answering import Answering, answering
from tests.lab.cluster import Cluster
from tests.lab.controller import started
from tests.lab.fleet_by_hand import answer, apply, are_told, condition, revisions, soon, spec_of
from tests.lab.programs import Program

NODES = ("n1", "n2", "n3")
PORT = 30080
OLD, NEW = rule(ports=[PORT]), rule(ports=[9000])
PAUSED = {"paused": True}
TAKEN = (f"{APPS}/shop", "NodePort", PORT)


@pytest.fixture(scope="module")
def controller(cluster: Cluster, crds: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """Give a running controller, the same for all tests of this file."""
    del crds
    cluster.clear()
    cluster.make_namespace(APPS)
    program = started(cluster, tmp_path_factory.mktemp("controller"))
    yield program
    program.stop()
    cluster.clear()
    cluster.kubectl("delete", "namespace", APPS, "--wait=true")


@pytest.fixture
def agents(cluster: Cluster, controller: Program) -> Iterator[Answering]:
    """Give three nodes whose agents obey; in the end there is nothing left of them, nor of any policy."""
    if not controller.running:
        controller.start()
    for name in NODES:
        cluster.add_node(name, role="web")
    with answering(cluster, everything=True) as made:
        yield made
    cluster.kubectl("delete", "pods", "--all", "-n", APPS, "--force", "--grace-period=0", "--wait=true")
    cluster.delete_all(("services", "-n", APPS), "conntrackpolicies", "nodes", "nodeconntracks")


def settings(cluster: Cluster) -> dict[str, Any]:
    """Return what all nodes have been given: settings, and revisions of policies."""

    def given(spec: dict[str, Any]) -> tuple[Any, ...]:
        return spec["mode"], spec["revision"], spec.get("settings"), [use["revision"] for use in spec["policies"]]

    return {name: given(spec_of(cluster, name)) for name in NODES}


def has_all(cluster: Cluster, notrack: dict[str, Any], **spec: Any) -> dict[str, Any]:
    """Have all nodes given a policy with these rules; return what they have, and have answered."""
    apply(cluster, "web", notrack=notrack, **spec)
    soon(lambda: are_told(cluster, *NODES), "all are told")
    soon(lambda: all(has_answered(cluster, name) for name in NODES), "all have answered")
    return settings(cluster)


def is_told(cluster: Cluster, *nodes: str, services: tuple[tuple[str, str, int], ...] = (TAKEN,)) -> bool:
    """Tell whether these nodes, all when none is named, are told of just these Services."""
    return all(services_at(cluster, name) == list(services) for name in nodes or NODES)


def take_port(cluster: Cluster) -> None:
    """Make a Service that takes the port on every node, and that is in other ways all on one port."""
    ports = [{"port": 80, "nodePort": PORT}]
    make_service(cluster, "shop", type="NodePort", ports=ports, externalIPs=["198.51.100.5"])


def held_back(cluster: Cluster, **spec: Any) -> None:
    """Apply an edit that takes the port out, and is paused; return when the controller has looked at it."""
    apply(cluster, "web", notrack=NEW, rollout=PAUSED, **spec)
    rules = lambda each: each["data"]["spec"]["notrack"]["rules"]  # noqa: E731 - of one revision
    soon(lambda: NEW["rules"] in [rules(each) for each in revisions(cluster, "web")], "the edit is written down")


@pytest.mark.usefixtures("agents")
def test_a_paused_policy(cluster: Cluster) -> None:
    """Its rule's port is told to all; when the Service goes, that is told too. Nothing else in a spec changes."""
    before = has_all(cluster, OLD)
    apply(cluster, "web", notrack=OLD, rollout=PAUSED)
    take_port(cluster)
    soon(lambda: is_told(cluster), "all are told of the Service")
    assert settings(cluster) == before
    cluster.kubectl("delete", "service", "shop", "-n", APPS)
    soon(lambda: is_told(cluster, services=()), "all are told that it is gone")
    assert settings(cluster) == before


@pytest.mark.usefixtures("agents")
def test_a_newer_revision_without_the_port(cluster: Cluster, controller: Program) -> None:
    """Nobody has been given the edit that takes the port out: the rule is still on all nodes, also for a new start.

    When the edit has been released to everybody, the Service is of no concern to anybody.
    """
    before = has_all(cluster, OLD)
    held_back(cluster)
    take_port(cluster)
    soon(lambda: is_told(cluster), "all are told of the Service")
    assert settings(cluster) == before
    cluster.kubectl("delete", "service", "shop", "-n", APPS)
    soon(lambda: is_told(cluster, services=()), "all are told that it is gone")
    controller.stop()
    take_port(cluster)
    controller.start()
    soon(lambda: is_told(cluster), "all are told of what came while no controller ran")
    assert settings(cluster) == before
    apply(cluster, "web", notrack=NEW)
    soon(lambda: is_told(cluster, services=()), "nobody has such a rule any more")


def test_a_canary_that_rolled_back(cluster: Cluster, agents: Answering) -> None:
    """The canary of a halted edit has its old rules back, and is told of the Service like those that were spared."""
    has_all(cluster, OLD)
    agents.everything = False
    apply(cluster, "web", notrack=NEW, rollout={"soakSeconds": 0})
    soon(lambda: spec_of(cluster, "n1")["settings"]["notrack"]["rules"][0]["ports"] == [9000], "the canary has it")
    answer(cluster, "n1", "RolledBack")
    soon(lambda: condition(cluster, "web", "Stalled").get("reason") == "CanaryFailed", "the edit is halted")
    before = settings(cluster)
    take_port(cluster)
    soon(lambda: is_told(cluster), "all are told of the Service")
    assert settings(cluster) == before


@pytest.mark.usefixtures("agents")
def test_a_selector_that_means_a_node_no_longer(cluster: Cluster) -> None:
    """The edit is paused, so the nodes it no longer means have their rules, and are told like the one it means."""
    before = has_all(cluster, OLD)
    only = {"matchLabels": {"kubernetes.io/hostname": "n3"}}
    held_back(cluster, nodeSelector=only)
    take_port(cluster)
    soon(lambda: is_told(cluster), "all are told of the Service")
    assert settings(cluster) == before


@pytest.mark.usefixtures("agents")
def test_ports_that_follow_pods(cluster: Cluster) -> None:
    """A pod's port that a Service takes is told to the node it is on, although the edit without pods is paused."""
    has_all(cluster, rule(pods=PODS))
    make_pod(cluster, "n2", "envoy", port(PORT))
    soon(lambda: "notrack" in spec_of(cluster, "n2")["settings"], "the pod's port is there")
    held_back(cluster)
    before = settings(cluster)
    take_port(cluster)
    soon(lambda: is_told(cluster, "n2"), "the pod's node is told")
    assert is_told(cluster, "n1", "n3", services=())
    assert settings(cluster) == before


def test_a_node_whose_object_was_lost(cluster: Cluster, agents: Answering) -> None:
    """Written anew while the policy is paused it asks for nothing: the node has its rules, and is told of the Service.

    So is one that has a revision nobody knows any more.
    """
    has_all(cluster, OLD)
    agents.everything = False
    held_back(cluster)
    cluster.kubectl("delete", "nct", "n2")
    soon(lambda: spec_of(cluster, "n2").get("mode") == "Hold", "its object is written anew")
    (use,) = spec_of(cluster, "n3")["policies"]
    patch = {"spec": {"policies": [{**use, "revision": "lost"}]}}
    cluster.kubectl("patch", "nct", "n3", "--type=merge", "-p", json.dumps(patch))
    before = settings(cluster)
    take_port(cluster)
    soon(lambda: is_told(cluster), "all are told of the Service")
    assert settings(cluster) == before
