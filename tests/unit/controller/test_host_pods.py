"""Host-network pods by node: who counts, from when, and for how long after they have gone."""

from typing import Any

import pytest

from conntrack_operator.cluster.objects import Listing
from conntrack_operator.controller.host_pods import GRACE_SECONDS, HostPods
from conntrack_operator.controller.sights import pod_in
from conntrack_operator.decide.pods import PodPort


class Clock:
    """A clock that stands still until it is told to go on."""

    now = 100.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now


def pod(version: int, name: str = "p", node: str = "n", port: int = 80, **spec: Any) -> dict[str, Any]:
    """Return a host-network pod with one port, as the API server sends it."""
    return {
        "metadata": {"name": name, "namespace": "a", "resourceVersion": str(version), "labels": {"app": "b"}},
        "spec": {
            "hostNetwork": True,
            "nodeName": node,
            "containers": [{"ports": [{"containerPort": port, "protocol": "TCP", "name": "http"}]}, {}],
            **spec,
        },
        "status": {"phase": spec.pop("phase", "Running")},
    }


@pytest.mark.parametrize(
    ("document", "counts"),
    [
        pytest.param(pod(1), True, id="runs"),
        pytest.param(pod(1, phase="Pending"), True, id="is about to run"),
        pytest.param(pod(1, phase="Succeeded"), False, id="has ended"),
        pytest.param(pod(1, phase="Failed"), False, id="has failed"),
        pytest.param(pod(1, hostNetwork=False), False, id="has a network of its own"),
        pytest.param(pod(1, nodeName=None), False, id="is not bound to a node"),
        pytest.param(pod(1, containers=[{}]), False, id="declares no port"),
    ],
)
def test_which_pods_count(document: dict[str, Any], counts: bool) -> None:
    """A pod counts while it holds ports of its node, or is about to."""
    assert (pod_in(document) is not None) == counts


def test_which_ports_count() -> None:
    """The ports of containers and of sidecars count, those of plain init containers do not; absent means TCP."""
    init = [
        {"restartPolicy": "Always", "ports": [{"containerPort": 15090}]},
        {"ports": [{"containerPort": 1}]},
    ]
    found = pod_in(pod(1, initContainers=init))
    assert found
    assert found.ports == (PodPort(80, "TCP", "http"), PodPort(15090, "TCP", ""))


def test_a_pod_that_goes_counts_a_little_longer() -> None:
    """Its ports stay for the grace time and no longer, and the time at which to look again is told."""
    clock = Clock()
    pods = HostPods(clock)
    pods.put(pod(1))
    assert [each.name for each in pods.on("n")[0]] == ["p"]
    assert pods.on("n")[1] == 0
    assert [each.node for each in pods.put(pod(2), deleted=True)] == ["n"]
    clock.now += 5
    assert [each.name for each in pods.on("n")[0]] == ["p"]
    assert pods.on("n")[1] == GRACE_SECONDS - 5
    clock.now += GRACE_SECONDS - 5
    assert pods.on("n") == ([], 0.0)


def test_one_that_comes_counts_at_once() -> None:
    """On its own node and no other, and a heartbeat of it tells nothing new."""
    pods = HostPods(Clock())
    assert [each.node for each in pods.put(pod(1))] == ["n"]
    assert pods.on("other") == ([], 0.0)
    assert pods.put(pod(2)) == []
    assert pods.ports() == {("TCP", 80)}
    pods.put(pod(3, "q", port=81))
    assert pods.ports() == {("TCP", 80), ("TCP", 81)}


def test_a_full_list_finds_what_was_missed() -> None:
    """A pod that a list lacks has gone; one that it has and nobody saw is there."""
    pods = HostPods(Clock())
    pods.put(pod(1))
    touched = pods.replace(Listing(9, (pod(5, "q", node="m"),)))
    assert {each.node for each in touched} == {"n", "m"}
    assert [each.name for each in pods.on("m")[0]] == ["q"]
    assert pods.on("n")[1] == GRACE_SECONDS
