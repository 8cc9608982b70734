"""The pace of status writes: quick after a quiet time, slow under load."""

import pytest

from conntrack_operator.controller.pace import BURST, REFILL_SECONDS, Pace


def test_a_burst_is_free_and_then_every_few_seconds() -> None:
    """The first writes go at once; from then on one each REFILL_SECONDS; a quiet time fills the bucket again."""
    now = 1000.0
    pace = Pace(lambda: now)
    for _ in range(BURST):
        assert pace.wait_seconds("p") == 0
        pace.spend("p")
    assert pace.wait_seconds("p") == pytest.approx(REFILL_SECONDS)
    assert pace.wait_seconds("other") == 0
    now += REFILL_SECONDS
    assert pace.wait_seconds("p") == 0
    pace.spend("p")
    assert pace.wait_seconds("p") == pytest.approx(REFILL_SECONDS)
    now += 100 * REFILL_SECONDS
    for _ in range(BURST):
        assert pace.wait_seconds("p") == 0
        pace.spend("p")
    assert pace.wait_seconds("p") > 0
