"""What is counted between two scrapes: counts by labels, and how long things take. Safe for any thread."""

import bisect
import threading
from collections.abc import Iterable, Sequence

from .exposition import PREFIX, Family, Sample


class Counts:
    """Counts that only grow, by the values of their labels. Those `known` beforehand are there from the start, as 0.

    A counter that first appears with 1 has no increase that anybody could ask for.
    """

    def __init__(self, known: Iterable[tuple[str, ...]] = ()) -> None:
        self._lock = threading.Lock()
        self._counts: dict[tuple[str, ...], int] = dict.fromkeys(known, 0)

    def add(self, *labels: str, by: int = 1) -> None:
        """Count one more, or `by`."""
        with self._lock:
            self._counts[labels] = self._counts.get(labels, 0) + by

    def values(self) -> dict[tuple[str, ...], float]:
        """Return every count."""
        with self._lock:
            return dict(self._counts)

    def total(self) -> int:
        """Return all counts together."""
        with self._lock:
            return sum(self._counts.values())


class Durations:
    """A histogram of seconds for each value of one label."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = tuple(bounds)
        self._lock = threading.Lock()
        self._buckets: dict[str, list[int]] = {}
        self._sums: dict[str, float] = {}

    def observe(self, label: str, seconds: float) -> None:
        """Take in one duration."""
        with self._lock:
            buckets = self._buckets.setdefault(label, [0] * (len(self._bounds) + 1))
            buckets[bisect.bisect_left(self._bounds, seconds)] += 1
            self._sums[label] = self._sums.get(label, 0.0) + seconds

    def family(self, name: str, words: str, label: str) -> Family:
        """Return the histogram as a metric family."""
        samples: list[Sample] = []
        with self._lock:
            for value, buckets in sorted(self._buckets.items()):
                count = 0
                for bound, found in zip((*map(str, self._bounds), "+Inf"), buckets, strict=True):
                    count += found
                    samples.append(Sample(count, {label: value, "le": bound}, "_bucket"))
                samples.append(Sample(self._sums[value], {label: value}, "_sum"))
                samples.append(Sample(count, {label: value}, "_count"))
        return Family(PREFIX + name, "histogram", words, tuple(samples))
