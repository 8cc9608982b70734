"""The work queue: nothing lost, nothing done twice at once, failures ever more rarely."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from conntrack_operator.controller.workqueue import MAX_BACKOFF_SECONDS, WorkQueue


class Clock:
    """A clock that stands until it is set."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        """Return the time it shows."""
        return self.now


@pytest.fixture
def clock() -> Clock:
    """Give a clock that stands."""
    return Clock()


@pytest.fixture
def queue(clock: Clock) -> WorkQueue[str]:
    """Give an empty queue on that clock."""
    return WorkQueue(clock)


def taken(queue: WorkQueue[str]) -> list[str]:
    """Return everything that is due, done at once."""
    keys = []
    while (key := queue.take(0)) is not None:
        keys.append(key)
        queue.done(key)
    return keys


def test_keys_come_once_in_the_order_they_went_in(queue: WorkQueue[str]) -> None:
    """A key put in twice is one piece of work."""
    queue.add_all(["b", "a", "b"])
    queue.add("a")
    assert taken(queue) == ["b", "a"]
    assert taken(queue) == []


def test_a_late_key_waits_and_can_be_brought_forward(queue: WorkQueue[str], clock: Clock) -> None:
    """The earliest wish counts; a later one never puts it off."""
    queue.add("late", 10)
    assert taken(queue) == []
    queue.add("late", 5)
    queue.add("late", 60)
    clock.now += 5
    assert taken(queue) == ["late"]
    clock.now += 100
    assert taken(queue) == []


def test_a_key_being_worked_on_comes_again_afterwards(queue: WorkQueue[str]) -> None:
    """A change during the work is neither lost nor worked on by a second worker at the same time."""
    queue.add("a")
    assert queue.take(0) == "a"
    queue.add("a")
    queue.add("b")
    assert queue.take(0) == "b"
    assert queue.take(0) is None
    queue.done("a")
    assert queue.take(0) == "a"


def test_failures_come_back_ever_more_rarely(queue: WorkQueue[str], clock: Clock) -> None:
    """Each failure doubles the pause up to a bound; success forgets them."""
    pauses = []
    queue.add("a")
    for _ in range(10):
        assert queue.take(0) == "a"
        pauses.append(queue.failed("a"))
        assert queue.take(0) is None
        clock.now += pauses[-1]
    assert pauses == [0.25, 0.5, 1, 2, 4, 8, 16, MAX_BACKOFF_SECONDS, MAX_BACKOFF_SECONDS, MAX_BACKOFF_SECONDS]
    assert queue.take(0) == "a"
    queue.done("a")
    queue.add("a")
    assert queue.take(0) == "a"
    assert queue.failed("a") == 0.25


def test_news_cut_a_pause_short(queue: WorkQueue[str]) -> None:
    """A failing key is tried at once when something about it changes."""
    queue.add("a")
    assert queue.take(0) == "a"
    queue.failed("a")
    queue.add("a")
    assert queue.take(0) == "a"


def test_closing_wakes_every_worker() -> None:
    """Workers that wait for a key end when the queue is closed."""
    queue: WorkQueue[str] = WorkQueue()
    ended = []
    workers = [threading.Thread(target=lambda: ended.append(queue.take())) for _ in range(3)]
    for worker in workers:
        worker.start()
    queue.close()
    for worker in workers:
        worker.join(60)
    assert ended == [None, None, None]


def test_a_waiting_worker_wakes_for_a_key() -> None:
    """A key put in is taken at once by a worker that waits, also one that waits for a late key."""
    queue: WorkQueue[str] = WorkQueue()
    queue.add("late", 60)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(queue.take, 55)
        queue.add("now")
        assert waiting.result(50) == "now"


def test_no_key_is_with_two_workers() -> None:
    """Under load no key is ever worked on by two workers at once, and the last change of each is worked on."""
    queue: WorkQueue[int] = WorkQueue()
    working: set[int] = set()
    clashes: list[int] = []
    wanted, seen = dict.fromkeys(range(5), 0), dict.fromkeys(range(5), -1)

    def work() -> None:
        while (key := queue.take()) is not None:
            if key in working:
                clashes.append(key)
            working.add(key)
            seen[key] = wanted[key]
            working.discard(key)
            queue.done(key)

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for number in range(2000):
        wanted[number % 5] = number
        queue.add(number % 5)
    while len(queue):
        threading.Event().wait(0.01)
    queue.close()
    for worker in workers:
        worker.join(60)
    assert clashes == []
    assert seen == wanted
