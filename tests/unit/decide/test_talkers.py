"""Talkers: largest keys, scaled from a sample, with an error that holds."""

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conntrack_operator.decide.talkers import (
    Kind,
    Row,
    Sample,
    Tally,
    half_width,
    key_text,
    talkers_in,
    top_of,
)

SOURCES = Kind("source", 0, "address")


def tallied(**kinds: int) -> Sample:
    """Return a complete sample of sources, last byte of the address -> entries."""
    tally = Tally(counts=Counter({bytes([10, 0, 0, int(last[1:])]): entries for last, entries in kinds.items()}))
    return Sample(sum(kinds.values()), complete=True, tallies={SOURCES: tally})


@pytest.mark.parametrize(
    ("kind", "raw", "text"),
    [
        (SOURCES, b"\x0a\0\0\1", "10.0.0.1"),
        (SOURCES, b"\xfd" + bytes(14) + b"\1", "fd00::1"),
        (SOURCES, b"", "unknown"),
        (Kind("port", 6, "port"), b"\0\x50", "80/TCP"),
        (Kind("port", 132, "port"), b"\x0e\x10", "3600/SCTP"),
        (Kind("port", 1, "icmp type"), b"\x08", "type 8/ICMP"),
        (Kind("port", 58, "icmp type"), b"\x80", "type 128/ICMPv6"),
        (Kind("port", 47, "no port"), b"", "GRE"),
        (Kind("port", 253, "no port"), b"", "protocol 253"),
        (Kind("state", 6, "tcp state"), b"\x03", "TCP ESTABLISHED"),
        (Kind("state", 6, "tcp state"), b"\x63", "TCP state 99"),
        (Kind("state", 132, "sctp state"), b"\x04", "SCTP ESTABLISHED"),
        (Kind("state", 17, "status"), b"\0\0\0\x08", "UDP UNREPLIED"),
        (Kind("state", 17, "status"), b"\0\0\0\x0a", "UDP REPLIED"),
        (Kind("state", 17, "status"), b"\0\0\1\x8e", "UDP ASSURED"),
        (Kind("state", 6, "status"), b"\0\0\x40\x0e", "TCP OFFLOADED"),
        (Kind("zone", 0, "zone"), b"\0\x07", "7"),
    ],
)
def test_raw_keys_become_words(kind: Kind, raw: bytes, text: str) -> None:
    """Each form of key reads as an operator would write it."""
    assert key_text(kind, raw) == text


def test_a_complete_count_is_exact() -> None:
    """Every entry was read: no scaling by an older total, no error, largest first, equal ones in a fixed order."""
    top = top_of(tallied(_1=50, _2=30, _9=10, _3=10), "source", 3, total_entries=999)
    assert (top.sampled, top.entries) == (100, 100)
    assert top.rows == (
        Row("10.0.0.1", 50, 0.5, 0.0),
        Row("10.0.0.2", 30, 0.3, 0.0),
        Row("10.0.0.3", 10, 0.1, 0.0),
    )


def test_a_sample_is_scaled_to_the_table() -> None:
    """Half of 1,000 of 100,000 entries stands for 50,000, give or take 3.1 points."""
    tally = Tally(counts=Counter({b"\x0a\0\0\1": 500, b"\x0a\0\0\2": 500}))
    top = top_of(Sample(1000, complete=False, tallies={SOURCES: tally}), "source", 1, 100_000)
    assert (top.sampled, top.entries, top.rows[0].entries) == (1000, 100_000, 50_000)
    assert top.rows[0].error == pytest.approx(0.0308, abs=0.0001)


@pytest.mark.parametrize(
    ("seen", "sampled", "total", "width"),
    [
        (50, 100, 100, 0.0),
        (32_768, 65_536, 10**9, 0.003828),
        (32_768, 65_536, 131_072, 0.002707),
        (100, 100, 10_000, 0.018406),
        (0, 100, 10_000, 0.018406),
    ],
    ids=["all read", "vast table", "half read", "all have it", "none has it"],
)
def test_the_half_width_is_that_of_wilson_with_finite_population(
    seen: int, sampled: int, total: int, width: float
) -> None:
    """Reading half the table narrows the interval by the root of a half; an unanimous sample is not called exact."""
    assert half_width(seen, sampled, total) == pytest.approx(width, abs=2e-6)


def test_the_stated_error_covers_the_truth_about_95_times_in_100() -> None:
    """Draw 400 samples from a known table: the true share lies within the error in 92 to 98.5 % of them."""
    chance = random.Random(7)
    table = [1] * 2_000 + [0] * 8_000
    hits = 0
    for _ in range(400):
        seen = sum(chance.sample(table, 2_000))
        hits += abs(seen / 2_000 - 0.2) <= half_width(seen, 2_000, 10_000)
    assert 368 <= hits <= 394


def test_an_empty_table_has_no_rows() -> None:
    """No entries: no division by zero."""
    assert top_of(Sample(0, complete=True, tallies={}), "source", 10, 0).rows == ()
    assert talkers_in(Sample(0, complete=False, tallies={}), 3, 0) == []


def test_states_that_read_the_same_are_one_row() -> None:
    """Status words differ by NAT bits and the like; people see one UDP ASSURED."""
    kind = Kind("state", 17, "status")
    counts = Counter({(0x0E | bit << 4).to_bytes(4, "big"): 10 for bit in range(6)} | {b"\0\0\0\x08": 25})
    sample = Sample(85, complete=True, tallies={kind: Tally(counts=counts)})
    assert [(row.key, row.entries) for row in top_of(sample, "state", 1, 85).rows] == [("UDP ASSURED", 60)]


def test_ports_of_two_protocols_are_two_rows() -> None:
    """53/UDP and 53/TCP are different things."""
    sample = Sample(
        30,
        complete=True,
        tallies={
            Kind("port", 17, "port"): Tally(counts=Counter({b"\0\x35": 20})),
            Kind("port", 6, "port"): Tally(counts=Counter({b"\0\x35": 10})),
        },
    )
    assert [(row.key, row.share) for row in top_of(sample, "port", 5, 30).rows] == [
        ("53/UDP", pytest.approx(2 / 3)),
        ("53/TCP", pytest.approx(1 / 3)),
    ]


def test_the_status_gets_few_rows_of_four_questions() -> None:
    """N each of source, destination, port and state, percent rounded down, nothing of zones."""
    sample = Sample(
        3,
        complete=True,
        tallies={
            SOURCES: Tally(counts=Counter({b"\x0a\0\0\1": 2, b"\x0a\0\0\2": 1})),
            Kind("destination", 0, "address"): Tally(counts=Counter({b"\xc0\0\2\1": 3})),
            Kind("port", 6, "port"): Tally(counts=Counter({b"\0\x50": 3})),
            Kind("state", 6, "tcp state"): Tally(counts=Counter({b"\x03": 3})),
            Kind("zone", 0, "zone"): Tally(counts=Counter({b"\0\0": 3})),
        },
    )
    rows = [(row.by, row.key, row.entries, row.percent) for row in talkers_in(sample, 1, 3)]
    assert rows == [
        ("source", "10.0.0.1", 2, 66),
        ("destination", "192.0.2.1", 3, 100),
        ("port", "80/TCP", 3, 100),
        ("state", "TCP ESTABLISHED", 3, 100),
    ]


@given(st.lists(st.integers(0, 40), max_size=600), st.integers(2, 20))
def test_bounded_counts_are_never_wrong_by_more_than_they_admit(keys: list[int], capacity: int) -> None:
    """However few keys are kept: count <= truth <= count + undercount, for keys that were let go too."""
    tally = Tally(capacity=capacity)
    for start in range(0, len(keys), 7):
        tally.add(bytes([key]) for key in keys[start : start + 7])
    truth = Counter(bytes([key]) for key in keys)
    assert len(tally.counts) <= capacity
    for key, count in truth.items():
        assert tally.counts[key] <= count <= tally.counts[key] + tally.undercount


def test_an_undercount_is_part_of_the_error() -> None:
    """A complete count with keys let go is not called exact."""
    tally = Tally(counts=Counter({b"\x0a\0\0\1": 60}), undercount=5)
    assert top_of(Sample(100, complete=True, tallies={SOURCES: tally}), "source", 1, 100).rows[0].error == 0.05
