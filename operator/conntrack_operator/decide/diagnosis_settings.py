"""Diagnosis, third question: which setting is wrong for this machine? Pure.

A kernel's defaults on an idle machine are never wrong: a small table is a fault where it is short of room, and not
before.
"""

from collections.abc import Iterator

from conntrack_operator.model.catalogue import PREFIX
from conntrack_operator.model.table import MemorySize, Size

from .diagnosis_fullness import Fullness
from .draft import BUCKETS, MAX
from .finding import Finding, percent
from .sizing import bucket_bytes, sizing_for
from .symptoms import Symptoms
from .timeouts import TimeoutWarning, timeout_warnings

SHARE_OF_RAM = 2
"""Percent of RAM a full table may take without anybody noticing."""
TOO_MUCH_RAM = 25
"""Percent of RAM from which a full table is a danger to the programs."""
LONGEST_CHAIN = 8
"""Entries per bucket of the classic formula; each lookup walks twice that, since each entry stands in two buckets."""
MEBI = 1 << 20


def entries_for(symptoms: Symptoms, share: int = SHARE_OF_RAM) -> int:
    """Return the entries that `table.size.memory.percent: share` gives on this machine."""
    return sizing_for(Size(memory=MemorySize(percent=share)), 1, symptoms.facts).entries


def full_bytes(symptoms: Symptoms) -> int:
    """Return the memory of a full table and its buckets; NAT and accounting come on top."""
    facts = symptoms.facts
    buckets = facts.sysctls.get(BUCKETS, 0)
    return symptoms.table.max_entries * facts.entry_bytes + buckets * bucket_bytes(facts)


def lint_of(symptoms: Symptoms) -> list[TimeoutWarning]:
    """Return what is odd about the machine's timeouts."""
    kube_proxy = any(writer.kind == "kube-proxy" for writer in symptoms.writers)
    return timeout_warnings(symptoms.facts.sysctls, symptoms.keepalive_seconds, kube_proxy=kube_proxy)


def has_long_chains(symptoms: Symptoms) -> bool:
    """Tell whether there are far fewer buckets than entries."""
    buckets = symptoms.facts.sysctls.get(BUCKETS, 0)
    return 0 < buckets * LONGEST_CHAIN < symptoms.table.max_entries


def takes_too_much(symptoms: Symptoms) -> bool:
    """Tell whether a full table would take more of the RAM than is safe."""
    return percent(full_bytes(symptoms), symptoms.facts.memory_bytes) >= TOO_MUCH_RAM


def findings_of_settings(symptoms: Symptoms, fullness: Fullness) -> Iterator[Finding]:
    """Yield the settings that do not fit this machine."""
    facts, table = symptoms.facts, symptoms.table
    room = entries_for(symptoms)
    if fullness.pressed and table.max_entries and room >= 2 * table.max_entries:
        share = percent(full_bytes(symptoms), facts.memory_bytes)
        yield Finding(
            "warning",
            "LimitBelowMemory",
            f"The limit is small for this machine: full, the table takes {share:.1f}% of its RAM.",
            f"{MAX.removeprefix(PREFIX)} is {table.max_entries:,}; {SHARE_OF_RAM}% of"
            f" {facts.memory_bytes / (1 << 30):.1f} GiB hold {room:,}.",
            f"table.size.memory.percent: {SHARE_OF_RAM}.",
        )
    if takes_too_much(symptoms):
        share = percent(full_bytes(symptoms), facts.memory_bytes)
        yield Finding(
            "warning",
            "LimitAboveMemory",
            f"The limit is too large for this machine: full, the table takes {share:.0f}% of its RAM.",
            f"{table.max_entries:,} entries are {full_bytes(symptoms) // MEBI:,} MiB, and NAT adds half as much; a"
            " flood would starve the programs before the table is full.",
            "A smaller table, with allowShrink: true.",
        )
    if has_long_chains(symptoms):
        buckets = facts.sysctls[BUCKETS]
        yield Finding(
            "warning",
            "FewBuckets",
            f"Few buckets: {table.max_entries / buckets:.0f} entries in each when the table is full.",
            f"{buckets:,} buckets for {table.max_entries:,} entries. Every packet walks such a chain: CPU goes up.",
            "table.entriesPerBucket: 1, what kernels do themselves; 8 bytes a bucket.",
        )
    for warning in lint_of(symptoms):
        yield Finding("warning", warning.reason, f"{warning.message}.", "", f"Set {warning.field}.")
