"""The agent's /metrics, /healthz and /readyz: what it knows already, as Prometheus reads it.

A scrape reads nothing of the table: only the number of buckets, our own rules' counters, and two files of /proc.
"""

import contextlib
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import get_args

from conntrack_operator.decide.notrack import TABLE
from conntrack_operator.decide.notrack_table import Count
from conntrack_operator.decide.plan import BUCKETS
from conntrack_operator.errors import ConntrackOperatorError
from conntrack_operator.kernel.rule_counters import read_bypassed
from conntrack_operator.kernel.sysctl import read_sysctls
from conntrack_operator.metrics.endpoint import Endpoint
from conntrack_operator.metrics.exposition import Family, counter, counters, exposition, gauge, gauges, one_of
from conntrack_operator.metrics.process import process_families
from conntrack_operator.model.node import Phase

from .duty import Duty
from .figures import Figures

STUCK_SECONDS = 300.0
"""A loop that was not at work for so long hangs: a round of probes and a run of nft together take less."""


@dataclass(frozen=True)
class AgentMetrics:
    """What is asked of one agent."""

    duty: Duty
    figures: Figures

    def serve(self, listening: socket.socket) -> None:
        """Answer on `listening` from now on."""
        Endpoint(listening, lambda: exposition(self.families()), live=self.live, ready=self.ready).start()

    def live(self) -> str:
        """Return why the agent should be started anew; empty when it works."""
        quiet = time.monotonic() - self.figures.beat
        return f"the agent's loop has done nothing for {quiet:.0f} s" if quiet > STUCK_SECONDS else ""

    def ready(self) -> str:
        """Return why the agent is not at work yet; empty when it is."""
        return "" if self.figures.has_looked else "the first look at the table is not done yet"

    def families(self) -> Iterator[Family]:
        """Yield all metrics."""
        yield from self._table()
        yield from self._work()
        yield from process_families("agent")

    def _table(self) -> Iterator[Family]:
        reading, counts = self.figures.reading, self.figures.table.values()
        entries, limit = (reading.entries, reading.max_entries) if reading else (None, None)
        ratio = entries / limit if entries is not None and limit else None
        buckets = read_sysctls(self.duty.machine.roots, (BUCKETS,)).get(BUCKETS)
        yield gauge("entries", "Entries in the connection tracking table.", entries)
        yield gauge("entries_limit", "Entries it may hold; 0 means no limit.", limit)
        yield gauge("buckets", "Buckets of its hash table.", buckets)
        yield gauge("used_ratio", "Entries by their limit, from 0 to 1.", ratio)
        yield gauge(
            "time_to_full_seconds",
            "Time until the table is full at the present growth; absent while it is not filling.",
            self.figures.seconds_to_full,
        )
        for name, words, what in (
            ("dropped_packets", "Packets of new connections dropped since the table was full.", "drop"),
            ("early_dropped_entries", "Entries thrown out to make room for others.", "early_drop"),
            ("insert_failures", "Entries not inserted, mostly since an equal one was faster.", "insert_failed"),
            ("invalid_packets", "Packets that fit no connection and could begin none.", "invalid"),
            ("search_restarts", "Searches begun anew while the table changed.", "search_restart"),
        ):
            yield counter(name, words, counts[what,])

    def _work(self) -> Iterator[Family]:
        figures, deed = self.figures, self.duty.deed
        bypassed = self._bypassed()
        words = "by NOTRACK rules, by rule; rules that name ports alone are counted together, as protocol/side."
        for what, number in (("packets", 0), ("bytes", 1)):
            found: dict[tuple[str, ...], float] = {(label,): count[number] for label, count in bypassed.items()}
            yield counters(f"bypassed_{what}", f"{what.capitalize()} left untracked {words}", ("rule",), found)
        phase = deed.phase if deed is not None else None
        yield one_of("phase", "1 for the phase the node is in.", "phase", get_args(Phase), phase)
        yield counters("trials", "Changes that were tried, by how that ended.", ("outcome",), figures.trials.values())
        yield counters(
            "repairs", "Settings put right after somebody else had changed them, by setting and likely rival.",
            ("setting", "rival"), figures.repairs.values(),
        )  # fmt: skip
        yield gauges(
            "contended_settings", "Settings left to whoever keeps changing them.", (), {(): len(self.duty.left)}
        )
        yield counters("report_writes", "Statuses written to the API server.", ("result",), figures.reports.values())
        yield gauge("last_report_timestamp_seconds", "When a status was last written.", figures.reported_at)

    def _bypassed(self) -> Mapping[str, Count]:
        # One that observes must load no module, and has no rules.
        if self.duty.acts:
            with contextlib.suppress(ConntrackOperatorError):
                return read_bypassed(TABLE)
        return {}
