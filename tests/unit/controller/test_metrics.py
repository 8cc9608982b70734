"""What a controller says of itself while it waits, leads and fails to do either."""

import time
from types import SimpleNamespace

import pytest

from conntrack_operator.controller import metrics as controller_metrics
from conntrack_operator.controller.figures import Figures
from conntrack_operator.controller.metrics import STUCK_SECONDS, ControllerMetrics
from conntrack_operator.controller.workqueue import WorkQueue


class Leading:
    """A candidate as the metrics see it."""

    def __init__(self) -> None:
        self.beat = time.monotonic()
        self.trouble = ""
        self.left = 0.0

    @property
    def fence(self) -> "Leading":
        """Return itself, which is asked for the time left."""
        return self

    def left_seconds(self) -> float:
        """Return the seconds it may still write."""
        return self.left


@pytest.fixture
def leading() -> Leading:
    """Give a candidate that waits."""
    return Leading()


@pytest.fixture
def metrics(leading: Leading) -> ControllerMetrics:
    """Give its metrics."""
    return ControllerMetrics(leading, Figures())  # type: ignore[arg-type]


def value(metrics: ControllerMetrics, name: str) -> float:
    """Return the value of a metric without labels."""
    return next(each.samples[0].value for each in metrics.families() if each.name == f"conntrack_operator_{name}")


def test_one_that_waits_is_ready_and_leads_not(metrics: ControllerMetrics, leading: Leading) -> None:
    """It becomes leader with the fence."""
    assert (metrics.live(), metrics.ready(), value(metrics, "leader")) == ("", "", 0)
    leading.left = 10
    assert (metrics.ready(), value(metrics, "leader")) == ("", 1)


def test_one_that_cannot_look_at_the_lease_is_live_and_not_ready(metrics: ControllerMetrics, leading: Leading) -> None:
    """To start it anew would not help; the reason is said."""
    leading.trouble = "the API server does not answer"
    assert (metrics.live(), metrics.ready()) == ("", "the API server does not answer")


def test_one_that_hangs_is_neither(
    metrics: ControllerMetrics, leading: Leading, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sentence says for how long."""
    now = leading.beat + STUCK_SECONDS + 5
    monkeypatch.setattr(controller_metrics, "time", SimpleNamespace(monotonic=lambda: now))
    assert metrics.live() == metrics.ready() == "the controller's loop has done nothing for 65 s"


def test_the_queue_counts_what_is_due() -> None:
    """What comes again in five minutes does not wait for a worker."""
    queue: WorkQueue[str] = WorkQueue()
    queue.add("now")
    queue.add("later", 300)
    assert (queue.due(), len(queue)) == (1, 2)
