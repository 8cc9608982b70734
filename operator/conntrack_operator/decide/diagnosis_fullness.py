"""Diagnosis, first question: is the table full, was it, will it be? From the kernel's counters, and its log. Pure."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from .finding import Finding, ago_words, counted, percent, time_words
from .symptoms import FullLine, KernelLog, Symptoms

FULL_PERCENT = 95
"""Down to here the kernel's own collector makes room once the table has dropped a packet.

It throws out entries that are unassured or closing, such as TIME_WAIT: some hundred at each pass, the first within a
minute of the drop (gc_worker and nf_conntrack_max95 in nf_conntrack_core.c; 257 of 8,192 seen on Linux 6.18).
"""
HIGH_PERCENT = 80
RECENT_SECONDS = 900
"""A line of the log younger than this is about now."""


@dataclass(frozen=True)
class Fullness:
    """Whether the table is or was full, which many other questions depend on."""

    percent: float
    is_full: bool
    """No room, or connections lost while we looked."""
    was_full: bool
    """It has cost connections since the namespace began."""

    @property
    def pressed(self) -> bool:
        """Whether it is worth asking who fills it."""
        return self.is_full or self.was_full or self.percent >= HIGH_PERCENT


def fullness_of(symptoms: Symptoms) -> Fullness:
    """Return how full the table is and was.

    An entry more than the limit is the kernel's own doing: it compares with "more than".
    """
    table = symptoms.table
    used = percent(table.entries, table.max_entries)
    losing = table.thrown_out_now > 0 or table.dropped_now > 0
    full = table.max_entries > 0 and (table.entries >= table.max_entries or losing)
    return Fullness(used, full, table.lost_to_full > 0 or table.early_drop > 0)


def findings_of_fullness(symptoms: Symptoms, fullness: Fullness) -> Iterator[Finding]:
    """Yield what the counters and the log say about this table."""
    table = symptoms.table
    if table.max_entries == 0:
        yield Finding(
            "warning",
            "NoLimit",
            "The table has no limit: a flood can take all memory.",
            f"net.netfilter.nf_conntrack_max is 0; there are {counted(table.entries, 'entry', 'entries')}.",
            "Give it one, such as table.size.memory.percent: 2.",
        )
    elif fullness.is_full:
        yield Finding("critical", "TableFull", _full_words(symptoms), _evidence(symptoms), GROW)
    elif fullness.percent >= FULL_PERCENT:
        # In a table that has dropped packets the collector makes some room within a minute: that it was full counts.
        before = f"; it was full, {_cost(symptoms)}" if fullness.was_full else ""
        summary = f"The table is nearly full: {_entries(symptoms)}, {fullness.percent:.0f}%{before}."
        yield Finding("critical", "TableNearlyFull", summary, _evidence(symptoms), GROW)
    elif fullness.was_full:
        recent = _is_recent(symptoms)
        summary = f"The table was full, {_cost(symptoms)}; now {fullness.percent:.0f}% are used."
        yield Finding("critical" if recent else "warning", "TableWasFull", summary, _evidence(symptoms), GROW)
    elif fullness.percent >= HIGH_PERCENT:
        summary = f"The table is {fullness.percent:.0f}% full: {_entries(symptoms)}."
        yield Finding("warning", "TableFilling", summary, _evidence(symptoms), GROW)
    if not symptoms.facts.initial_namespace:
        yield Finding(
            "info",
            "NotTheHost",
            "This is not the host's network namespace.",
            "Its entries and timeouts are its own; the limit is the machine's. A policy reaches the limit alone.",
            "Run doctor on the host too; set timeouts in here with sysctl -w.",
        )
    yield from _collisions(symptoms)
    yield from _invalid(symptoms)


GROW = "More entries, entries that leave sooner, or flows that need none: the other findings say which."


def own_lines(symptoms: Symptoms) -> tuple[FullLine, ...]:
    """Return the lines of the log that are about this table.

    The kernel names the namespace since 6.18, but never the initial one: there, a line without a name counts too.
    """
    names = (None, symptoms.own_inode) if symptoms.facts.initial_namespace else (symptoms.own_inode,)
    return lines_of(symptoms.log, names, symptoms.table.drop, symptoms.own_began_seconds)


def lines_of(
    log: KernelLog, names: Collection[int | None], drop: int, began_seconds: float = 0.0
) -> tuple[FullLine, ...]:
    """Return the lines about the namespace of one of the `names`, since it began.

    The kernel gives the number of a namespace that is gone to the next one. Each line is a drop, and the counters
    forget nothing: lines beyond their number are older than the namespace too.
    """
    lines = tuple(line for line in log.lines if line.namespace in names and line.at_seconds >= began_seconds)
    return lines[-drop:] if drop else ()


def _full_words(symptoms: Symptoms) -> str:
    table = symptoms.table
    if table.dropped_now:
        lost = f"{counted(table.dropped_now, 'packet')} lost in {table.watched_seconds:.0f} s"
    elif table.thrown_out_now:
        lost = f"{counted(table.thrown_out_now, 'entry', 'entries')} thrown out in {table.watched_seconds:.0f} s"
    elif table.lost_to_full:
        lost = f"{counted(table.lost_to_full, 'packet')} lost"
    else:
        lost = "nothing lost yet"
    return f"The table is full: {_entries(symptoms)}, {lost}."


def _cost(symptoms: Symptoms) -> str:
    lost, thrown_out = symptoms.table.lost_to_full, symptoms.table.early_drop
    return f"{counted(lost, 'packet')} lost" if lost else f"{counted(thrown_out, 'entry', 'entries')} thrown out"


def _entries(symptoms: Symptoms) -> str:
    return f"{symptoms.table.entries:,} of {symptoms.table.max_entries:,} entries"


def _evidence(symptoms: Symptoms) -> str:
    table = symptoms.table
    began = "since boot" if symptoms.facts.initial_namespace else "since this network namespace began"
    words = (
        f"Counters {began}: {counted(table.lost_to_full, 'packet')} lost to a full table (drop),"
        f" {counted(table.early_drop, 'entry', 'entries')} thrown out for room (early_drop)."
    )
    lines = own_lines(symptoms)
    if lines:
        first, last = lines[0].at_seconds, lines[-1].at_seconds
        span = f"at {time_words(last)}" if len(lines) == 1 else f"from {time_words(first)} to {time_words(last)}"
        ago = ago_words(symptoms.now_seconds - last)
        words += f" Kernel log: {counted(len(lines), 'line')} {span}, the last {ago}."
    return words


def _is_recent(symptoms: Symptoms) -> bool:
    lines = own_lines(symptoms)
    return bool(lines) and symptoms.now_seconds - lines[-1].at_seconds <= RECENT_SECONDS


def _collisions(symptoms: Symptoms) -> Iterator[Finding]:
    table = symptoms.table
    if table.insert_failed:
        yield Finding(
            "info",
            "InsertFailed",
            f"{counted(table.insert_failed, 'packet')} lost a race for the same entry (insert_failed).",
            "Two packets of one flow at once, mostly DNS over UDP behind NAT. No sign of a full table.",
            "Where DNS lookups time out after 5 s: a node-local DNS cache, or options single-request-reopen.",
        )
    if table.search_restart:
        yield Finding(
            "info",
            "SearchRestart",
            f"{counted(table.search_restart, 'lookup')} began anew (search_restart).",
            "The table moved under them, as it does after a resize and in a busy table. Harmless.",
        )


def _invalid(symptoms: Symptoms) -> Iterator[Finding]:
    table, sysctls = symptoms.table, symptoms.facts.sysctls
    liberal = sysctls.get("net.netfilter.nf_conntrack_tcp_be_liberal")
    if table.invalid >= MANY_INVALID and liberal == 0:
        yield Finding(
            "info",
            "InvalidPackets",
            f"{counted(table.invalid, 'packet')} fitted no connection (invalid).",
            "Late packets, or one direction that goes another way. A firewall that drops them resets connections.",
            "Where connections through this node are reset: tcp.beLiberal: true.",
        )
    if sysctls.get("net.netfilter.nf_conntrack_tcp_loose") == 0:
        yield Finding(
            "info",
            "StrictPickup",
            "Connections that were open before tracking saw them are not taken up (tcp_loose is 0).",
            "After a failover or a flush of the table they count as invalid until they are opened again.",
            "Where that hurts: tcp.loose: true, the kernel's default.",
        )


MANY_INVALID = 10_000
"""Fewer are the noise of any machine on a network."""
