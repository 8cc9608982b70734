"""When a Lease may be taken, and what is written into it."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone

import pytest

from conntrack_operator.decide.election import (
    Lease,
    Sighting,
    given_up,
    renewed,
    sighting_after,
    taken,
    wait_before_taking,
)

HELD = Lease("a", 15.0, 3, "2026-01-01T00:00:00.000000Z", "2026-01-01T00:00:09.000000Z", "uid", "70")
WALL = datetime(2026, 1, 1, 12, 0, 0, 42, tzinfo=UTC)


def seen(*looks: tuple[Lease | None, float]) -> Sighting:
    """Return what is known after some looks."""
    sighting: Sighting | None = None
    for lease, now in looks:
        sighting = sighting_after(sighting, lease, now)
    assert sighting is not None
    return sighting


@pytest.mark.parametrize(
    ("change", "waits"),
    [
        ({}, 5.0),
        ({"resource_version": "71"}, 15.0),
        ({"renewed": "2026-01-01T00:00:12.000000Z", "resource_version": "71"}, 15.0),
        ({"holder": "c", "transitions": 4}, 15.0),
        ({"uid": "another"}, 15.0),
        ({"duration_seconds": 60.0}, 60.0),
        ({"holder": ""}, 0.0),
        ({"holder": "me"}, 0.0),
    ],
)
def test_any_change_is_a_sign_of_life(change: dict[str, object], waits: float) -> None:
    """The wait begins anew whatever changed, for as long as the Lease says; one given up, or ours, is free at once."""
    sighting = seen((HELD, 100.0), (replace(HELD, **change), 110.0))
    assert wait_before_taking(sighting, "me", 110.0) == waits


def test_it_is_taken_after_its_duration_of_silence_by_our_own_clock() -> None:
    """What the Lease says of times plays no part: they are another machine's, years off or in the future."""
    for renewed_at in ("1999-01-01T00:00:00.000000Z", "2099-01-01T00:00:00.000000Z", "", "nonsense"):
        sighting = seen((replace(HELD, renewed=renewed_at), 100.0), (replace(HELD, renewed=renewed_at), 114.9))
        assert wait_before_taking(sighting, "me", 114.9) == pytest.approx(0.1)
        assert wait_before_taking(sighting, "me", 115.0) == 0.0


def test_no_lease_is_free_at_once_for_whoever_never_saw_one() -> None:
    """The first controller of a cluster leads at once."""
    assert wait_before_taking(seen((None, 100.0)), "me", 100.0) == 0.0


def test_a_lease_that_was_deleted_is_still_trusted_by_its_holder() -> None:
    """Who saw it held waits as long as the holder may not have noticed; one that was given up holds nobody up."""
    vanished = seen((HELD, 100.0), (None, 103.0), (None, 110.0))
    assert wait_before_taking(vanished, "me", 110.0) == 8.0
    assert wait_before_taking(seen((replace(HELD, holder=""), 100.0), (None, 103.0)), "me", 103.0) == 0.0


def test_what_is_written() -> None:
    """Transitions count changes of holder; acquireTime stays with the holder; times are MicroTime, in UTC."""
    moment = "2026-01-01T12:00:00.000042Z"
    assert taken(None, "me", WALL) == {
        "holderIdentity": "me",
        "leaseDurationSeconds": 15,
        "leaseTransitions": 0,
        "acquireTime": moment,
        "renewTime": moment,
    }
    assert taken(HELD, "me", WALL)["leaseTransitions"] == 4
    assert taken(replace(HELD, holder="me"), "me", WALL)["leaseTransitions"] == 3
    again = renewed(HELD, "a", WALL.astimezone(timezone(timedelta(hours=2))))
    assert (again["acquireTime"], again["renewTime"]) == (HELD.acquired, moment)
    assert (again["holderIdentity"], again["leaseTransitions"]) == ("a", 3)
    assert given_up(HELD, WALL) == {**again, "holderIdentity": ""}


def test_a_lease_that_says_next_to_nothing() -> None:
    """Whatever somebody's hand left out is read as nobody's Lease of our own duration."""
    lease = Lease.read({"metadata": {"uid": "u", "resourceVersion": "7"}, "spec": None})
    assert lease == Lease("", 15.0, 0, "", "", "u", "7")
