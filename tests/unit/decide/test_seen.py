"""One node as the controller sees it: whether it can be given something."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from conntrack_operator.decide.seen import Seen
from conntrack_operator.decide.targeting import Node
from conntrack_operator.model.node import NodeConntrack

NOW = datetime(2026, 1, 31, 12, 0, 0, tzinfo=UTC)
LONG_AGO = NOW - timedelta(minutes=15)


def seen(*, ready: bool = True, heard: datetime | None = NOW, answers: bool = True, **known: Any) -> Seen:
    """Return a node that was asked to hold and has answered, but for what is given."""
    status = {"observedRevision": "h", "nodeUID": "u", "phase": "Current"} if answers else None
    spec = {"revision": "h", "mode": "Hold", "nodeUID": "u"}
    found = NodeConntrack.model_validate({"metadata": {"name": "n"}, "spec": spec, "status": status})
    return Seen(Node("n", "u", ready=ready), found, heard_at=heard, told_at=NOW, **known)


@pytest.mark.parametrize(
    ("node", "able"),
    [
        pytest.param(seen(), True, id="heard"),
        pytest.param(seen(agent_ready=True), True, id="heard, and its pod is Ready"),
        pytest.param(seen(agent_ready=False), False, id="its pod is not"),
        pytest.param(seen(ready=False), False, id="not Ready"),
        pytest.param(seen(heard=LONG_AGO), False, id="silent"),
        pytest.param(seen(heard=LONG_AGO, agent_ready=True), False, id="silent, though its pod is Ready"),
        pytest.param(seen(answers=False, heard=None), False, id="never heard"),
        pytest.param(seen(answers=False, heard=None, agent_ready=True), True, id="not heard yet, and its pod is Ready"),
        pytest.param(
            seen(answers=False, heard=None, agent_ready=True, ready=False), False, id="its pod is Ready on a dead node"
        ),
    ],
)
def test_who_can_be_given_something(node: Seen, able: bool) -> None:
    """The node is Ready and its agent works, by its own word or, before its first, by its pod's."""
    assert node.is_able(NOW) is able
    assert node.is_new(NOW) is (node.status is None and not able)


def test_an_agent_is_awaited_for_a_while() -> None:
    """A node that was told a moment ago is not away; five minutes later it is."""
    node = seen(answers=False, heard=None)
    assert node.is_awaited(NOW)
    assert not node.is_awaited(NOW + timedelta(minutes=5))
    assert not seen(answers=False, heard=None, ready=False).is_awaited(NOW)
    assert not seen(heard=LONG_AGO).is_awaited(NOW)
