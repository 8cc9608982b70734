"""The book of revisions, with an API server in the test's hand that may fail at any request."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from conntrack_operator.cluster.objects import CONTROLLER_REVISIONS, Kind, Listing
from conntrack_operator.controller.book import CREATED, GOOD_SINCE, LABELS, POLICY, Book
from conntrack_operator.decide.revisions import content_of, revision_name
from conntrack_operator.errors import Retry
from conntrack_operator.model.policy import ConntrackPolicy

NOW = datetime(2026, 1, 31, 12, 0, 0, tzinfo=UTC)


class Shelves:
    """What is stored, by name. `error` is raised once by the next write; `namespace` may be missing."""

    def __init__(self) -> None:
        self.stored: dict[str, dict[str, Any]] = {}
        self.error: Exception | None = None
        self.namespace = True
        self.writes = 0

    def list(self, kind: Kind, *, namespace: str, label_selector: str) -> Listing:
        """Answer as Objects.list does."""
        assert (kind, namespace) == (CONTROLLER_REVISIONS, "ns")
        assert label_selector == ",".join(f"{key}={value}" for key, value in LABELS.items())
        return Listing(1, tuple(self.stored.values()))

    def apply(self, kind: Kind, document: dict[str, Any], namespace: str) -> dict[str, Any] | None:
        """Answer as Objects.apply does; the data of a ControllerRevision can be written once only."""
        assert (kind, namespace) == (CONTROLLER_REVISIONS, "ns")
        self._fail()
        if not self.namespace:
            return None
        name = document["metadata"]["name"]
        known = self.stored.get(name, document)
        assert known["data"] == document["data"]
        self.stored[name] = document
        return document

    def delete(self, kind: Kind, name: str, namespace: str) -> None:
        """Answer as Objects.delete does."""
        assert (kind, namespace) == (CONTROLLER_REVISIONS, "ns")
        self._fail()
        self.stored.pop(name, None)

    def _fail(self) -> None:
        self.writes += 1
        error, self.error = self.error, None
        if error is not None:
            raise error


def policy(name: str = "p", entries: int = 1000, generation: int | None = None, **spec: Any) -> ConntrackPolicy:
    """Return a policy; its generation follows from its size."""
    meta = {"name": name, "uid": f"uid-{name}", "generation": generation or entries}
    meta |= {"creationTimestamp": "2026-01-01T00:00:00Z"}
    fields = {"mode": "Enforce", "nodeSelector": {"matchLabels": {"role": "web"}}, **spec}
    fields["table"] = {"size": {"maxEntries": entries}}
    return ConntrackPolicy.model_validate({"metadata": meta, "spec": fields})


def books() -> tuple[Book, Shelves]:
    """Return an empty book and where it is stored."""
    shelves = Shelves()
    return Book(shelves, "ns"), shelves  # type: ignore[arg-type]


def reopened(shelves: Shelves) -> Book:
    """Return the book as the next controller reads it."""
    book = Book(shelves, "ns")  # type: ignore[arg-type]
    book.load()
    return book


def test_a_revision_is_written_down_once() -> None:
    """It says which policy it is of, and all of the policy that travels; the same content needs no second one."""
    book, shelves = books()
    name = book.write_down(policy())
    assert name == revision_name(policy())
    (document,) = shelves.stored.values()
    assert document["metadata"]["name"] == f"p-{name}"
    assert document["metadata"]["annotations"] == {POLICY: "p", CREATED: "2026-01-01T00:00:00Z"}
    assert "ownerReferences" not in document["metadata"], "it outlives the policy"
    assert document["data"] == {"spec": content_of(policy())}
    assert book.write_down(policy()) == book.write_down(policy(generation=9, rollout={"canary": 3})) == name
    assert shelves.writes == 1
    book.write_down(policy(entries=2000))
    assert [each["revision"] for each in shelves.stored.values()] == [1, 2]


def test_nothing_is_known_that_could_not_be_written() -> None:
    """No node may be told of a revision that nobody could read after the next start."""
    book, shelves = books()
    shelves.error = Retry("it hangs")
    with pytest.raises(Retry):
        book.write_down(policy())
    assert book.revisions("p") == []
    assert book.lookup([policy()])("p", revision_name(policy())) is None
    book.write_down(policy())
    assert len(shelves.stored) == 1


def test_without_a_namespace_there_is_no_place() -> None:
    """It is said with the remedy."""
    book, shelves = books()
    shelves.namespace = False
    with pytest.raises(Retry, match="kubectl create namespace ns"):
        book.write_down(policy())


def test_the_next_controller_reads_the_same() -> None:
    """Content, number, age, and what went well."""
    book, shelves = books()
    first, second = book.write_down(policy()), book.write_down(policy(entries=2000))
    book.mark_good("p", first, NOW + timedelta(microseconds=5))
    again = reopened(shelves)
    by_name = {each.name: each for each in book.revisions("p")}
    assert {each.name: each for each in again.revisions("p")} == by_name
    assert (by_name[first].good_since, by_name[second].good_since) == (NOW, None)
    good = again.good("p")
    assert good is not None
    assert good.name == first
    assert again.names() == {"p"}


def test_good_moves_with_what_went_well_last() -> None:
    """Taken back to an older revision, that one is good again; said twice, nothing is written."""
    book, shelves = books()
    first, second = book.write_down(policy()), book.write_down(policy(entries=2000))
    for minute, name in enumerate([first, second, first]):
        book.mark_good("p", name, NOW + timedelta(minutes=minute))
    good = reopened(shelves).good("p")
    assert good is not None
    assert (good.name, good.good_since) == (first, NOW + timedelta(minutes=2))
    writes = shelves.writes
    book.mark_good("p", first, NOW + timedelta(minutes=5))
    book.mark_good("p", "nobody knows it", NOW)
    book.mark_good("q", first, NOW)
    assert shelves.writes == writes


def test_what_was_deleted_by_hand_is_written_again() -> None:
    """While it is needed and this process knows it; a failure on the way is made good the next time."""
    book, shelves = books()
    first = book.write_down(policy())
    shelves.stored.clear()
    book.load()
    shelves.error = Retry("it hangs")
    with pytest.raises(Retry):
        book.keep({"p": first}, [])
    book.keep({"p": first}, [])
    assert len(shelves.stored) == 1
    writes = shelves.writes
    book.keep({"p": first}, [])
    assert shelves.writes == writes


def test_what_nobody_needs_is_dropped() -> None:
    """Three stay, what a node has, and of a policy that is gone that alone. What could not be deleted stays known."""
    book, shelves = books()
    names = [book.write_down(policy(entries=number)) for number in range(1001, 1007)]
    shelves.error = Retry("it hangs")
    with pytest.raises(Retry):
        book.keep({"p": names[-1]}, [("p", names[0])])
    book.keep({"p": names[-1]}, [("p", names[0])])
    assert sorted(shelves.stored) == sorted(f"p-{name}" for name in (names[0], *names[3:]))
    assert {each.name for each in book.revisions("p")} == {names[0], *names[3:]}
    book.keep({}, [("p", names[0])])
    assert list(shelves.stored) == [f"p-{names[0]}"]
    book.keep({}, [])
    assert (shelves.stored, book.names()) == ({}, set())


def test_lookup_reads_a_revision_with_what_is_live() -> None:
    """An older content, with the onDelete of today; of a policy that is gone without a uid."""
    book, _ = books()
    first = book.write_down(policy())
    today = policy(entries=2000, onDelete="Keep")
    read = book.lookup([today])("p", first)
    assert read is not None
    assert (read.spec.table, read.spec.on_delete) == (policy().spec.table, "Keep")
    gone = book.lookup([])("p", first)
    assert gone is not None
    assert (gone.metadata.uid, gone.spec.on_delete) == (None, None)
    assert book.lookup([today])("p", "lost") is None
    edited = policy(entries=2000, generation=2001, onDelete="Restore")
    again = book.lookup([edited])("p", first)
    assert again is not None
    assert again.spec.on_delete == "Restore", "not what was read before the edit"


def test_a_policy_made_again_as_it_was_is_the_younger_one() -> None:
    """Its revision is the same, and what decides between equals is when the policy was made that is there now."""
    book, shelves = books()
    name = book.write_down(policy())
    assert book.lookup(())("p", name).metadata.creation_timestamp == "2026-01-01T00:00:00Z"  # type: ignore[union-attr]
    made = "2026-02-02T00:00:00Z"
    again = policy().model_copy(update={"metadata": policy().metadata.model_copy(update={"creation_timestamp": made})})
    assert book.write_down(again) == name
    for each in (book, reopened(shelves)):
        assert each.lookup(())("p", name).metadata.creation_timestamp == made  # type: ignore[union-attr]
    writes = shelves.writes
    assert book.write_down(again) == name
    assert shelves.writes == writes
    book.keep({}, [])
    assert book.lookup(())("p", name) is None, "nobody has it any more"
    book.write_down(policy())
    assert book.lookup(())("p", name).metadata.creation_timestamp == "2026-01-01T00:00:00Z"  # type: ignore[union-attr]


def test_what_is_found_and_is_not_ours_is_left_alone() -> None:
    """Somebody else's object under our labels, and one whose content a newer version wrote."""
    shelves = Shelves()
    newer = {"spec": {**content_of(policy()), "fromTheFuture": 1}}
    marked = {POLICY: "p", GOOD_SINCE: "no time at all"}
    shelves.stored = {
        "x": {"metadata": {"name": "x-1"}, "data": {"spec": {}}},
        "y": {"metadata": {"name": "y-1", "annotations": {POLICY: "y"}}, "data": "text"},
        "p-1": {"metadata": {"name": "p-1", "annotations": marked}, "revision": 3, "data": newer},
    }
    book = reopened(shelves)
    assert book.names() == {"p"}
    assert book.good("p") is None
    assert book.lookup([policy()])("p", "1") is None, "not understood, and not what is left of it"
    assert book.contents() == []
    book.keep({"p": "1"}, [])
    assert len(shelves.stored) == 3
