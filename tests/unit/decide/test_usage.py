"""Use, rates and forecast from readings; and what is news."""

import pytest

from conntrack_operator.decide.usage import Reading, is_another_band, percent_of, usage_from
from conntrack_operator.model.node import Usage


def use(percent=50, max_entries=100, drops=0, full_in=None):
    """Return a use of that many percent."""
    return Usage(
        entries=percent, max_entries=max_entries, percent=percent, drops_per_second=drops, seconds_to_full=full_in
    )


def test_one_reading_has_no_rates():
    """The first look cannot tell a rate, and does not invent one."""
    usage = usage_from([Reading(10.0, 50, 200, drop=9, early_drop=9, insert_failed=9)])
    assert (usage.entries, usage.max_entries, usage.percent) == (50, 200, 25)
    assert (usage.drops_per_second, usage.early_drops_per_second, usage.insert_failed_per_second) == (0, 0, 0)
    assert usage.seconds_to_full is None


@pytest.mark.parametrize(
    ("dropped", "seconds", "rate"),
    [(0, 5.0, 0), (1, 5.0, 1), (10, 5.0, 2), (11, 5.0, 3), (5, 0.0, 0), (-7, 5.0, 0)],
)
def test_rates_are_rounded_up(dropped, seconds, rate):
    """One drop is never shown as none; a counter that starts over is not a negative rate."""
    readings = [Reading(0.0, 1, 10, drop=100), Reading(seconds, 1, 10, drop=100 + dropped)]
    assert usage_from(readings).drops_per_second == rate


def test_counters_wrap():
    """A 32-bit counter that wraps is a small step, not a step back."""
    readings = [Reading(0.0, 1, 10, drop=2**32 - 5), Reading(5.0, 1, 10, drop=5)]
    assert usage_from(readings).drops_per_second == 2


@pytest.mark.parametrize(
    ("entries", "limit", "seconds_to_full"),
    [
        ([0, 50], 100, 10),
        ([50, 50], 100, None),
        ([60, 50], 100, None),
        ([0, 100], 100, 0),
        ([0, 30, 50], 100, 20),
        ([0, 110], 100, 0),
        ([0, 1], 10**6, None),
        ([0, 1], 0, None),
        ([100, 100], 100, 0),
        ([0, 600, 600, 600], 1000, None),
        ([0, 600, 700, 600], 1000, None),
        ([0, 0, 0, 100], 1000, 90),
        ([0, 10], 3612, None),
        ([0, 10], 3610, 3600),
    ],
)
def test_forecast(entries, limit, seconds_to_full):
    """The time left is the room left over the growth seen; a table that does not grow (any more) is not filling."""
    readings = [Reading(10.0 * number, value, limit) for number, value in enumerate(entries)]
    assert usage_from(readings).seconds_to_full == seconds_to_full


def test_no_forecast_from_one_short_look():
    """Two readings a second apart, as a change of phase makes them, show a burst and no growth."""
    readings = [Reading(0.0, 10, 1000), Reading(1.0, 110, 1000)]
    assert usage_from(readings).seconds_to_full is None
    assert usage_from([*readings, Reading(12.0, 130, 1000)]).seconds_to_full is not None


@pytest.mark.parametrize(("entries", "limit", "percent"), [(0, 0, 0), (1, 100, 1), (199, 200, 99), (300, 200, 150)])
def test_percent(entries, limit, percent):
    """Rounded down, so that 100 means full; no limit is 0."""
    assert percent_of(entries, limit) == percent


@pytest.mark.parametrize(
    ("reported", "now", "news"),
    [
        (None, use(50), True),
        (use(50), use(50), False),
        (use(50), use(54), False),
        (use(50), use(55), False),
        (use(50), use(56), True),
        (use(50), use(49), False),
        (use(50), use(48), True),
        (use(54), use(49), False),
        (use(50), use(50, drops=1), True),
        (use(50, drops=3), use(50, drops=9), False),
        (use(50, drops=3), use(50), True),
        (use(50), use(50, max_entries=400), True),
        (use(50), use(50, full_in=601), False),
        (use(50), use(50, full_in=600), True),
        (use(50, full_in=600), use(50, full_in=30), False),
        (use(50, full_in=600), use(50, full_in=1200), False),
        (use(50, full_in=600), use(50, full_in=1201), True),
        (use(50, full_in=600), use(50), True),
        (use(50, full_in=3000), use(50), False),
    ],
)
def test_bands_have_hysteresis(reported, now, news):
    """A node that swings around the border of a band says nothing; drops that begin or end are always news."""
    assert is_another_band(reported, now) is news
