"""A controller that is killed between any write of a rollout and the next, and started again: the same rollout goes on.

It asks the API server through a ledger, which holds up one write after the other; the held one never arrives.
"""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import pytest
from tests.lab.answering import answering
from tests.lab.cluster import NAMESPACE, Cluster
from tests.lab.controller import Controller
from tests.lab.fleet_by_hand import REVISION_LABELS, apply
from tests.lab.ledger import Entry, Ledger
from tests.lab.programs import wait_until

from conntrack_operator.cluster.connection import Connection
from conntrack_operator.cluster.objects import CONTROLLER_REVISIONS, NODE_CONNTRACKS, Objects

NODES = tuple(f"n{number}" for number in range(5))
BUDGET = 2
WAVES = {"canary": 1, "soakSeconds": 1, "maxUnavailable": BUDGET}


class Watched:
    """Looks at all nodes' objects all the time, while it is entered, and notes what must never be."""

    def __init__(self, cluster: Cluster) -> None:
        self.told: list[str] = []
        """The nodes that were given the newer size, in the order in which they were seen to be."""
        self.wrong: list[str] = []
        self.canary_alone = True
        self._objects = Objects(Connection(str(cluster.kubeconfig)))
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look_on, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(30)

    def _look_on(self) -> None:
        while not self._ended.wait(0.03):
            self._look()

    def _look(self) -> None:
        nodes = self._objects.list(NODE_CONNTRACKS).items
        # Read after them: what they name was there before.
        found = self._objects.list(CONTROLLER_REVISIONS, namespace=NAMESPACE, label_selector=REVISION_LABELS).items
        kept = {each["metadata"]["name"] for each in found}
        named = {f"{use['name']}-{use['revision']}" for each in nodes for use in each["spec"]["policies"]}
        self.wrong += [f"{name} does not exist" for name in sorted(named - kept)]
        moving = [each["metadata"]["name"] for each in nodes if not has_answered(each)]
        if len(moving) > BUDGET:
            self.wrong.append(f"{', '.join(moving)} are on their way at once")
        newer = sorted(each["metadata"]["name"] for each in nodes if size_in(each) == NEWER)
        if len(newer) > 1 and not has_answered(next(each for each in nodes if each["metadata"]["name"] == NODES[0])):
            self.canary_alone = False
        self.told += [name for name in newer if name not in self.told]


OLDER, NEWER = 500_000, 600_000


def size_in(found: dict[str, Any]) -> int:
    """Return the size that a node's object asks for; 0 when it asks for none."""
    table = found["spec"].get("settings", {}).get("table", {})
    return int(table.get("size", {}).get("maxEntries", 0))


def has_answered(found: dict[str, Any]) -> bool:
    """Tell whether the node has answered what it is asked for."""
    return bool(found.get("status", {}).get("observedRevision") == found["spec"]["revision"])


def nodes(cluster: Cluster) -> dict[str, dict[str, Any]]:
    """Return all nodes' objects."""
    return {each["metadata"]["name"]: each for each in cluster.items("nodeconntracks")}


def all_have(cluster: Cluster, size: int) -> bool:
    """Tell whether all nodes have been given this size, and have answered."""
    found = nodes(cluster)
    return len(found) == len(NODES) and all(size_in(each) == size and has_answered(each) for each in found.values())


@pytest.fixture
def ledger(cluster: Cluster, crds: Path) -> Iterator[Ledger]:
    """Give a ledger of a cluster with five nodes whose agents obey."""
    del crds
    cluster.clear()
    for name in NODES:
        cluster.add_node(name, role="web")
    ledger = Ledger(cluster)
    with answering(cluster, everything=True):
        yield ledger
    ledger.close()
    cluster.clear()


@pytest.fixture
def controller(cluster: Cluster, ledger: Ledger, tmp_path: Path) -> Iterator[Controller]:
    """Give a running controller behind the ledger, and nodes that all have a policy that is known to be good."""
    controller = Controller(cluster, tmp_path, ledger.kubeconfig(tmp_path / "ledger.kubeconfig"))
    controller.start()
    try:
        apply(cluster, "web", table={"size": {"maxEntries": OLDER}}, rollout=WAVES)
        cluster.kubectl("wait", "--for=condition=Ready", "--timeout=100s", "ctp/web")
        yield controller
    finally:
        ledger.release()
        controller.program.stop()


def held(ledger: Ledger, part: str) -> list[Entry]:
    """Return the writes that wait for the ledger."""
    return [each for each in ledger.writes(part) if each.status is None]


def test_killed_between_any_two_writes(cluster: Cluster, controller: Controller, ledger: Ledger) -> None:
    """Before the revision is written down, before the first spec, and before each further one."""
    before = nodes(cluster)
    kills = []
    with Watched(cluster) as watched:
        part, after = "/controllerrevisions/", 0
        ledger.hold(part)
        apply(cluster, "web", table={"size": {"maxEntries": NEWER}}, rollout=WAVES)
        while True:

            def is_there(part: str = part) -> bool:
                return bool(held(ledger, part)) or all_have(cluster, NEWER)

            controller.program.wait_until(is_there, 120, "the next write, or the end")
            if not held(ledger, part):
                break
            kills.append(held(ledger, part)[0].path)
            controller.kill()
            ledger.drop()
            if len(kills) == 1:
                assert all(size_in(each) == OLDER for each in nodes(cluster).values())
            part, after = "/nodeconntracks/", min(1, len(kills) - 1)
            wait_until(lambda: not held(ledger, ""), 30, "what was dropped is gone")
            ledger.hold(part, after)
            controller.start()
        ledger.release()
        cluster.kubectl("wait", "--for=condition=Ready", "--timeout=100s", "ctp/web")
    print(f"killed before {len(kills)} writes: {kills}; told: {watched.told}")
    assert len(kills) >= 5, "the revision, the canary, and at least one of each wave of two"
    assert not watched.wrong
    assert watched.canary_alone
    assert watched.told[0] == NODES[0]
    after_all = nodes(cluster)
    assert {name: each["metadata"]["uid"] for name, each in after_all.items()} == {
        name: each["metadata"]["uid"] for name, each in before.items()
    }
    written = {name: each["metadata"]["generation"] - before[name]["metadata"]["generation"] for name, each in
               after_all.items()}  # fmt: skip
    assert set(written.values()) == {1}, f"each spec is written once: {written}"
