"""Standing: where one node is with one policy."""

from datetime import UTC, datetime
from typing import Any

import pytest

from conntrack_operator.decide.standing import Share, fields_behind, standing_of
from conntrack_operator.decide.targeting import Node
from conntrack_operator.model.node import NodeConntrack

NOW = datetime(2026, 1, 31, 12, 0, 0, tzinfo=UTC)
NODE = Node("n1", "uid-1", {})
SIZE = frozenset({"table.size"})
MAX = "net.netfilter.nf_conntrack_max"


def refusal(setting: str, reason: str = "ShrinkNotAllowed") -> dict[str, str]:
    """Return a result that is no success."""
    return {"setting": setting, "wanted": "1", "observed": "2", "reason": reason, "message": "do this"}


def report(spec: dict[str, Any] | None = None, **status: Any) -> NodeConntrack:
    """Return the object of a node that has done what policy p at revision r1 asks, but for what is given."""
    return NodeConntrack.model_validate(
        {
            "metadata": {"name": "n1"},
            "spec": {
                "revision": "s1",
                "mode": "Apply",
                "nodeUID": "uid-1",
                "policies": [{"name": "p", "revision": "r1", "fields": ["table.size"]}],
                **(spec or {}),
            },
            "status": {
                "observedRevision": "s1",
                "nodeUID": "uid-1",
                "phase": "Current",
                "heartbeatTime": "2026-01-31T11:59:00Z",
                **status,
            },
        }
    )


@pytest.mark.parametrize(
    ("existing", "state", "reasons"),
    [
        pytest.param(None, "pending", [], id="not told yet"),
        pytest.param(report().model_copy(update={"status": None}), "pending", [], id="never answered"),
        pytest.param(report(heartbeatTime=""), "pending", [], id="no heartbeat yet"),
        pytest.param(report(), "current", [], id="current"),
        pytest.param(report(nodeUID="uid-0"), "pending", [], id="a former node's answer"),
        pytest.param(report({"nodeUID": "uid-0"}), "pending", [], id="told to a former node"),
        pytest.param(report(observedRevision="s0"), "pending", [], id="has not answered this revision"),
        pytest.param(report({"attempt": "2"}), "pending", [], id="has not answered this attempt"),
        pytest.param(report({"mode": "Restore"}), "pending", [], id="selected again, still told to restore"),
        pytest.param(
            report({"policies": [{"name": "p", "revision": "r0", "fields": []}]}),
            "pending",
            [],
            id="not told this revision",
        ),
        pytest.param(report(observedRevision="s0", phase="Trial"), "updating", [], id="trial of the one before"),
        pytest.param(report(phase="Trial"), "updating", [], id="trial"),
        pytest.param(report(heartbeatTime="2026-01-31T11:45:00Z"), "unknown", ["AgentSilent"], id="silent 15 minutes"),
        pytest.param(report(heartbeatTime="2026-01-31T11:45:01Z"), "current", [], id="almost silent"),
        pytest.param(
            report(phase="Refused", results=[refusal(MAX)]), "refused", ["ShrinkNotAllowed"], id="refuses our field"
        ),
        pytest.param(
            report(phase="Refused", results=[refusal("net.netfilter.nf_conntrack_icmp_timeout")]),
            "current",
            [],
            id="refuses another policy's field",
        ),
        pytest.param(
            report(phase="Refused", results=[refusal("node", "Unsupported")]),
            "refused",
            ["Unsupported"],
            id="all of it",
        ),
        pytest.param(report(phase="Refused", results=[refusal("rollout")]), "current", [], id="another's rollout"),
        pytest.param(report(phase="Refused"), "refused", ["Refused"], id="refuses without a word"),
        pytest.param(
            report(
                phase="RolledBack",
                history=[{"time": "t", "phase": "RolledBack", "reason": "ProbeFailed", "revision": "s1"}],
            ),
            "rolled_back",
            ["ProbeFailed"],
            id="rolled back, by its history",
        ),
        pytest.param(
            report(phase="Contended", results=[refusal(MAX, "Contended")]), "refused", ["Contended"], id="contended"
        ),
    ],
)
def test_standing(existing: NodeConntrack | None, state: str, reasons: list[str]) -> None:
    """Every node is in exactly one state, and a failing one says why."""
    share = Share("r1", SIZE, SIZE | {"timeouts.icmp"})
    standing = standing_of(NODE, share, existing, NOW)
    assert standing.state == state
    assert [failure.reason for failure in standing.failures] == reasons


@pytest.mark.parametrize(
    ("preview", "state"),
    [
        (None, "pending"),
        ({"changes": []}, "current"),
        ({"refused": [{"setting": MAX, "reason": "BelowUse", "message": "m"}]}, "refused"),
        ({"refused": [{"setting": "tracking", "reason": "Unsupported", "message": "m"}]}, "current"),
    ],
)
def test_an_observe_policy_stands_by_the_preview(preview: dict[str, Any] | None, state: str) -> None:
    """An Observe policy is current where its preview was made, whatever became of the enforced settings."""
    existing = report({"preview": {}}, preview=preview, phase="Refused")
    share = Share("r9", SIZE, SIZE | {"tracking"}, observes=True)
    assert standing_of(NODE, share, existing, NOW).state == state


@pytest.mark.parametrize(
    ("setting", "behind"),
    [
        (MAX, {"table.size", "table.entriesPerBucket"}),
        ("net.netfilter.nf_conntrack_buckets", {"table.size", "table.entriesPerBucket"}),
        ("net.netfilter.nf_conntrack_tcp_timeout_established", {"timeouts.tcp.established"}),
        ("net.netfilter.nf_conntrack_acct", {"sysctls.nf_conntrack_acct"}),
        ("notrack/web", {"notrack.rules[web]"}),
        ("notrack/we", set()),
        ("trial", {"trial.soakSeconds"}),
        ("notrack.acceptUntracked", {"notrack.acceptUntracked"}),
        ("something.new", set()),
    ],
)
def test_fields_behind_a_setting(setting: str, behind: set[str]) -> None:
    """A setting a node speaks of is traced back to the fields people write."""
    fields = {
        "table.size",
        "table.entriesPerBucket",
        "timeouts.tcp.established",
        "sysctls.nf_conntrack_acct",
        "notrack.rules[web]",
        "notrack.acceptUntracked",
        "trial.soakSeconds",
    }
    assert fields_behind(setting, fields) == behind
