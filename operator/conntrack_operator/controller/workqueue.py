"""A queue of keys to be worked on: one worker a key at a time, late keys kept for later, failing ones ever more rarely.

kopf's handlers only put keys in. A key put in while it is being worked on is worked on once more afterwards, so
the last change is never missed, and a thousand changes of one object are one piece of work.
"""

import heapq
import itertools
import threading
import time
from collections.abc import Callable, Hashable, Iterable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)

FIRST_BACKOFF_SECONDS = 0.25
MAX_BACKOFF_SECONDS = 30.0


class WorkQueue(Generic[K]):
    """Keys in the order they are due. Every method may be called from any thread and none waits, but `take`."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._changed = threading.Condition()
        self._due: dict[K, float] = {}
        self._heap: list[tuple[float, int, K]] = []
        self._order = itertools.count()
        self._working: set[K] = set()
        self._failures: dict[K, int] = {}
        self._closed = False

    def __len__(self) -> int:
        return len(self._due)

    def due(self) -> int:
        """Return the number of keys that are due now and wait for a worker."""
        with self._changed:
            now = self._clock()
            return sum(1 for due in self._due.values() if due <= now)

    def add(self, key: K, delay_seconds: float = 0.0) -> None:
        """Have `key` worked on in `delay_seconds`, or earlier if that was settled already."""
        with self._changed:
            self._put(key, self._clock() + delay_seconds)

    def add_all(self, keys: Iterable[K]) -> None:
        """Have every key worked on at once."""
        with self._changed:
            now = self._clock()
            for key in keys:
                self._put(key, now)

    def take(self, timeout_seconds: float | None = None) -> K | None:
        """Return the next key that is due, to be handed back by `done` or `failed`. None at the timeout or the end."""
        end = None if timeout_seconds is None else self._clock() + timeout_seconds
        with self._changed:
            while not self._closed:
                now = self._clock()
                key = self._pop(now)
                if key is not None:
                    self._working.add(key)
                    return key
                if end is not None and now >= end:
                    return None
                waits = [moment - now for moment in (self._next_due(), end) if moment is not None]
                self._changed.wait(min(waits, default=None))
        return None

    def done(self, key: K) -> None:
        """Say that the work on `key` went well."""
        with self._changed:
            self._failures.pop(key, None)
            self._release(key)

    def failed(self, key: K) -> float:
        """Say that the work on `key` failed; it comes again in the returned seconds, twice as many each time."""
        with self._changed:
            failures = self._failures.get(key, 0)
            self._failures[key] = failures + 1
            delay: float = min(MAX_BACKOFF_SECONDS, FIRST_BACKOFF_SECONDS * 2 ** min(failures, 16))
            self._release(key)
            self._put(key, self._clock() + delay)
            return delay

    def close(self) -> None:
        """Let every waiting `take` return None, now and from now on."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _put(self, key: K, due: float) -> None:
        if self._due.get(key, float("inf")) <= due:
            return
        self._due[key] = due
        if key not in self._working:
            heapq.heappush(self._heap, (due, next(self._order), key))
            self._changed.notify()

    def _pop(self, now: float) -> K | None:
        while self._heap and self._heap[0][0] <= now:
            due, _, key = heapq.heappop(self._heap)
            # Entries of keys that were brought forward, or are being worked on, are left behind in the heap.
            if self._due.get(key) == due and key not in self._working:
                del self._due[key]
                return key
        return None

    def _next_due(self) -> float | None:
        return self._heap[0][0] if self._heap else None

    def _release(self, key: K) -> None:
        self._working.discard(key)
        if key in self._due:
            heapq.heappush(self._heap, (self._due[key], next(self._order), key))
            self._changed.notify()
