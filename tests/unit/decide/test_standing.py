"""Standing: where one node is with one policy."""

from dataclasses import replace
from typing import Any

import pytest

from conntrack_operator.decide.merge import Conflict
from conntrack_operator.decide.standing import Share, concerns, fields_behind, share_of, standing_of
from conntrack_operator.decide.targeting import Node
from conntrack_operator.model.node import NodeConntrack

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
    told = existing is None or share_of("p", "r1", existing.spec).has_it
    standing = standing_of(NODE, Share(SIZE, SIZE | {"timeouts.icmp"}, has_it=told), existing)
    assert standing.state == state
    assert [failure.reason for failure in standing.failures] == reasons


@pytest.mark.parametrize(
    ("existing", "state"),
    [
        pytest.param(report(), "unknown", id="was well"),
        pytest.param(report({"policies": []}), "unknown", id="not told yet"),
        pytest.param(report(phase="Trial"), "unknown", id="in a trial"),
        pytest.param(report(nodeUID="uid-0"), "pending", id="somebody else's silence"),
        pytest.param(None, "pending", id="never heard"),
    ],
)
def test_a_silent_agent_is_unknown(existing: NodeConntrack | None, state: str) -> None:
    """Whatever its status says is of the past; the failure says since when. One never heard is waited for."""
    standing = standing_of(NODE, Share(SIZE, SIZE), existing, silent=True, away=True)
    assert standing.state == state
    said = [(failure.reason, "2026-01-31T11:59:00Z" in failure.message) for failure in standing.failures]
    assert said == ([("AgentSilent", True)] if state == "unknown" else [])


@pytest.mark.parametrize("away", [False, True])
def test_a_node_that_waits_for_its_turn(away: bool) -> None:
    """Not released yet is told from released and not answered, and from what can be given nothing."""
    waits = standing_of(NODE, share_of("p", "r2", report().spec), report(), away=away)
    assert (waits.state, waits.waits, waits.absent) == ("pending", True, away)
    answers = standing_of(NODE, share_of("p", "r1", report().spec), report(observedRevision="s0"), away=away)
    assert (answers.state, answers.waits, answers.absent) == ("pending", False, away)
    fresh = standing_of(NODE, share_of("p", "r1", None), None, away=away)
    assert (fresh.state, fresh.waits, fresh.absent) == ("pending", True, away)
    assert not standing_of(NODE, Share(SIZE, SIZE, has_it=False, observes=True), None).waits, "previews need no turn"


def test_share_is_of_the_revision_the_node_was_given() -> None:
    """An older revision is no share in today's policy, and a Restore spec is none in any."""
    spec = report().spec
    assert share_of("p", "r1", spec) == Share(SIZE, SIZE)
    assert share_of("p", "r2", spec) == Share(SIZE, SIZE, has_it=False)
    assert share_of("q", "r1", spec) == Share(frozenset(), SIZE, has_it=False)
    for told in (None, report({"mode": "Restore"}).spec, report({"mode": "Hold"}).spec):
        assert share_of("p", "r1", told) == Share(frozenset(), frozenset(), has_it=False)
    mine, tie = Conflict("p", "table.size", "q"), Conflict("q", "table.size", "p", tied=True)
    others = Conflict("q", "table.size", "p")
    assert share_of("p", "r1", spec, [mine, tie, others]).conflicts == (mine, tie)


def test_whom_a_refusal_concerns() -> None:
    """Whoever asked for what was refused; everybody, when the node refuses without a word or as a whole."""
    uses = [
        {"name": "p", "revision": "r1", "fields": ["table.size"]},
        {"name": "q", "revision": "r1", "fields": ["tracking"]},
    ]
    for results, whom in (([refusal(MAX)], "p"), ([refusal("tracking")], "q"), ([], "pq"), ([refusal("node")], "pq")):
        found = report({"policies": uses}, phase="Refused", results=results)
        assert found.status
        assert [name for name in "pq" if concerns(name, found.spec, found.status)] == list(whom)


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
    standing = standing_of(NODE, Share(SIZE, SIZE), existing)
    assert (standing.state, standing.retries) == ("rolled_back", retries)
    assert standing.failures[0].message == "the API server did not answer", "without the word node"


def test_a_trial_of_what_failed_before_still_says_so() -> None:
    """A node that tries again is on its way, and does not look as if nothing had happened."""
    results = [refusal("node", "ProbeFailed"), {**refusal(MAX), "reason": "Applied"}]
    standing = standing_of(NODE, Share(SIZE, SIZE), report(phase="Trial", results=results))
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
    standing = standing_of(NODE, Share(SIZE, SIZE | {"timeouts.icmp"}), existing)
    assert [warning.message for warning in standing.warnings] == [f"{MAX}: is odd"]


def test_an_observe_policy_of_a_node_that_can_do_nothing_is_refused() -> None:
    """Such a node makes no preview, and the policy must not wait for one without a word."""
    share = Share(SIZE, SIZE, observes=True)
    existing = report({"preview": {}}, phase="Refused", results=[refusal("node", "Unsupported")])
    standing = standing_of(NODE, share, existing)
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
    share = Share(SIZE, SIZE | {"tracking"}, observes=True)
    assert standing_of(NODE, share, existing).state == state
    edited = standing_of(NODE, replace(share, has_it=False), existing)
    assert (edited.state, edited.waits) == ("pending", False), "what it previewed is the policy of before"


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
