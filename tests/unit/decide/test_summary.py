"""Summary: a policy's status from where its nodes stand."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from conntrack_operator.decide.merge import Conflict
from conntrack_operator.decide.rollout import Verdict
from conntrack_operator.decide.standing import Standing
from conntrack_operator.decide.summary import Around, Sight, rejected, summary_of
from conntrack_operator.model.node import Preview, Usage
from conntrack_operator.model.policy import ConntrackPolicy
from conntrack_operator.model.status import Condition, NodeCounts, NodeFailure, PolicyStatus

NOW = datetime(2026, 1, 31, 12, 0, 0, tzinfo=UTC)
THEN, NOW_TEXT = "2026-01-01T00:00:00Z", "2026-01-31T12:00:00Z"


def policy(status: PolicyStatus | None = None, **spec: Any) -> ConntrackPolicy:
    """Return a policy at generation 3."""
    fields = {"mode": "Enforce", "nodeSelector": {"matchLabels": {"role": "web"}}, **spec}
    made = ConntrackPolicy.model_validate({"metadata": {"name": "p", "generation": 3}, "spec": fields})
    return made.model_copy(update={"status": status})


def sight(node: str, state: Any = "current", percent: int | None = 10, **more: Any) -> Sight:
    """Return one node in `state`, its table of 1,000 entries `percent` full."""
    failures = ()
    if state in ("refused", "rolled_back", "unknown") or more.pop("fails", False):
        failures = (NodeFailure(node=node, reason=state.title(), message=f"{node} says no"),)
    usage = None
    if percent is not None:
        drops = more.pop("drops", 0)
        usage = Usage(entries=percent * 10, max_entries=1000, percent=percent, drops_per_second=drops)
    standing = Standing(
        node,
        state,
        failures,
        more.pop("warnings", ()),
        more.pop("retries", False),
        waits=more.pop("waits", False),
        absent=more.pop("absent", False),
    )
    return Sight(standing, usage, **more)


def condition(status: PolicyStatus, kind: str) -> Condition:
    """Return the condition of this type."""
    return next(each for each in status.conditions if each.type == kind)


def verdicts(status: PolicyStatus) -> dict[str, str]:
    """Return status by type of every condition."""
    return {each.type: each.status for each in status.conditions}


@pytest.mark.parametrize(
    ("sights", "ready", "reconciling", "stalled", "degraded", "reason"),
    [
        pytest.param([], "False", "False", "False", "False", "NoNodeMatches", id="nobody"),
        pytest.param([sight("a")], "True", "False", "False", "False", "AllNodesCurrent", id="all current"),
        pytest.param(
            [sight("a"), sight("b", "pending")], "False", "True", "False", "False", "Progressing", id="pending"
        ),
        pytest.param([sight("a", "updating")], "False", "True", "False", "False", "Progressing", id="updating"),
        pytest.param(
            [sight("a"), sight("b", "refused")], "False", "False", "True", "True", "NodesRefused", id="refused"
        ),
        pytest.param(
            [sight("b", "rolled_back")], "False", "False", "True", "True", "NodesRolledBack", id="rolled back, parked"
        ),
        pytest.param(
            [sight("b", "rolled_back", retries=True)],
            "False",
            "True",
            "False",
            "True",
            "NodesRolledBack",
            id="rolled back, will try again",
        ),
        pytest.param(
            [sight("b", "updating", fails=True)], "False", "True", "False", "True", "Progressing", id="tries again"
        ),
        pytest.param(
            [sight("a", "rolled_back"), sight("b", "rolled_back", retries=True)],
            "False",
            "True",
            "False",
            "True",
            "NodesRolledBack",
            id="one parked, one will try again",
        ),
        pytest.param(
            [sight("a", "pending"), sight("b", "refused")],
            "False",
            "True",
            "False",
            "True",
            "NodesRefused",
            id="refused and still moving",
        ),
        pytest.param(
            [sight("a"), sight("b", "unknown", None)],
            "True",
            "False",
            "False",
            "True",
            "AllNodesCurrent",
            id="one silent node holds up nobody",
        ),
        pytest.param(
            [sight("b", "unknown", None)], "Unknown", "False", "False", "True", "NodesUnknown", id="all silent"
        ),
    ],
)
def test_conditions(
    sights: list[Sight], ready: str, reconciling: str, stalled: str, degraded: str, reason: str
) -> None:
    """What kstatus and kubectl wait read, for every mixture of states."""
    status = summary_of(policy(), sights, NOW, Around())
    assert verdicts(status) == {
        "Ready": ready,
        "Reconciling": reconciling,
        "Stalled": stalled,
        "Degraded": degraded,
        "Conflicted": "False",
        "Saturated": "False",
    }
    assert condition(status, "Ready").reason == reason
    assert status.observed_generation == 3
    assert {each.observed_generation for each in status.conditions} == {3}


def test_sentences_of_a_policy_on_its_way() -> None:
    """They say how many nodes are where, and what failed; of a node that is parked, Stalled says so by its reason."""
    way = [
        sight("a"),
        sight("b", "pending"),
        sight("c", "updating", fails=True),
        sight("d", "rolled_back", retries=True),
    ]
    status = summary_of(policy(), way, NOW, Around())
    told = "1 of 4 nodes current, 1 yet to answer, 1 on trial, 1 to be tried again; d: d says no (1 more in failures)"
    assert condition(status, "Reconciling").message == told
    assert condition(status, "Degraded").message == (
        "of 4 nodes: 1 rolled back, 1 with failures so far; d: d says no (1 more in failures)"
    )
    assert [failure.node for failure in status.failures] == ["d", "c"]
    parked = condition(summary_of(policy(), [sight("d", "rolled_back")], NOW, Around()), "Stalled")
    assert (parked.status, parked.reason, parked.message) == ("True", "NodesParked", "d: d says no")
    assert condition(summary_of(policy(), [sight("d", "refused")], NOW, Around()), "Stalled").reason == "NodesFailed"


def others(count: int, **more: Any) -> list[Sight]:
    """Return nodes that wait for their turn."""
    return [sight(f"w{number}", "pending", waits=True, **more) for number in range(count)]


FAILED = Verdict("Halted", reason="CanaryFailed", message="canary a rolled the change back")
SILENT = Verdict("Halted", reason="CanarySilent", message="canary a has not answered")
CANARY = Verdict("Canary", reason="Canary", message="canary a goes first")
SOAK = Verdict("Soak", reason="Soak", message="canary a must stay current until 12:00:30 UTC")
NUMBERS = "0 of 3 nodes current, 1 yet to answer, 2 waiting for their turn"


@pytest.mark.parametrize(
    ("sights", "verdict", "ready", "reconciling", "stalled", "message"),
    [
        pytest.param(
            [sight("a", "pending"), *others(2)],
            CANARY,
            "Progressing",
            "True",
            "False",
            f"{NUMBERS}; canary a goes first",
            id="canary",
        ),
        pytest.param(
            [sight("a"), *others(2)],
            SOAK,
            "Progressing",
            "True",
            "False",
            "1 of 3 nodes current, 2 waiting for their turn; canary a must stay current until 12:00:30 UTC",
            id="soak",
        ),
        pytest.param(others(2), None, "Progressing", "True", "False", "0 of 2 nodes current, 2 waiting for their turn"),
        pytest.param(
            [sight("a", "rolled_back"), *others(2)],
            FAILED,
            "NodesRolledBack",
            "False",
            "True",
            "1 of 3 nodes failed; a: a says no; 2 nodes spared, see Stalled",
            id="canary failed",
        ),
        pytest.param(
            [sight("a", "pending"), *others(2)],
            SILENT,
            "CanarySilent",
            "False",
            "True",
            f"{NUMBERS}; canary a has not answered",
            id="canary never answered: nothing moves, whatever the numbers say",
        ),
        pytest.param(
            [sight("a", "pending")],
            SILENT,
            "CanarySilent",
            "False",
            "True",
            "0 of 1 node current, 1 yet to answer; canary a has not answered",
            id="and it was the only one",
        ),
        pytest.param(
            [sight("a"), sight("b", "updating"), *others(1)],
            Verdict("Halted", reason="TooManyFailures", message="too many"),
            "TooManyFailures",
            "True",
            "False",
            "1 of 3 nodes current, 1 on trial, 1 waiting for their turn; too many",
            id="halted while some are on their way",
        ),
        pytest.param(
            [sight("a"), *others(2)],
            Verdict("Paused"),
            "Paused",
            "False",
            "False",
            "1 of 3 nodes current, 2 waiting for their turn; nothing more is released while rollout.paused is true",
            id="paused",
        ),
        pytest.param(
            [sight("a")], Verdict("Paused"), "AllNodesCurrent", "False", "False", "1 of 1 node as the policy says"
        ),
        pytest.param(
            [sight("a"), *others(2, absent=True)],
            Verdict("Done", is_good=True),
            "AllNodesCurrent",
            "False",
            "False",
            "1 of 3 nodes as the policy says; 2 not Ready or without a working agent, to be given it when back",
            id="some are away",
        ),
        pytest.param(
            [sight("a", "unknown", None), *others(1, absent=True)],
            Verdict("Done"),
            "NodesUnknown",
            "False",
            "False",
            "nobody can speak for any of 2 nodes: 1 not heard for 15 minutes, 1 not Ready or without a working agent",
            id="all are away",
        ),
    ],
)
def test_a_rollout_in_words(
    sights: list[Sight], verdict: Verdict | None, ready: str, reconciling: str, stalled: str, message: str
) -> None:
    """Somebody at 3 a.m. reads where it stands, what is waited for, and whether anybody must act."""
    status = summary_of(policy(), sights, NOW, Around(verdict=verdict))
    told = verdicts(status)
    assert (condition(status, "Ready").reason, told["Reconciling"], told["Stalled"]) == (ready, reconciling, stalled)
    assert condition(status, "Ready").message == message
    if stalled == "True":
        assert verdict
        assert (condition(status, "Stalled").reason, condition(status, "Stalled").message) == (
            verdict.reason,
            verdict.message,
        )


@pytest.mark.parametrize(
    ("verdict", "reason", "more"),
    [
        (Verdict("Waves"), "Progressing", ""),
        (Verdict("Paused"), "Paused", "; nothing more is released while rollout.paused is true"),
    ],
)
def test_nodes_that_still_have_it(verdict: Verdict, reason: str, more: str) -> None:
    """A selector that means fewer nodes than before is not done while the others have not let go."""
    ready = condition(summary_of(policy(), [sight("a")], NOW, Around(verdict=verdict, leaving=3)), "Ready")
    assert (ready.status, ready.reason) == ("False", reason)
    assert ready.message == f"1 of 1 node current, 3 still to give it up{more}"


def test_nodes_that_are_away_degrade() -> None:
    """They are no failure, and named all the same."""
    status = summary_of(policy(), [sight("a"), *others(2, absent=True)], NOW, Around(verdict=Verdict("Done")))
    degraded = condition(status, "Degraded")
    assert (degraded.status, degraded.reason) == ("True", "NodesAway")
    assert degraded.message == "of 3 nodes: 2 not Ready or without a working agent"


def test_both_sides_of_a_tie_are_told() -> None:
    """Neither asked to win: the loser reads why it lost, the winner that it did win, and what to write."""
    tie = Conflict("q", "table.size", "p", tied=True)
    won = condition(summary_of(policy(), [sight("a", conflicts=(tie,))], NOW, Around()), "Conflicted")
    assert (won.status, won.reason) == ("True", "SamePriority")
    assert won.message == (
        "table.size is decided here on a, and policy q of the same priority asks for another value; give one of them"
        " a higher priority"
    )
    lost = replace(tie, loser="p", winner="q")
    told = condition(summary_of(policy(), [sight("a", conflicts=(lost,))], NOW, Around()), "Conflicted")
    assert told.reason == "OtherPolicyWins"
    assert told.message == ("table.size is decided by policy q (of the same priority, and older or first by name) on a")


def test_what_an_observe_policy_would_do() -> None:
    """The nodes' previews as one sentence; the revision it is of is in the status."""
    preview = Preview.model_validate({"changes": [{"setting": "x", "from": "1", "to": "2"}]})
    status = summary_of(policy(mode="Observe"), [sight("a", preview=preview)], NOW, Around(revision="r1"))
    assert condition(status, "Ready").message == "1 of 1 node would change x (1 -> 2 on a)"
    assert status.revision == "r1"
    assert status.preview is not None
    assert summary_of(policy(), [sight("a", preview=preview)], NOW, Around()).preview is None


def test_warnings_are_told_beside_success() -> None:
    """Ready stays True; its sentence counts the nodes that warn, and repeats the first of them."""
    warning = NodeFailure(node="b", reason="BelowKeepalive", message="x: is 10m")
    ready = condition(summary_of(policy(), [sight("a"), sight("b", warnings=(warning,))], NOW, Around()), "Ready")
    assert (ready.status, ready.reason) == ("True", "AllNodesCurrent")
    assert ready.message == "2 of 2 nodes as the policy says; 1 with warnings; b: BelowKeepalive: x: is 10m"


def test_counts_are_complete() -> None:
    """Every node is counted once, beside matched."""
    states = ["current", "current", "updating", "pending", "refused", "rolled_back", "unknown"]
    status = summary_of(policy(), [sight(f"n{number}", state) for number, state in enumerate(states)], NOW, Around())
    assert status.nodes == NodeCounts(matched=7, current=2, updating=1, pending=1, refused=1, rolled_back=1, unknown=1)


def test_usage_and_hottest() -> None:
    """Sums over all nodes that are known; the five fullest tables, fullest first, ties by name."""
    sights = [sight(f"n{number}", percent=percent) for number, percent in enumerate([5, 50, 7, 50, 1, 60, 3])]
    status = summary_of(policy(), [*sights, sight("lost", "unknown", None)], NOW, Around())
    assert status.usage is not None
    assert (status.usage.entries, status.usage.max_entries) == (1760, 7000)
    assert (status.usage.peak_percent, status.usage.peak_node) == (60, "n5")
    assert [hot.node for hot in status.hottest] == ["n5", "n1", "n3", "n2", "n0"]


def test_failures_are_capped_gravest_first() -> None:
    """At most ten failures, refusals before silence; the counts tell of all of them."""
    silent = [sight(f"a{number:02}", "unknown", None) for number in range(12)]
    status = summary_of(policy(), [*silent, sight("z", "refused")], NOW, Around())
    assert len(status.failures) == 10
    assert (status.failures[0].node, status.failures[1].node) == ("z", "a00")
    assert status.nodes is not None
    assert status.nodes.unknown == 12


def test_conflicted_names_field_winner_and_nodes() -> None:
    """The loser reads which field is whose, and where."""
    lost = (Conflict("p", "table.size", "base"),)
    sights = [sight(name, conflicts=lost) for name in ("a", "b", "c", "d")]
    conflicted = condition(summary_of(policy(), sights, NOW, Around()), "Conflicted")
    assert conflicted.status == "True"
    assert conflicted.message == "table.size is decided by policy base on a, b, c and 1 more"


def test_a_policy_that_matches_nothing_says_so() -> None:
    """The message can be pasted to see the nodes the selector means."""
    ready = condition(summary_of(policy(), [], NOW, Around()), "Ready")
    assert "kubectl get nodes -l 'role=web'" in ready.message


def test_observe_says_that_nothing_changes() -> None:
    """An Observe policy is ready once every node has planned it."""
    ready = condition(summary_of(policy(mode="Observe"), [sight("a")], NOW, Around()), "Ready")
    assert (ready.status, ready.reason) == ("True", "Observed")


def test_trouble_with_the_agents_is_in_the_conditions() -> None:
    """What keeps agents from starting stands where people wait."""
    status = summary_of(policy(), [sight("a", "pending", None)], NOW, Around(trouble="make the namespace"))
    assert condition(status, "Reconciling").reason == "AgentsNotRunning"
    assert "make the namespace" in condition(status, "Ready").message


def test_what_keeps_withdrawals_waiting_degrades() -> None:
    """Nodes keep what they should lose, and the policy is as ready as it was."""
    status = summary_of(policy(), [sight("a")], NOW, Around(guarded="the CRD is being deleted"))
    degraded = condition(status, "Degraded")
    assert (degraded.reason, degraded.message) == ("WithdrawalsWait", "the CRD is being deleted")
    assert condition(status, "Ready").status == "True"


def test_what_the_controller_may_not_see_degrades() -> None:
    """It is said beside the nodes' own failures, and does not make a policy unready that has none."""
    for sights in ([sight("a")], [sight("a", "unknown", None)]):
        degraded = condition(summary_of(policy(), sights, NOW, Around(blind="let it list pods")), "Degraded")
        assert degraded.status == "True"
        assert "let it list pods" in degraded.message
    status = summary_of(policy(), [sight("a")], NOW, Around(blind="let it list pods"))
    assert condition(status, "Degraded").reason == "ControllerMayNotSee"
    assert condition(status, "Ready").status == "True"


@pytest.mark.parametrize(
    ("percent", "drops", "was", "now"),
    [
        (89, 0, "False", "False"),
        (90, 0, "False", "True"),
        (85, 0, "True", "True"),
        (84, 0, "True", "False"),
        (1, 3, "False", "True"),
    ],
)
def test_saturated_with_hysteresis(percent: int, drops: int, was: str, now: str) -> None:
    """True from 90 %, until below 85 %, and whenever connections are dropped."""
    before = PolicyStatus(
        conditions=[
            Condition.model_validate({"type": "Saturated", "status": was, "reason": "x", "lastTransitionTime": THEN})
        ]
    )
    status = summary_of(policy(before), [sight("a", percent=percent, drops=drops)], NOW, Around())
    assert condition(status, "Saturated").status == now


def test_a_condition_keeps_its_time() -> None:
    """lastTransitionTime moves with the status alone, so an unchanged world gives an identical document."""
    before = summary_of(policy(), [sight("a")], datetime(2026, 1, 1, tzinfo=UTC), Around())
    same = summary_of(policy(before), [sight("a")], NOW, Around())
    assert same == before
    other = summary_of(policy(before), [sight("a", "pending")], NOW, Around())
    assert condition(other, "Ready").last_transition_time == NOW_TEXT
    assert condition(other, "Stalled").last_transition_time == THEN


def test_a_policy_that_cannot_be_read_is_stalled() -> None:
    """It is said in the status, with the reason, that the policy is left aside."""
    status = rejected(7, "spec.table: no", NOW)
    assert verdicts(status) == {"Ready": "False", "Reconciling": "False", "Stalled": "True"}
    assert "spec.table: no" in status.conditions[0].message
