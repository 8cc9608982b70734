"""What a node's object may say that this controller did not write: of an older version, a newer one, or a hand."""

import json
import threading
import time
from collections.abc import Iterator
from typing import Any, Self

import pytest
from tests.lab.cluster import NAMESPACE
from tests.lab.host import Host
from tests.lab.operator import NODE, Operator
from tests.lab.programs import wait_until

pytestmark = pytest.mark.tunes_this_machine

ICMP = "nf_conntrack_icmp_timeout"
TRIAL = {"timeoutSeconds": 15, "soakSeconds": 0}
CRD = "nodeconntracks.conntrack-operator.io"
NEWER_FIELD = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/newer"
REVISIONS = "app.kubernetes.io/name=conntrack-operator,app.kubernetes.io/component=revision"


class Values:
    """Every value that a sysctl of this machine has, looked at every few milliseconds."""

    def __init__(self, host: Host, name: str) -> None:
        self.seen: set[int] = set()
        self._host, self._name, self._ended = host, name, threading.Event()
        self._thread = threading.Thread(target=self._look)

    def _look(self) -> None:
        while not self._ended.wait(0.01):
            self.seen.add(self._host.value(self._name))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()


def spec_of(operator: Operator) -> dict[str, Any]:
    """Return what the node is asked to do."""
    return dict((operator.node() or {}).get("spec") or {})


def patch(operator: Operator, **spec: Any) -> None:
    """Write over parts of the node's spec, as somebody who should not."""
    operator.cluster.kubectl("patch", "nct", NODE, "--type=merge", "-p", json.dumps({"spec": spec}))


def settled(operator: Operator, right: dict[str, Any]) -> None:
    """Wait until the spec is `right` again, the node has answered it, and the policy is Ready."""

    def holds() -> bool:
        return spec_of(operator) == right and operator.status().get("observedRevision") == right["revision"]

    operator.controller.wait_until(holds, 90, f"the spec is as before: {right}")
    operator.wait_ready("kept", 90)


def at_rest(operator: Operator) -> None:
    """Have an agent that knows nothing of an edit which is put right: both bear the same revision.

    One that was at work might still hear of it, at any time later.
    """
    operator.agent.stop()
    before = operator.acts()
    operator.agent.start()
    operator.agent.wait_until(lambda: operator.has_acted(before + 1), 60, "a new agent has acted on the object")


@pytest.fixture
def kept(operator: Operator, host: Host) -> dict[str, Any]:
    """Give the spec of a node that has a policy with the default rollout, and has answered it."""
    operator.apply("kept", timeouts={"icmp": 17}, trial=TRIAL)
    operator.wait_ready("kept", 90)
    assert host.value(ICMP) == 17
    return spec_of(operator)


def test_an_edit_by_hand_is_put_right(operator: Operator, host: Host, kept: dict[str, Any]) -> None:
    """Settings, the name of a revision, the mode: written anew, and what the node has is not lost meanwhile."""
    patch(operator, settings={"timeouts": {"icmp": 99}})
    settled(operator, kept)
    at_rest(operator)
    wait_until(lambda: host.value(ICMP) == 17, 60, "the node has what is right")
    operator.wait_ready("kept", 90)
    with Values(host, ICMP) as values:
        patch(operator, policies=[{**kept["policies"][0], "revision": "nonsense"}])
        settled(operator, kept)
        patch(operator, mode="Hold", revision="by-hand", settings=None)
        settled(operator, kept)
    assert values.seen == {17}


@pytest.fixture
def _newer_crd(operator: Operator) -> Iterator[None]:
    """Have the API server know a field of the spec that this version does not."""
    add = [{"op": "add", "path": NEWER_FIELD, "value": {"type": "string"}}]
    operator.cluster.kubectl("patch", "crd", CRD, "--type=json", "-p", json.dumps(add))
    yield
    remove = [{"op": "remove", "path": NEWER_FIELD}]
    operator.cluster.kubectl("patch", "crd", CRD, "--type=json", "-p", json.dumps(remove))


@pytest.mark.usefixtures("_newer_crd")
def test_an_object_of_a_newer_version(operator: Operator, host: Host, kept: dict[str, Any]) -> None:
    """A field nobody here knows: the object is written anew, the node is released again, and keeps all meanwhile."""
    began = time.monotonic()
    with Values(host, ICMP) as values:

        def is_seen() -> bool:
            # The API server takes a moment to know the field; before, it drops it. Written anew it is within 0.1 s.
            patch(operator, newer="thing")
            return "spec.newer" in operator.controller.tail()

        operator.controller.wait_until(is_seen, 60, "the field is seen")
        settled(operator, kept)
    assert values.seen == {17}
    print(f"released again within {time.monotonic() - began:.1f} s")


def test_revisions_deleted_by_hand(operator: Operator, host: Host, kept: dict[str, Any]) -> None:
    """The next start of the controller writes down again what is in use, and nothing else is written."""
    cluster = operator.cluster
    before = operator.node()
    cluster.kubectl("delete", "controllerrevisions", "-n", NAMESPACE, "-l", REVISIONS)
    operator.controller.stop()
    operator.controller.start()

    def names() -> set[str]:
        found = cluster.items("controllerrevisions", "-n", NAMESPACE, "-l", REVISIONS)
        return {each["metadata"]["name"] for each in found}

    used = f"kept-{kept['policies'][0]['revision']}"
    operator.controller.wait_until(lambda: used in names(), 90, "the revision is written down again")
    time.sleep(1)
    assert (operator.node() or {})["spec"] == (before or {})["spec"]
    assert host.value(ICMP) == 17


def test_an_upgrade(operator: Operator, host: Host, kept: dict[str, Any]) -> None:
    """A revision of another version: left as it is while nothing may be released, and said; then it goes in waves."""
    operator.controller.stop()
    patch(operator, policies=[{**kept["policies"][0], "revision": "7"}])
    operator.apply("kept", timeouts={"icmp": 18}, trial=TRIAL, rollout={"paused": True})
    operator.cluster.kubectl("delete", "controllerrevisions", "-n", NAMESPACE, "-l", REVISIONS)
    old = spec_of(operator)
    operator.controller.start()
    operator.controller.wait_until(
        lambda: operator.condition("kept", "Ready").get("reason") == "Paused", 90, "the policy says what is waited for"
    )
    print(operator.condition("kept", "Ready")["message"])
    assert "waiting for their turn" in operator.condition("kept", "Ready")["message"]
    time.sleep(1)
    assert spec_of(operator) == old
    assert host.value(ICMP) == 17
    operator.apply("kept", timeouts={"icmp": 18}, trial=TRIAL)
    operator.wait_ready("kept", 90)
    assert host.value(ICMP) == 18
    assert spec_of(operator)["policies"][0]["revision"] not in {"7", kept["policies"][0]["revision"]}
