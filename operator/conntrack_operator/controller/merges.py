"""Merges policies once for all nodes that have the same."""

import threading
from collections.abc import Sequence

from conntrack_operator.decide.merge import Merge, merged
from conntrack_operator.model.policy import ConntrackPolicy

KEPT = 256


class Merges:
    """What policies come to, by the very objects they are, which are kept meanwhile. Safe for threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[frozenset[int], tuple[tuple[ConntrackPolicy, ...], Merge]] = {}

    def of(self, policies: Sequence[ConntrackPolicy]) -> Merge:
        """Return what `policies` come to on a node that has them all."""
        key = frozenset(map(id, policies))
        with self._lock:
            known = self._known.get(key)
        if known is None:
            known = (tuple(policies), merged(policies))
            with self._lock:
                if len(self._known) >= KEPT:
                    self._known.clear()
                self._known[key] = known
        return known[1]
