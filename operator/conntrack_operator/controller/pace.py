"""How often one policy's status may be written: at once after a quiet time, then every few seconds.

A policy on thousands of nodes hears from some of them all the time, and each write of its status goes to everybody who
watches it.
"""

import threading
import time
from collections.abc import Callable

BURST = 4
"""Writes that need not wait: applied, told to the nodes, answered by them, and one in reserve."""

REFILL_SECONDS = 5.0


class Pace:
    """A bucket of `burst` writes for each name, refilled one every `refill_seconds`."""

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        *,
        burst: int = BURST,
        refill_seconds: float = REFILL_SECONDS,
    ) -> None:
        self._clock = clock
        self._burst = burst
        self._refill = refill_seconds
        self._lock = threading.Lock()
        self._full_at: dict[str, float] = {}

    def wait_seconds(self, name: str) -> float:
        """Return how long the next write for `name` has to wait; 0 when it need not."""
        with self._lock:
            spent_until = self._full_at.get(name, 0.0)
            return max(0.0, spent_until - self._clock() - (self._burst - 1) * self._refill)

    def spend(self, name: str) -> None:
        """Note a write for `name`."""
        with self._lock:
            now = self._clock()
            self._full_at[name] = max(now, self._full_at.get(name, now)) + self._refill

    def forget(self, name: str) -> None:
        """Drop what was noted of `name`."""
        with self._lock:
            self._full_at.pop(name, None)
