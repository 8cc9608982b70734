"""Whether a table of some size, when full, fits this machine's memory. Pure."""

from conntrack_operator.model.catalogue import PREFIX
from conntrack_operator.model.facts import Facts
from conntrack_operator.model.policy import Settings
from conntrack_operator.model.surroundings import Surroundings

from .preflight_nat import translates
from .sizing import GIB, bucket_bytes, buckets_for

EXTENSION_BYTES = 128
"""What NAT rules or nf_conntrack_acct add to every entry beside its slab object. Tried on 6.18."""
BUDGET_PERCENT = 50
"""Share of RAM that full tables may take. Entries are kernel memory: nothing can swap or reclaim them, and what would
be killed to make room are the node's pods. Nobody sizes a table by more on purpose: 2 % is what the examples use."""
ACCT = f"{PREFIX}nf_conntrack_acct"


def memory_problem(
    entries: int, entries_per_bucket: int, settings: Settings, facts: Facts, surroundings: Surroundings | None
) -> str | None:
    """Return why a full table of `entries` would not fit and how many do, in a sentence, or None.

    The limit holds for each network namespace, the buckets are shared by all (nf_conntrack_hash in
    nf_conntrack_core.c); entries of other namespaces are counted as they are now.
    """
    entry = facts.entry_bytes + (EXTENSION_BYTES if _extended(settings, facts, surroundings) else 0)
    others = surroundings.other_entries if surroundings else 0
    buckets = buckets_for(entries, entries_per_bucket, facts)
    needed = (entries + others) * entry + buckets * bucket_bytes(facts)
    budget = facts.memory_bytes * BUDGET_PERCENT // 100
    if needed <= budget:
        return None
    group = entry * entries_per_bucket + bucket_bytes(facts)
    fits = max(budget - others * entry - facts.page_bytes, 0) * entries_per_bucket // group
    beside = f" beside the {others} of other network namespaces" if others else ""
    return (
        f"{entries} entries{beside} at {entry} bytes each and {buckets} buckets need {needed / GIB:.1f} GiB when the"
        f" table is full, over {BUDGET_PERCENT} % of this machine's {facts.memory_bytes / GIB:.1f} GiB; ask for at most"
        f" {fits} entries"
    )


def _extended(settings: Settings, facts: Facts, surroundings: Surroundings | None) -> bool:
    if surroundings is not None and translates(surroundings.firewall):
        return True
    wanted = (settings.sysctls or {}).get("nf_conntrack_acct")
    return bool(facts.sysctls.get(ACCT) if wanted is None else int(wanted))
