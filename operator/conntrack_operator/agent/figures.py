"""What the agent counts while it works, for /metrics. Written by its threads, read by the one that answers scrapes."""

import time
from dataclasses import dataclass, field

from conntrack_operator.decide.usage import Reading, growth_of
from conntrack_operator.metrics.tally import Counts

COUNTERS = ("drop", "early_drop", "insert_failed", "invalid", "search_restart")
"""What is counted of the table, as `Reading` names it."""
TRIAL_OUTCOMES = ("confirmed", "rolled_back", "aborted", "failed", "recovered")
REPORTED, UNREPORTED = "success", "failure"


@dataclass
class Figures:
    """Figures since this agent started; those of the table since its network namespace was made."""

    reading: Reading | None = None
    """The newest look at the table; None before the first, and while the table cannot be looked at."""
    seconds_to_full: int | None = None
    table: Counts = field(default_factory=lambda: Counts((name,) for name in COUNTERS))
    trials: Counts = field(default_factory=lambda: Counts((outcome,) for outcome in TRIAL_OUTCOMES))
    """By outcome. Recovered: an agent before this one was killed in it, and this one took it back."""
    repairs: Counts = field(default_factory=Counts)
    """By setting and kind of rival: as many as there are sysctls of ours, times five kinds."""
    reports: Counts = field(default_factory=lambda: Counts(((REPORTED,), (UNREPORTED,))))
    reported_at: float | None = None
    """When a status was last written, in seconds since 1970."""
    has_looked: bool = False
    """Whether the first look is done, whatever it showed."""
    beat: float = field(default_factory=time.monotonic)
    """When the loop was last at work, on time.monotonic."""
    _last: Reading | None = None

    def looked(self, reading: Reading | None, seconds_to_full: int | None = None) -> None:
        """Take in a look at the table, or that there is nothing to see."""
        if reading is not None:
            for name in COUNTERS:
                self.table.add(name, by=growth_of(name, self._last, reading))
            self._last = reading
        self.reading, self.seconds_to_full = reading, seconds_to_full
        self.has_looked = True
