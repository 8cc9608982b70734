"""The fence around every write: open while we surely lead, and for ever closed once we did not.

Checking before a write is not enough, since a write takes time: none begins that might not have ended by the
deadline (cluster/connection.py cuts its time), and nobody gives the lead up while one is on its way.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator

from conntrack_operator.errors import StandBack
from conntrack_operator.kernel.clock import read_boottime

LEAST_SECONDS = 2.0
"""A write that could be waited for no longer than this is not begun."""


class Fence:
    """Closed at first. Deadlines are on `clock`, which goes on while the machine sleeps. Safe for any thread."""

    def __init__(self, clock: Callable[[], float] = read_boottime) -> None:
        self._clock = clock
        self._changed = threading.Condition()
        self._deadline: float | None = None
        self._shut = False
        self._writing = 0

    def extend(self, deadline: float) -> bool:
        """Keep it open until `deadline`; False, and nothing is changed, when an earlier deadline has passed."""
        with self._changed:
            if self._shut or (self._deadline is not None and self._clock() >= self._deadline):
                return False
            self._deadline = deadline
            return True

    def shut(self) -> None:
        """Close it now and for good. Writes that have begun are not held up."""
        with self._changed:
            self._shut = True

    def left_seconds(self) -> float:
        """Return the seconds until it closes; 0 when it is closed."""
        with self._changed:
            if self._shut or self._deadline is None:
                return 0.0
            return max(0.0, self._deadline - self._clock())

    def open_seconds(self) -> float:
        """Return how long writes may still take. Raises StandBack when that is too short for one."""
        left = self.left_seconds()
        if left < LEAST_SECONDS:
            raise StandBack("another controller may lead before this is written; nothing is written")
        return left

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Enter for the time of one write, for wait_until_idle to know. Raises StandBack like open_seconds."""
        with self._changed:
            self._writing += 1
        try:
            self.open_seconds()
            yield
        finally:
            with self._changed:
                self._writing -= 1
                self._changed.notify_all()

    def wait_until_idle(self, seconds: float) -> bool:
        """Wait until no write is on its way any more; False when one still is after `seconds`."""
        with self._changed:
            return self._changed.wait_for(lambda: self._writing == 0, seconds)
