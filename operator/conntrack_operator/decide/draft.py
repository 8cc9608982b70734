"""The sysctl half of a plan: which value every key should have, and why not. Pure.

A draft gathers wishes and refusals; `decide.plan` turns it into changes in their order.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from conntrack_operator.model import catalogue
from conntrack_operator.model.facts import Facts
from conntrack_operator.model.journal import Original
from conntrack_operator.model.policy import Settings
from conntrack_operator.model.surroundings import Surroundings
from conntrack_operator.model.table import Table

from .memory import memory_problem
from .refusal import Refusal
from .sizing import Sizing, buckets_for, sizing_for

MAX = catalogue.PREFIX + "nf_conntrack_max"
BUCKETS = catalogue.PREFIX + "nf_conntrack_buckets"
ENTRIES_PER_BUCKET = 1
"""What an absent table.entriesPerBucket means once the size is set: what kernels since 5.15 do."""
NEAR = 2
"""Buckets within this factor of what a size needs are left as they are where nobody wrote how many."""
RETURNED = "original value; no policy sets it any more"


@dataclass
class Draft:
    """A plan in the making."""

    facts: Facts
    surroundings: Surroundings | None = None
    wanted: dict[str, int] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    refused: list[Refusal] = field(default_factory=list)
    warned: list[Refusal] = field(default_factory=list)
    released: list[str] = field(default_factory=list)

    def want(self, name: str, value: int, reason: str) -> None:
        """Note that sysctl `name` should be `value`, since the field `reason` says so."""
        self.wanted[name] = value
        self.reasons[name] = reason

    def refuse(self, setting: str, reason: str, message: str) -> None:
        """Note that `setting` will not be had."""
        self.refused.append(Refusal(setting, reason, message))

    def refuses(self, setting: str) -> bool:
        """Tell whether `setting` was refused."""
        return any(refusal.setting == setting for refusal in self.refused)


def want_sizes(draft: Draft, settings: Settings, originals: Mapping[str, Original] | None = None) -> None:
    """Add the limit and the buckets that `settings.table` asks for, or the reason why not.

    `originals` tell which values are ours: going back to one that somebody else raised is a repair and no shrinking.
    """
    table, facts = settings.table, draft.facts
    if table is None or (table.size is None and table.entries_per_bucket is None):
        return
    per_bucket = table.entries_per_bucket or ENTRIES_PER_BUCKET
    now_max = facts.sysctls.get(MAX)
    if table.size is not None:
        sizing = sizing_for(table.size, per_bucket, facts)
        allow_shrink = bool(table.allow_shrink) or _was_ours(sizing.entries, now_max, (originals or {}).get(MAX))
        refusal = _size_refusal(sizing, now_max, facts, allow_shrink=allow_shrink)
        if refusal is None and (
            problem := memory_problem(sizing.entries, per_bucket, settings, facts, draft.surroundings)
        ):
            refusal = Refusal(MAX, "MemoryBudget", problem)
        if refusal:
            draft.refused.append(refusal)
            return
        draft.want(MAX, sizing.entries, sizing.arithmetic)
        entries = sizing.entries
    elif now_max is None:
        return
    else:
        entries = now_max
    _want_buckets(draft, table, entries)


def _want_buckets(draft: Draft, table: Table, entries: int) -> None:
    """Want exactly the buckets somebody wrote; otherwise enough of them, and no resize for less than a factor of two.

    A resize rehashes with every lock held: going from 262144 to 1048576 buckets at 500,000 entries halted packets for
    210 ms (tried on 6.18). Two entries a bucket instead of one cost less than that.
    """
    now, facts = draft.facts.sysctls.get(BUCKETS), draft.facts
    per_bucket = table.entries_per_bucket or ENTRIES_PER_BUCKET
    buckets = buckets_for(entries, per_bucket, facts)
    if table.entries_per_bucket is None and now is not None and now != buckets:
        now_max = facts.sysctls.get(MAX)
        if buckets <= now * NEAR and now <= buckets * NEAR:
            draft.want(BUCKETS, now, f"within a factor of {NEAR} of {buckets}, and a resize halts every packet")
            return
        if buckets < now and not (now_max is not None and entries < now_max):
            draft.want(BUCKETS, now, "there are more buckets already than this size needs")
            return
    draft.want(BUCKETS, buckets, f"{entries} entries / {per_bucket} a bucket, in whole pages")


def _was_ours(entries: int, now: int | None, original: Original | None) -> bool:
    """Tell whether we wrote `entries` last, and what is there `now` is somebody else's."""
    return original is not None and original.ours[-1:] == [entries] and now not in original.ours


def _size_refusal(sizing: Sizing, now: int | None, facts: Facts, *, allow_shrink: bool) -> Refusal | None:
    if not facts.initial_namespace and now != sizing.entries:
        return Refusal(
            MAX,
            "Unsupported",
            "the size can be written in the initial network namespace only; run on the host, or leave out table",
        )
    if now is None or sizing.entries >= now:
        return None
    if not allow_shrink:
        return Refusal(
            MAX,
            "ShrinkNotAllowed",
            f"{sizing.entries} is below the current {now}; set table.allowShrink: true to go below it, or ask for more",
        )
    # Over the limit the kernel drops new connections at once, so room is left for a quarter more.
    if sizing.entries * 4 < facts.entries * 5:
        return Refusal(
            MAX,
            "BelowUse",
            f"{sizing.entries} is below 1.25 times the {facts.entries} entries in use; ask for at least"
            f" {-(-facts.entries * 5 // 4)}",
        )
    return None


def want_values(draft: Draft, settings: Settings) -> None:
    """Add every timeout, TCP switch and other sysctl of `settings` that this kernel has."""
    document = settings.document()
    values = _leaves({"timeouts": document.get("timeouts", {}), "tcp": document.get("tcp", {})})
    for path, value in values:
        _want_value(draft, catalogue.BY_FIELD[path], int(value), path)
    for name, value in (settings.sysctls or {}).items():
        _want_value(draft, catalogue.BY_NAME[name], value, f"sysctls.{name}")


def _leaves(document: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in document.items():
        path = f"{prefix}.{key}" if prefix else key
        if isinstance(value, dict):
            yield from _leaves(value, path)
        else:
            yield path, value


def _want_value(draft: Draft, entry: catalogue.Sysctl, value: int, path: str) -> None:
    now = draft.facts.sysctls.get(entry.dotted)
    if now is None:
        lives = f"it came with {entry.since}" + (f" and went with {entry.until}" if entry.until else "")
        draft.refuse(
            entry.dotted,
            "Unsupported",
            f"this kernel ({draft.facts.kernel}) has no {entry.dotted} ({lives}); remove {path}",
        )
    elif entry.scope == "Initial" and not draft.facts.initial_namespace and now != value:
        draft.refuse(
            entry.dotted,
            "Unsupported",
            f"{entry.dotted} can be written in the initial network namespace only; run on the host, or remove {path}",
        )
    else:
        draft.want(entry.dotted, value, path)


def put_back(draft: Draft, originals: Mapping[str, Original]) -> None:
    """Add the original value of every key we wrote that nobody wants any more, unless somebody else wrote it since."""
    for name, original in originals.items():
        if name in draft.wanted or draft.refuses(name) or original.keep:
            continue
        now = draft.facts.sysctls.get(name)
        if now is None or now == original.value or now not in original.ours:
            draft.released.append(name)
        elif name == MAX and original.value < draft.facts.entries:
            draft.refuse(
                name,
                "BelowUse",
                f"the original value {original.value} is below the {draft.facts.entries} entries in use, so new"
                " connections would be dropped; it is put back as soon as they fit",
            )
        else:
            draft.want(name, original.value, RETURNED)
