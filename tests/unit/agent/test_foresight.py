"""When a preview is made again: after a minute, later where one takes long, soon where it could not be made."""

from types import SimpleNamespace
from typing import Any

import pytest

from conntrack_operator.agent import foresight
from conntrack_operator.agent.foresight import Foresight
from conntrack_operator.decide.plan import Plan
from conntrack_operator.decide.report import Deed
from conntrack_operator.errors import Retry, Unsupported
from conntrack_operator.model.node import NodeSpec
from conntrack_operator.model.policy import Settings

SPEC = NodeSpec(revision="r", mode="Hold", node_uid="", preview=Settings.model_validate({"timeouts": {"icmp": 10}}))
PLAN = Plan((), (), {}, ())


class Slow:
    """A machine on which a preview takes so long, and a clock that says so."""

    def __init__(self, answer: Plan | Exception, seconds: float = 0.0) -> None:
        self.now, self._answer, self._seconds = 1000.0, answer, seconds

    def monotonic(self) -> float:
        """Return the time."""
        return self.now

    def preview(self, *_: Any) -> Plan:
        """Take that long, and answer."""
        self.now += self._seconds
        if isinstance(self._answer, Exception):
            raise self._answer
        return self._answer


@pytest.mark.parametrize(
    ("answer", "took", "pause"),
    [(PLAN, 0.01, 60.0), (PLAN, 3.0, 150.0), (Retry("nft did not finish"), 0.01, 5.0), (Retry("nft"), 30.0, 1500.0)],
)
def test_when_it_is_made_again(
    monkeypatch: pytest.MonkeyPatch, answer: Plan | Exception, took: float, pause: float
) -> None:
    """A node spends at most a fiftieth of its time on it."""
    machine: Any = Slow(answer, took)
    monkeypatch.setattr(foresight, "time", SimpleNamespace(monotonic=machine.monotonic))
    made = Foresight(machine)
    deed = made.told(SPEC, Deed("Current", (), preview=made.of(SPEC)))
    assert made.due - machine.now == pytest.approx(pause)
    assert made.again(SPEC, deed) is None, "what is as it was is no news"
    made.told(SPEC.model_copy(update={"preview": None}), deed)
    assert made.due == float("inf")


def test_what_refuses_all_of_it_is_its_one_refusal() -> None:
    """A node without connection tracking says so in the preview, and is as asked itself."""
    machine: Any = Slow(Unsupported("connection tracking is not loaded"))
    plan = Foresight(machine).of(SPEC)
    assert plan
    assert [(each.setting, each.reason) for each in plan.refused] == [("node", "Unsupported")]
    assert plan.changes == ()
