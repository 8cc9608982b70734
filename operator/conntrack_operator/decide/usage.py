"""The table's use: rates between two readings, the time until it is full, and when a change is worth a report. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

from conntrack_operator.model.node import Usage

BAND_PERCENT = 5
"""Usage is reported when it moves to another band this wide."""
HYSTERESIS_PERCENT = 1
"""And only when it is this far into the new band, so that a node on a border stays quiet."""
WRAP = 2**32
FORECAST_HORIZON_SECONDS = 3600
"""A table that needs longer than this to fill is not filling: a minute of growth says nothing about a day."""
FORECAST_SECONDS = 10
"""Growth is looked at for at least so long before it is taken for one."""
SOON_SECONDS, SOON_UNTIL_SECONDS = 600, 1200
"""A table that is full sooner than the first is worth a report, and so is the end of that, beyond the second."""


@dataclass(frozen=True)
class Reading:
    """One look at the kernel's counters. Counters only grow, from the start of the network namespace."""

    monotonic_seconds: float
    entries: int
    max_entries: int
    drop: int = 0
    """As the kernel counts it: with what `growth_of` takes off."""
    early_drop: int = 0
    insert_failed: int = 0
    invalid: int = 0
    search_restart: int = 0


def growth_of(counter: str, before: Reading | None, now: Reading) -> int:
    """Return by how much a counter, named as in Reading, grew since `before`; since its start when there is none.

    Each CPU's counter wraps, which Prometheus would take for a new beginning and for billions of drops in one moment.

    Of `drop` those count that a full table cost: a packet that lost a collision, as two name lookups from one socket do
    every day, is in drop too, but in insert_failed as well (nf_ct_resolve_clash in nf_conntrack_core.c).
    """
    grown = _grown(getattr(before, counter), getattr(now, counter)) if before else int(getattr(now, counter))
    return max(0, grown - growth_of("insert_failed", before, now)) if counter == "drop" else grown


def usage_from(readings: Sequence[Reading]) -> Usage:
    """Return the use shown by `readings`, oldest first; rates are those between the last two.

    The forecast takes the growth over all of them, since entries come and go in bursts, or over the later half where it
    is faster: better too early than too late. A table that does not grow any more is not filling. Raises IndexError
    when there is no reading.
    """
    now = readings[-1]
    before = readings[-2] if len(readings) > 1 else now
    elapsed = now.monotonic_seconds - before.monotonic_seconds
    return Usage(
        entries=now.entries,
        max_entries=now.max_entries,
        percent=percent_of(now.entries, now.max_entries),
        drops_per_second=_rate(growth_of("drop", before, now), elapsed),
        early_drops_per_second=_rate(growth_of("early_drop", before, now), elapsed),
        insert_failed_per_second=_rate(growth_of("insert_failed", before, now), elapsed),
        seconds_to_full=_seconds_to_full(readings),
    )


def percent_of(entries: int, max_entries: int) -> int:
    """Return the whole percent of a table in use, rounded down; 0 where there is no limit."""
    return entries * 100 // max_entries if max_entries > 0 else 0


def is_another_band(reported: Usage | None, now: Usage) -> bool:
    """Tell whether `now` is news after `reported`.

    That is another limit, another band, drops that began or ended, a table that will soon be full, or will not after
    all. A forecast that merely changes is none.
    """
    if reported is None or reported.max_entries != now.max_entries:
        return True
    if (reported.drops_per_second > 0) != (now.drops_per_second > 0):
        return True
    if _soon(reported) != _soon(now, SOON_UNTIL_SECONDS if _soon(reported) else SOON_SECONDS):
        return True
    band_start = reported.percent // BAND_PERCENT * BAND_PERCENT
    low, high = band_start - HYSTERESIS_PERCENT, band_start + BAND_PERCENT + HYSTERESIS_PERCENT
    return not low <= now.percent < high


def _rate(grown: int, seconds: float) -> int:
    # Rounded up: one drop in a minute is a drop, and a reader must not see 0.
    return -int(-grown // seconds) if seconds > 0 else 0


def _grown(before: int, now: int) -> int:
    # Each CPU's counter is 32 bits wide and wraps; a step back of more than half of that is a counter that began anew.
    count = (now - before) % WRAP
    return 0 if count > WRAP // 2 else count


def _soon(usage: Usage, seconds: int = SOON_UNTIL_SECONDS) -> bool:
    return usage.seconds_to_full is not None and usage.seconds_to_full <= seconds


def _seconds_to_full(readings: Sequence[Reading]) -> int | None:
    first, now = readings[0], readings[-1]
    elapsed = now.monotonic_seconds - first.monotonic_seconds
    if 0 < now.max_entries <= now.entries:
        return 0
    if now.max_entries <= 0 or elapsed < FORECAST_SECONDS:
        return None
    middle = next(each for each in readings if each.monotonic_seconds >= first.monotonic_seconds + elapsed / 2)
    if middle is now:
        middle = readings[-2]
    whole, later = _growth(first, now), _growth(middle, now)
    if whole <= 0 or later <= 0:
        return None
    seconds = int((now.max_entries - now.entries) / max(whole, later))
    return seconds if seconds <= FORECAST_HORIZON_SECONDS else None


def _growth(before: Reading, now: Reading) -> float:
    """Return entries a second, 0 where no time went by."""
    seconds = now.monotonic_seconds - before.monotonic_seconds
    return (now.entries - before.entries) / seconds if seconds > 0 else 0.0
