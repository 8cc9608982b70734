"""The controller as a process against a real control plane; the tests play the agents by writing node statuses.

What asks for nothing is answered for them (tests.lab.answering), and policies reach all their nodes at once: waves have
files of their own.
"""

import json
import signal
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from tests.lab.answering import Answering, answering
from tests.lab.cluster import NAMESPACE, Cluster
from tests.lab.controller import HASTY, IMAGE, started
from tests.lab.fleet_by_hand import answer, apply, are_told, condition, ready, revisions, soon, spec_of
from tests.lab.programs import Program, wait_until

from conntrack_operator.cluster.access import access_for
from conntrack_operator.cluster.own_node import OwnNode

KINDS = ("conntrackpolicies", "nodeconntracks")


@pytest.fixture(scope="module")
def controller(cluster: Cluster, crds: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """Give a running controller, the same for all tests of this file."""
    del crds
    cluster.clear()
    program = started(cluster, tmp_path_factory.mktemp("controller"))
    yield program
    program.stop()
    cluster.clear()


@pytest.fixture(scope="module")
def heard(cluster: Cluster, controller: Program) -> Iterator[Answering]:
    """Have every node heard."""
    del controller
    with answering(cluster) as made:
        yield made


@pytest.fixture(autouse=True)
def tidy(controller: Program, heard: Answering, cluster: Cluster) -> Iterator[None]:
    """Have each test find a controller that runs and nothing of another test."""
    if not controller.running:
        controller.start()
    yield
    heard.mute, heard.everything = frozenset(), False
    if not controller.running:
        controller.start()
    # And nobody waits for nodes to give anything up.
    cluster.delete_all(*KINDS, "nodes")
    wait_until(lambda: not agents(cluster) and not revisions(cluster), 120, "the agents are gone")
    cluster.delete_all(("events", "-n", "default"))  # after the last that may come


def agents(cluster: Cluster) -> list[str]:
    """Return what there is of the agents, by kind."""
    found = []
    for kind in ("daemonset", "serviceaccount", "clusterrole", "clusterrolebinding"):
        labels = "app.kubernetes.io/name=conntrack-operator,app.kubernetes.io/component=agent"
        found += [item["kind"] for item in cluster.items(kind, "-n", NAMESPACE, "-l", labels)]
    return found


def refusal(setting: str) -> dict[str, str]:
    """Return the result of a setting that a node refuses."""
    return {
        "setting": setting,
        "wanted": "1",
        "observed": "2",
        "reason": "ShrinkNotAllowed",
        "message": "set allowShrink",
    }


# First in this file: behind the others, which restart the API server and make and remove DaemonSets of this name within
# seconds, Kubernetes' own controller made no pod within 90 s (seen on 1.37; why is not known).
def test_the_daemon_set(cluster: Cluster) -> None:
    """It is accepted, makes a pod for each Linux node, asks for NET_ADMIN alone, and no policy ever changes it."""
    cluster.add_node("n1", role="web")
    cluster.add_node("n2", role="db")
    apply(cluster, "web")
    soon(lambda: len(cluster.items("pods", "-n", NAMESPACE)) == 2, "a pod for each node", 90)
    pod = cluster.items("pods", "-n", NAMESPACE)[0]["spec"]
    assert pod["hostNetwork"]
    assert (pod["nodeSelector"], pod["priorityClassName"]) == ({"kubernetes.io/os": "linux"}, "system-node-critical")
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    container = pod["containers"][0]
    assert container["image"] == IMAGE
    assert container["securityContext"] == {
        "runAsUser": 0,
        "runAsGroup": 0,
        "privileged": False,
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"], "add": ["NET_ADMIN"]},
    }
    paths = [volume["hostPath"]["path"] for volume in pod["volumes"] if "hostPath" in volume]
    assert sorted(paths) == ["/proc/sys/net", "/var/lib/conntrack-operator"]
    daemon_set = cluster.items("daemonset", "-n", NAMESPACE)[0]
    assert "app.kubernetes.io/instance" not in daemon_set["metadata"]["labels"]
    apply(cluster, "web", priority=7, timeouts={"icmp": "5s"})
    soon(lambda: spec_of(cluster, "n1").get("settings", {}).get("timeouts"), "the edit is out")
    time.sleep(1)
    assert cluster.items("daemonset", "-n", NAMESPACE)[0]["metadata"]["generation"] == 1


def test_from_apply_to_ready(cluster: Cluster) -> None:
    """A policy reaches its nodes within a second, and their answers reach the policy."""
    uids = {name: cluster.add_node(name, role="web") for name in ("n1", "n2")}
    cluster.add_node("other", role="db")
    apply(cluster, "web")
    soon(lambda: are_told(cluster, "n1", "n2"), "both nodes are told")
    found = cluster.get("nodeconntrack", "n1")
    assert found
    assert found["spec"]["mode"] == "Apply"
    assert found["spec"]["settings"] == {"table": {"size": {"maxEntries": 500_000}}}
    assert found["spec"]["policies"][0]["fields"] == ["table.size"]
    assert found["metadata"]["ownerReferences"] == [
        {"apiVersion": "v1", "kind": "Node", "name": "n1", "uid": uids["n1"]}
    ]
    assert cluster.get("nodeconntrack", "other") is None
    answer(cluster, "n1")
    answer(cluster, "n2", usage={"entries": 870, "maxEntries": 1000, "percent": 87, "dropsPerSecond": 2})
    ready(cluster, "web")
    status = (cluster.get("ctp", "web") or {})["status"]
    assert (status["nodes"]["matched"], status["nodes"]["current"]) == (2, 2)
    assert (status["usage"]["entries"], status["usage"]["peakPercent"], status["usage"]["peakNode"]) == (1270, 87, "n2")
    assert [hot["node"] for hot in status["hottest"]] == ["n2", "n1"]
    assert condition(cluster, "web", "Saturated")["reason"] == "Dropping"
    line = cluster.kubectl("get", "ctp", "web", "--no-headers").stdout.split()
    assert line[:6] == ["web", "Enforce", "2", "2", "87", "n2"]


def test_what_is_given_up_is_withdrawn(cluster: Cluster, heard: Answering) -> None:
    """A node that gains the label is told; one that loses it restores and is let go; a deleted policy's share goes."""
    cluster.add_node("n1", role="db")
    apply(cluster, "web")
    soon(lambda: condition(cluster, "web", "Ready").get("reason") == "NoNodeMatches", "the policy says so")
    cluster.kubectl("label", "node", "n1", "role=web", "--overwrite")
    soon(lambda: are_told(cluster, "n1"), "the node is told")
    answer(cluster, "n1")
    ready(cluster, "web")
    heard.everything = True
    cluster.add_node("n2", role="cache")
    for name, size in (("base", 600_000), ("team", 7)):
        apply(cluster, name, "cache", priority=size, table={"size": {"maxEntries": size}})
    soon(lambda: len(spec_of(cluster, "n2").get("policies", [])) == 2, "the other node is told")
    ready(cluster, "base", "team")
    heard.everything = False
    began = time.monotonic()
    cluster.kubectl("label", "node", "n1", "role=db", "--overwrite")
    cluster.kubectl("delete", "ctp", "base")
    soon(lambda: spec_of(cluster, "n1").get("mode") == "Restore", "the node is asked to restore")
    assert time.monotonic() - began > HASTY["confirm"], "withdrawn without a second look"
    soon(lambda: spec_of(cluster, "n2")["settings"] == {"table": {"size": {"maxEntries": 7}}}, "team decides")
    assert not spec_of(cluster, "n1").get("settings")
    answer(cluster, "n1", "Restored")
    soon(lambda: cluster.get("nodeconntrack", "n1") is None, "the object is gone")
    soon(lambda: condition(cluster, "web", "Ready").get("reason") == "NoNodeMatches", "the policy has no node")


def test_two_policies_and_a_conflict(cluster: Cluster, heard: Answering) -> None:
    """Fields merge by priority; the loser reads which field, whose it is, and where; an event tells it once."""
    heard.everything = True
    cluster.add_node("n1", role="web")
    apply(cluster, "base", priority=10, timeouts={"icmp": "10s"})
    apply(cluster, "team", table={"size": {"maxEntries": 7}}, timeouts={"generic": "1m"}, tcp={"loose": False})
    wanted = {
        "table": {"size": {"maxEntries": 500_000}},
        "timeouts": {"icmp": 10, "generic": 60},
        "tcp": {"loose": False},
    }
    soon(lambda: spec_of(cluster, "n1").get("settings") == wanted, "both are merged")
    soon(lambda: condition(cluster, "team", "Conflicted").get("status") == "True", "the loser says so")
    assert condition(cluster, "team", "Conflicted")["message"] == "table.size is decided by policy base on n1"
    soon(lambda: condition(cluster, "base", "Conflicted").get("status") == "False", "the winner has none")
    ready(cluster, "base", "team")

    def told() -> list[tuple[str, int]]:
        events = [each for each in cluster.items("events", "-n", "default") if each["reason"] == "Conflicted"]
        return [(each["involvedObject"]["name"], each["count"]) for each in events]

    soon(told, "an event tells it")  # after the status
    assert told() == [("team", 1)]
    cluster.kubectl("delete", "ctp", "base")
    soon(lambda: condition(cluster, "team", "Conflicted").get("status") == "False", "the conflict is over")


def test_a_changed_policy_is_a_new_revision(cluster: Cluster) -> None:
    """An edit reaches the node with a new revision, and until it is answered the policy is not Ready."""
    cluster.add_node("n1", role="web")
    apply(cluster, "web")
    soon(lambda: are_told(cluster, "n1"), "the node is told")
    answer(cluster, "n1")
    ready(cluster, "web")
    before = spec_of(cluster, "n1")["revision"]
    apply(cluster, "web", table={"size": {"perCore": {"entries": 32768}}})
    soon(lambda: spec_of(cluster, "n1")["revision"] != before, "a new revision")
    assert spec_of(cluster, "n1")["settings"] == {"table": {"size": {"perCore": {"entries": 32768}}}}
    soon(lambda: condition(cluster, "web", "Reconciling").get("status") == "True", "it says that it is on its way")
    answer(cluster, "n1")
    ready(cluster, "web")


def test_a_refusal_is_told(cluster: Cluster, heard: Answering) -> None:
    """A node that refuses is counted, named with reason and remedy, and told by one event on policy and node each."""
    heard.everything = True
    cluster.add_node("n1", role="web")
    apply(cluster, "web")
    apply(cluster, "quiet", table=None, tcp={"loose": True})
    soon(lambda: len(spec_of(cluster, "n1").get("policies", [])) == 2, "the node is told")
    ready(cluster, "web", "quiet")
    heard.everything = False
    answer(cluster, "n1", "Refused", results=[refusal("net.netfilter.nf_conntrack_max")])
    soon(lambda: condition(cluster, "web", "Ready").get("reason") == "NodesRefused", "the policy says so")
    status = (cluster.get("ctp", "web") or {})["status"]
    assert status["nodes"]["refused"] == 1
    assert status["failures"] == [
        {
            "node": "n1",
            "reason": "ShrinkNotAllowed",
            "message": "net.netfilter.nf_conntrack_max: set allowShrink",
        }
    ]
    assert condition(cluster, "web", "Stalled")["status"] == "True"
    ready(cluster, "quiet")

    def told() -> list[tuple[str, int]]:
        events = [each for each in cluster.items("events", "-n", "default") if each["reason"] == "ShrinkNotAllowed"]
        return sorted((each["involvedObject"]["kind"], each["count"]) for each in events)

    soon(lambda: told() == [("ConntrackPolicy", 1), ("Node", 1)], "an event each")
    answer(cluster, "n1")
    ready(cluster, "web")
    answer(cluster, "n1", "Refused", results=[refusal("net.netfilter.nf_conntrack_max")])
    soon(lambda: condition(cluster, "web", "Ready").get("reason") == "NodesRefused", "the policy says so again")
    time.sleep(1)
    assert told() == [("ConntrackPolicy", 1), ("Node", 1)], "what comes and goes is told once"


def test_an_observe_policy_previews(cluster: Cluster) -> None:
    """An Observe policy asks for nothing but a preview; it is Ready when the node has planned it."""
    cluster.add_node("n1", role="web")
    apply(cluster, "later", mode="Observe")
    soon(lambda: spec_of(cluster, "n1").get("preview"), "the node is told")
    spec = spec_of(cluster, "n1")
    assert spec["mode"] == "Hold"
    assert not spec.get("settings")
    assert spec["preview"] == {"table": {"size": {"maxEntries": 500_000}}}
    answer(cluster, "n1", preview={"changes": [{"setting": "s", "from": "1", "to": "2"}]})
    soon(lambda: condition(cluster, "later", "Ready").get("reason") == "Observed", "it is observed")


def test_a_silent_agent_and_a_former_node(cluster: Cluster, controller: Program, heard: Answering) -> None:
    """A report of 20 minutes ago counts as unknown, when nobody saw it come; one of another node's uid as pending."""
    heard.mute = frozenset({"n2"})
    for name in ("n1", "n2"):
        cluster.add_node(name, role="web")
    apply(cluster, "web")
    soon(lambda: are_told(cluster, "n1") and spec_of(cluster, "n2"), "the nodes are told")
    controller.stop()
    long_ago = (datetime.now(UTC) - timedelta(minutes=20)).strftime("%Y-%m-%dT%H:%M:%SZ")
    answer(cluster, "n1", heartbeatTime=long_ago)
    answer(cluster, "n2", nodeUID="a-former-node")
    controller.start()

    def counts() -> tuple[int, int, int]:
        found = (cluster.get("ctp", "web") or {}).get("status", {}).get("nodes") or {}
        return found.get("matched", 0), found.get("unknown", 0), found.get("pending", 0)

    soon(lambda: counts() == (2, 1, 1), "both are counted so")
    assert spec_of(cluster, "n2")["mode"] == "Hold"


def test_deleting_the_last_policy_takes_everything_away(cluster: Cluster) -> None:
    """Restore is asked, nothing goes before the node has answered, then object, DaemonSet and rights go, unaided."""
    cluster.add_node("n1", role="web")
    apply(cluster, "web", onDelete="Keep")
    soon(lambda: are_told(cluster, "n1") and len(agents(cluster)) == 4, "all is there")
    answer(cluster, "n1")
    cluster.kubectl("delete", "ctp", "web", "--timeout=60s")
    soon(lambda: spec_of(cluster, "n1").get("mode") == "Restore", "the node is asked to restore")
    assert spec_of(cluster, "n1")["policies"][0]["onDelete"] == "Keep"
    time.sleep(1)
    assert len(agents(cluster)) == 4
    answer(cluster, "n1", "Restored")
    soon(lambda: cluster.get("nodeconntrack", "n1") is None, "the object is gone")
    soon(lambda: not agents(cluster), "the agents are gone")


def test_nothing_ever_has_a_finalizer(cluster: Cluster) -> None:
    """No finalizer and no annotation of the watch framework is on anything we own or watch."""
    cluster.add_node("n1", role="web")
    apply(cluster, "web")
    soon(lambda: are_told(cluster, "n1") and len(agents(cluster)) == 4, "all is there")
    answer(cluster, "n1")
    ready(cluster, "web")
    kinds = [*KINDS, "nodes", "daemonsets", "serviceaccounts", "clusterroles", "clusterrolebindings"]
    ours = [item for kind in kinds for item in cluster.items(kind, "-A")]
    assert len(ours) > 4
    for item in ours:
        assert not item["metadata"].get("finalizers"), item["metadata"]["name"]
        assert not [key for key in item["metadata"].get("annotations", {}) if "kopf" in key]


def test_a_deleted_node_takes_its_object_along(cluster: Cluster) -> None:
    """When a Node goes, so does its object, and the policy counts one less."""
    for name in ("n1", "n2"):
        cluster.add_node(name, role="web")
    apply(cluster, "web")
    soon(lambda: are_told(cluster, "n1", "n2"), "the nodes are told")
    cluster.kubectl("delete", "node", "n1")
    soon(lambda: cluster.get("nodeconntrack", "n1") is None, "its object is gone")

    def matched() -> int:
        return (cluster.get("ctp", "web") or {}).get("status", {}).get("nodes", {}).get("matched", 0)

    soon(lambda: matched() == 1, "one node is left")


def test_a_node_made_anew_is_told_anew(cluster: Cluster) -> None:
    """A node that comes back under its old name with a new uid gets an object of its own."""
    cluster.add_node("n1", role="web")
    apply(cluster, "web")
    soon(lambda: are_told(cluster, "n1"), "the node is told")
    cluster.kubectl("delete", "node", "n1")
    uid = cluster.add_node("n1", role="web")
    soon(lambda: spec_of(cluster, "n1").get("nodeUID") == uid and are_told(cluster, "n1"), "the new node is told")


def test_an_edit_by_hand_is_put_right(cluster: Cluster) -> None:
    """Only the controller writes node specs: what somebody else wrote or deleted is written again."""
    cluster.add_node("n1", role="web")
    apply(cluster, "web")
    soon(lambda: are_told(cluster, "n1"), "the node is told")
    right = spec_of(cluster, "n1")
    patch = {"spec": {"settings": {"table": {"size": {"maxEntries": 1}}, "tcp": {"loose": False}}}}
    cluster.kubectl("patch", "nct", "n1", "--type=merge", "-p", json.dumps(patch))
    soon(lambda: spec_of(cluster, "n1") == right, "the spec is as before")
    cluster.kubectl("patch", "nct", "n1", "--type=merge", "-p", '{"metadata": {"ownerReferences": null}}')
    soon(lambda: (cluster.get("nct", "n1") or {})["metadata"].get("ownerReferences"), "the owner is back")
    cluster.kubectl("delete", "nct", "n1")
    soon(lambda: spec_of(cluster, "n1") == right, "the object is back")


def test_the_api_server_goes_and_comes_back(cluster: Cluster, controller: Program) -> None:
    """The controller outlives the API server and goes on with what changed, deletions included."""
    cluster.add_node("n1", role="web")
    apply(cluster, "web")
    soon(lambda: are_told(cluster, "n1"), "the node is told")

    def sees(entries: int) -> bool:
        return spec_of(cluster, "n1").get("settings") == {"table": {"size": {"maxEntries": entries}}}

    # Where the API server takes longer than the Lease lasts, it ends, rightly: then once more.
    for entries in (600_000, 700_000, 800_000):
        if not controller.running:
            controller.start()
            soon(lambda entries=entries: sees(entries - 100_000), "it is at work again")
        pid = controller.process and controller.process.pid
        cluster.stop_apiserver()
        time.sleep(3)
        cluster.start_apiserver()
        apply(cluster, "web", table={"size": {"maxEntries": entries}})
        soon(lambda entries=entries: sees(entries) or not controller.running, "the change is seen")
        if controller.running:
            break
    assert sees(entries)
    cluster.kubectl("delete", "ctp", "web")
    soon(lambda: spec_of(cluster, "n1").get("mode") == "Restore", "the deletion is seen")
    assert controller.running
    assert (controller.process and controller.process.pid) == pid


def test_a_restart_misses_nothing_and_changes_nothing(cluster: Cluster, controller: Program, heard: Answering) -> None:
    """It ends by SIGTERM with 0; down, nothing changes; started again, it finds what happened and repeats no write."""
    heard.everything = True
    for name in ("n1", "n2"):
        cluster.add_node(name, role="web")
    apply(cluster, "web")
    apply(cluster, "gone", nodeSelector={"matchLabels": {"kubernetes.io/hostname": "n2"}})
    soon(lambda: are_told(cluster, "n1") and len(spec_of(cluster, "n2").get("policies", [])) == 2, "they are told")
    ready(cluster, "web", "gone")
    time.sleep(1)
    assert controller.process
    controller.send(signal.SIGTERM)
    assert controller.process.wait(30) == 0
    before = cluster.get("nct", "n1")
    cluster.kubectl("delete", "ctp", "gone")
    time.sleep(1)
    assert len(spec_of(cluster, "n2")["policies"]) == 2
    controller.start()
    soon(lambda: len(spec_of(cluster, "n2")["policies"]) == 1, "the deletion is found")
    assert cluster.get("nct", "n1") == before


def test_what_an_agent_may_do(cluster: Cluster) -> None:
    """An agent's token reads NodeConntracks and writes their statuses, and can do nothing else."""
    cluster.add_node("n1", role="web")
    apply(cluster, "web")
    soon(lambda: are_told(cluster, "n1") and len(agents(cluster)) == 4, "all is there")
    agent = cluster.kubeconfig_for(cluster.token("conntrack-operator-agent", NAMESPACE))

    def allowed(*arguments: str) -> bool:
        done = cluster.kubectl(*arguments, kubeconfig=agent, check=False)
        assert done.returncode == 0 or "orbidden" in done.stderr, done.stderr
        return done.returncode == 0

    soon(lambda: allowed("get", "nct"), "the API server knows the agents' rights")
    assert allowed("get", "nct", "n1")
    # By the agent's own client: kubectl would read the subresource first, which no agent needs.
    OwnNode(access_for(str(agent)), "n1").write_status({"phase": "Current"})
    assert (cluster.get("nct", "n1") or {})["status"]["phase"] == "Current"
    assert not allowed("patch", "nct", "n1", "--type=merge", "-p", '{"spec": {"mode": "Restore"}}')
    assert not allowed("delete", "nct", "n1")
    for kind in ("ctp", "nodes", "pods", "secrets", "events", "services", "daemonsets"):
        assert not allowed("get", kind, "-n", NAMESPACE), kind
    rights = cluster.kubectl("auth", "can-i", "--list", kubeconfig=agent).stdout
    ours = [line for line in rights.splitlines() if "conntrack-operator.io" in line]
    assert sorted(line.split()[0] + " " + line.split("[")[-1] for line in ours) == [
        "nodeconntracks.conntrack-operator.io get list watch]",
        "nodeconntracks.conntrack-operator.io/status patch]",
    ]


def test_a_missing_namespace_is_said_and_healed(cluster: Cluster, controller: Program, tmp_path: Path) -> None:
    """Without its namespace there is nobody to tell nodes anything: it says what to do, and goes on when it is done."""
    controller.stop()
    other = "conntrack-elsewhere"
    program = Program(
        "controller", [*controller.command[:-3], other, "--agent-image", IMAGE], tmp_path / "controller.log"
    )
    program.start()
    try:
        cluster.add_node("n1", role="web")
        apply(cluster, "web")
        program.wait_until(lambda: f"kubectl create namespace {other}" in program.tail(), 60, "it says what to do")
        status = (cluster.get("ctp", "web") or {})["status"]
        assert "is it running?" in status["conditions"][0]["message"]
        assert not spec_of(cluster, "n1")
        cluster.kubectl("create", "namespace", other)
        soon(lambda: cluster.items("daemonset", "-n", other), "the agents are there")
        soon(lambda: are_told(cluster, "n1"), "the node is told")
        soon(lambda: condition(cluster, "web", "Reconciling").get("reason") == "Progressing", "no trouble any more")
        cluster.kubectl("delete", "nodes,ctp,nct", "--all")  # no agent is there to restore a node
        soon(lambda: not cluster.items("daemonset", "-n", other), "the agents are gone")
    finally:
        program.stop()
        cluster.kubectl("delete", "namespace", other, "--ignore-not-found")
