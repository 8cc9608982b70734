"""What a file would do to a fleet, and what pause, resume and retry would write."""

from datetime import UTC, datetime
from typing import Any

from conntrack_operator.cli.plugin.forecast import forecast
from conntrack_operator.cli.plugin.rollouts import pausing, resuming, retrying
from conntrack_operator.decide.targeting import Node
from conntrack_operator.model.policy import ConntrackPolicy

NODES = [Node(f"n{number}", f"u{number}", {"role": "web", "even": str(number % 2 == 0)}) for number in range(4)]


def policy(name: str, created: str | None = None, labels: dict[str, str] | None = None, **spec: Any) -> ConntrackPolicy:
    """Return a policy for all nodes, or for those with `labels`."""
    fields = {"mode": "Enforce", "nodeSelector": {"matchLabels": labels or {"role": "web"}}, **spec}
    return ConntrackPolicy.model_validate({"metadata": {"name": name, "creationTimestamp": created}, "spec": fields})


OLD = policy("old", "2026-01-01T00:00:00Z", timeouts={"icmp": "20s"}, tcp={"loose": True})


def test_an_unchanged_policy_changes_nothing() -> None:
    """Applying what is there is no change, whatever its rollout."""
    plan = forecast([OLD], [policy("old", timeouts={"icmp": "20s"}, tcp={"loose": True}, rollout={"canary": 3})], NODES)
    assert (plan.changes, plan.changing, plan.conflicts, plan.nodes) == ((), 0, (), 4)
    assert plan.policies[0].before == plan.policies[0].revision


def test_an_edit_names_each_field_before_and_after() -> None:
    """One that is taken out is decided by nobody then."""
    plan = forecast([OLD], [policy("old", timeouts={"icmp": "25s"})], NODES)
    assert [(each.field, each.before, each.after, each.winner, each.nodes) for each in plan.changes] == [
        ("tcp.loose", "true", "-", "", 4), ("timeouts.icmp", "20", "25", "old", 4),
    ]  # fmt: skip


def test_an_edited_policy_keeps_its_age() -> None:
    """Between equal priorities the older wins; a file has no age, the policy that it replaces has."""
    young = policy("young", "2026-02-01T00:00:00Z", timeouts={"icmp": "5s"})
    plan = forecast([OLD, young], [policy("old", timeouts={"icmp": "25s"}, tcp={"loose": True})], NODES)
    assert [(each.field, each.after) for each in plan.changes] == [("timeouts.icmp", "25")]


def test_a_newcomer_loses_a_tie_and_is_told() -> None:
    """On the nodes it shares alone; its other fields count."""
    newcomer = policy("new", labels={"even": "True"}, timeouts={"icmp": "5s"}, table={"size": {"maxEntries": 1 << 20}})
    plan = forecast([OLD], [newcomer], NODES)
    assert [(each.field, each.winner, each.nodes, each.example) for each in plan.changes] == [
        ("table.size", "new", 2, "n0")
    ]
    assert [(each.loser, each.field, each.winner, number) for each, number in plan.conflicts] == [
        ("new", "timeouts.icmp", "old", 2)
    ]
    assert (plan.policies[0].matched, plan.policies[0].before, plan.changing) == (2, "", 2)


def test_rules_are_fields_by_their_names() -> None:
    """A rule that comes is one change."""
    plan = forecast(
        [OLD], [policy("rules", notrack={"rules": [{"name": "web", "protocol": "TCP", "ports": [80]}]})], NODES
    )
    assert [(each.field, each.before, each.after) for each in plan.changes] == [
        ("notrack.rules[web]", "-", "{protocol: TCP, ports: [80]}")
    ]


def test_what_observes_decides_nothing_now_and_is_forecast_as_if_it_did() -> None:
    """A live Observe policy is no part of what nodes are asked for."""
    looks = policy("looks", "2025-01-01T00:00:00Z", mode="Observe", timeouts={"icmp": "1s"})
    assert forecast([looks, OLD], [OLD], NODES).changes == ()
    plan = forecast([looks, OLD], [looks], NODES)
    assert [(each.field, each.before, each.after) for each in plan.changes] == [("timeouts.icmp", "20", "1")]


def test_a_file_without_nodes_says_so() -> None:
    """A selector that nobody matches."""
    plan = forecast([], [policy("none", labels={"role": "db"}, timeouts={"icmp": "1s"})], NODES)
    assert (plan.policies[0].matched, plan.policies[0].example, plan.changing) == (0, "", 0)


def _live(paused: bool) -> dict[str, Any]:
    counts = {"matched": 9, "current": 4, "updating": 2, "pending": 3}
    return {"metadata": {"name": "web"}, "spec": {"rollout": {"paused": paused}}, "status": {"nodes": counts}}


def test_pause_and_resume_write_once() -> None:
    """What is so already is said, and nothing is written."""
    assert pausing(_live(paused=False)).rollout == {"paused": True}
    assert "4 of 9 nodes are current, 2 updating, 3 waiting" in pausing(_live(paused=False)).said
    assert pausing(_live(paused=True)).rollout is None
    assert resuming(_live(paused=True)).rollout == {"paused": None}
    assert resuming(_live(paused=False)).rollout is None


def test_a_retry_of_what_is_paused_says_so() -> None:
    """The text differs from second to second."""
    step = retrying(_live(paused=True), datetime(2026, 3, 1, 12, 0, 5, tzinfo=UTC))
    assert step.rollout == {"retry": "2026-03-01T12-00-05Z"}
    assert "It is paused, though" in step.said
