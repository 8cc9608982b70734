"""Holding: what a node has by its spec, and will have with what it was granted."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from conntrack_operator.decide.holding import (
    GONE,
    Target,
    attempt_of,
    given_up_by,
    held_by,
    holding_of,
    newcomers_share,
)
from conntrack_operator.decide.revisions import Revision
from conntrack_operator.decide.targeting import Node
from conntrack_operator.model.node import NodeConntrack, Withdrawal
from conntrack_operator.model.policy import ConntrackPolicy

THEN = datetime(2026, 1, 31, 12, 0, 0, tzinfo=UTC)
NODE = Node("n1", "uid-1", {"role": "web"})
FORMER = replace(NODE, uid="uid-0")


def policy(name: str = "p", role: str = "web", **spec: Any) -> ConntrackPolicy:
    """Return a policy for the nodes of one role; one with a `deletionTimestamp` where `deleted` is given."""
    meta = {"name": name, "uid": f"uid-{name}", "deletionTimestamp": spec.pop("deleted", None)}
    fields = {"mode": "Enforce", "nodeSelector": {"matchLabels": {"role": role}}, **spec}
    return ConntrackPolicy.model_validate({"metadata": meta, "spec": fields})


def told(mode: str = "Apply", withdrawn: dict[str, str] | None = None, **held: str) -> NodeConntrack:
    """Return the object of a node that has these policies at these revisions, and gave others up."""
    uses = [{"name": name, "revision": revision, "fields": []} for name, revision in held.items()]
    up = [{"name": name, "revision": revision} for name, revision in (withdrawn or {}).items()]
    spec = {"revision": "s", "mode": mode, "nodeUID": "uid-1", "policies": uses, "withdrawn": up}
    return NodeConntrack.model_validate({"metadata": {"name": "n1"}, "spec": spec})


def look(name: str, revision: str) -> ConntrackPolicy | None:
    """Return a policy at a revision: `lost` ones are not known, and `old` ones are of a policy that is gone."""
    if revision == "lost":
        return None
    found = policy(name)
    if revision == "old":
        found = found.model_copy(update={"metadata": found.metadata.model_copy(update={"uid": None})})
    return found


@pytest.mark.parametrize(
    ("target", "wanted"),
    [
        pytest.param(policy(), "r", id="means the node"),
        pytest.param(policy(role="db"), GONE, id="means others"),
        pytest.param(policy(mode="Observe"), GONE, id="observes"),
        pytest.param(policy(deleted="2026-01-31T12:00:00Z"), GONE, id="is being deleted"),
        pytest.param(None, GONE, id="is gone"),
    ],
)
def test_what_a_node_should_have(target: ConntrackPolicy | None, wanted: str) -> None:
    """The policy's revision of today, or nothing of it."""
    assert Target("p", target, "r").wanted_at(NODE) == wanted


def test_what_a_node_has() -> None:
    """By an Apply spec, and of this very node alone."""
    assert held_by(NODE, told(p="r1", q="r2").spec) == {"p": "r1", "q": "r2"}
    assert held_by(NODE, told("Restore", p="r1").spec) == {}
    assert held_by(NODE, told("Hold").spec) == {}
    assert held_by(FORMER, told(p="r1").spec) == {}
    assert held_by(NODE, None) == {}
    assert given_up_by(NODE, told("Restore", {"p": ""}).spec) == {"p": ""}
    assert given_up_by(FORMER, told("Restore", {"p": ""}).spec) == {}
    assert given_up_by(NODE, None) == {}


def test_it_keeps_what_it_has() -> None:
    """With no grant nothing changes, whatever is wanted now."""
    holding = holding_of(NODE, told(p="r1", q="r2"), {}, (), look)
    assert holding.revisions == {"p": "r1", "q": "r2"}
    assert [each.metadata.name for each in holding.policies] == ["p", "q"]
    assert (holding.withdrawn, holding.gone, holding.unknown) == ((), frozenset(), ())


def test_grants_are_added_replaced_and_taken() -> None:
    """Each policy by itself."""
    holding = holding_of(NODE, told(p="r1", q="r1", r="r1"), {"q": "r2", "r": GONE, "s": "r5"}, (), look)
    assert holding.revisions == {"p": "r1", "q": "r2", "s": "r5"}
    assert holding_of(NODE, None, {"p": "r1"}, (), look).revisions == {"p": "r1"}
    assert holding_of(FORMER, told(p="r1"), {}, (), look).revisions == {}


def test_unknown_and_gone_are_told_apart() -> None:
    """What nobody knows is named and not dropped; of one that is gone the content is known."""
    holding = holding_of(NODE, told(p="lost", q="old", r="r1"), {}, (), look)
    assert (holding.unknown, holding.gone) == (("p",), frozenset({"q"}))
    assert holding.revisions == {"p": "lost", "q": "old", "r": "r1"}
    assert holding_of(NODE, told(p="lost"), {"p": "r2"}, (), look).unknown == (), "given another, it is known"
    assert holding_of(NODE, told(p="lost"), {"p": GONE}, (), look).unknown == ()


def test_who_has_given_up_what_is_kept_in_mind_while_it_travels() -> None:
    """From the moment it is taken until nobody else has it any more; or it is given back."""
    taken = holding_of(NODE, told(p="r1"), {"p": GONE}, {("p", "r2")}, look)
    assert taken.withdrawn == (Withdrawal(name="p", revision="r2"),)
    later = told("Restore", {"p": "r2"})
    assert holding_of(NODE, later, {}, {("p", "r2")}, look).withdrawn == taken.withdrawn
    assert holding_of(NODE, later, {}, (), look).withdrawn == (), "it has ended"
    assert holding_of(NODE, later, {}, {("p", "r3")}, look).withdrawn == (), "another withdrawal of it goes on"
    assert holding_of(NODE, later, {"p": "r2"}, {("p", "r2")}, look).withdrawn == (), "it has it again"
    assert holding_of(NODE, told(q="r1"), {}, {("p", "r2")}, look).withdrawn == (), "it never had it"


def test_nothing_is_forgotten_before_anything_was_judged() -> None:
    """A controller that was just started does not know what travels, and leaves what the specs say of it."""
    known = {"p": "r2", "q": ""}
    holding = holding_of(NODE, told(withdrawn=known, s="r1"), {}, None, look)
    assert {each.name: each.revision for each in holding.withdrawn} == known


GOOD = Revision("p", "r1", 1, {}, good_since=THEN)
JUST_MADE = replace(NODE, created=THEN + timedelta(seconds=1))


@pytest.mark.parametrize(
    ("node", "target", "share"),
    [
        pytest.param(JUST_MADE, Target("p", policy(), "r2", GOOD), {"p": "r1"}, id="the last good one"),
        pytest.param(JUST_MADE, Target("p", policy(), "r1", GOOD), {"p": "r1"}, id="which may be today's"),
        pytest.param(replace(NODE, created=THEN), Target("p", policy(), "r2", GOOD), {}, id="was there before"),
        pytest.param(NODE, Target("p", policy(), "r2", GOOD), {}, id="nobody knows since when it is there"),
        pytest.param(JUST_MADE, Target("p", policy(), "r2"), {}, id="none has gone well yet"),
        pytest.param(JUST_MADE, Target("p", policy(mode="Observe"), "r2", GOOD), {}, id="is only observed now"),
        pytest.param(JUST_MADE, Target("p", policy(role="db"), "r2", GOOD), {}, id="is not meant now"),
        pytest.param(JUST_MADE, Target("p", None, GONE, GOOD), {}, id="is gone"),
        pytest.param(JUST_MADE, Target("p", policy(), "r2", replace(GOOD, name="lost")), {}, id="nobody knows it"),
        pytest.param(
            replace(JUST_MADE, labels={"role": "db"}),
            Target("p", policy(role="db"), "r2", GOOD),
            {},
            id="meant others then",
        ),
    ],
)
def test_what_a_newcomer_gets(node: Node, target: Target, share: dict[str, str]) -> None:
    """What went well everywhere before it came, where that means it, and the policy of today does so too."""
    assert newcomers_share(node, [target], look) == share


def test_the_attempt_is_of_all_that_is_asked_again() -> None:
    """Whoever asks changes it; the order does not, and a rollout without a retry is no question."""
    asks = [policy(name, rollout={"retry": text}) for name, text in (("p", "1"), ("q", "1"), ("p", "2"))]
    assert len({attempt_of([each]) for each in asks}) == 3
    assert attempt_of(asks[:2]) == attempt_of(reversed(asks[:2]))
    assert attempt_of([policy(rollout={"canary": 1}), policy("q")]) == ""
    assert attempt_of([asks[0], policy("q")]) == attempt_of([asks[0]])
