"""The part of a policy that sizes the table. Read by people through `kubectl explain`.

None of it has a default, since a default nobody wrote would win a merge.
"""

from typing import Annotated, ClassVar

from pydantic import Field, StrictBool

from .base import Model
from .rules import Rule, present
from .values import Entries


class MemorySize(Model):
    """Size the table by memory: as many entries as fit, with their buckets, into a share of the node's RAM."""

    percent: Annotated[int, Field(strict=True, ge=1, le=100)]
    """Share of the node's RAM that a full table and its buckets may take, in percent. A table over half of the RAM
    is refused (MemoryBudget)."""
    floor: Entries | None = None
    """Never fewer entries than this, whatever the RAM. Absent: no floor."""
    ceiling: Entries | None = None
    """Never more entries than this, whatever the RAM. Absent: no ceiling."""

    api_rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="!has(self.floor) || !has(self.ceiling) || self.floor <= self.ceiling",
            holds=lambda size: size.floor is None or size.ceiling is None or size.floor <= size.ceiling,
            sentence="floor must not be above ceiling; raise ceiling or lower floor",
            field=".floor",
        ),
    )


class PerCoreSize(Model):
    """Size the table by processors, as kube-proxy does: entries times the number of CPUs."""

    entries: Entries
    """Entries for each CPU of the node."""
    floor: Entries | None = None
    """Never fewer entries than this, whatever the number of CPUs. Absent: no floor."""


class KernelFormulaSize(Model):
    """The classic formula: RAM in bytes / 16384 / (word bits / 32), at least 65536 above 1 GiB. Write {}."""


class Size(Model):
    """How many entries the table may hold. Exactly one of the keys. Absent: the size is left alone.

    Write `maxEntries` when you know the number, `memory` when the nodes differ in RAM (what most people should have),
    `perCore` to stay with what kube-proxy computes, `kernelFormula` for the formula of the old howtos. A table that
    would take more than half of the node's RAM when full is refused (MemoryBudget).
    """

    max_entries: Entries | None = None
    """The number of entries itself: `net.netfilter.nf_conntrack_max`."""
    per_core: PerCoreSize | None = None
    memory: MemorySize | None = None
    kernel_formula: KernelFormulaSize | None = None

    api_rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel=(
                "[has(self.maxEntries), has(self.perCore), has(self.memory), has(self.kernelFormula)]"
                ".filter(present, present).size() == 1"
            ),
            holds=lambda size: present(size, "max_entries", "per_core", "memory", "kernel_formula") == 1,
            sentence="needs exactly one of maxEntries, perCore, memory and kernelFormula; write one and no other",
        ),
    )


class Table(Model):
    """The connection-tracking table: how many entries, in how many hash buckets."""

    size: Size | None = None
    entries_per_bucket: Annotated[int, Field(strict=True, ge=1, le=64)] | None = None
    """Hash buckets = entries / this. 1 is what kernels since 5.15 do themselves, 8 the classic chain length:
    fewer buckets save 8 bytes each and cost time in every lookup. Written, it is followed exactly; a change halts
    packets for a moment. Absent: 1 when the size is set here, but what is within a factor of two stays."""
    allow_shrink: StrictBool | None = None
    """Let the size go below the node's current value. Without it a smaller size is refused (ShrinkNotAllowed);
    with it, never below 1.25 times the entries in use (BelowUse). Absent: false."""
