"""Waves: whom a change may reach next, as a table of cases and as rules that hold for every fleet."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conntrack_operator.decide.pacing import Pace, number_of, strictest
from conntrack_operator.decide.rollout import (
    ANSWER_SECONDS,
    CANARY_FAILED,
    CANARY_SILENT,
    TOO_MANY_FAILURES,
    Member,
    State,
    Verdict,
    verdict_on,
)
from conntrack_operator.model.policy import Rollout

NOW = datetime(2026, 1, 31, 12, 0, 0, tzinfo=UTC)
SOAK = 30


def ago(seconds: float) -> datetime:
    """Return the moment so many seconds before NOW."""
    return NOW - timedelta(seconds=seconds)


def member(node: str, state: State = "waiting", seconds: float = 5, **more: Any) -> Member:
    """Return a node that has been in `state` for so many seconds."""
    return Member(node, state, ago(seconds), **more)


def fleet(count: int, *others: Member) -> list[Member]:
    """Return `count` nodes that wait, w00 and so on, and `others`."""
    return [*(member(f"w{number:02}") for number in range(count)), *others]


def rollout(**fields: Any) -> Rollout:
    """Return a rollout."""
    return Rollout.model_validate({"soakSeconds": SOAK, **fields})


@pytest.mark.parametrize(
    ("members", "fields", "stage", "release", "reason"),
    [
        pytest.param([], {}, "Done", [], "", id="nobody"),
        pytest.param(fleet(20), {}, "Canary", ["w00"], "Canary", id="the first of all"),
        pytest.param(fleet(20, member("c", "moving")), {}, "Canary", [], "Canary", id="canary on its way"),
        pytest.param(fleet(20, member("c", "retrying")), {}, "Canary", [], "Canary", id="canary tries again"),
        pytest.param(fleet(20, member("c", "done", SOAK - 1)), {}, "Soak", [], "Soak", id="canary soaks"),
        pytest.param(fleet(19, member("c", "done", SOAK)), {}, "Waves", ["w00", "w01"], "Waves", id="canary proved"),
        pytest.param(fleet(20, member("c", "failed")), {}, "Halted", [], CANARY_FAILED, id="canary failed"),
        pytest.param(
            fleet(20, member("c", "moving", ANSWER_SECONDS)),
            {},
            "Halted",
            [],
            CANARY_SILENT,
            id="canary never answered",
        ),
        pytest.param(fleet(20, member("c", "refused")), {}, "Canary", ["w00"], "Canary", id="canary refused: the next"),
        pytest.param(
            fleet(20, member("c", "moving", able=False)), {}, "Canary", [], "CanaryAway", id="canary went away"
        ),
        pytest.param(
            fleet(20, member("c", "done", SOAK + ANSWER_SECONDS, able=False)),
            {},
            "Canary",
            ["w00"],
            "Canary",
            id="canary went long ago",
        ),
        pytest.param(
            [member("a", busy=True), member("b"), member("c")],
            {"maxUnavailable": 2},
            "Canary",
            ["b"],
            "Canary",
            id="not what is busy elsewhere",
        ),
        pytest.param(
            [member("a", busy=True), member("b")],
            {},
            "Canary",
            [],
            "CanaryBusy",
            id="nor while that takes all room",
        ),
        pytest.param(
            [member("a", busy=True, touched=True), member("b")],
            {},
            "Canary",
            ["a"],
            "Canary",
            id="what was edited",
        ),
        pytest.param(
            fleet(20, member("j", "moving", is_new=True)), {}, "Canary", ["w00"], "Canary", id="who joins is no canary"
        ),
        pytest.param(
            fleet(9, member("d", "done", SOAK), *(member(f"j{i}", "moving", is_new=True) for i in range(5))),
            {"maxUnavailable": 1},
            "Waves",
            ["w00"],
            "Waves",
            id="nor holds up anybody",
        ),
        pytest.param([member("a", busy=True)], {}, "Canary", [], "CanaryBusy", id="all are busy elsewhere"),
        pytest.param(
            [member("a"), member("b", touched=True, busy=True)], {}, "Canary", ["b"], "Canary", id="touched goes first"
        ),
        pytest.param(fleet(3), {"canary": 50, "maxUnavailable": "100%"}, "Canary", ["w00", "w01", "w02"], "Canary"),
        pytest.param(fleet(3), {"canary": 50}, "Canary", ["w00"], "Canary", id="canaries keep to the budget"),
        pytest.param(
            fleet(2, member("c", "moving")),
            {"canary": 3, "maxUnavailable": 2},
            "Canary",
            ["w00"],
            "Canary",
            id="and the room they have",
        ),
        pytest.param(
            [member("a", "done", SOAK), member("b", "refused")],
            {"canary": 2},
            "Done",
            [],
            "",
            id="one that refused is no canary to wait for",
        ),
        pytest.param(
            [member("a", "done", SOAK), member("b", "failed")],
            {"canary": 2},
            "Halted",
            [],
            CANARY_FAILED,
            id="one of two canaries failed",
        ),
        pytest.param(
            [member("a", "done", SOAK), member("b", busy=True)],
            {"canary": 2},
            "Canary",
            [],
            "CanaryBusy",
            id="the second canary is busy",
        ),
        pytest.param(fleet(20), {"canary": 0}, "Waves", ["w00", "w01"], "Waves", id="no canary"),
        pytest.param(fleet(20), {"canary": 0, "maxUnavailable": 0}, "Waves", ["w00"], "Waves", id="at least one"),
        pytest.param(
            fleet(20, member("m", "moving"), member("r", "retrying")),
            {"canary": 0, "maxFailures": 1},
            "Waves",
            ["w00"],
            "Waves",
            id="room for one more",
        ),
        pytest.param(
            fleet(20, member("m", "moving", ANSWER_SECONDS)),
            {"canary": 0, "maxUnavailable": 1},
            "Waves",
            ["w00"],
            "Waves",
            id="what never answers holds up nobody",
        ),
        pytest.param(
            fleet(20, member("m", busy=True, touched=True)),
            {"canary": 0, "maxUnavailable": 1},
            "Waves",
            ["m"],
            "Waves",
            id="what is on its way already takes no more room",
        ),
        pytest.param(
            fleet(20, member("m", busy=True)),
            {"canary": 0, "maxUnavailable": 1},
            "Waves",
            [],
            "Waves",
            id="busy counts",
        ),
        pytest.param(
            fleet(49, member("f", "failed")),
            {"canary": 0, "maxUnavailable": 1},
            "Waves",
            ["w00"],
            "Waves",
            id="one failure of fifty is allowed",
        ),
        pytest.param(
            fleet(48, member("f", "failed")),
            {"canary": 0},
            "Halted",
            [],
            TOO_MANY_FAILURES,
            id="one of forty-nine is not",
        ),
        pytest.param(
            fleet(1, member("f", "retrying")),
            {"canary": 0, "maxFailures": 0},
            "Halted",
            [],
            TOO_MANY_FAILURES,
            id="nor one that tries again",
        ),
        pytest.param(
            [member("d", "done", SOAK), member("f", "failed")], {"canary": 0}, "Done", [], "", id="nobody left to spare"
        ),
        pytest.param(
            [member("d", "done", SOAK), member("a", able=False), member("m", "moving", able=False)],
            {},
            "Done",
            [],
            "",
            id="it ends without those who are away",
        ),
        pytest.param(fleet(2), {"paused": True}, "Paused", [], "", id="paused"),
        pytest.param([member("m", "moving")], {"paused": True}, "Paused", [], "", id="paused on the way"),
        pytest.param([member("d", "done")], {"paused": True}, "Done", [], "", id="paused with nothing left"),
    ],
)
def test_verdicts(members: list[Member], fields: dict[str, Any], stage: str, release: list[str], reason: str) -> None:
    """Where a change stands, and who is next."""
    verdict = verdict_on(members, rollout(**fields), NOW)
    assert (verdict.stage, list(verdict.release), verdict.reason) == (stage, release, reason)


@pytest.mark.parametrize(
    ("members", "is_good"),
    [
        pytest.param([member("d", "done", SOAK)], True, id="all have it"),
        pytest.param([member("d", "done", SOAK), member("a", able=False)], True, id="all that can"),
        pytest.param([member("d", "done", SOAK), member("r", "refused")], True, id="a refusal is no failure"),
        pytest.param([member("d", "done", SOAK), member("f", "failed")], False, id="too many failed"),
        pytest.param([member("d", "done", SOAK), *fleet(1)], False, id="not at its end"),
        pytest.param([member("d", "done", SOAK), member("b", busy=True)], False, id="one cannot take it yet"),
        pytest.param([member("d", "done", 1)], False, id="it soaks"),
        pytest.param([member("r", "refused")], False, id="nobody has it"),
        pytest.param([member("a", able=False)], False, id="everybody is away"),
        pytest.param([member("d", "done", 9999, able=False), member("a", able=False)], False, id="also who has it"),
    ],
)
def test_what_has_gone_well(members: list[Member], is_good: bool) -> None:
    """Newcomers are given it from then on without a wave, so that it must have been seen to work."""
    assert verdict_on(members, rollout(), NOW).is_good is is_good


def test_it_says_when_to_look_again() -> None:
    """When the soak or the patience with a node ends, nothing happens that would tell."""
    soaking = verdict_on(fleet(3, member("c", "done", 10)), rollout(), NOW)
    assert soaking.again_at == NOW + timedelta(seconds=SOAK - 10)
    assert soaking.message == "canary c must stay current until 12:00:20 UTC"
    moving = verdict_on(fleet(3, member("c", "moving", 100, patience_seconds=360)), rollout(), NOW)
    assert moving.again_at == NOW + timedelta(seconds=260)
    assert verdict_on(fleet(3), rollout(paused=True), NOW).again_at is None


def test_halts_name_nodes_and_remedy() -> None:
    """At most three names, and what to do."""
    failed = [member(f"f{number}", "failed") for number in range(5)]
    told = verdict_on(fleet(2, *failed), rollout(canary=0), NOW).message
    assert told.startswith("f0, f1, f2 and 2 more rolled the change back, more than rollout.maxFailures allows (0)")
    assert "2 more were spared" in told
    assert "rollout.retry" in told
    assert verdict_on([], None, NOW) == Verdict("Done")


@pytest.mark.parametrize(
    ("value", "numbers_up", "numbers_down"),
    [
        ("10%", [1, 1, 1, 1, 1, 2, 10], [0, 0, 0, 0, 1, 1, 10]),
        ("2%", [1, 1, 1, 1, 1, 1, 2], [0, 0, 0, 0, 0, 0, 2]),
        ("34%", [1, 1, 2, 4, 4, 4, 34], [0, 0, 1, 3, 3, 3, 34]),
        ("100%", [1, 2, 3, 9, 10, 11, 100], [1, 2, 3, 9, 10, 11, 100]),
        ("0%", [0] * 7, [0] * 7),
        (3, [3] * 7, [3] * 7),
    ],
)
def test_percentages(value: int | str, numbers_up: list[int], numbers_down: list[int]) -> None:
    """Of 1, 2, 3, 9, 10, 11 and 100 nodes, exactly."""
    for total, upwards, downwards in zip((1, 2, 3, 9, 10, 11, 100), numbers_up, numbers_down, strict=True):
        assert number_of(value, total, up=True) == upwards
        assert number_of(value, total, up=False) == downwards


def test_the_strictest_of_several() -> None:
    """A policy that is gone is withdrawn as carefully as the most careful of what its nodes were told; never paused."""
    several = [
        rollout(canary=1, maxUnavailable="20%", maxFailures=3, soakSeconds=5, paused=True, retry="x"),
        rollout(canary=2, maxUnavailable=3, maxFailures="50%", soakSeconds=1),
    ]
    assert strictest(several, 10) == rollout(canary=2, maxUnavailable=2, maxFailures=3, soakSeconds=5)
    assert strictest(several, 100) == rollout(canary=2, maxUnavailable=3, maxFailures=3, soakSeconds=5)
    assert strictest([], 20) == rollout(canary=1, maxUnavailable=2, maxFailures=0, soakSeconds=30)
    assert Pace.of(strictest([], 0)).canary == 1


STATES: list[State] = ["waiting", "moving", "retrying", "done", "refused", "failed"]
PERCENT = st.one_of(st.integers(0, 30), st.integers(0, 100).map(lambda number: f"{number}%"))
PACES = st.builds(
    lambda canary, unavailable, failures, soak: rollout(
        canary=canary, maxUnavailable=unavailable, maxFailures=failures, soakSeconds=soak
    ),
    st.integers(0, 6),
    PERCENT,
    PERCENT,
    st.sampled_from([0, 1, 30, 600]),
)
MEMBERS = st.lists(
    st.builds(
        lambda state, seconds, able, touched, busy: replace(
            member("x", state, seconds, able=able),
            touched=touched and state == "waiting",
            busy=busy and state == "waiting",
        ),
        st.sampled_from(STATES),
        st.sampled_from([0, 1, 29, 30, 299, 300, 329, 330, 601, 9999]),
        st.integers(0, 5).map(bool),
        st.booleans(),
        st.integers(0, 5).map(lambda number: number == 0),
    ),
    max_size=25,
).map(lambda members: [replace(each, node=f"n{number:02}") for number, each in enumerate(members)])


@settings(max_examples=500, deadline=None)
@given(MEMBERS, PACES)
def test_rules_of_every_verdict(members: list[Member], pace: Rollout) -> None:
    """What holds whatever the fleet looks like."""
    verdict = verdict_on(members, pace, NOW)
    by_name = {each.node: each for each in members}
    released = [by_name[name] for name in verdict.release]
    assert all(each.state == "waiting" and each.able for each in released), "only who waits and can"
    assert len({each.node for each in released}) == len(released)

    able = sum(each.able for each in members)
    budget = max(1, number_of(Pace.of(pace).max_unavailable, able, up=True))
    moving = [each for each in members if each.state in ("moving", "retrying") or each.busy]
    holding = {each.node for each in moving if not each.is_overdue(NOW)}
    assert len(holding | {*verdict.release}) <= max(budget, len(holding)), "never more than the budget on their way"

    soak = timedelta(seconds=pace.soak_seconds or 0)
    proved = [each for each in members if each.state == "done" and each.able and NOW - each.since >= soak]
    could = sum(each.able and each.state != "refused" for each in members)
    needed = min(pace.canary or 0, could)
    if len(proved) < needed:
        touched = [
            each
            for each in members
            if each.state in ("moving", "retrying", "failed") or (each.state == "done" and each.able)
        ]
        assert not released or len(touched) + len(released) <= needed, "no more than the canaries, before they proved"
        assert not released or not any(each.state == "failed" for each in members), "a failed canary releases nobody"
    failing = sum(each.state in ("failed", "retrying") for each in members)
    if failing > number_of(Pace.of(pace).max_failures, len(members), up=False) and len(proved) >= needed:
        assert not released, "failures above maxFailures release nobody"
    assert verdict_on(members, pace.model_copy(update={"paused": True}), NOW).release == ()
    assert verdict_on(list(reversed(members)), pace, NOW) == verdict, "the order they come in is nothing"
    waiting = [each for each in members if each.state == "waiting" and each.able and each not in released]
    if any(not each.touched for each in released):
        assert not any(each.touched for each in waiting), "touched nodes go first"
    assert verdict.again_at is None or verdict.again_at > NOW
    if verdict.is_good:
        assert verdict.stage == "Done"
        assert not any(each.able and each.state == "waiting" for each in members)


class Simulated:
    """A fleet that is driven by verdicts alone: every step judges anew, as a controller does that was just started."""

    def __init__(self, nodes: int, pace: Rollout, draw: Any) -> None:
        self.members = {f"n{number:02}": Member(f"n{number:02}", "waiting", NOW) for number in range(nodes)}
        self.pace, self.draw, self.now = pace, draw, NOW
        self.answers: dict[str, State] = {}

    def step(self) -> Verdict:
        """Judge, release, and let some time pass in which some answer and some go or come."""
        verdict = verdict_on(list(self.members.values()), self.pace, self.now)
        assert verdict == verdict_on(list(self.members.values()), self.pace, self.now)
        for name in verdict.release:
            self._put(name, state="moving", since=self.now)
        self.now += timedelta(seconds=self.draw(st.sampled_from([1, 20, 60])))
        for name, each in list(self.members.items()):
            if each.state == "moving" and each.able:
                state = self.draw(st.sampled_from(["moving", "done", "done", "done", "refused"]))
                if state != "moving":
                    self._put(name, state=state, since=self.now)
            if self.draw(st.integers(0, 15)) == 0:
                self._put(name, able=not each.able)
        return verdict

    def settle(self) -> Verdict:
        """Let what is on its way answer and nobody come or go any more, until nothing happens."""
        for _ in range(20 * len(self.members) + 20):
            verdict = verdict_on(list(self.members.values()), self.pace, self.now)
            moving = [name for name, each in self.members.items() if each.state == "moving" and each.able]
            if not verdict.release and not moving and verdict.again_at is None:
                return verdict
            for name in verdict.release:
                self._put(name, state="moving", since=self.now)
            for name in moving:
                self._put(name, state="done", since=self.now)
            self.now = max(self.now + timedelta(seconds=1), verdict.again_at or self.now)
        raise AssertionError(f"no end: {verdict}")

    def _put(self, name: str, **changes: Any) -> None:
        self.members[name] = replace(self.members[name], **changes)


@settings(max_examples=100, deadline=None)
@given(st.data(), st.integers(1, 12), PACES)
def test_every_rollout_ends(data: Any, nodes: int, pace: Rollout) -> None:
    """Nodes answer or not, refuse, go away, come back: whoever can has it in the end, or a lost canary halts."""
    fleet = Simulated(nodes, pace, data.draw)
    for _ in range(data.draw(st.integers(0, 25))):
        fleet.step()
    verdict = fleet.settle()
    left = [each for each in fleet.members.values() if each.state == "waiting" and each.able]
    if verdict.reason == CANARY_SILENT:
        assert any(each.state == "moving" and not each.able for each in fleet.members.values())
    else:
        assert (verdict.stage, left) == ("Done", [])
