"""Looks at the table: counters by ctnetlink, or /proc alone where that is not permitted."""

import logging
import time
from types import TracebackType
from typing import Self

from conntrack_operator.decide.plan import MAX
from conntrack_operator.decide.talkers import talkers_in
from conntrack_operator.decide.usage import Reading
from conntrack_operator.errors import ConntrackOperatorError, Unsupported
from conntrack_operator.kernel import flows
from conntrack_operator.kernel.counters import CounterReader
from conntrack_operator.kernel.facts import COUNT
from conntrack_operator.kernel.modules import presence_of_conntrack
from conntrack_operator.kernel.roots import Roots
from conntrack_operator.kernel.sysctl import read_sysctls
from conntrack_operator.model.node import Talker

log = logging.getLogger(__name__)


class Meter:
    """Reads the table's use; keeps one netlink socket open for it."""

    def __init__(self, roots: Roots) -> None:
        self._roots = roots
        self._counters: CounterReader | None = None

    def __enter__(self) -> Self:
        try:
            self._counters = CounterReader().__enter__()
        except ConntrackOperatorError as error:
            log.warning("%s; usage comes from /proc, without drops", error)
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
        if self._counters is not None:
            counters = self._counters.read()
            return Reading(
                now,
                counters.entries,
                counters.max_entries,
                counters.drop,
                counters.early_drop,
                counters.insert_failed,
            )
        values = read_sysctls(self._roots, (COUNT, MAX))
        if len(values) < 2:
            raise Unsupported("connection tracking is not loaded; run: modprobe nf_conntrack")
        return Reading(now, values[COUNT], values[MAX])


SAMPLE_ENTRIES = 16_384
"""A status needs the first few names, not the third digit; a larger sample costs memory on every node."""


def read_talkers(count: int, total_entries: int) -> list[Talker]:
    """Return who holds most of the table's `total_entries`, `count` of each kind, from one sample; nothing for 0."""
    return talkers_in(flows.sample(SAMPLE_ENTRIES), count, total_entries) if count > 0 else []
