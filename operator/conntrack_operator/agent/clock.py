"""The time the agent's loop lives by: what it measures, what it writes into statuses, and how it waits.

One object, so that a fleet of agents can be simulated in another time than ours. The kernel's deadlines are kept by
`kernel.clock`, and are nobody's to simulate.
"""

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime


class Clock:
    """The real time."""

    def monotonic(self) -> float:
        """Return seconds that only grow; nobody sets this clock."""
        return time.monotonic()

    def utc(self) -> datetime:
        """Return the date and time by the wall clock, in UTC."""
        return datetime.now(UTC)

    def wait(self, changed: threading.Condition, holds: Callable[[], bool], seconds: float) -> None:
        """Wait until `holds()`, looked at whenever `changed` is notified, or `seconds` are over.

        The caller has acquired `changed`.
        """
        changed.wait_for(holds, max(seconds, 0))
