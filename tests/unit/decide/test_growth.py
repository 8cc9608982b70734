"""Counters of the kernel, which wrap, as counters that only grow."""

import pytest

from conntrack_operator.decide.usage import WRAP, Reading, growth_of, usage_from


@pytest.mark.parametrize(
    ("before", "now", "grown"),
    [(None, 7, 7), (7, 7, 0), (7, 9, 2), (WRAP - 1, WRAP + 1, 2), (2 * WRAP - 5, WRAP + 5, 10), (900, 3, 0)],
)
def test_growth(before: int | None, now: int, grown: int) -> None:
    """A wrap of one CPU's counter is growth; a counter that began anew is none."""
    earlier = None if before is None else Reading(0, 1, 2, drop=before)
    assert growth_of("drop", earlier, Reading(5, 1, 2, drop=now)) == grown


@pytest.mark.parametrize(("drop", "insert_failed", "lost"), [(5, 5, 0), (9, 5, 4), (0, 7, 0), (7, 9, 0)])
def test_a_lost_race_is_no_full_table(drop: int, insert_failed: int, lost: int) -> None:
    """The kernel counts it as a drop and as a failed insert; nobody is to be woken by it."""
    now = Reading(5, 1, 1000, drop=drop, insert_failed=insert_failed)
    assert growth_of("drop", None, now) == lost
    before, later = (
        Reading(0, 1, 1000, drop=WRAP - 9, insert_failed=40),
        Reading(5, 1, 1000, drop=WRAP - 9 + drop, insert_failed=40 + insert_failed),
    )
    assert growth_of("drop", before, later) == lost
    assert usage_from([before, later]).drops_per_second == -(-lost // 5)
    assert usage_from([before, later]).insert_failed_per_second == -(-insert_failed // 5)
