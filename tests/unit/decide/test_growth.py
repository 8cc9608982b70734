"""Counters of the kernel, which wrap, as counters that only grow."""

import pytest

from conntrack_operator.decide.usage import WRAP, Reading, growth_of


@pytest.mark.parametrize(
    ("before", "now", "grown"),
    [(None, 7, 7), (7, 7, 0), (7, 9, 2), (WRAP - 1, WRAP + 1, 2), (2 * WRAP - 5, WRAP + 5, 10), (900, 3, 0)],
)
def test_growth(before: int | None, now: int, grown: int) -> None:
    """A wrap of one CPU's counter is growth; a counter that began anew is none."""
    earlier = None if before is None else Reading(0, 1, 2, drop=before)
    assert growth_of("drop", earlier, Reading(5, 1, 2, drop=now)) == grown
