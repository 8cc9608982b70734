"""What the agent counts, and when it is ready and live."""

from types import SimpleNamespace
from typing import Any

import pytest

from conntrack_operator.agent import metrics as agent_metrics
from conntrack_operator.agent.figures import Figures
from conntrack_operator.agent.metrics import STUCK_SECONDS, AgentMetrics
from conntrack_operator.decide.usage import Reading

IDLE: Any = SimpleNamespace()


def test_counters_go_on_over_a_look_that_failed() -> None:
    """The table's use is absent then, and what happened meanwhile is counted afterwards."""
    figures = Figures()
    figures.looked(Reading(0, 5, 10, drop=2**32 - 3), seconds_to_full=60)
    assert (figures.seconds_to_full, figures.table.values()["drop",]) == (60, 2**32 - 3)
    figures.looked(None)
    assert (figures.reading, figures.seconds_to_full) == (None, None)
    figures.looked(Reading(10, 5, 10, drop=4))
    assert figures.table.values()["drop",] == 2**32 + 4


def test_it_is_ready_after_the_first_look_whatever_that_showed() -> None:
    """A node without connection tracking has an agent at work, too."""
    metrics = AgentMetrics(IDLE, Figures())
    assert metrics.ready() == "the first look at the table is not done yet"
    metrics.figures.looked(None)
    assert metrics.ready() == ""


def test_a_loop_that_hangs_is_not_live(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its last beat is long ago."""
    metrics = AgentMetrics(IDLE, Figures())
    assert metrics.live() == ""
    now = metrics.figures.beat + STUCK_SECONDS + 1
    monkeypatch.setattr(agent_metrics, "time", SimpleNamespace(monotonic=lambda: now))
    assert metrics.live() == "the agent's loop has done nothing for 301 s"
