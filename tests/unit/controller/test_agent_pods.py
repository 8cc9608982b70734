"""The agents' pods: on which nodes an agent is ready, and that nothing is concluded from what cannot be seen."""

from typing import Any

import pytest

from conntrack_operator.cluster.objects import Listing
from conntrack_operator.controller.agent_pods import STEADY_SECONDS, AgentPods, agent_pod_in
from conntrack_operator.controller.daemonset import LABELS
from conntrack_operator.decide.agent_trouble import AgentPod, Ailment

NAMESPACE = "conntrack-system"
READY = {"conditions": [{"type": "Ready", "status": "True"}], "phase": "Running"}
STARTING = {"phase": "Pending", "containerStatuses": [{"name": "agent", "state": {"waiting": {}}}]}
NO_ROOM = {
    "phase": "Pending",
    "conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/9 nodes"}],
}


class Clock:
    """A clock that stands still until it is told to go on."""

    now = 100.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now


def crashing(restarts: int = 2) -> dict[str, Any]:
    """Return the status of a pod that waits to be started again."""
    waiting = {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 20s"}}
    return {"phase": "Running", "containerStatuses": [{"name": "agent", "restartCount": restarts, "state": waiting}]}


def pulling(reason: str, message: str) -> dict[str, Any]:
    """Return the status of a pod whose image does not come."""
    state = {"waiting": {"reason": reason, "message": message}}
    return {"phase": "Pending", "containerStatuses": [{"name": "agent", "state": state}]}


def pod(version: int, status: dict[str, Any], name: str = "p", node: str = "n", **metadata: Any) -> dict[str, Any]:
    """Return an agent's pod as the API server sends it; without `node`, one that is meant for n and not there yet."""
    meant = {"key": "metadata.name", "operator": "In", "values": ["n"]}
    term = {"nodeSelectorTerms": [{"matchFields": [meant]}]}
    return {
        "metadata": {
            "name": name, "namespace": NAMESPACE, "resourceVersion": str(version), "labels": LABELS, **metadata
        },
        "spec": {
            "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": term}},
            "containers": [{"name": "agent", "image": "i:1"}],
            **({"nodeName": node} if node else {}),
        },
        "status": status,
    }  # fmt: skip


@pytest.fixture
def clock() -> Clock:
    """Give the clock."""
    return Clock()


@pytest.fixture
def pods(clock: Clock) -> AgentPods:
    """Give what is tested."""
    return AgentPods(NAMESPACE, clock)


@pytest.mark.parametrize(
    "document",
    [
        pytest.param(pod(1, READY, namespace="other"), id="in another namespace"),
        pytest.param(pod(1, READY, labels={"app.kubernetes.io/name": "conntrack-operator"}), id="the controller"),
        pytest.param(pod(1, READY, labels=None), id="without labels"),
        pytest.param(pod(1, {"phase": "Failed"}), id="evicted"),
        pytest.param({**pod(1, READY), "spec": {}}, id="meant for no node"),
    ],
)
def test_which_pods_are_none_of_the_agents(document: dict[str, Any]) -> None:
    """Whoever has not both labels in our namespace, and one that has ended and will be replaced."""
    assert agent_pod_in(document, NAMESPACE) is None


def test_what_is_read_of_a_pod() -> None:
    """Before it is bound, its node is the one the DaemonSet made it for."""
    assert agent_pod_in(pod(1, NO_ROOM, node=""), NAMESPACE) == AgentPod(
        name="p", node="n", is_bound=False, is_ready=False, image="i:1", ailment=Ailment("Room", "0/9 nodes")
    )
    assert agent_pod_in(pod(1, READY), NAMESPACE) == AgentPod("p", "n", is_bound=True, is_ready=True, image="i:1")


@pytest.mark.parametrize(
    ("seen", "ready"),
    [
        pytest.param([], None, id="nothing"),
        pytest.param([pod(1, READY)], True, id="a ready one"),
        pytest.param([pod(1, STARTING)], False, id="one that starts"),
        pytest.param([pod(1, READY, deletionTimestamp="t")], False, id="one that is being deleted"),
        pytest.param([pod(1, READY, deletionTimestamp="t"), pod(2, READY, "q")], True, id="and its successor"),
        pytest.param([pod(1, STARTING, node="")], None, id="one that is not there yet"),
        pytest.param([pod(1, NO_ROOM, node="")], False, id="one that there is no room for"),
        pytest.param([pod(1, crashing())], False, id="one that crashes"),
        pytest.param([pod(1, READY, node="other")], None, id="one elsewhere"),
    ],
)
def test_where_an_agent_is_ready(pods: AgentPods, seen: list[dict[str, Any]], ready: bool | None) -> None:
    """What has not been seen is not known."""
    for document in seen:
        pods.put(document)
    assert pods.ready("n") is ready


def test_only_news_name_nodes(pods: AgentPods) -> None:
    """Each node whose agent comes, changes or goes, and nothing for what tells nothing new."""
    assert pods.put(pod(1, STARTING)) == {"n"}
    assert pods.put(pod(2, {**STARTING, "startTime": "t"})) == set()
    assert pods.put(pod(3, READY)) == {"n"}
    assert pods.put(pod(2, STARTING)) == set()
    assert pods.replace(Listing(9, (pod(3, READY), pod(4, READY, "q", "m"), pod(5, READY, namespace="x")))) == {"m"}
    assert pods.put(pod(10, READY), deleted=True) == {"n"}
    assert pods.replace(Listing(11, ())) == {"m"}
    assert pods.ready("n") is pods.ready("m") is None


def test_between_two_crashes_an_agent_is_not_well(pods: AgentPods, clock: Clock) -> None:
    """It looks ready each time it is started again; only one that stays is."""
    pods.put(pod(1, crashing()))
    ailing = pods.ailing()
    assert [each.ailment and each.ailment.kind for each in ailing[0]] == ["Crash"]
    assert ailing[1] == 0
    pods.put(pod(2, READY))
    clock.now += 10
    assert pods.ready("n") is False
    assert [each.ailment for each in pods.ailing()[0]] == [each.ailment for each in ailing[0]]
    assert pods.ailing()[1] == STEADY_SECONDS - 10
    pods.put(pod(3, crashing(3)))
    pods.put(pod(4, READY))
    clock.now += STEADY_SECONDS
    assert pods.ready("n") is True
    assert pods.ailing()[0] == []


def test_a_first_crash_is_no_trouble(pods: AgentPods) -> None:
    """Anything may go wrong once; ready it is not."""
    pods.put(pod(1, crashing(1)))
    assert pods.ailing() == ([], 0)
    assert pods.ready("n") is False


def test_why_an_image_does_not_come_is_not_forgotten(pods: AgentPods) -> None:
    """Older kubelets say why when they try, and nothing while they wait to try again."""
    pods.put(pod(1, pulling("ErrImagePull", "not found")))
    assert pods.put(pod(2, pulling("ImagePullBackOff", 'Back-off pulling image "i:1"'))) == {"n"}
    assert pods.put(pod(3, pulling("ErrImagePull", "not found"))) == {"n"}
    pods.put(pod(4, pulling("ImagePullBackOff", 'Back-off pulling image "i:1"')))
    assert [each.ailment for each in pods.ailing()[0]] == [Ailment("Image", "not found")]
    pods.put(pod(5, pulling("ErrImagePull", "denied")))
    assert [each.ailment for each in pods.ailing()[0]] == [Ailment("Image", "denied")]


def test_what_may_not_be_seen_is_not_known(pods: AgentPods) -> None:
    """Rights are withdrawn: what was seen before says nothing of today."""
    pods.put(pod(1, crashing()))
    pods.clear()
    assert pods.ready("n") is None
    assert pods.ailing() == ([], 0)
    pods.put(pod(1, READY))
    assert pods.ready("n") is True
