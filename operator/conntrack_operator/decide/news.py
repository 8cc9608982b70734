"""When a node's status is worth a write: the API server gets little, at once what somebody waits for. Pure.

An answer to a new spec and the end of an attempt are written at once. What else changes is written at once too, until a
node has had much to say; then it is paced. Usage waits for a minute of silence, and where nothing changes a heartbeat
says so.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

from conntrack_operator.model.node import NodeStatus

from .drift import CONTENDED
from .report import STALLED, holds
from .usage import is_another_band

HEARTBEAT_SECONDS = 300
USAGE_SECONDS = 60
"""Usage alone is written at most so long after the write before, whatever that was about."""
NEWS_BURST = 6
"""Writes in a row that need not wait: three trials that are rolled back."""
NEWS_SECONDS = 60.0
"""And another one after each such time: what flaps is told once a minute."""


@dataclass(frozen=True)
class Allowance:
    """What a node may write before its news has to wait, in seconds of one monotonic clock."""

    full_at: float = float("-inf")
    """When all that was written will be made up for."""

    def has_room(self, now: float) -> bool:
        """Tell whether news may be written at `now`."""
        return self.full_at - now <= (NEWS_BURST - 1) * NEWS_SECONDS

    def spent(self, now: float) -> "Allowance":
        """Return what is left after a write at `now`, whatever it was about."""
        return Allowance(max(now, self.full_at) + NEWS_SECONDS)


def is_due(
    reported: NodeStatus | None, fresh: NodeStatus, now: datetime, jitter: float, *, has_room: bool = True
) -> bool:
    """Tell whether `fresh` should be written over `reported` at `now`.

    `jitter`, a factor near 1, spreads the heartbeats of many nodes; `has_room` is what the node's Allowance says.
    """
    if reported is None or _is_waited_for(reported, fresh):
        return True
    if has_room and _news(reported) != _news(fresh):
        return True
    beat = datetime.fromisoformat(reported.heartbeat_time) if reported.heartbeat_time else None
    # A report from the future is one from before the clock was set back.
    if beat is None or now < beat:
        return True
    silent = now - beat
    if silent >= timedelta(seconds=HEARTBEAT_SECONDS * jitter):
        return True
    return (
        silent >= timedelta(seconds=USAGE_SECONDS)
        and fresh.usage is not None
        and is_another_band(reported.usage, fresh.usage)
    )


def _is_waited_for(reported: NodeStatus, fresh: NodeStatus) -> bool:
    """Tell whether `fresh` answers what was asked since, speaks for another node or boot, or ends an attempt."""
    if fresh.preview and (not reported.preview or reported.preview.revision != fresh.preview.revision):
        return True
    if _asked(reported) != _asked(fresh) or (reported.phase == "Trial" and fresh.phase != "Trial"):
        return True
    # The trials between may have been paced; that one went well at last, or none will, a rollout waits for.
    return _goes_on(reported) and not _goes_on(fresh)


def _goes_on(status: NodeStatus) -> bool:
    return status.phase == "Trial" or (status.phase == "RolledBack" and not holds(status, STALLED))


def _asked(status: NodeStatus) -> tuple[str, ...]:
    """Return what a status answers, and for whom."""
    return (status.observed_revision, status.observed_attempt, status.node_uid, status.boot_id)


def _news(status: NodeStatus) -> tuple[object, ...]:
    """Return what a person would call a change: everything but usage, talkers and times.

    Sentences are not news: they hold numbers and examples (entries in use, a live flow) that are others every time.
    """
    return (
        status.phase,
        [
            # What somebody else writes over and over is no news each time.
            (result.setting, result.wanted, result.reason != CONTENDED and result.observed, result.reason)
            for result in status.results
        ],
        [(kind.type, kind.status) for kind in status.conditions if kind.type == STALLED],
        [(warning.setting, warning.reason) for warning in status.warnings],
        status.preview and status.preview.changes,
        status.preview and [(refusal.setting, refusal.reason) for refusal in status.preview.refused],
        status.preview and [(warning.setting, warning.reason) for warning in status.preview.warnings],
        status.preview and status.preview.omitted,
    )
