"""Vigil: whether anything that is managed here may have changed, asked every second or two at next to no cost.

Sysctls are small files. nftables has one number that moves with every change to any rule (NFT_MSG_GETGEN): as long as
it stands still, our table is as it was. Tables of iptables-legacy do not move it, and tell their shape instead.
Programs such as kube-proxy move it often, and reading our table costs one nft, so that movements are told at most every
two seconds and never lost.
"""

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass

from conntrack_operator.errors import ConntrackOperatorError

from .legacy_tables import read_shapes
from .nftables import generation
from .roots import Roots
from .sysctl import read_sysctls
from .tracking import tracked_families

TABLE_SECONDS = 2.0
"""Between two readings of our table."""
SURROUNDINGS_SECONDS = 10.0
"""Between two readings of everybody's rules, when nftables moved."""
SURROUNDINGS_AT_LEAST_SECONDS = 60.0
"""When it did not: Services and entries do not move it."""
TRACKING_SECONDS = 2.0
"""Between two connections over loopback that ask whether tracking is off still."""


Mark = Hashable
"""Two that are equal: nobody changed any rule in between."""


def mark_of_rules() -> Mark:
    """Return the nftables generation and the shapes of iptables-legacy's tables. Raises as `nftables.generation`."""
    return (generation(), *read_shapes())


@dataclass(frozen=True)
class Moved:
    """What may have changed since it was last told; each part is worth another reading."""

    sysctls: frozenset[str] = frozenset()
    """Managed sysctls that do not read what is expected."""
    table: bool = False
    """Our nftables table, possibly."""
    surroundings: bool = False
    """Other programs' rules, possibly, or they were not read for a minute."""
    tracking: bool = False
    """Tracking is on again, though it was switched off."""

    def __bool__(self) -> bool:
        return bool(self.sysctls) or self.table or self.surroundings or self.tracking


class Vigil:
    """Watches what an agent put in force, in the network namespace of the thread that asks. Time is an argument."""

    def __init__(
        self,
        roots: Roots,
        read_mark: Callable[[], Mark] = mark_of_rules,
        read_families: Callable[[], frozenset[int] | None] = tracked_families,
    ) -> None:
        self._roots = roots
        self._read_mark = read_mark
        self._read_families = read_families
        self._sysctls: Mapping[str, int] = {}
        self._table = self._off = False
        self._at: Mark | None = None
        """The mark that was last read about."""
        self._surroundings_at: Mark | None = None
        self._table_told = self._surroundings_told = self._tracking_told = float("-inf")

    def mark(self) -> Mark | None:
        """Return this moment's mark, None where there is none. Take it BEFORE reading back what `expect` is told."""
        try:
            return self._read_mark()
        except ConntrackOperatorError:
            return None

    def expect(self, sysctls: Mapping[str, int], *, table: bool, mark: Mark | None, off: bool = False) -> None:
        """Take what was read back after `mark` as right: values of sysctls, our table (if it matters), tracking off."""
        self._sysctls, self._table, self._off = dict(sysctls), table, off
        self._at = mark

    def moved(self, now: float) -> Moved:
        """Return what may have changed. About 0.1 ms, 1 ms where tracking is watched. Raises nothing.

        `now` is in seconds on a clock that only moves forward. A part is told at most once in its interval; what moves
        in between is told when it is over. Sysctls are told each time, as long as they differ.
        """
        found = read_sysctls(self._roots, self._sysctls) if self._sysctls else {}
        differing = frozenset(name for name, value in self._sysctls.items() if found.get(name) != value)
        mark = self.mark()
        return Moved(
            sysctls=differing,
            table=self._table and self._table_moved(mark, now),
            surroundings=self._surroundings_moved(mark, now),
            tracking=self._off and self._tracked(now),
        )

    def _table_moved(self, mark: Mark | None, now: float) -> bool:
        if mark is None or mark == self._at or now - self._table_told < TABLE_SECONDS:
            return False
        self._at, self._table_told = mark, now
        return True

    def _surroundings_moved(self, mark: Mark | None, now: float) -> bool:
        waited = now - self._surroundings_told
        if waited < (SURROUNDINGS_AT_LEAST_SECONDS if mark == self._surroundings_at else SURROUNDINGS_SECONDS):
            return False
        self._surroundings_at, self._surroundings_told = mark, now
        return True

    def _tracked(self, now: float) -> bool:
        if now - self._tracking_told < TRACKING_SECONDS:
            return False
        self._tracking_told = now
        return self._read_families() not in (frozenset(), None)
