"""The restore guard's memory, with a clock in the test's hand; what the API server says is tried on a real one."""

from typing import Any

from conntrack_operator.cluster.objects import CRDS, Kind
from conntrack_operator.controller.guard import TROUBLE_SECONDS, Guard
from conntrack_operator.decide.absence import Loss
from conntrack_operator.errors import ConntrackOperatorError, Refused, Retry

LOSS = Loss("web", "n1")


class Answers:
    """What the guard asks for, and what it is told. An `error` is raised instead."""

    def __init__(self) -> None:
        self.error: ConntrackOperatorError | None = None
        self.crd: dict[str, Any] = {
            "metadata": {"uid": "1", "creationTimestamp": "2026-02-01T00:00:00Z"},
            "status": {"conditions": [{"type": "Established", "status": "True"}]},
        }
        self.asked = 0

    def get(self, kind: Kind, name: str) -> dict[str, Any]:
        """Answer as Objects.get does."""
        assert name
        self.asked += 1
        if self.error:
            raise self.error
        return self.crd if kind is CRDS else {"metadata": {}, "status": {"phase": "Active"}}


class Scene:
    """A guard, what it is told, and the time."""

    def __init__(self) -> None:
        self.now = 100.0
        self.answers = Answers()
        self.guard = Guard(self.answers, "ns", lambda: self.now)  # type: ignore[arg-type]

    def list(self, *losses: Loss, after: float = 0.0, policies: Any = ()) -> frozenset[Loss]:
        """Let time pass and hand over a list; return what is confirmed then."""
        self.now += after
        self.guard.saw(losses, policies)
        return self.guard.confirmed()


def test_nothing_is_asked_without_losses() -> None:
    """A list that shows no loss costs nothing."""
    scene = Scene()
    assert not scene.list()
    assert scene.answers.asked == 0
    assert scene.guard.compare(frozenset()) == float("inf")


def test_two_lists_confirm() -> None:
    """Ten seconds later, and it says when."""
    scene = Scene()
    assert not scene.list(LOSS)
    assert scene.guard.compare(frozenset({LOSS})) == 10.0
    assert not scene.list(LOSS, after=9.0)
    assert scene.list(LOSS, after=1.0) == {LOSS}
    assert scene.guard.compare(frozenset({LOSS})) == float("inf")
    assert scene.guard.trouble == ""


def test_a_loss_that_no_list_has_shown_asks_for_one() -> None:
    """Seen live, it asks for a list at once, beside others that are further on."""
    scene = Scene()
    assert scene.guard.compare(frozenset({LOSS})) == 0.0
    scene.list(LOSS)
    assert scene.guard.compare(frozenset({LOSS, Loss("web", "n2")})) == 0.0


def test_an_answer_that_does_not_come_begins_anew() -> None:
    """No answer and a refusal confirm nothing, take back what was confirmed, and are looked at again in a while."""
    for error in (Retry("it hangs"), Refused("Forbidden", "no right to get it")):
        scene = Scene()
        scene.list(LOSS)
        assert scene.list(LOSS, after=10.0) == {LOSS}
        scene.answers.error = error
        assert not scene.list(LOSS, after=10.0)
        assert str(error) in scene.guard.trouble
        assert scene.guard.compare(frozenset({LOSS})) == TROUBLE_SECONDS
        scene.answers.error = None
        assert not scene.list(LOSS, after=20.0)
        assert scene.guard.trouble == ""
        assert scene.list(LOSS, after=10.0) == {LOSS}


def test_a_crd_made_anew_between_two_lists_begins_anew() -> None:
    """Its uid is another one: the first list was of other objects."""
    scene = Scene()
    scene.list(LOSS)
    scene.answers.crd["metadata"]["uid"] = "2"
    assert not scene.list(LOSS, after=10.0)
    assert scene.list(LOSS, after=10.0) == {LOSS}


def test_a_policy_gone_with_its_crd_is_held_until_it_is_applied_and_deleted() -> None:
    """Held for good, with the remedy, and beside it others are not; seen again and deleted, it is withdrawn."""
    scene = Scene()
    held, other = Loss("web", "n1", told="2026-01-01T00:00:00Z"), Loss("new", "n1", told="2026-03-01T00:00:00Z")
    scene.list(held, other)
    assert scene.list(held, other, after=10.0) == {other}
    assert "nothing is withdrawn for web:" in scene.guard.trouble
    assert scene.guard.compare(frozenset({held, other})) == float("inf")
    scene.list(policies=[{"metadata": {"name": "web", "creationTimestamp": "2026-03-01T00:00:00Z"}}])
    assert scene.guard.trouble == ""
    scene.list(held)
    assert scene.list(held, after=10.0) == {held}


def test_refuted_while_a_list_is_read() -> None:
    """A live event that comes before the list is handed over counts against that list, which may be older."""
    scene = Scene()
    scene.list(LOSS)
    scene.guard.compare(frozenset())
    assert not scene.list(LOSS, after=10.0)
    assert not scene.list(LOSS, after=1.0)
    assert scene.list(LOSS, after=10.0) == {LOSS}
    scene.guard.compare(frozenset())
    assert not scene.guard.confirmed()


def test_a_trouble_ends_with_what_it_was_about() -> None:
    """A policy that is back, as seen live, is no trouble any more; deleted then, it counts like any other."""
    scene = Scene()
    held = Loss("web", "n1", told="2026-01-01T00:00:00Z")
    scene.list(held)
    assert "nothing is withdrawn for web:" in scene.guard.trouble
    scene.guard.compare(frozenset(), {"web": "2026-03-01T00:00:00Z"})
    assert scene.guard.trouble == ""
    scene.list(held)
    assert scene.list(held, after=10.0) == {held}
    scene.answers.error = Retry("it hangs")
    scene.list(held)
    assert scene.guard.compare(frozenset({held})) == TROUBLE_SECONDS
    assert scene.guard.compare(frozenset()) == float("inf")
    assert scene.guard.trouble == ""
