"""Revisions: what is a new version of a policy, which are kept, and what an old one says today."""

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conntrack_operator.decide.revisions import (
    KEPT,
    Revision,
    content_of,
    last_good,
    outdated,
    policy_at,
    revision_name,
)
from conntrack_operator.model.policy import ConntrackPolicy


def policy(**spec: Any) -> ConntrackPolicy:
    """Return a policy."""
    fields = {"mode": "Enforce", "nodeSelector": {"matchLabels": {"role": "web"}}, **spec}
    meta = {"name": "p", "uid": "u", "creationTimestamp": "2026-01-02T00:00:00Z"}
    return ConntrackPolicy.model_validate({"metadata": meta, "spec": fields})


def revision(number: int, name: str = "", good: int = 0, **content: Any) -> Revision:
    """Return a revision, good since so many minutes past noon."""
    since = datetime(2026, 1, 31, 12, good, tzinfo=UTC) if good else None
    return Revision("p", name or f"r{number}", number, content or content_of(policy()), "2026-01-01T00:00:00Z", since)


@pytest.mark.parametrize("spec", [{"rollout": {"canary": 3, "paused": True, "retry": "x"}}, {"onDelete": "Keep"}])
def test_what_acts_at_once_is_no_revision(spec: dict[str, Any]) -> None:
    """How a change travels, and what becomes of it at the end, may be changed at any time."""
    assert revision_name(policy(**spec)) == revision_name(policy())
    assert content_of(policy(**spec)) == content_of(policy())


@pytest.mark.parametrize(
    "spec",
    [
        {"mode": "Observe"},
        {"nodeSelector": {"matchLabels": {"role": "db"}}},
        {"priority": 1},
        {"timeouts": {"icmp": 3}},
        {"trial": {"timeoutSeconds": 90}},
    ],
)
def test_what_travels_is_a_revision(spec: dict[str, Any]) -> None:
    """Whatever may change what some node does."""
    assert revision_name(policy(**spec)) != revision_name(policy())


def test_an_old_revision_of_a_policy_that_is_there() -> None:
    """It has the content of then, and the rollout, the onDelete and the identity of now."""
    then = revision(1, **content_of(policy(timeouts={"icmp": 3}, rollout={"canary": 9}, onDelete="Keep")))
    now = policy(timeouts={"icmp": 4}, rollout={"canary": 2})
    read = policy_at(then, now)
    assert read == policy(timeouts={"icmp": 3}, rollout={"canary": 2})


def test_an_old_revision_of_a_policy_that_is_gone() -> None:
    """It has no uid, by which that is seen, and keeps its age, which decides between equal priorities."""
    read = policy_at(revision(1), None)
    assert read is not None
    assert (read.metadata.name, read.metadata.uid) == ("p", None)
    assert read.metadata.creation_timestamp == "2026-01-01T00:00:00Z"
    assert (read.spec.rollout, read.spec.on_delete) == (None, None)


@pytest.mark.parametrize(
    "content", [{"mode": "Enforce"}, {**content_of(policy()), "fromTheFuture": 1}, {"nodeSelector": {}, "mode": "Off"}]
)
def test_a_revision_that_this_version_does_not_understand(content: dict[str, Any]) -> None:
    """It is nothing, and never what is left of it."""
    assert policy_at(revision(1, **content), None) is None
    assert policy_at(revision(1, **content), policy()) is None


def test_the_last_good_one() -> None:
    """By when it went well, not by its number: an edit that is taken back makes the older one good again."""
    assert last_good([]) is None
    assert last_good([revision(1), revision(2)]) is None
    taken_back = [revision(1, good=9), revision(2, good=5), revision(3)]
    assert last_good(taken_back) == taken_back[0]


@pytest.mark.parametrize(
    ("revisions", "present", "used", "goes"),
    [
        pytest.param([revision(number) for number in range(1, 6)], "r5", [], [1, 2], id="the last three stay"),
        pytest.param([revision(number) for number in range(1, 6)], "r5", ["r1"], [2], id="so does what a node has"),
        pytest.param([revision(number) for number in range(1, 6)], "r1", [], [2], id="so does the present one"),
        pytest.param([revision(1, good=1), *map(revision, range(2, 6))], "r5", [], [2], id="and the last good one"),
        pytest.param(
            [revision(1, good=1), revision(2, good=2), *map(revision, range(3, 7))],
            "r6",
            [],
            [1, 3],
            id="not every good one",
        ),
        pytest.param([revision(1, good=1), revision(2)], None, ["r2"], [1], id="gone: what a node has"),
        pytest.param([revision(1, good=1), revision(2)], None, [], [1, 2], id="gone from everywhere"),
        pytest.param([], "r1", [], [], id="none"),
    ],
)
def test_which_revisions_are_kept(
    revisions: list[Revision], present: str | None, used: list[str], goes: list[int]
) -> None:
    """Only what nobody has, or may be given."""
    assert sorted(each.number for each in outdated(revisions, present, used)) == goes


@given(st.lists(st.integers(1, 30), unique=True, max_size=12), st.data())
def test_rules_of_keeping(numbers: list[int], data: Any) -> None:
    """Never what is used, present or the last good; never fewer than three while there are."""
    revisions = [revision(number, good=data.draw(st.integers(0, 9))) for number in numbers]
    names = [each.name for each in revisions]
    used = data.draw(st.sets(st.sampled_from(names))) if names else set()
    present = data.draw(st.sampled_from(names)) if names else "r1"
    gone = {each.name for each in outdated(revisions, present, used)}
    good = last_good(revisions)
    assert not gone & {present, *used, *([good.name] if good else [])}
    assert len(names) - len(gone) >= min(KEPT, len(names))
    assert len(names) - len(gone) <= KEPT + len(used) + 2
    assert {each.name for each in outdated(revisions, None, used)} == set(names) - used
