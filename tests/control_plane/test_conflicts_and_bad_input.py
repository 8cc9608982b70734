"""Policies that contradict each other, and objects that make no sense: said in a condition, and no node loses anything.

The controller as a process against a real control plane; the test plays the agents.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.lab.answering import Answering, answering
from tests.lab.cluster import NAMESPACE, Cluster
from tests.lab.controller import Controller
from tests.lab.fleet_by_hand import answer, apply, are_told, condition, ready, revisions, soon, spec_of
from tests.lab.programs import wait_until

from conntrack_operator.controller.book import GOOD_SINCE

NODES = ("n1", "n2", "n3")
SIZE = {"table": {"size": {"maxEntries": 500_000}}}
CRD = "conntrackpolicies.conntrack-operator.io"
SPEC = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties"
WAVES = {"canary": 1, "soakSeconds": 0, "maxUnavailable": 1}


@pytest.fixture(scope="module")
def controller(cluster: Cluster, crds: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Controller]:
    """Give a controller, the same for all tests of this file."""
    del crds
    cluster.clear()
    controller = Controller(cluster, tmp_path_factory.mktemp("controller"))
    yield controller
    controller.stop()
    cluster.clear()


@pytest.fixture
def agents(cluster: Cluster, controller: Controller) -> Iterator[Answering]:
    """Give a controller that runs and three nodes whose agents obey; in the end there is nothing of them."""
    if not controller.program.running:
        controller.start()
    for name in NODES:
        cluster.add_node(name, role="web")
    with answering(cluster, everything=True) as made:
        yield made
    cluster.delete_all("conntrackpolicies", "nodes", "nodeconntracks")


def size_at(cluster: Cluster, node: str) -> int:
    """Return the size a node is asked for."""
    return int(spec_of(cluster, node)["settings"]["table"]["size"]["maxEntries"])


def sizes(cluster: Cluster) -> list[int]:
    """Return the size each node is asked for."""
    return [size_at(cluster, name) for name in NODES]


def written(cluster: Cluster) -> dict[str, tuple[str, int]]:
    """Return each node's object: its uid, and how often its spec was written."""
    return {
        each["metadata"]["name"]: (each["metadata"]["uid"], each["metadata"]["generation"])
        for each in cluster.items("nodeconntracks")
    }


def both_say_so(cluster: Cluster) -> bool:
    """Tell whether both policies say that they contradict each other."""
    said = [condition(cluster, name, "Conflicted").get("reason") for name in ("zwei", "eins")]
    return said == ["SamePriority", "OtherPolicyWins"]


def start_anew(controller: Controller) -> None:
    """Kill the controller and start it."""
    controller.kill()
    controller.start()


def test_two_policies_of_equal_priority(cluster: Cluster, controller: Controller, agents: Answering) -> None:
    """The older one decides, both say so, and neither restarts nor edits of the other change anything.

    A newcomer whose priority is raised takes the field over, node by node.
    """
    apply(cluster, "zwei")
    soon(lambda: are_told(cluster, *NODES), "all are told")
    created = (cluster.get("ctp", "zwei") or {})["metadata"]["creationTimestamp"]

    def is_later() -> bool:
        apply(cluster, "eins", table={"size": {"maxEntries": 7}}, rollout=WAVES)
        if (cluster.get("ctp", "eins") or {})["metadata"]["creationTimestamp"] > created:
            return True
        cluster.kubectl("delete", "ctp", "eins")
        return False

    wait_until(is_later, 60, "the other policy is younger by a second, which is all that decides")
    soon(lambda: both_say_so(cluster), "both say so")
    message = condition(cluster, "zwei", "Conflicted")["message"]
    assert "table.size is decided here on n1, n2, n3, and policy eins of the same priority" in message
    assert (
        "table.size is decided by policy zwei (of the same priority"
        in condition(cluster, "eins", "Conflicted")["message"]
    )
    soon(lambda: all(len(spec_of(cluster, name)["policies"]) == 2 for name in NODES), "all have both")
    assert sizes(cluster) == [500_000] * 3
    before = written(cluster)
    start_anew(controller)
    apply(cluster, "drei", role="nobody")
    soon(lambda: condition(cluster, "drei", "Ready").get("reason") == "NoNodeMatches", "it has looked at everything")
    assert written(cluster) == before
    assert both_say_so(cluster)

    apply(cluster, "eins", table={"size": {"maxEntries": 8}}, timeouts={"icmp": 9}, rollout=WAVES)
    soon(lambda: all(spec_of(cluster, name)["settings"].get("timeouts") for name in NODES), "its own field is there")
    ready(cluster, "zwei", "eins")
    assert sizes(cluster) == [500_000] * 3
    agents.everything = False
    edit = {"priority": 1, "table": {"size": {"maxEntries": 8}}, "timeouts": {"icmp": 9}, "rollout": WAVES}
    apply(cluster, "eins", **edit)
    for number, name in enumerate(NODES):
        soon(lambda number=number: sizes(cluster)[number] == 8, f"{name} follows")
        assert sizes(cluster) == [8] * (number + 1) + [500_000] * (2 - number)
        answer(cluster, name)
    soon(lambda: condition(cluster, "zwei", "Conflicted").get("reason") == "OtherPolicyWins", "the loser says so")
    soon(lambda: condition(cluster, "eins", "Conflicted").get("status") == "False", "the winner has no conflict")


def events_about(cluster: Cluster, policy: str) -> dict[str, str]:
    """Return what was told about a policy: messages by reason."""
    events = cluster.items("events", "-n", "default")
    return {each["reason"]: each["message"] for each in events if each["involvedObject"]["name"] == policy}


@pytest.mark.usefixtures("agents")
def test_a_policy_that_matches_no_node(cluster: Cluster) -> None:
    """A condition and an event say so, with a command that shows which nodes it would match."""
    apply(cluster, "nobody", nodeSelector={"matchLabels": {"rolle": "web"}})
    soon(lambda: condition(cluster, "nobody", "Ready").get("reason") == "NoNodeMatches", "a condition says so")
    remedy = "look at: kubectl get nodes -l 'rolle=web'"
    assert remedy in condition(cluster, "nobody", "Ready")["message"]
    soon(lambda: remedy in events_about(cluster, "nobody").get("NoNodeMatches", ""), "an event says so")
    cluster.kubectl("label", "node", "n2", "rolle=web")
    ready(cluster, "nobody")
    assert not spec_of(cluster, "n1")


def test_a_revision_nobody_knows(cluster: Cluster, agents: Answering) -> None:
    """It is said; the node keeps what it has while others are released, and is released when its turn comes."""
    apply(cluster, "web")
    ready(cluster, "web")
    apply(cluster, "web", table={"size": {"maxEntries": 600_000}}, rollout={"paused": True})
    (use,) = spec_of(cluster, "n2")["policies"]
    patch = {"spec": {"policies": [{**use, "revision": "lost"}]}}
    cluster.kubectl("patch", "nct", "n2", "--type=merge", "-p", json.dumps(patch))

    def failures() -> list[dict[str, str]]:
        return list((cluster.get("ctp", "web") or {})["status"].get("failures") or [])

    soon(lambda: [each["reason"] for each in failures()] == ["RevisionUnknown"], "the policy says so")
    assert "it was given revision lost of this policy" in failures()[0]["message"]
    degraded = condition(cluster, "web", "Degraded")
    assert (degraded["status"], degraded["reason"]) == ("True", "NodesFailed")
    assert "n2: it was given revision lost of this policy" in degraded["message"]
    assert sizes(cluster) == [500_000] * 3
    agents.everything = False
    apply(cluster, "web", table={"size": {"maxEntries": 600_000}}, rollout=WAVES)
    # It goes first: of all nodes it is the one of which it is not known whether what it has is good.
    turns = ("n2", "n1", "n3")
    for number, name in enumerate(turns):
        soon(lambda name=name: size_at(cluster, name) == 600_000, f"{name} is released")
        assert [size_at(cluster, other) for other in turns[number + 1 :]] == [500_000] * (2 - number)
        answer(cluster, name)
    ready(cluster, "web")
    assert not failures()
    assert condition(cluster, "web", "Degraded")["status"] == "False"


@pytest.mark.usefixtures("agents")
def test_revisions_deleted_by_hand(cluster: Cluster) -> None:
    """The next full list shows that they are gone: what is in use is written again, and nothing else."""
    apply(cluster, "web")
    apply(
        cluster, "gone", nodeSelector={"matchLabels": {"kubernetes.io/hostname": "n3"}}, table=None, tcp={"loose": True}
    )
    ready(cluster, "web", "gone")
    # It is noted beside the policy's status, and may be so a moment later.
    soon(
        lambda: all(GOOD_SINCE in each["metadata"]["annotations"] for each in revisions(cluster, "web")), "web is good"
    )
    before = {name: written(cluster)[name] for name in ("n1", "n2")}
    kept = revisions(cluster, "web")
    cluster.delete_all(("controllerrevisions", "-n", NAMESPACE))
    # There is one every five minutes; and one whenever something would be withdrawn.
    cluster.kubectl("delete", "ctp", "gone")

    def contents(found: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
        return [(each["metadata"]["name"], each["data"], each["metadata"]["annotations"]) for each in found]

    soon(lambda: contents(revisions(cluster, "web")) == contents(kept), "they are written down again, goodness and all")
    assert {name: written(cluster)[name] for name in ("n1", "n2")} == before


def newer_version(cluster: Cluster, *operations: dict[str, Any]) -> None:
    """Have the API server take policies that this version cannot read, as the CRD of a newer one does."""
    cluster.kubectl("patch", "crd", CRD, "--type=json", "-p", json.dumps(list(operations)))


@pytest.mark.usefixtures("agents")
def test_a_policy_of_a_newer_version(cluster: Cluster, controller: Controller) -> None:
    """A field, or a value, nobody here knows: said, with its path; its nodes keep what they have, after a start too."""
    apply(cluster, "web")
    apply(cluster, "other", table=None, tcp={"loose": True})
    ready(cluster, "web", "other")
    before = written(cluster)
    newer_version(
        cluster,
        {"op": "add", "path": f"{SPEC}/newer", "value": {"type": "string"}},
        {"op": "add", "path": f"{SPEC}/mode/enum/0", "value": "Rehearse"},
    )

    def stored(**spec: Any) -> bool:
        # The API server takes a moment to know it; before, it drops the field and refuses the value.
        patch = json.dumps({"spec": spec})
        done = cluster.kubectl("patch", "ctp", "web", "--type=merge", "-p", patch, check=False)
        known = (cluster.get("ctp", "web") or {})["spec"]
        return done.returncode == 0 and all(known.get(key) == value for key, value in spec.items())

    def says_of(field: str) -> bool:
        said = condition(cluster, "web", "Ready")
        return said.get("reason") == "Unreadable" and f"({field}: " in said["message"]

    try:
        wait_until(lambda: stored(newer="thing"), 60, "the field is stored")
        soon(lambda: says_of("spec.newer"), "it says so")
        assert "its nodes are left as they are" in condition(cluster, "web", "Ready")["message"]
        assert condition(cluster, "web", "Stalled")["status"] == "True"
        wait_until(lambda: stored(newer=None, mode="Rehearse"), 60, "the value is stored")
        soon(lambda: says_of("spec.mode"), "it says so")
        start_anew(controller)
        apply(cluster, "drei", role="nobody")
        soon(lambda: condition(cluster, "drei", "Ready").get("reason") == "NoNodeMatches", "it has looked at all")
        assert written(cluster) == before
        apply(cluster, "other", table=None, tcp={"loose": False})
        soon(lambda: spec_of(cluster, "n1")["settings"].get("tcp") == {"loose": False}, "the other goes on")
        assert sizes(cluster) == [500_000] * 3
        assert stored(mode="Enforce")
        ready(cluster, "web", "other")
        assert sizes(cluster) == [500_000] * 3
    finally:
        newer_version(
            cluster,
            {"op": "remove", "path": f"{SPEC}/newer"},
            {"op": "remove", "path": f"{SPEC}/mode/enum/0"},
        )
