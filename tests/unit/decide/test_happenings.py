"""Happenings: what is worth an Event."""

from conntrack_operator.decide.happenings import Happening, happenings_between
from conntrack_operator.model.status import Condition, NodeFailure, PolicyStatus


def status(
    ready: str = "True", reason: str = "AllNodesCurrent", conflicted: str = "False", *failures: str
) -> PolicyStatus:
    """Return a status with these conditions, and one failure for each node named."""
    values = {"Ready": (ready, reason), "Conflicted": (conflicted, "x"), "Saturated": ("False", "x")}
    return PolicyStatus(
        conditions=[
            Condition(type=kind, status=value, reason=why, message=f"{kind} message", last_transition_time="t")  # type: ignore[arg-type]
            for kind, (value, why) in values.items()
        ],
        failures=[NodeFailure(node=node, reason="BelowUse", message="too small") for node in failures],
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
