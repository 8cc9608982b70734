"""Hearing: agents' clocks may be wrong by hours, and nobody is silent for ever or alive for ever by that."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from conntrack_operator.controller.hearing import MARGIN_SECONDS, Hearing
from conntrack_operator.model.node import NodeConntrack, NodeStatus, node_from

START = datetime(2026, 1, 31, 12, tzinfo=UTC)
SILENT = 15 * 60


@dataclass
class World:
    """A clock of our own, from 100 s on, that the wall clock follows unless it is set."""

    seconds: float = 100.0
    wall: datetime = START

    def clock(self) -> float:
        """Return the clock that never jumps."""
        return self.seconds

    def now(self) -> datetime:
        """Return the wall clock."""
        return self.wall

    def wait(self, seconds: float) -> None:
        """Let time pass."""
        self.seconds += seconds
        self.wall += timedelta(seconds=seconds)


@pytest.fixture
def world() -> World:
    """Give the clocks."""
    return World()


@pytest.fixture
def hearing(world: World) -> Hearing:
    """Give what is tested."""
    return Hearing(world.clock, world.now)


def text(moment: datetime) -> str:
    """Return a time as agents write it."""
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def node(
    beat: datetime | None = None, phase: str = "Current", *, uid: str = "u", generation: int = 1, **status: Any
) -> NodeConntrack:
    """Return the object of node n; without `beat`, one that nobody has answered yet."""
    said = {"observedRevision": "r1", "phase": phase, "heartbeatTime": text(beat) if beat else "", **status}
    return node_from(
        {
            "apiVersion": "conntrack-operator.io/v1alpha1",
            "kind": "NodeConntrack",
            "metadata": {"name": "n", "uid": uid, "generation": generation},
            "spec": {"revision": "r1", "mode": "Apply", "nodeUID": "x"},
            **({"status": said} if beat else {}),
        }
    )


def status_in(document: NodeConntrack) -> NodeStatus:
    """Return its status, which is there."""
    assert document.status
    return document.status


def heard_seconds(hearing: Hearing, world: World, document: NodeConntrack) -> float:
    """Return how many seconds ago the node was heard."""
    moment = hearing.heard_at("n", status_in(document))
    assert moment
    return (world.now() - moment).total_seconds()


def test_what_a_list_shows_is_as_old_as_it_says(hearing: Hearing, world: World) -> None:
    """After a restart only the agents' own times are there."""
    seen = node(START - timedelta(minutes=4))
    hearing.saw(seen, live=False)
    assert heard_seconds(hearing, world, seen) == 240
    world.wait(60)
    assert heard_seconds(hearing, world, seen) == 300


def test_a_first_sight_is_not_news(hearing: Hearing, world: World) -> None:
    """A watch also shows objects that only the controller changed: an old status stays old."""
    seen = node(START - timedelta(hours=1))
    hearing.saw(seen, live=True)
    assert heard_seconds(hearing, world, seen) == 3600
    told = node(START - timedelta(hours=1), generation=2)
    hearing.saw(told, live=True)
    assert heard_seconds(hearing, world, told) == 3600


def test_a_clock_that_is_behind_is_heard_at_its_next_report(hearing: Hearing, world: World) -> None:
    """It says that it is two hours ago, again and again, and is alive as long as it says so."""
    hearing.saw(node(START - timedelta(hours=2)), live=False)
    for _ in range(5):
        world.wait(300)
        seen = node(world.now() - timedelta(hours=2))
        hearing.saw(seen, live=True)
        assert heard_seconds(hearing, world, seen) == 0
    world.wait(SILENT)
    assert heard_seconds(hearing, world, seen) == SILENT


@pytest.mark.parametrize("live", [True, False])
def test_a_clock_that_is_ahead_falls_silent_too(hearing: Hearing, world: World, live: bool) -> None:
    """Its last words are from tomorrow, and count from when they were seen."""
    hearing.saw(node(), live=live)
    seen = node(START + timedelta(days=1))
    hearing.saw(seen, live=live)
    assert heard_seconds(hearing, world, seen) == 0
    world.wait(SILENT + 1)
    hearing.saw(seen, live=live)  # the next full list
    assert heard_seconds(hearing, world, seen) == SILENT + 1


def test_an_older_time_in_a_list_takes_nothing_back(hearing: Hearing, world: World) -> None:
    """A list of a moment ago does not undo what was heard."""
    hearing.saw(node(), live=False)
    hearing.saw(node(START - timedelta(hours=2)), live=True)
    later = node(START - timedelta(hours=1))
    hearing.saw(later, live=False)
    assert heard_seconds(hearing, world, later) == 0


def test_our_own_clock_counts_when_the_wall_clock_is_set(hearing: Hearing, world: World) -> None:
    """Somebody sets the controller's clock an hour ahead: nobody falls silent by that."""
    seen = node(START)
    hearing.saw(seen, live=False)
    world.wait(60)
    world.wall += timedelta(hours=1)
    assert heard_seconds(hearing, world, seen) == 60


def test_a_new_object_of_the_name_begins_anew(hearing: Hearing, world: World) -> None:
    """What was heard of a node that had the name before is not this one's."""
    hearing.saw(node(), live=False)
    hearing.saw(node(START), live=True)
    other = node(START - timedelta(minutes=20), uid="v")
    hearing.saw(other, live=True)
    assert heard_seconds(hearing, world, other) == 1200
    hearing.forget("n")
    assert heard_seconds(hearing, world, other) == 1200
    assert hearing.next_silence() is None


def test_who_never_said_anything_was_never_heard(hearing: Hearing) -> None:
    """No time, or one that cannot be read, is no time; but what changed before our eyes was heard."""
    nothing = NodeStatus(heartbeat_time="soon")
    assert hearing.heard_at("n", nothing) is None
    hearing.saw(node(START, heartbeatTime="soon"), live=False)
    assert hearing.heard_at("n", nothing) is None
    hearing.saw(node(START, phase="Trial", heartbeatTime="soon"), live=True)
    assert hearing.heard_at("n", nothing) == START


def test_the_next_silence(hearing: Hearing, world: World) -> None:
    """The moment at which somebody must look again, and never one that has passed."""
    assert hearing.next_silence() is None
    hearing.saw(node(), live=True)
    assert hearing.next_silence() is None
    hearing.saw(node(START - timedelta(minutes=5)), live=False)
    assert hearing.next_silence() == 600 + MARGIN_SECONDS
    world.wait(600)
    assert hearing.next_silence() is None
    hearing.saw(node(world.now()), live=True)
    assert hearing.next_silence() == SILENT + MARGIN_SECONDS


def test_an_answer_counts_from_when_it_was_seen(hearing: Hearing, world: World) -> None:
    """Whatever the node's clock says; heartbeats and a lost watch do not make it younger."""
    hearing.saw(node(START, "Trial"), live=False)
    world.wait(7)
    seen = node(START, history=[{"time": text(START), "phase": "Current", "reason": "x", "revision": "r1"}])
    hearing.saw(seen, live=True)
    answered = world.now()
    world.wait(300)
    beat = node(world.now())
    hearing.saw(beat, live=True)
    hearing.saw(beat, live=False)
    assert hearing.answered_at("n", status_in(beat)) == answered
    again = node(world.now(), observedAttempt="2")
    hearing.saw(again, live=True)
    assert hearing.answered_at("n", status_in(again)) == world.now()


@pytest.mark.parametrize(
    ("phase", "revision", "minutes", "ago"),
    [
        ("Current", "r1", -10, 600),
        ("Current", "r1", 90, 0),  # a clock that is ahead
        ("Trial", "r1", -10, 0),  # the history speaks of something else
        ("Current", "r0", -10, 0),
    ],
)
@pytest.mark.parametrize("is_known", [True, False])
def test_an_answer_in_a_list_counts_from_the_node_s_history(
    hearing: Hearing, world: World, phase: str, revision: str, minutes: int, ago: int, *, is_known: bool
) -> None:
    """The best that can be known after a restart; never in the future."""
    time = text(START + timedelta(minutes=minutes))
    seen = node(START, history=[{"time": time, "phase": phase, "reason": "x", "revision": revision}])
    if is_known:
        hearing.saw(seen, live=False)
    assert hearing.answered_at("n", status_in(seen)) == world.now() - timedelta(seconds=ago)
    if is_known:
        world.wait(40)
        assert hearing.answered_at("n", status_in(seen)) == world.now() - timedelta(seconds=ago + 40)


def test_told_counts_from_when_the_generation_was_seen(hearing: Hearing, world: World) -> None:
    """Reports do not change it; one that is not known is told now."""
    assert hearing.told_at("n", 1) == world.now()
    hearing.saw(node(), live=False)
    world.wait(50)
    hearing.saw(node(START), live=True)
    assert hearing.told_at("n", 1) == START
    assert hearing.told_at("n", 2) == world.now()
    hearing.saw(node(START, generation=2), live=True)
    world.wait(5)
    assert hearing.told_at("n", 2) == world.now() - timedelta(seconds=5)
