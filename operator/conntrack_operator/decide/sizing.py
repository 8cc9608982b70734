"""How many entries and buckets a table should have: a size rule and a machine's facts in, numbers out. Pure."""

from dataclasses import dataclass

from conntrack_operator.model.facts import Facts
from conntrack_operator.model.table import MemorySize, PerCoreSize, Size
from conntrack_operator.model.values import INT_MAX

GIB = 1 << 30
KERNEL_FORMULA_FLOOR = 65536


@dataclass(frozen=True)
class Sizing:
    """A number of entries and the arithmetic that led to it, in words."""

    entries: int
    arithmetic: str


def sizing_for(size: Size, entries_per_bucket: int, facts: Facts) -> Sizing:
    """Return what `size` means on the machine of `facts`, between 1 and 2147483647 entries."""
    if size.max_entries is not None:
        sizing = Sizing(size.max_entries, "table.size.maxEntries")
    elif size.per_core is not None:
        sizing = _per_core(size.per_core, facts)
    elif size.memory is not None:
        sizing = _memory(size.memory, entries_per_bucket, facts)
    else:
        sizing = _kernel_formula(facts)
    return Sizing(min(max(sizing.entries, 1), INT_MAX), sizing.arithmetic)


def buckets_for(entries: int, entries_per_bucket: int, facts: Facts) -> int:
    """Return the buckets the kernel will show when asked for `entries` / `entries_per_bucket`."""
    return rounded_buckets(-(-entries // entries_per_bucket), facts)


def rounded_buckets(buckets: int, facts: Facts) -> int:
    """Return `buckets` as the kernel keeps them, in whole pages (nf_ct_alloc_hashtable in nf_conntrack_core.c)."""
    per_page = facts.page_bytes // bucket_bytes(facts)
    return -(-buckets // per_page) * per_page


def bucket_bytes(facts: Facts) -> int:
    """Return the size of one bucket: a pointer (struct hlist_nulls_head)."""
    return facts.word_bits // 8


def _per_core(rule: PerCoreSize, facts: Facts) -> Sizing:
    entries = rule.entries * facts.cpus
    words = f"table.size.perCore: {rule.entries} x {facts.cpus} CPUs"
    if rule.floor is not None and rule.floor > entries:
        return Sizing(rule.floor, f"{words} is below floor")
    return Sizing(entries, words)


def _memory(rule: MemorySize, entries_per_bucket: int, facts: Facts) -> Sizing:
    # n entries and n / entries_per_bucket buckets must fit: kept in whole bytes, no floating point.
    budget_bytes = facts.memory_bytes * rule.percent // 100
    group_bytes = facts.entry_bytes * entries_per_bucket + bucket_bytes(facts)
    entries = budget_bytes * entries_per_bucket // group_bytes
    words = f"table.size.memory: {rule.percent}% of {facts.memory_bytes / GIB:.1f} GiB"
    if rule.floor is not None and entries < rule.floor:
        return Sizing(rule.floor, f"{words} is below floor")
    if rule.ceiling is not None and entries > rule.ceiling:
        return Sizing(rule.ceiling, f"{words} is above ceiling")
    return Sizing(entries, words)


def _kernel_formula(facts: Facts) -> Sizing:
    entries = facts.memory_bytes // 16384 // (facts.word_bits // 32)
    words = f"table.size.kernelFormula: {facts.memory_bytes / GIB:.1f} GiB / 16384 / {facts.word_bits // 32}"
    if facts.memory_bytes > GIB and entries < KERNEL_FORMULA_FLOOR:
        return Sizing(KERNEL_FORMULA_FLOOR, f"{words} is below {KERNEL_FORMULA_FLOOR}")
    return Sizing(entries, words)
