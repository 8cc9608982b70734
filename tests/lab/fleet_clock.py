"""Time that passes only when a test says so, and then as fast as the machine can work: for agents that idle for hours.

All agents of a fleet live by the same clock. It moves on only when every one of them waits and nothing is left to do at
the present moment, so that a busy machine makes a test slower, and never its numbers others.
"""

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from conntrack_operator.agent.clock import Clock

STUCK_SECONDS = 60
"""So long, in real time, the work of one moment may take."""


@dataclass
class Waiter:
    """Somebody who waits on this clock, until something holds or it is so late."""

    changed: threading.Condition
    holds: Callable[[], bool]
    until: float


class StillClock(Clock):
    """Stands still but for `advance`."""

    def __init__(self, start: datetime | None = None) -> None:
        self._start = start or datetime.now(UTC)
        self._now = 0.0
        self._waiting: dict[threading.Condition, Waiter] = {}

    def monotonic(self) -> float:
        """Return the seconds that were advanced so far."""
        return self._now

    def utc(self) -> datetime:
        """Return the start and what was advanced since."""
        return self._start + timedelta(seconds=self._now)

    def wait(self, changed: threading.Condition, holds: Callable[[], bool], seconds: float) -> None:
        """Wait as the real clock does, in this time."""
        waiter = Waiter(changed, holds, self._now + max(seconds, 0))
        self._waiting[changed] = waiter
        try:
            changed.wait_for(lambda: holds() or self._now >= waiter.until)
        finally:
            del self._waiting[changed]

    def is_quiet(self, changed: threading.Condition) -> bool:
        """Tell whether whoever waits on `changed` has nothing to do at the present moment."""
        waiter = self._waiting.get(changed)
        return waiter is not None and not waiter.holds() and self._now < waiter.until

    def advance(self, seconds: float, is_quiet: Callable[[], bool]) -> None:
        """Let so much time pass, second by second; `is_quiet` tells when everybody has done what there is to do."""
        end = self._now + seconds
        while True:
            self._settle(is_quiet)
            waiters = list(self._waiting.values())
            next_event = min((waiter.until for waiter in waiters), default=end)
            if self._now >= end:
                return
            # By whole seconds, so that hundreds of agents that are a little apart are woken together.
            self._now = min(end, max(self._now + 1, math.ceil(next_event)))
            for waiter in waiters:
                if waiter.until <= self._now:
                    with waiter.changed:
                        waiter.changed.notify_all()

    def _settle(self, is_quiet: Callable[[], bool]) -> None:
        began = time.monotonic()
        while not is_quiet():
            if time.monotonic() - began > STUCK_SECONDS:
                raise TimeoutError(f"an agent has not come to rest within {STUCK_SECONDS} s")
            time.sleep(0.001)
