"""When each node was last heard, since when it has answered as it does, and since when it has been told.

The times in a status are the agent's clock, which may be wrong by hours. So each is taken as an age once, when it is
first seen, and never as less than none; from then on our own clock counts, which never jumps. What we see change
ourselves happened at that moment, whatever the agent's clock says. Hence an agent whose clock is behind is heard at its
next report, and one whose clock is ahead falls silent like every other.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from conntrack_operator.decide.standing import SILENT_AFTER, time_in
from conntrack_operator.model.node import NodeConntrack, NodeStatus

MARGIN_SECONDS = 1.0
"""By how much `next_silence` is late, so that whoever comes then finds the node silent in spite of rounding."""


@dataclass
class _Known:
    """What is known of one node; every moment is of our own clock, in seconds."""

    uid: str | None
    generation: int
    told: float
    heartbeat: str = ""
    heard: float | None = None
    answer: tuple[object, ...] = ()
    answered: float = 0.0


class Hearing:
    """The moments of every node. Safe for threads. `clock` never jumps and counts seconds, `now` is the time in UTC."""

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, now: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self._clock = clock
        self._now = now
        self._lock = threading.Lock()
        self._nodes: dict[str, _Known] = {}

    def saw(self, node_conntrack: NodeConntrack, live: bool) -> None:  # noqa: FBT001 - its only one
        """Take in one sight of a node's object: a `live` one as it changed, else in a list, changed who knows when."""
        meta, status = node_conntrack.metadata, node_conntrack.status
        with self._lock:
            clock = self._clock()
            known = self._nodes.get(meta.name)
            if known is None or known.uid != meta.uid:
                known = self._nodes[meta.name] = _Known(meta.uid, meta.generation or 0, clock)
                # What is seen for the first time may have been so for long.
                live = False
            if known.generation != (meta.generation or 0):
                known.generation, known.told = meta.generation or 0, clock
            if status is None:
                return
            if (known.heartbeat, known.answer) != (status.heartbeat_time, _answer(status)):
                self._hear(known, status, clock, live=live)

    def _hear(self, known: _Known, status: NodeStatus, clock: float, *, live: bool) -> None:
        age = 0.0 if live else self._age(status.heartbeat_time)
        if age is not None:
            known.heard = clock - age if known.heard is None else max(known.heard, clock - age)
        known.heartbeat = status.heartbeat_time
        if known.answer != _answer(status):
            known.answer = _answer(status)
            known.answered = clock - (0.0 if live else self._age(_since(status)) or 0.0)

    def forget(self, name: str) -> None:
        """Drop what is known of a node whose object is gone."""
        with self._lock:
            self._nodes.pop(name, None)

    def heard_at(self, name: str, status: NodeStatus) -> datetime | None:
        """Return when the node was last heard, never in the future. None when its status names no time."""
        with self._lock:
            known = self._nodes.get(name)
            if known is None or known.heartbeat != status.heartbeat_time:
                return self._past(self._age(status.heartbeat_time))
            return None if known.heard is None else self._past(self._clock() - known.heard)

    def answered_at(self, name: str, status: NodeStatus) -> datetime:
        """Return since when the node has said this phase of this revision and attempt, never in the future.

        It is the moment we saw it, or when that was in a list, the one in the node's history; now when there is none.
        """
        with self._lock:
            known = self._nodes.get(name)
            if known is None or known.answer != _answer(status):
                return self._past(self._age(_since(status))) or self._now()
            return self._now() - timedelta(seconds=self._clock() - known.answered)

    def told_at(self, name: str, generation: int) -> datetime:
        """Return since when this process has known the node's object in this generation; now when it does not."""
        with self._lock:
            known = self._nodes.get(name)
            if known is None or known.generation != generation:
                return self._now()
            return self._now() - timedelta(seconds=self._clock() - known.told)

    def next_silence(self) -> float | None:
        """Return in how many seconds a node that is heard now will have been silent for too long; None for never."""
        with self._lock:
            clock = self._clock()
            heard = (known.heard for known in self._nodes.values() if known.heard is not None)
            ends = (moment + SILENT_AFTER.total_seconds() for moment in heard)
            first = min((end for end in ends if end > clock), default=None)
            return None if first is None else first - clock + MARGIN_SECONDS

    def _age(self, text: str) -> float | None:
        moment = time_in(text)
        return None if moment is None else max(0.0, (self._now() - moment).total_seconds())

    def _past(self, age_seconds: float | None) -> datetime | None:
        return None if age_seconds is None else self._now() - timedelta(seconds=age_seconds)


def _answer(status: NodeStatus) -> tuple[object, ...]:
    return (status.observed_revision, status.observed_attempt, status.phase)


def _since(status: NodeStatus) -> str:
    """Return since when, by the node's own clock, it has been in this phase with this revision; empty when unknown."""
    last = status.history[-1] if status.history else None
    same = last is not None and (last.phase, last.revision) == (status.phase, status.observed_revision)
    return last.time if last is not None and same else ""
