"""Which happenings become Events: few, whatever happens, and the rest is counted."""

from datetime import UTC, datetime
from typing import Any

import pytest

from conntrack_operator.cluster.events import Subject
from conntrack_operator.cluster.objects import POLICIES, Kind
from conntrack_operator.controller.telling import (
    ALL_BURST,
    ALL_REFILL_SECONDS,
    POLICY_BURST,
    POLICY_REFILL_SECONDS,
    QUIET_SECONDS,
    Telling,
)
from conntrack_operator.decide.happenings import Happening
from conntrack_operator.decide.targeting import Node
from conntrack_operator.errors import Refused

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
HALT = Happening("Warning", "TooManyFailures", "3 nodes failed")


class Server:
    """An API server that takes events, and counts what it is asked."""

    def __init__(self) -> None:
        self.events: dict[str, dict[str, Any]] = {}
        self.requests = 0
        self.refuses = False

    def get(self, _kind: Kind, name: str, _namespace: str) -> dict[str, Any] | None:
        """Return an event."""
        self.requests += 1
        if self.refuses:
            raise Refused("Forbidden", "no")
        return self.events.get(name)

    def create(self, _kind: Kind, document: dict[str, Any], _namespace: str) -> None:
        """Take an event."""
        self.requests += 1
        self.events[document["metadata"]["name"]] = document

    def replace_parts(self, _kind: Kind, name: str, parts: dict[str, Any], *, namespace: str) -> None:
        """Change an event."""
        assert namespace == "default"
        self.requests += 1
        self.events[name].update({path[1:]: value for path, value in parts.items()})

    def said(self, kind: str = "ConntrackPolicy") -> list[tuple[str, int]]:
        """Return message and count of the events about objects of a kind, in order of their first post."""
        found = (each for each in self.events.values() if each["involvedObject"]["kind"] == kind)
        return [(each["message"], each["count"]) for each in found]


class Stage:
    """A Telling with a clock that stands still until it is told to go on, and its API server."""

    def __init__(self) -> None:
        self.seconds = 50.0
        self.server = Server()
        self.telling = Telling(self.server, lambda: self.seconds)  # type: ignore[arg-type]

    def tell(self, *happenings: Happening, policy: str = "web", generation: int = 1) -> None:
        """Tell of a policy."""
        subject = Subject(POLICIES, policy, f"uid of {policy}")
        self.telling.tell(subject, generation, happenings, lambda name: Node(name, f"uid of {name}", {}), NOW)


@pytest.fixture
def stage() -> Stage:
    """Give what is tested."""
    return Stage()


def failing(*numbers: int, reason: str = "BelowUse") -> list[Happening]:
    """Return one failure for each of these nodes."""
    return [Happening("Warning", reason, f"n{number}: too small", f"n{number}") for number in numbers]


def test_a_failure_is_told_on_the_policy_and_on_its_node(stage: Stage) -> None:
    """Each in the words that make sense there."""
    stage.tell(*failing(1))
    assert stage.server.said() == [("n1: too small", 1)]
    assert stage.server.said("Node") == [("policy web: too small", 1)]


def test_thousands_of_failing_nodes_are_no_storm(stage: Stage) -> None:
    """Ten are told of, then one a minute, which says how many more there were; nothing else is even asked."""
    for number in range(3000):
        stage.tell(*failing(number))
    assert len(stage.server.said()) == len(stage.server.said("Node")) == POLICY_BURST
    assert stage.server.requests == 4 * POLICY_BURST
    stage.seconds += POLICY_REFILL_SECONDS
    stage.tell(*failing(5000, 5001))
    assert stage.server.said()[POLICY_BURST:] == [("n5000: too small (and 2990 more like it)", 1)]
    stage.seconds += POLICY_REFILL_SECONDS
    stage.tell(*failing(5002, reason="NATConflict"))
    assert stage.server.said()[-1] == ("n5002: too small (and 1 of other kinds)", 1)


def test_failing_nodes_do_not_keep_back_that_the_rollout_halts(stage: Stage) -> None:
    """What concerns the policy as a whole has a bucket of its own, and says what its nodes' left out."""
    stage.tell(*failing(*range(12)), HALT)
    assert stage.server.said()[-1] == ("3 nodes failed (and 2 of other kinds)", 1)


def test_all_policies_together_have_a_limit(stage: Stage) -> None:
    """Hundreds of policies that meet the same trouble."""
    for number in range(200):
        stage.tell(HALT, policy=f"p{number}")
    assert len(stage.server.events) == ALL_BURST
    stage.seconds += ALL_REFILL_SECONDS
    stage.tell(HALT, policy="another")
    stage.tell(HALT, policy="yet another")
    assert len(stage.server.events) == ALL_BURST + 1


def test_a_node_that_flaps_is_told_of_every_few_minutes(stage: Stage) -> None:
    """For an hour it fails and recovers every ten seconds, in ever other words."""
    for turn in range(360):
        number = Happening("Warning", "BelowUse", f"n1: {turn} entries", "n1")
        stage.tell(number, Happening("Normal", "Recovered", "n1: well again", "n1"))
        stage.seconds += 10
    turns = 3600 / QUIET_SECONDS
    assert sum(count for _, count in stage.server.said()) == 2 * turns
    assert dict(stage.server.said())["n1: well again"] == turns


def test_an_edit_is_heard_at_once(stage: Stage) -> None:
    """Whoever edits a policy twice in a minute is told twice how it came out."""
    done = Happening("Normal", "AllNodesCurrent", "3 of 3 nodes as the policy says")
    stage.tell(done)
    stage.tell(done)
    stage.tell(done, generation=2)
    assert stage.server.said() == [(done.message, 2)]


def test_an_event_that_is_refused_harms_nothing(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    """It is logged, the next one is tried, and even then there is no storm."""
    stage.server.refuses = True
    stage.tell(*failing(*range(100)))
    assert stage.server.requests == len(caplog.records) == POLICY_BURST
    stage.server.refuses = False
    stage.tell(HALT)
    assert stage.server.said() == [("3 nodes failed (and 90 of other kinds)", 1)]


def test_a_policy_that_is_gone_is_forgotten(stage: Stage) -> None:
    """Its successor of the same name begins anew."""
    stage.tell(*failing(*range(12)))
    stage.telling.forget("web")
    stage.tell(*failing(1))
    assert stage.server.said()[1] == ("n1: too small", 2)
    assert len(stage.server.said()) == POLICY_BURST
