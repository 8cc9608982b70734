"""The waves at work, with a store that the test fills and a guard that agrees to what the test says."""

import time
from collections.abc import Callable
from typing import Any

import pytest

from conntrack_operator.controller.book import Book
from conntrack_operator.controller.rollouts import Rollouts
from conntrack_operator.controller.store import Store
from conntrack_operator.controller.touched import ROLLOUT, Key
from conntrack_operator.controller.workqueue import WorkQueue
from conntrack_operator.decide.absence import Loss
from conntrack_operator.decide.holding import GONE
from conntrack_operator.decide.targets import Remove, Write, owner_of, step_for
from conntrack_operator.errors import Retry
from conntrack_operator.model.node import NodeConntrack

from .test_book import Shelves

LABELS = {"role": "web"}


class Agreeing:
    """A guard that has confirmed what the test says."""

    trouble = ""

    def __init__(self) -> None:
        self.agreed: frozenset[Loss] = frozenset()
        self.seen: frozenset[Loss] = frozenset()

    def confirmed(self) -> frozenset[Loss]:
        """Return what was agreed on."""
        return self.agreed

    def compare(self, losses: frozenset[Loss], *_: Any) -> float:
        """Take in what is seen live; a list is wanted while something is not agreed on."""
        self.seen = losses
        self.agreed &= losses
        return 0.0 if losses - self.agreed else float("inf")


class Controller:
    """What a controller knows, and an API server that takes its writes of nodes' objects."""

    def __init__(self, stored: dict[str, dict[str, Any]] | None = None, shelves: Shelves | None = None) -> None:
        self.stored = {} if stored is None else stored
        self.shelves = shelves or Shelves()
        self.store, self.guard, self.queue = Store("ns"), Agreeing(), WorkQueue[Key]()
        book = Book(self.shelves, "ns")  # type: ignore[arg-type]
        book.load()
        self.rollouts = Rollouts(self.store, self.queue, book, self.guard)  # type: ignore[arg-type]
        self.version = 1000 + sum(int(each["metadata"]["resourceVersion"]) for each in self.stored.values())
        for document in self.stored.values():
            self.store.put_node_conntrack(document)

    def apply(self, entries: int = 1000, name: str = "p", **spec: Any) -> None:
        """Store a policy."""
        self.version += 1
        meta = {"name": name, "uid": f"uid-{name}", "generation": self.version, "resourceVersion": str(self.version)}
        fields = {"mode": "Enforce", "nodeSelector": {"matchLabels": LABELS}, "rollout": {"soakSeconds": 0}, **spec}
        fields["table"] = {"size": {"maxEntries": entries}}
        self.store.put_policy({"metadata": meta, "spec": fields})

    def delete(self, name: str = "p") -> None:
        """Delete a policy."""
        self.version += 1
        self.store.put_policy({"metadata": {"name": name, "resourceVersion": str(self.version)}}, deleted=True)

    def add_nodes(self, count: int) -> None:
        """Store nodes n0, n1 and so on."""
        for number in range(count):
            self.version += 1
            meta = {"name": f"n{number}", "uid": f"uid-{number}", "resourceVersion": str(self.version)}
            self.store.put_node({"metadata": {**meta, "labels": LABELS}, "status": {}})

    def judge(self) -> dict[str, dict[str, str]]:
        """Judge, and return what is granted."""
        self.rollouts._ended = float("-inf")
        self.rollouts.judge()
        return {name: dict(granted) for name, granted in self.rollouts._fleet.grants.items()}

    def write(self, name: str, before: Callable[[], None] = lambda: None) -> None:
        """Do what a worker does for one node; `before` happens after it has looked and before it writes."""
        node, existing = self.store.node(name), self.store.node_conntrack(name)
        assert node is not None
        assert existing is None or isinstance(existing, NodeConntrack)
        wish = self.rollouts.wish_for(node, existing)
        before()
        step = step_for(node, wish, existing)
        if isinstance(step, Remove):
            self._put({**self.stored.pop(name)}, deleted=True)
        elif isinstance(step, Write):
            old = self.stored.get(name, {"metadata": {"generation": 0}})
            generation = old["metadata"]["generation"] + 1
            meta = {
                "name": name,
                "uid": f"object-{name}",
                "generation": generation,
                "ownerReferences": [owner_of(node)],
            }
            self._put({**old, "metadata": meta, "spec": step.spec.document()})
        self.rollouts.written(name, wish)

    def write_all(self) -> None:
        """Have every node's worker run."""
        for node in self.store.nodes():
            self.write(node.name)

    def answer(self, name: str, phase: str = "Current") -> None:
        """Have the node say what became of what it was told."""
        spec = self.stored[name]["spec"]
        if spec["mode"] == "Restore":
            phase = "Restored"
        status = {
            "nodeUID": spec["nodeUID"],
            "observedRevision": spec["revision"],
            "observedAttempt": spec.get("attempt", ""),
            "phase": phase,
            "heartbeatTime": "2999-01-01T00:00:00Z",
        }
        self._put({**self.stored[name], "status": status})

    def turn(self) -> None:
        """Judge, write and answer once."""
        self.judge()
        self.write_all()
        for name in self.stored:
            self.answer(name)

    def held(self) -> dict[str, dict[str, str]]:
        """Return what every node has by what is stored."""
        return {
            name: {use["name"]: use["revision"] for use in each["spec"].get("policies", ())}
            for name, each in self.stored.items()
            if each["spec"]["mode"] == "Apply"
        }

    def due(self) -> set[Key]:
        """Return the keys that are due now."""
        keys = set()
        while (key := self.queue.take(0.0)) is not None:
            keys.add(key)
            self.queue.done(key)
        return keys

    def _put(self, document: dict[str, Any], *, deleted: bool = False) -> None:
        self.version += 1
        document["metadata"] = {**document["metadata"], "resourceVersion": str(self.version)}
        if not deleted:
            self.stored[document["metadata"]["name"]] = document
        self.store.put_node_conntrack(document, deleted=deleted)


def settled(nodes: int = 4, **spec: Any) -> Controller:
    """Return a controller whose policy is everywhere."""
    controller = Controller()
    controller.apply(**spec)
    controller.add_nodes(nodes)
    for _ in range(nodes + 2):
        controller.turn()
    controller.judge()
    assert len(controller.held()) == nodes
    return controller


def test_the_book_comes_before_the_specs() -> None:
    """While a revision cannot be written down nothing is granted; then it is, and the node is told."""
    controller = settled()
    before = controller.held()
    controller.apply(2000)
    controller.shelves.error = Retry("it hangs")
    with pytest.raises(Retry):
        controller.judge()
    controller.write_all()
    assert controller.held() == before
    granted = controller.judge()
    assert granted.keys() == {"n0"}
    assert f"p-{granted['n0']['p']}" in controller.shelves.stored
    assert {Key("node", "n0"), Key("policy", "p")} <= controller.due()


def test_a_grant_lasts_until_it_is_written() -> None:
    """A write that fails is repeated with the same, and another judgement grants nobody else."""
    controller = settled()
    controller.apply(2000)
    first = controller.judge()
    assert controller.judge() == first
    with pytest.raises(Retry):
        controller.write("n0", before=_hang)
    assert controller.judge() == first
    controller.write("n0")
    assert controller.judge() == {}
    assert controller.held()["n0"] == first["n0"]


def _hang() -> None:
    raise Retry("it hangs")


def test_nodes_are_told_in_the_order_of_their_names() -> None:
    """A wave that is cut off anywhere has reached the first of them."""
    controller = settled(nodes=9)
    controller.apply(2000, rollout={"canary": 0, "maxUnavailable": "100%"})
    controller.due()
    controller.judge()
    keys = []
    while (key := controller.queue.take(0.0)) is not None:
        keys.append(key)
    assert [key.name for key in keys if key.kind == "node"] == [f"n{number}" for number in range(9)]


def test_a_grant_made_while_another_is_written_is_not_lost() -> None:
    """An edit between a worker's look and its write: it writes the older one, and the newer one is still granted."""
    controller = settled()
    controller.apply(2000)
    first = controller.judge()
    newer: dict[str, dict[str, str]] = {}

    def edited() -> None:
        controller.apply(3000)
        newer.update(controller.judge())

    controller.write("n0", before=edited)
    assert controller.held()["n0"] == first["n0"]
    assert controller.rollouts._fleet.grants == newer
    controller.write("n0")
    assert controller.held()["n0"] == newer["n0"]


def test_another_controller_goes_on_where_this_one_was() -> None:
    """At every step of a wave: from what is stored alone it grants the same, or less."""
    controller = settled(nodes=3)
    controller.apply(2000)
    for _ in range(12):
        granted = controller.judge()
        other = Controller(controller.stored, controller.shelves)
        other.apply(2000)
        other.add_nodes(3)
        assert other.judge() == granted
        controller.write_all()
        for name in controller.stored:
            controller.answer(name)
    assert len({each["p"] for each in controller.held().values()}) == 1


def test_a_start_forgets_no_withdrawal() -> None:
    """Workers that run before the first judgement leave it in the specs who has given up what."""
    controller = settled()
    controller.delete()
    controller.judge()
    controller.guard.agreed = controller.guard.seen
    assert controller.judge() == {"n0": {"p": GONE}}
    controller.write("n0")
    controller.answer("n0")
    other = Controller(controller.stored, controller.shelves)
    other.add_nodes(4)
    other.write_all()
    assert other.stored["n0"]["spec"]["withdrawn"] == [{"name": "p", "revision": GONE}]
    assert other.judge() == {}, "nothing is confirmed to this one yet"
    assert Key("list") in {*other.due(), *other.queue._due}
    other.guard.agreed = other.guard.seen
    assert other.judge() == {"n1": {"p": GONE}}


def test_a_withdrawal_ends() -> None:
    """The last one goes: nobody names it any more, the objects go, and so do the revisions."""
    controller = settled()
    controller.delete()
    for _ in range(12):
        controller.turn()
        controller.guard.agreed = controller.guard.seen
    assert controller.stored == {}
    controller.judge()
    assert controller.shelves.stored == {}
    assert controller.rollouts.leaving("p") == 0


def test_how_many_leave() -> None:
    """Those that still have it and can be told so."""
    controller = settled()
    controller.delete()
    controller.judge()
    assert controller.rollouts.leaving("p") == 4
    controller.version += 1
    meta = {"name": "n3", "uid": "uid-3", "resourceVersion": str(controller.version), "labels": LABELS}
    away = {"conditions": [{"type": "Ready", "status": "Unknown"}]}
    controller.store.put_node({"metadata": meta, "status": away})
    controller.judge()
    assert controller.rollouts.leaving("p") == 3


def test_a_verdict_is_of_the_revision_that_was_judged() -> None:
    """Until an edit was judged, nothing is said of where it stands."""
    controller = settled()
    revision = controller.held()["n0"]["p"]
    found = controller.rollouts.verdict("p", revision)
    assert found is not None
    assert found.stage == "Done"
    assert controller.rollouts.verdict("p", "another") is None
    assert controller.rollouts.verdict("q", revision) is None


def test_a_lost_revision_holds_up_neither_the_others_nor_itself() -> None:
    """A node whose revision nobody knows keeps what it has; until that is settled nothing is added there."""
    controller = settled()
    controller.apply(1000, "p", rollout={"paused": True, "soakSeconds": 0})
    spec = controller.stored["n0"]["spec"]
    spoilt = {**spec, "policies": [{**spec["policies"][0], "revision": "lost"}]}
    controller._put({**controller.stored["n0"], "spec": spoilt})
    controller.apply(1000, "q", priority=-1)
    assert controller.judge().keys() == {"n1"}
    node = controller.store.node("n0")
    assert node is not None
    assert controller.rollouts.unknown_revision("p", controller.rollouts.seen(node)) == "lost"
    controller.write_all()
    assert controller.held()["n0"] == {"p": "lost"}
    controller.apply(1000, "p")
    for _ in range(12):
        controller.turn()
    assert len({tuple(sorted(each.items())) for each in controller.held().values()}) == 1


def test_it_comes_again_by_itself() -> None:
    """When a soak ends nothing happens that would tell."""
    controller = Controller()
    controller.apply(rollout={"soakSeconds": 600})
    controller.add_nodes(2)
    for _ in range(2):
        controller.turn()
    controller.due()
    controller.judge()
    assert 0 < controller.queue._due[ROLLOUT] - time.monotonic() <= 600
