"""The fence: open until its deadline, closed for good once that has passed."""

import threading

import pytest

from conntrack_operator.controller.fence import LEAST_SECONDS, Fence
from conntrack_operator.errors import StandBack


class Clock:
    """A clock that is set."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        """Return the time."""
        return self.now


def test_it_is_closed_until_somebody_leads() -> None:
    """Nothing is written before the Lease is won."""
    fence = Fence(Clock())
    assert fence.left_seconds() == 0
    with pytest.raises(StandBack, match="nothing is written"), fence.writing():
        pytest.fail("it was open")
    assert fence.wait_until_idle(0)


def test_writes_have_what_is_left_and_none_begins_too_late() -> None:
    """Near its deadline no write begins any more; a renewal in time opens it again."""
    clock = Clock()
    fence = Fence(clock)
    assert fence.extend(clock.now + 15)
    clock.now += 15 - LEAST_SECONDS
    assert fence.open_seconds() == LEAST_SECONDS
    clock.now += 0.001
    with pytest.raises(StandBack):
        fence.open_seconds()
    assert fence.extend(clock.now + 15)
    assert fence.open_seconds() == 15


def test_it_never_opens_again() -> None:
    """Not by a renewal that is answered when the deadline has passed, nor after it was shut."""
    clock = Clock()
    late, shut = Fence(clock), Fence(clock)
    for fence in (late, shut):
        assert fence.extend(clock.now + 15)
    shut.shut()
    assert not shut.extend(clock.now + 15)
    clock.now += 15
    assert not late.extend(clock.now + 15)
    for fence in (late, shut):
        assert fence.left_seconds() == 0
        with pytest.raises(StandBack):
            fence.open_seconds()


def test_a_suspended_machine_wakes_up_before_a_closed_fence() -> None:
    """The clock went on while nothing ran: a write that had begun finds the fence closed before it is sent."""
    clock = Clock()
    fence = Fence(clock)
    fence.extend(clock.now + 15)
    with fence.writing():
        clock.now += 3600
        with pytest.raises(StandBack):
            fence.open_seconds()


def test_it_is_known_whether_a_write_is_on_its_way() -> None:
    """Whoever gives up the Lease waits for the answers first; a write that failed is none that is on its way."""
    fence = Fence(Clock())
    fence.extend(2000)
    inside, leave = threading.Event(), threading.Event()

    def write() -> None:
        with fence.writing():
            inside.set()
            leave.wait(60)

    writer = threading.Thread(target=write)
    writer.start()
    assert inside.wait(60)
    assert not fence.wait_until_idle(0.01)
    leave.set()
    assert fence.wait_until_idle(60)
    writer.join()
    with pytest.raises(ValueError, match="no"), fence.writing():
        raise ValueError("no")
    assert fence.wait_until_idle(0)
