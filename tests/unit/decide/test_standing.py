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


def stalled(status: str) -> list[dict[str, str]]:
    """Return a node's conditions with Stalled so."""
    return [{"type": "Stalled", "status": status, "reason": "x", "lastTransitionTime": "2026-01-31T11:59:00Z"}]


@pytest.mark.parametrize(
    ("status", "retries"),
    [
        pytest.param({"conditions": stalled("False")}, True, id="waits for its next try"),
        pytest.param({"conditions": stalled("True")}, False, id="parked"),
        pytest.param({}, False, id="an older agent, which does not say"),
    ],
)
def test_a_node_that_rolled_back_retries_until_it_is_parked(status: dict[str, Any], retries: bool) -> None:
    """Whether anybody must act is the node's to say."""
    result = {**refusal("node", "ProbeFailed"), "message": "the API server did not answer"}
    existing = report(phase="RolledBack", results=[result], **status)
    standing = standing_of(NODE, Share("r1", SIZE, SIZE), existing, NOW)
    assert (standing.state, standing.retries) == ("rolled_back", retries)
    assert standing.failures[0].message == "the API server did not answer", "without the word node"


def test_a_trial_of_what_failed_before_still_says_so() -> None:
    """A node that tries again is on its way, and does not look as if nothing had happened."""
    results = [refusal("node", "ProbeFailed"), {**refusal(MAX), "reason": "Applied"}]
    standing = standing_of(NODE, Share("r1", SIZE, SIZE), report(phase="Trial", results=results), NOW)
    assert standing.state == "updating"
    assert [failure.reason for failure in standing.failures] == ["ProbeFailed"]


@pytest.mark.parametrize(
    ("phase", "results"),
    [("Current", []), ("Refused", [refusal(MAX)]), ("Refused", [refusal("net.netfilter.nf_conntrack_icmp_timeout")])],
)
def test_warnings_reach_the_policies_they_concern(phase: str, results: list[dict[str, str]]) -> None:
    """What a node did as asked and warns of is told to whoever asked for it, whatever else was refused."""
    warnings = [
        {"setting": MAX, "reason": "Odd", "message": "is odd"},
        {"setting": "net.netfilter.nf_conntrack_icmp_timeout", "reason": "Odd", "message": "is another's"},
    ]
    existing = report(phase=phase, results=results, warnings=warnings)
    standing = standing_of(NODE, Share("r1", SIZE, SIZE | {"timeouts.icmp"}), existing, NOW)
    assert [warning.message for warning in standing.warnings] == [f"{MAX}: is odd"]


def test_an_observe_policy_of_a_node_that_can_do_nothing_is_refused() -> None:
    """Such a node makes no preview, and the policy must not wait for one without a word."""
    share = Share("r9", SIZE, SIZE, observes=True)
    existing = report({"preview": {}}, phase="Refused", results=[refusal("node", "Unsupported")])
    standing = standing_of(NODE, share, existing, NOW)
    assert (standing.state, [failure.reason for failure in standing.failures]) == ("refused", ["Unsupported"])


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
