"""Looks at the table: counters by ctnetlink, or /proc alone where that is not permitted."""

import contextlib
import logging
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from conntrack_operator.decide.plan import MAX
from conntrack_operator.decide.talkers import talkers_in
from conntrack_operator.decide.usage import Reading
from conntrack_operator.errors import ConntrackOperatorError, Unsupported
from conntrack_operator.kernel import flows
from conntrack_operator.kernel.autoload import NotLoaded, loading_nothing
from conntrack_operator.kernel.counters import CounterReader
from conntrack_operator.kernel.facts import COUNT
from conntrack_operator.kernel.modules import presence_of_conntrack
from conntrack_operator.kernel.roots import Roots
from conntrack_operator.kernel.sysctl import read_sysctls
from conntrack_operator.model.node import Talker

log = logging.getLogger(__name__)


class Meter:
    """Reads the table's use; keeps one netlink socket open for it.

    `may_load` tells whether the kernel may load nf_conntrack_netlink for it; where it may not and that is not loaded,
    use comes from /proc, without drops.
    """

    def __init__(self, roots: Roots, may_load: Callable[[], bool] = lambda: True) -> None:
        self._roots = roots
        self.may_load = may_load
        self._counters: CounterReader | None = None
        self._said = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._counters is not None:
            self._counters.__exit__(kind, error, trace)

    def read(self) -> Reading:
        """Return one reading. Raises Unsupported when connection tracking is not loaded, Retry on a passing failure."""
        now = time.monotonic()
        if presence_of_conntrack(self._roots) == "absent":
            # Asking ctnetlink would load the module, which `tracking: Disabled` may just have unloaded.
            raise Unsupported("connection tracking is not loaded, so there is no use of it to show")
        with (
            contextlib.suppress(NotLoaded),
            contextlib.nullcontext() if self.may_load() else loading_nothing(self._roots),
        ):
            counters_of = self._opened()
            if counters_of is not None:
                counters = counters_of.read()
                return Reading(
                    now,
                    counters.entries,
                    counters.max_entries,
                    counters.drop,
                    counters.early_drop,
                    counters.insert_failed,
                    counters.invalid,
                    counters.search_restart,
                )
        values = read_sysctls(self._roots, (COUNT, MAX))
        if len(values) < 2:
            raise Unsupported("connection tracking is not loaded; run: modprobe nf_conntrack")
        return Reading(now, values[COUNT], values[MAX])

    def talkers(self, count: int, total_entries: int) -> list[Talker]:
        """Return who holds most of the table, as `read_talkers` does; nobody where asking would load a module."""
        with (
            contextlib.suppress(NotLoaded),
            contextlib.nullcontext() if self.may_load() else loading_nothing(self._roots),
        ):
            return read_talkers(count, total_entries)
        return []

    def _opened(self) -> CounterReader | None:
        if self._counters is None and not self._said:
            try:
                self._counters = CounterReader()
            except NotLoaded:
                raise
            except ConntrackOperatorError as error:
                self._said = True
                log.warning("%s; usage comes from /proc, without drops", error)
        return self._counters


SAMPLE_ENTRIES = 16_384
"""A status needs the first few names, not the third digit; a larger sample costs memory on every node."""


def read_talkers(count: int, total_entries: int) -> list[Talker]:
    """Return who holds most of the table's `total_entries`, `count` of each kind, from one sample; nothing for 0."""
    return talkers_in(flows.sample(SAMPLE_ENTRIES), count, total_entries) if count > 0 else []
