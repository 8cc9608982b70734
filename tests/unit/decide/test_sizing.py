"""Sizes are arithmetic: every rule, its limits and the kernel's rounding, as a table."""

import pytest

from conntrack_operator.decide.sizing import buckets_for, sizing_for
from conntrack_operator.model.facts import Facts
from conntrack_operator.model.table import Size

GIB = 1 << 30
MIB = 1 << 20


def machine(memory_bytes=48 * GIB, word_bits=64, cpus=8, entry_bytes=256):
    """Return the facts sizing looks at."""
    return Facts(
        memory_bytes=memory_bytes,
        cpus=cpus,
        word_bits=word_bits,
        kernel="6.18.0",
        sysctls={},
        entry_bytes=entry_bytes,
    )


@pytest.mark.parametrize(
    ("memory_bytes", "word_bits", "entries"),
    [
        (48 * GIB, 64, 1_572_864),
        (64 * GIB, 64, 2_097_152),
        (16 * GIB, 64, 524_288),
        (8 * GIB, 64, 262_144),
        (4 * GIB, 64, 131_072),
        (2 * GIB, 64, 65_536),
        (2 * GIB - 1, 64, 65_536),
        (GIB + 1, 64, 65_536),
        (GIB, 64, 32_768),
        (GIB - 1, 64, 32_767),
        (512 * MIB, 64, 16_384),
        (4 * GIB, 32, 262_144),
        (GIB + 1, 32, 65_536),
        (GIB, 32, 65_536),
        (512 * MIB, 32, 32_768),
        (256 * MIB, 32, 16_384),
        (8192, 64, 1),
        (1 << 60, 64, 2_147_483_647),
    ],
)
def test_kernel_formula(memory_bytes, word_bits, entries):
    """RAM / 16384 / (word bits / 32), at least 65536 strictly above 1 GiB, never 0 and never past an int."""
    size = Size.model_validate({"kernelFormula": {}})
    assert sizing_for(size, 1, machine(memory_bytes, word_bits)).entries == entries


@pytest.mark.parametrize(
    ("entries", "per_bucket", "word_bits", "buckets"),
    [
        (1_572_864, 8, 64, 196_608),
        (1_572_864, 1, 64, 1_572_864),
        (524_288, 8, 64, 65_536),
        (1_000_000, 1, 64, 1_000_448),
        (1_000_000, 1, 32, 1_000_448),
        (1, 1, 64, 512),
        (1, 1, 32, 1024),
        (513, 1, 64, 1024),
        (4096, 8, 64, 512),
        (4097, 8, 64, 1024),
    ],
)
def test_buckets_are_rounded_as_the_kernel_does(entries, per_bucket, word_bits, buckets):
    """Buckets fill whole pages: 512 pointers of 8 bytes, or 1024 of 4."""
    assert buckets_for(entries, per_bucket, machine(word_bits=word_bits)) == buckets


@pytest.mark.parametrize(
    ("size", "cpus", "entries"),
    [
        ({"maxEntries": 1_048_576}, 8, 1_048_576),
        ({"perCore": {"entries": 32_768}}, 8, 262_144),
        ({"perCore": {"entries": 32_768, "floor": 131_072}}, 2, 131_072),
        ({"perCore": {"entries": 32_768, "floor": 131_072}}, 4, 131_072),
        ({"perCore": {"entries": 32_768, "floor": 131_072}}, 5, 163_840),
        ({"perCore": {"entries": 2_147_483_647}}, 8, 2_147_483_647),
    ],
)
def test_plain_and_per_core(size, cpus, entries):
    """maxEntries is itself; perCore multiplies, with a floor as kube-proxy's min."""
    assert sizing_for(Size.model_validate(size), 1, machine(cpus=cpus)).entries == entries


@pytest.mark.parametrize(
    ("memory", "per_bucket", "entry_bytes", "entries"),
    [
        ({"percent": 2}, 1, 256, 1_073_741_824 * 48 * 2 // 100 // 264),
        ({"percent": 2}, 1, 320, 1_073_741_824 * 48 * 2 // 100 // 328),
        ({"percent": 2}, 8, 256, 1_073_741_824 * 48 * 2 // 100 * 8 // (256 * 8 + 8)),
        ({"percent": 2, "ceiling": 1_000_000}, 1, 256, 1_000_000),
        ({"percent": 1, "floor": 9_000_000}, 1, 256, 9_000_000),
        ({"percent": 2, "floor": 262_144, "ceiling": 4_194_304}, 1, 256, 3_904_515),
    ],
)
def test_memory_holds_table_and_buckets(memory, per_bucket, entry_bytes, entries):
    """Entries and their buckets together stay within the share of RAM, and one more would not."""
    facts = machine(entry_bytes=entry_bytes)
    size = Size.model_validate({"memory": memory})
    got = sizing_for(size, per_bucket, facts).entries
    assert got == entries
    if "floor" not in memory and "ceiling" not in memory:
        budget = facts.memory_bytes * memory["percent"] // 100
        assert got * entry_bytes + got * 8 / per_bucket <= budget
        assert (got + 1) * entry_bytes + (got + 1) * 8 / per_bucket > budget


def test_arithmetic_is_told():
    """A reader sees where the number comes from."""
    told = sizing_for(Size.model_validate({"perCore": {"entries": 10, "floor": 100}}), 1, machine(cpus=2)).arithmetic
    assert told == "table.size.perCore: 10 x 2 CPUs is below floor"
