"""The agents' DaemonSet: looked at often, written rarely, and what keeps its pods from being made is told."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from conntrack_operator.cluster.objects import DAEMON_SETS, Kind, Listing
from conntrack_operator.controller.agent_pods import AgentPods
from conntrack_operator.controller.agents import (
    APPLY_SECONDS,
    ASK_SECONDS,
    ASKED_AGAIN,
    LACKING_SECONDS,
    LOOK_SECONDS,
    SOON_SECONDS,
    Agents,
)
from conntrack_operator.controller.daemonset import LABELS, NAME
from conntrack_operator.errors import Refused, Retry

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
QUOTA = "exceeded quota: none"


class Server:
    """An API server that keeps what is applied."""

    def __init__(self) -> None:
        self.kept: dict[tuple[str, str], dict[str, Any]] = {}
        self.events: list[dict[str, Any]] = []
        self.policies: tuple[dict[str, Any], ...] = ({},)
        self.log: list[str] = []
        self.has_namespace = True
        self.refuses = ""

    def apply(self, kind: Kind, document: dict[str, Any], namespace: str) -> dict[str, Any] | None:
        """Take a document."""
        self.log.append(f"apply {kind.kind}")
        if self.refuses == kind.kind:
            raise Refused("Forbidden", "the API server said Forbidden")
        if namespace and not self.has_namespace:
            return None
        known = self.kept.get((kind.kind, document["metadata"]["name"]))
        meta = known["metadata"] if known else {"uid": f"uid {len(self.log)}", "generation": 1}
        status = known["status"] if known else {}
        stored = {**document, "metadata": {**meta, **document["metadata"]}, "status": status}
        if known and known.get("spec") != document.get("spec"):
            stored["metadata"]["generation"] += 1
        self.kept[kind.kind, document["metadata"]["name"]] = stored
        return stored

    def get(self, kind: Kind, name: str, _namespace: str) -> dict[str, Any] | None:
        """Return an object."""
        self.log.append(f"get {kind.kind}")
        return self.kept.get((kind.kind, name))

    def list(self, kind: Kind, *, namespace: str = "") -> Listing:
        """Return the events, or the policies."""
        self.log.append(f"list {kind.kind}")
        if self.refuses == kind.kind:
            raise Refused("Forbidden", "the API server said Forbidden")
        assert namespace == ("ns" if kind.kind == "Event" else "")
        return Listing(1, tuple(self.events) if kind.kind == "Event" else self.policies)

    def delete(self, kind: Kind, name: str, _namespace: str, *, uid: str) -> None:
        """Delete an object."""
        assert self.kept.pop((kind.kind, name))["metadata"]["uid"] == uid

    @property
    def daemon_set(self) -> dict[str, Any]:
        """Return the agents' DaemonSet."""
        return self.kept[DAEMON_SETS.kind, NAME]

    def has_pods(self, current: int, desired: int = 5) -> None:
        """Write the DaemonSet's status, as its controller does."""
        self.daemon_set["status"] = {"desiredNumberScheduled": desired, "currentNumberScheduled": current}

    def complain(self, message: str, moment: datetime, uid: str = "") -> None:
        """Write an event, as the DaemonSet's controller does."""
        about = {"uid": uid or self.daemon_set["metadata"]["uid"]}
        stamp = moment.strftime("%Y-%m-%dT%H:%M:%SZ")
        self.events.append({"message": f"Error creating: {message}", "lastTimestamp": stamp, "involvedObject": about})


class Stage:
    """Agents, with an API server and clocks that stand still until they are told to go on."""

    def __init__(self) -> None:
        self.seconds = 50.0
        self.server = Server()
        self.pods = AgentPods("ns", lambda: self.seconds)
        self.agents = Agents(self.server, "ns", "i:1", self.pods, lambda: self.seconds, self.now)  # type: ignore[arg-type]

    def now(self) -> datetime:
        """Return the wall clock."""
        return NOW + timedelta(seconds=self.seconds - 50)

    def look(self, seconds: float = 0, *, wanted: bool = True) -> list[str]:
        """Let time pass and look; return what the API server was asked."""
        self.seconds += seconds
        self.server.log.clear()
        self.agents.put_right(wanted=wanted)
        return self.server.log

    def look_until(self, seconds: float) -> None:
        """Look as often as is asked for, as long as this."""
        end = self.seconds + seconds
        while self.seconds < end:
            self.seconds += self.agents.put_right(wanted=True)


@pytest.fixture
def stage() -> Stage:
    """Give what is tested, with agents that are made."""
    stage = Stage()
    assert stage.look() == ["get DaemonSet", "list ConntrackPolicy", *(f"apply {kind}" for kind in KINDS)]
    return stage


KINDS = ("ServiceAccount", "ClusterRole", "ClusterRoleBinding", "DaemonSet")


def test_agents_that_are_well_cost_one_get(stage: Stage) -> None:
    """Every ten seconds; all that they are made of is applied every five minutes."""
    stage.server.has_pods(5)
    assert stage.agents.put_right(wanted=True) == SOON_SECONDS
    assert stage.look(LOOK_SECONDS) == ["get DaemonSet"]
    assert stage.agents.put_right(wanted=True) == LOOK_SECONDS
    assert stage.look(0.1) == []  # pods come and go by the hundred
    assert stage.look(LOOK_SECONDS) == ["get DaemonSet"]
    assert stage.look(APPLY_SECONDS) == ["get DaemonSet", *(f"apply {kind}" for kind in KINDS)]


def test_an_edit_and_a_deletion_are_put_right(stage: Stage) -> None:
    """At the next look."""
    stage.server.daemon_set["metadata"]["generation"] += 1
    assert "apply DaemonSet" in stage.look(LOOK_SECONDS)
    assert stage.look(LOOK_SECONDS) == ["get DaemonSet"]
    del stage.server.kept[DAEMON_SETS.kind, NAME]
    assert "apply DaemonSet" in stage.look(LOOK_SECONDS)
    assert stage.look(LOOK_SECONDS) == ["get DaemonSet"]


def test_agents_that_an_uninstallation_removed_stay_away(stage: Stage) -> None:
    """It is quicker than our watches; the API server itself says that nobody needs them."""
    del stage.server.kept[DAEMON_SETS.kind, NAME]
    stage.server.policies = ()
    for _ in range(2):
        assert stage.look(LOOK_SECONDS) == ["get DaemonSet", "list ConntrackPolicy", "list NodeConntrack"]
    assert stage.agents.trouble == ""
    stage.server.policies = ({},)
    assert "apply DaemonSet" in stage.look(LOOK_SECONDS)


def test_pods_that_are_being_made_are_no_trouble(stage: Stage) -> None:
    """For a few seconds some are always missing, whatever was the matter half an hour ago."""
    stage.server.complain(QUOTA, NOW - timedelta(minutes=30))
    stage.server.has_pods(0)
    assert stage.look(LOOK_SECONDS) == ["get DaemonSet"]
    assert stage.agents.trouble == ""
    assert stage.agents.put_right(wanted=True) == SOON_SECONDS
    stage.look(LACKING_SECONDS)
    assert stage.agents.trouble == ""
    stage.server.has_pods(5)
    stage.look(SOON_SECONDS)
    assert stage.agents.put_right(wanted=True) == LOOK_SECONDS


def test_pods_that_are_refused_are_trouble_within_seconds(stage: Stage) -> None:
    """It goes with its cause; policies whose nodes all have a pod hear nothing of it."""
    stage.server.has_pods(2)
    stage.server.complain("something older", NOW - timedelta(minutes=1))
    stage.server.complain("of a DaemonSet that is no more", NOW, uid="other")
    stage.server.complain(QUOTA, NOW)
    stage.look_until(LACKING_SECONDS + 2 * SOON_SECONDS)
    trouble = stage.agents.trouble
    assert trouble.startswith(f"the agents cannot be created on 3 of 5 nodes: {QUOTA}; ")
    pod = {"metadata": {"name": "a", "namespace": "ns", "resourceVersion": "1", "labels": LABELS}, "spec": {}}
    stage.pods.put({**pod, "spec": {"nodeName": "n1"}})
    assert stage.agents.trouble_on(["n1"]) == ""
    assert stage.agents.trouble_on(["n1", "n2"]) == trouble
    stage.server.has_pods(5)
    stage.look(SOON_SECONDS)
    assert stage.agents.trouble == stage.agents.trouble_on(["n2"]) == ""


def test_the_daemon_set_is_asked_again_once_a_minute(stage: Stage) -> None:
    """So that who raised the quota need not wait for a backoff of many minutes; when all is well it is as before."""
    stage.server.has_pods(2)
    stage.server.complain(QUOTA, NOW + timedelta(minutes=3))
    stage.server.log.clear()
    stage.look_until(3 * ASK_SECONDS + 1)
    assert stage.server.log.count("apply DaemonSet") == 3
    assert ASKED_AGAIN in stage.server.daemon_set["metadata"]["annotations"]


def test_why_pods_are_missing_may_be_hidden(stage: Stage) -> None:
    """A controller that may not read events says so."""
    stage.server.has_pods(2)
    stage.server.refuses = "Event"
    stage.look_until(LACKING_SECONDS + 2 * SOON_SECONDS)
    assert "on 3 of 5 nodes: nobody knows why, since the API server said Forbidden" in stage.agents.trouble


def test_what_ails_pods_is_trouble(stage: Stage) -> None:
    """On the nodes it is about."""
    waiting = {"name": "agent", "state": {"waiting": {"reason": "InvalidImageName"}}}
    stage.pods.put(
        {
            "metadata": {"name": "a", "namespace": "ns", "resourceVersion": "1", "labels": LABELS},
            "spec": {"nodeName": "n1", "containers": [{"name": "agent", "image": "I:1"}]},
            "status": {"containerStatuses": [waiting]},
        }
    )
    stage.look(LOOK_SECONDS)
    assert stage.agents.trouble == stage.agents.trouble_on(["n1"]) != ""
    assert stage.agents.trouble_on(["n2"]) == ""


@pytest.mark.parametrize("kind", ["DaemonSet", "ClusterRole"])
def test_rights_that_are_missing_are_trouble_everywhere(kind: str) -> None:
    """Until they are given."""
    stage = Stage()
    stage.server.refuses = kind
    with pytest.raises(Refused):
        stage.look()
    assert "see the controller's rights" in stage.agents.trouble_on(["n1"])
    assert stage.agents.trouble == stage.agents.trouble_on([])
    stage.server.refuses = ""
    stage.look(1)
    assert stage.agents.trouble == ""


def test_a_namespace_that_is_missing_is_named() -> None:
    """With the command that makes it."""
    stage = Stage()
    stage.server.has_namespace = False
    with pytest.raises(Retry):
        stage.look()
    assert stage.agents.trouble.endswith("kubectl create namespace ns")
    stage.server.has_namespace = True
    stage.look(1)
    assert stage.agents.trouble == ""


def test_agents_go_when_nothing_is_left_for_them(stage: Stage) -> None:
    """Only after the API server itself has said so."""
    stage.server.policies = ({},)
    stage.look(wanted=False)
    assert stage.server.kept
    stage.server.policies = ()
    stage.look(wanted=False)
    assert not stage.server.kept
    assert stage.agents.put_right(wanted=False) == 0
    stage.server.policies = ({},)
    assert stage.look()[2:] == [f"apply {kind}" for kind in KINDS]
