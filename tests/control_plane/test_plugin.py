"""`kubectl conntrack` as a person types it: the real kubectl, a real API server, a controller, and simulated agents."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.lab.cluster import NAMESPACE, Cluster
from tests.lab.controller import Controller
from tests.lab.fleet import NODE_CONNTRACKS, ROLE, Fleet
from tests.lab.fleet_api import GROUP, MERGE
from tests.lab.plugin import Plugin
from tests.lab.policies import AT_ONCE, policy
from tests.lab.programs import wait_until

NODES = 6
POLICY = policy("web", {"role": ROLE}, timeouts={"icmp": "20s"}, rollout=AT_ONCE)
TALKER = "10.244.1.7"


@pytest.fixture(scope="module")
def fleet(cluster: Cluster, crds: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Give six nodes that one policy has tuned, with a controller at work."""
    del crds
    cluster.clear()
    controller = Controller(cluster, tmp_path_factory.mktemp("controller"))
    controller.start()
    try:
        with Fleet(cluster.kubeconfig) as fleet:
            fleet.add(NODES)
            cluster.apply(POLICY)
            wait_until(lambda: is_everywhere(fleet, "web"), 120, "every node is current")
            wait_until(
                lambda: Plugin(cluster).json("status")["policies"][0]["rollout"] == "AllNodesCurrent",
                60, "the rollout has ended",
            )  # fmt: skip
            yield fleet
    finally:
        controller.stop()
        cluster.clear()


@pytest.fixture
def plugin(cluster: Cluster, fleet: Fleet) -> Plugin:
    """Give the plugin as an administrator."""
    del fleet
    return Plugin(cluster)


def stored(fleet: Fleet, name: str) -> dict[str, Any]:
    """Return a policy as it is stored."""
    return fleet.api.request("GET", f"{GROUP}/conntrackpolicies/{name}")


def is_everywhere(fleet: Fleet, name: str) -> bool:
    """Tell whether every node has the policy as it is now, by one look at it."""
    found = stored(fleet, name)
    status = found.get("status") or {}
    is_newest = status.get("observedGeneration") == found["metadata"]["generation"]
    return bool(is_newest and status["nodes"]["current"] == NODES)


def report(fleet: Fleet, node: str, **status: Any) -> None:
    """Write part of a node's status in its agent's place, which is quiet for minutes when nothing happens."""
    fleet.api.request("PATCH", f"{NODE_CONNTRACKS}/{node}/status", {"status": status}, MERGE)


def usage(percent: int, **more: int) -> dict[str, int]:
    """Return a use of a table of 1000."""
    return {"entries": percent * 10, "maxEntries": 1000, "percent": percent, **more}


@pytest.fixture
def stranger(cluster: Cluster, fleet: Fleet) -> Iterator[str]:
    """Give an account with no rights but to list the operator's own kinds; its token."""
    del fleet
    cluster.kubectl("create", "serviceaccount", "stranger", "-n", "default")
    cluster.kubectl(
        "create", "clusterrole", "stranger", "--verb=get,list", "--resource=conntrackpolicies,nodeconntracks"
    )
    cluster.kubectl(
        "create", "clusterrolebinding", "stranger", "--clusterrole=stranger", "--serviceaccount=default:stranger"
    )
    account = "--as=system:serviceaccount:default:stranger"
    for kind in ("conntrackpolicies", "nodeconntracks"):
        may = ("auth", "can-i", "list", f"{kind}.conntrack-operator.io", account)
        # The API server hears of a new role by a watch of its own.
        wait_until(
            lambda may=may: cluster.kubectl(*may, check=False).returncode == 0, 60, f"the stranger may list {kind}"
        )
    yield cluster.token("stranger", "default")
    cluster.kubectl("delete", "clusterrolebinding,clusterrole", "stranger")
    cluster.kubectl("delete", "serviceaccount", "stranger", "-n", "default")


def test_status_shows_the_fleet_by_pressure(fleet: Fleet, plugin: Plugin) -> None:
    """Who drops comes first, then who is full soonest, then the fullest; each policy with where it stands."""
    report(fleet, "node-003", usage=usage(40, secondsToFull=410))
    report(fleet, "node-001", usage=usage(70))
    report(fleet, "node-004", usage=usage(100, dropsPerSecond=12))
    seen = plugin.json("status")
    assert [row["node"] for row in seen["nodes"]][:3] == ["node-004", "node-003", "node-001"]
    assert len(seen["nodes"]) == NODES
    revision = stored(fleet, "web")["status"]["revision"]
    row = seen["nodes"][0]
    assert (row["phase"], row["policies"]) == ("Current", [f"web@{revision}"])
    assert (row["entries"], row["maxEntries"], row["dropsPerSecond"]) == (1000, 1000, 12)
    assert row["since"].endswith("Z")
    assert seen["policies"][0]["nodes"] == f"{NODES}/{NODES}"
    assert seen["policies"][0]["rollout"] == "AllNodesCurrent"
    assert seen["notes"] == []
    lines = plugin.run("status").stdout.splitlines()
    first = next(line for line in lines if line.startswith("node-"))
    assert first.split()[:7] == ["node-004", "Current", "100", "1000", "1000", "12", "-"]
    assert any(line.startswith(f"{NODES} nodes ({NODES} Current)") for line in lines)


def test_status_says_that_no_controller_is_there(cluster: Cluster, fleet: Fleet) -> None:
    """Of a namespace without a controller's Lease: nothing changes, and where to look."""
    del fleet
    notes = Plugin(cluster, namespace="default").json("status")["notes"]
    assert len(notes) == 1
    assert "No controller has ever been at work in namespace default" in notes[0]
    assert "--namespace" in notes[0]


def test_a_paused_rollout_waits_and_goes_on(fleet: Fleet, plugin: Plugin) -> None:
    """Pause holds an edit back, status says so, resume lets it through; done twice, both say so and write nothing."""
    said = plugin.run("pause", "web").stdout
    assert said.startswith("web is paused: no further node is released")
    assert f"{NODES} of {NODES} nodes are current" in said
    generation = stored(fleet, "web")["metadata"]["generation"]
    assert "paused already" in plugin.run("pause", "web").stdout
    assert stored(fleet, "web")["metadata"]["generation"] == generation
    old = stored(fleet, "web")["status"]["revision"]
    fleet.api.request("PATCH", f"{GROUP}/conntrackpolicies/web", {"spec": {"timeouts": {"icmp": "25s"}}}, MERGE)
    wait_until(lambda: plugin.json("status")["policies"][0]["rollout"] == "Paused", 60, "status says that it is paused")
    seen = plugin.json("status")
    assert {row["policies"][0] for row in seen["nodes"]} == {f"web@{old}"}
    assert plugin.run("resume", "web").stdout.startswith("web goes on")
    wait_until(lambda: is_everywhere(fleet, "web"), 120, "every node has the edit")
    assert stored(fleet, "web")["status"]["revision"] != old
    assert "not paused" in plugin.run("resume", "web").stdout
    assert stored(fleet, "web")["spec"]["rollout"] == POLICY["spec"]["rollout"]


def test_retry_reaches_the_nodes_that_gave_up(fleet: Fleet, plugin: Plugin) -> None:
    """A node that rolled back is given a new attempt; one that is current is not touched."""
    report(fleet, "node-005", phase="RolledBack")
    before = {name: found["spec"].get("attempt", "") for name, found in fleet.objects().items()}
    assert "asked to try again" in plugin.run("retry", "web").stdout
    assert stored(fleet, "web")["spec"]["rollout"]["retry"].endswith("Z")
    wait_until(
        lambda: fleet.objects()["node-005"]["spec"].get("attempt", "") != before["node-005"], 60, "it is asked again"
    )
    now = {name: found["spec"].get("attempt", "") for name, found in fleet.objects().items()}
    assert {name for name in now if now[name] != before[name]} == {"node-005"}


def test_history_tells_what_changed_and_why(fleet: Fleet, plugin: Plugin) -> None:
    """Two revisions with what differs, what each node did, Events, in the order of time."""
    fleet.api.request("PATCH", f"{GROUP}/conntrackpolicies/web", {"spec": {"timeouts": {"icmp": "31s"}}}, MERGE)
    wait_until(lambda: is_everywhere(fleet, "web"), 120, "every node has the edit")
    wait_until(
        lambda: any(each["what"] == "GoodEverywhere" for each in plugin.json("history", "web")["history"]),
        60, "the revision is good",
    )  # fmt: skip
    history = plugin.json("history", "web", "-n", "0")["history"]
    assert [each["time"] for each in history] == sorted(each["time"] for each in history)
    whats = {(each["subject"], each["what"]) for each in history}
    assert {("policy/web", "Created"), ("policy/web", "SpecWritten"), ("node/node-000", "Current")} <= whats
    edits = [each["why"] for each in history if each["what"] == "Revision"]
    assert any(why.endswith("-> 31") and "timeouts.icmp" in why for why in edits), edits
    wait_until(
        lambda: any(each["what"] == "AllNodesCurrent" for each in plugin.json("history", "-n", "0")["history"]),
        60, "the policy's Event is there",
    )  # fmt: skip
    of_node = plugin.json("history", "node-002", "-n", "0")["history"]
    assert {each["subject"] for each in of_node if each["subject"].startswith("node/")} == {"node/node-002"}
    assert len(plugin.json("history", "-n", "3")["history"]) == 3
    assert "neither a policy nor" in plugin.complaint("history", "nobody")


def test_top_names_pods_by_the_persons_own_rights(
    cluster: Cluster, fleet: Fleet, plugin: Plugin, stranger: str
) -> None:
    """Entries of all nodes add up; a pod is named with its Deployment; who may not list pods is told so."""
    pod = {
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": "shop-5d8-x1", "namespace": "default", "labels": {"pod-template-hash": "5d8"},
            "ownerReferences": [
                {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "shop-5d8", "uid": "u1", "controller": True}
            ],
        },
        "spec": {"nodeName": "nowhere", "containers": [{"name": "a", "image": "registry.example/a"}]},
    }  # fmt: skip
    cluster.kubectl("create", "-f", "-", input=pod)
    ip = {"status": {"podIP": TALKER, "podIPs": [{"ip": TALKER}], "phase": "Running"}}
    cluster.kubectl("patch", "pod", "shop-5d8-x1", "--subresource=status", "--type=merge", "-p", json.dumps(ip))
    for node, entries in (("node-000", 300), ("node-005", 150)):
        talkers = [
            {"by": "source", "key": TALKER, "entries": entries, "percent": 30},
            {"by": "source", "key": "192.0.2.9", "entries": 20, "percent": 2},
        ]
        report(fleet, node, usage=usage(50), topTalkers=talkers)
    seen = plugin.json("top")
    assert seen["rows"][0] == {
        "key": TALKER, "name": "pod default/shop-5d8-x1 (Deployment shop)", "entries": 450, "share": 0.45, "nodes": 2,
    }  # fmt: skip
    assert (seen["rows"][1]["key"], seen["rows"][1]["name"], seen["rows"][1]["entries"]) == ("192.0.2.9", "", 40)
    assert (seen["nodesTold"], seen["nodesSilent"]) == (2, NODES - 2)
    assert plugin.json("top", "node-005")["rows"][0]["entries"] == 150
    text = Plugin(cluster, cluster.kubeconfig_for(stranger)).run("top").stdout
    assert "shop" not in text
    assert "not seen: names of pods: you may not list pods" in text
    cluster.kubectl("delete", "pod", "shop-5d8-x1", "--grace-period=0", "--force")


def test_plan_of_a_file_applies_nothing(fleet: Fleet, plugin: Plugin) -> None:
    """Who matches, which fields would be asked for otherwise, who loses one to whom; exit 2, and nothing is stored."""
    fleet.label(["node-001", "node-002"], zone="b")
    spec = {
        "mode": "Observe", "nodeSelector": {"matchLabels": {"zone": "b"}}, "priority": -5,
        "timeouts": {"icmp": "9s"}, "table": {"size": {"maxEntries": 500000}},
    }  # fmt: skip
    file = json.dumps({**POLICY, "metadata": {"name": "more"}, "spec": spec})
    plan = plugin.json("plan", "-f", "-", code=2, stdin=file)
    assert (plan["nodes"], plan["changing"]) == (NODES, 2)
    assert plan["policies"][0]["matched"] == 2
    assert plan["changes"] == [
        {
            "field": "table.size", "from": "-", "to": "{maxEntries: 500000}", "policy": "more", "nodes": 2,
            "example": "node-001",
        }
    ]  # fmt: skip
    lost = {"policy": "more", "field": "timeouts.icmp", "winner": "web", "why": None, "nodes": 2}
    assert plan["conflicts"] == [lost]
    assert "would take it" in plan["apiServer"][0]
    assert stored(fleet, "more") == {}
    assert plugin.json("plan", "-f", "-", stdin=json.dumps(_as_it_is(fleet)))["changes"] == []
    assert "3 at most" not in plugin.complaint("plan", "-f", "-", stdin=file.replace("500000", "-1"))


def _as_it_is(fleet: Fleet) -> dict[str, Any]:
    return {**POLICY, "spec": stored(fleet, "web")["spec"]}


def test_plan_of_an_observe_policy_shows_what_nodes_said(cluster: Cluster, fleet: Fleet, plugin: Plugin) -> None:
    """The nodes' own previews; a policy that is in force has none, and is told from one."""
    spec = {**POLICY["spec"], "mode": "Observe", "timeouts": {"generic": "77s"}}
    cluster.kubectl("apply", "-f", "-", input={**POLICY, "metadata": {"name": "look"}, "spec": spec})
    wait_until(
        lambda: (stored(fleet, "look").get("status") or {}).get("preview", {}).get("nodes") == NODES,
        120, "every node has previewed it",
    )  # fmt: skip
    plan = plugin.json("plan", "look", code=2)
    assert plan["preview"]["changing"] == NODES
    assert f"{NODES} of {NODES} nodes have answered: {NODES} would change" in plugin.run("plan", "look", code=2).stdout
    assert "mode Enforce" in plugin.complaint("plan", "web")
    cluster.kubectl("delete", "conntrackpolicy", "look")


def test_what_needs_an_agents_pod_says_when_it_cannot(fleet: Fleet, plugin: Plugin) -> None:
    """No kubelet runs here: the agents' pods stay Pending. Both commands say so, with where to look."""
    del fleet
    for arguments in (("doctor", "node-000"), ("top", "node-000", "--live")):
        said = plugin.complaint(*arguments)
        assert "node-000" in said
        assert f"kubectl -n {NAMESPACE} get pods" in said
    assert "top NODE --live" in plugin.complaint("top", "--live")


@pytest.fixture
def agents_pod(cluster: Cluster, fleet: Fleet) -> Iterator[str]:
    """Give a pod on node-001 that looks like its agent's and says that it runs, though no kubelet is there."""
    del fleet
    labels = {"app.kubernetes.io/name": "conntrack-operator", "app.kubernetes.io/component": "agent"}
    node = cluster.get("node", "node-001")
    assert node
    # Without a controller of its own the DaemonSet would take it for one of its pods, one too many, and end it.
    owner = {"apiVersion": "v1", "kind": "Node", "name": "node-001", "uid": node["metadata"]["uid"], "controller": True}
    metadata = {"name": "stand-in", "namespace": NAMESPACE, "labels": labels, "ownerReferences": [owner]}
    pod = {
        "apiVersion": "v1", "kind": "Pod", "metadata": metadata,
        "spec": {"nodeName": "node-001", "containers": [{"name": "agent", "image": "registry.example/a"}]},
    }  # fmt: skip
    cluster.kubectl("create", "-f", "-", input=pod)
    running = json.dumps({"status": {"phase": "Running"}})
    cluster.kubectl("patch", "pod", "stand-in", "-n", NAMESPACE, "--subresource=status", "--type=merge", "-p", running)
    yield "stand-in"
    cluster.kubectl("delete", "pod", "stand-in", "-n", NAMESPACE, "--grace-period=0", "--force")


def test_kubectl_exec_fails_honestly_without_a_kubelet(agents_pod: str, plugin: Plugin) -> None:
    """The real kubectl exec is tried, and what it says is passed on."""
    for arguments in (("doctor", "node-001"), ("top", "node-001", "--live")):
        said = plugin.complaint(*arguments)
        assert f"nothing could be run in pod {NAMESPACE}/{agents_pod}: " in said
        assert f"kubectl -n {NAMESPACE} describe pod {agents_pod}" in said


def test_a_live_look_shows_what_the_agent_prints(agents_pod: str, plugin: Plugin, tmp_path: Path) -> None:
    """With a kubectl that answers for the agent, since no kubelet runs here: rows, and their error."""
    del agents_pod
    answer = {"sampled": 10, "entries": 40, "rows": [{"key": TALKER, "entries": 20, "share": 0.5, "error": 0.031}]}
    stand_in = tmp_path / "kubectl"
    stand_in.write_text(f"#!/bin/sh\ncat <<'END'\n{json.dumps(answer)}\nEND\n")
    stand_in.chmod(0o755)
    plugin.first = [tmp_path]
    assert plugin.json("top", "node-001", "--live")["rows"] == [
        {"key": TALKER, "name": "", "entries": 20, "share": 0.5, "nodes": 1, "error": 0.031}
    ]
    row = next(line for line in plugin.run("top", "node-001", "--live").stdout.splitlines() if TALKER in line)
    assert row.split()[-1] == "3.1"
    stand_in.write_text("#!/bin/sh\necho no JSON\n")
    assert "may be another version" in plugin.complaint("top", "node-001", "--live")


def test_missing_rights_are_named(cluster: Cluster, fleet: Fleet, stranger: str) -> None:
    """One sentence each: which right is missing. What needs none of it goes on."""
    theirs = Plugin(cluster, cluster.kubeconfig_for(stranger))
    assert len(theirs.json("status")["nodes"]) == NODES
    said = theirs.complaint("pause", "web")
    assert "you may not patch conntrackpolicies.conntrack-operator.io" in said
    assert stored(fleet, "web")["spec"]["rollout"].get("paused") is None
    assert "you may not list nodes" in theirs.complaint("plan", "-f", "-", stdin=json.dumps(POLICY))
    notes = theirs.json("history", "web")["notes"]
    assert any("not seen: Events: you may not list events in namespace default;" in note for note in notes)
    nobody = Plugin(cluster, cluster.kubeconfig_for("wrong"))
    assert "does not know you" in nobody.complaint("status")


def test_no_way_to_a_cluster_is_one_sentence(cluster: Cluster, fleet: Fleet, tmp_path: Path) -> None:
    """A kubeconfig that is none, and an API server that is not there."""
    del fleet
    empty = tmp_path / "empty"
    empty.write_text("")
    assert "cannot be used" in Plugin(cluster, empty).complaint("status")
    away = cluster.kubeconfig_for("x", server="https://127.0.0.1:1")
    assert "see whether kubectl version answers" in Plugin(cluster, away).complaint("status")
