"""What the controller counts while it works, for /metrics. Written by its threads, read by the one that answers."""

from dataclasses import dataclass, field

from conntrack_operator.metrics.tally import Counts, Durations

BOUNDS = (0.005, 0.025, 0.1, 0.5, 2.0, 10.0)
"""Seconds. Most work is one look and no write; a write takes some ten milliseconds, a full list seconds."""
KINDS_OF_WORK = ("node", "policy", "rollout", "agents", "list", "look")
POSTED, LEFT_OUT, FAILED = "posted", "left_out", "failed"


@dataclass(frozen=True)
class Figures:
    """Figures since this process started."""

    writes: Counts = field(default_factory=Counts)
    """By resource, verb and result; renewals of the Lease are not among them."""
    reconciles: Durations = field(default_factory=lambda: Durations(BOUNDS))
    """By the kind of the key that was put right."""
    failures: Counts = field(default_factory=lambda: Counts((kind,) for kind in KINDS_OF_WORK))
    """Work that failed and comes again, by the same."""
    watch_restarts: Counts = field(default_factory=lambda: Counts([()]))
    full_lists: Counts = field(default_factory=lambda: Counts([()]))
    events: Counts = field(default_factory=lambda: Counts((what,) for what in (POSTED, LEFT_OUT, FAILED)))
