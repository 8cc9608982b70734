"""Happenings: what is worth an Event."""

from datetime import UTC, datetime
from itertools import pairwise

import pytest

from conntrack_operator.decide.happenings import HALTS, Happening, happenings_between
from conntrack_operator.decide.summary import rejected
from conntrack_operator.model.status import Condition, NodeFailure, PolicyStatus


def status(
    ready: str = "True",
    reason: str = "AllNodesCurrent",
    conflicted: str = "False",
    *failures: str,
    moving: bool = False,
    stalled: str = "NotStalled",
) -> PolicyStatus:
    """Return a status with these conditions, and one failure for each node named (or node/reason)."""
    values = {
        "Ready": (ready, reason),
        "Reconciling": (str(moving), "x"),
        "Stalled": (str(stalled != "NotStalled"), stalled),
        "Conflicted": (conflicted, "x"),
        "Saturated": ("False", "x"),
    }
    return PolicyStatus(
        conditions=[
            Condition(type=kind, status=value, reason=why, message=f"{kind} message", last_transition_time="t")  # type: ignore[arg-type]
            for kind, (value, why) in values.items()
        ],
        failures=[
            NodeFailure(node=node, reason=why or "BelowUse", message="too small")
            for node, _, why in (failure.partition("/") for failure in failures)
        ],
    )


def test_a_first_success_is_told_once() -> None:
    """All nodes current is told when it begins, and not again."""
    assert list(happenings_between(None, status())) == [Happening("Normal", "AllNodesCurrent", "Ready message")]
    assert list(happenings_between(status(), status())) == []


def test_progress_is_not_told() -> None:
    """A policy on its way is what everybody expects."""
    assert list(happenings_between(None, status("False", "Progressing"))) == []


def test_nothing_matches_is_told() -> None:
    """A selector that matches nothing is mostly a mistake."""
    assert [each.reason for each in happenings_between(status(), status("False", "NoNodeMatches"))] == ["NoNodeMatches"]


def test_a_conflict_is_told_when_it_begins() -> None:
    """The loser hears of it."""
    told = list(happenings_between(status(), status(conflicted="True")))
    assert told == [Happening("Warning", "Conflicted", "Conflicted message")]
    assert list(happenings_between(status(conflicted="True"), status(conflicted="True"))) == []


def test_each_new_failure_is_told_for_its_node() -> None:
    """A node that begins to refuse is named; one that goes on refusing is not told again."""
    before = status("False", "NodesRefused", "False", "a")
    told = list(happenings_between(before, status("False", "NodesRefused", "False", "a", "b")))
    assert told == [Happening("Warning", "BelowUse", "b: too small", "b")]


def failing(*failures: str, moving: bool = False, stalled: str = "NotStalled") -> PolicyStatus:
    """Return the status of a policy that some node does not keep."""
    return status("False", "NodesRefused", "False", *failures, moving=moving, stalled=stalled)


def test_one_event_for_each_node_and_reason() -> None:
    """However many settings a node refuses for one reason, and however the sentence changes, it is told once."""
    told = list(happenings_between(None, failing("a/NATConflict", "a/NATConflict", "a/BelowUse")))
    assert [(each.reason, each.node) for each in told] == [("NATConflict", "a"), ("BelowUse", "a")]


def test_the_life_of_a_change_that_rolls_back() -> None:
    """It is told when it is rolled back, not at every try, when it is parked, and when it is well again."""
    life = [
        status(),
        failing("a/ProbeFailed", moving=True),
        failing("a/ProbeFailed", moving=True),
        failing("a/ProbeFailed", stalled="NodesParked"),
        failing("a/ProbeFailed", stalled="NodesParked"),
        status("False", "Progressing", moving=True),
        status(),
    ]
    pairs = pairwise(life)
    told = [[each.reason for each in happenings_between(before, after)] for before, after in pairs]
    assert told == [["RolledBack"], [], ["NodesParked"], [], [], ["AllNodesCurrent"]]


def test_a_node_that_recovers_by_itself_is_told() -> None:
    """The Service that was in the way is gone: said on the node too, but not while anything is under way."""
    before = failing("a/NATConflict", "b")
    told = list(happenings_between(before, failing("b")))
    assert told == [Happening("Normal", "Recovered", "a: nothing fails there any more (it was NATConflict)", "a")]
    assert list(happenings_between(before, failing("b", moving=True))) == []
    assert [each.reason for each in happenings_between(before, failing("a/BelowUse", "b"))] == ["BelowUse"]


def test_nobody_recovers_from_a_list_that_is_full() -> None:
    """Of more failures than a status names, one that is not named any more may go on all the same."""
    ten = [f"n{number}" for number in range(10)]
    assert list(happenings_between(failing(*ten), failing(*ten[1:], "m"))) == [
        Happening("Warning", "BelowUse", "m: too small", "m")
    ]


def halted(reason: str) -> PolicyStatus:
    """Return the status of a policy whose rollout stopped by itself."""
    return status("False", reason, stalled=reason)


@pytest.mark.parametrize("reason", sorted(HALTS))
def test_a_rollout_that_halts_is_told_once_and_when_it_goes_on(reason: str) -> None:
    """With the sentence of the condition; an edit or a retry sets it going again, and its end is its own event."""
    life = [
        status("False", "Progressing", moving=True),
        halted(reason),
        halted(reason),
        status("False", "Progressing", moving=True),
        status(),
    ]
    told = [list(happenings_between(before, after)) for before, after in pairwise(life)]
    assert told == [
        [Happening("Warning", reason, "Stalled message")],
        [],
        [Happening("Normal", "RolloutResumed", "the rollout goes on: Ready message")],
        [Happening("Normal", "AllNodesCurrent", "Ready message")],
    ]


def test_another_reason_to_halt_is_told() -> None:
    """And one that is over together with the rollout is no news beside its success."""
    assert list(happenings_between(halted("CanarySilent"), halted("CanaryFailed"))) == [
        Happening("Warning", "CanaryFailed", "Stalled message")
    ]
    assert [each.reason for each in happenings_between(halted("CanarySilent"), status())] == ["AllNodesCurrent"]


def test_a_pause_is_not_told() -> None:
    """Somebody asked for it."""
    paused = status("False", "Paused")
    assert list(happenings_between(status("False", "Progressing", moving=True), paused)) == []
    assert list(happenings_between(paused, status("False", "Progressing", moving=True))) == []


def test_nodes_that_refuse_are_not_told_twice() -> None:
    """Each has an event of its own; that the policy is stalled by them is none."""
    told = happenings_between(status(), failing("a", stalled="NodesFailed"))
    assert [each.reason for each in told] == ["BelowUse"]


def degraded(reason: str) -> PolicyStatus:
    """Return the status of a policy on its way that is degraded for this reason."""
    way = status("False", "Progressing", moving=True)
    told = Condition(type="Degraded", status="True", reason=reason, message="no image", last_transition_time="t")
    return way.model_copy(update={"conditions": [*way.conditions, told]})


def test_agents_that_do_not_run_are_told() -> None:
    """When it begins, in the sentence that holds the remedy, and when it is over, but not when something is worse."""
    ill = degraded("AgentsNotRunning")
    assert list(happenings_between(None, ill)) == [Happening("Warning", "AgentsNotRunning", "no image")]
    assert list(happenings_between(ill, ill)) == []
    assert [each.reason for each in happenings_between(ill, degraded("NodesAway"))] == ["AgentsStart"]
    assert list(happenings_between(ill, degraded("NodesFailed"))) == []
    assert list(happenings_between(degraded("NodesAway"), degraded("NodesFailed"))) == []


def test_a_policy_that_cannot_be_read_is_told() -> None:
    """It has three conditions only."""
    told = happenings_between(None, rejected(3, "spec.mode: no", datetime(2026, 1, 1, tzinfo=UTC)))
    assert [(each.type, each.reason) for each in told] == [("Warning", "Unreadable")]
