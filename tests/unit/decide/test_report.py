"""The status: what it says, that it stays small, and when it is worth writing."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from conntrack_operator.decide.news import is_due
from conntrack_operator.decide.plan import Change, Plan
from conntrack_operator.decide.refusal import Refusal
from conntrack_operator.decide.report import Deed, Moment, size_of, status_for
from conntrack_operator.model.node import MAX_STATUS_BYTES, NodeSpec, Result, Talker, Usage

NOW = datetime(2026, 5, 1, 12, 0, 0, tzinfo=UTC)
SPEC = NodeSpec(revision="abc", mode="Apply", node_uid="uid-1")
GOOD = Result(setting="net.netfilter.nf_conntrack_max", wanted="1", observed="1", reason="Applied")
ODD = Refusal("net.netfilter.nf_conntrack_tcp_timeout_established", "BelowKeepalive", "is 10m; use 24h")
BAD = Result(setting="notrack/web", wanted="x", observed="", reason="Unsupported", message="write ports")


def status(
    previous=None,
    spec=SPEC,
    phase="Current",
    results=(GOOD,),
    percent=10,
    now=NOW,
    drops=0,
    talkers=(),
    warnings=(),
    full_in=None,
):
    """Return a status with a use of `percent`."""
    usage = Usage(entries=percent, max_entries=100, percent=percent, drops_per_second=drops, seconds_to_full=full_in)
    moment = Moment(now, "boot", usage, talkers)
    return status_for(spec, previous, Deed(phase, results, {"buckets": 512}, warnings=warnings), moment)


def condition(of, kind):
    """Return the condition of that type."""
    return next(item for item in of.conditions if item.type == kind)


def test_good_and_bad():
    """Ready follows the phase, names the setting and its remedy, and keeps its time while it does not change."""
    good = status()
    assert (condition(good, "Ready").status, condition(good, "Saturated").status) == ("True", "False")
    later = NOW + timedelta(hours=1)
    bad = status(good, phase="Refused", results=(GOOD, BAD), now=later)
    ready = condition(bad, "Ready")
    assert (ready.status, ready.reason, ready.message) == ("False", "Unsupported", "notrack/web: write ports")
    assert ready.last_transition_time == "2026-05-01T13:00:00Z"
    assert condition(bad, "Saturated").last_transition_time == "2026-05-01T12:00:00Z"
    assert [step.phase for step in bad.history] == ["Current", "Refused"]
    assert bad.results[0] == BAD, "what failed comes first"


@pytest.mark.parametrize(("percent", "drops", "full"), [(89, 0, "False"), (90, 0, "True"), (10, 1, "True")])
def test_saturated(percent, drops, full):
    """Nearly full or dropping is saturated."""
    assert condition(status(percent=percent, drops=drops), "Saturated").status == full


def test_history_holds_ten():
    """Only the last ten changes of phase are kept."""
    last = None
    for number in range(15):
        last = status(last, phase="Refused" if number % 2 else "Current")
    assert len(last.history) == 10


def test_never_over_4_kilobytes():
    """However much there is to say, a status fits; what failed is said to the last."""
    results = [
        Result(
            setting=f"net.netfilter.nf_conntrack_{n}",
            wanted="1" * 9,
            observed="2",
            reason="WriteFailed",
            message="m" * 400,
        )
        for n in range(60)
    ]
    talkers = [Talker(by="source", key=f"2001:db8::{n}", entries=n, percent=1) for n in range(40)]
    fat = status(results=results, talkers=talkers, phase="Refused")
    assert len(json.dumps(fat.document(), separators=(",", ":"), ensure_ascii=False).encode()) <= 4096
    assert fat.results
    assert all(result.reason == "WriteFailed" for result in fat.results)


def test_warnings_are_told_and_go_early():
    """They stand in the status as setting, reason and sentence; when room is short they make way for what failed."""
    calm = status(warnings=(ODD,))
    assert [warning.document() for warning in calm.warnings] == [ODD.document()]
    assert (calm.phase, condition(calm, "Ready").status) == ("Current", "True")
    failures = [
        Result(setting=f"s{n}", wanted="1", observed="2", reason="WriteFailed", message="m" * 400) for n in range(5)
    ]
    many = [Refusal(f"w{n}", "TooShort", "m" * 400) for n in range(20)]
    fat = status(results=failures, warnings=many, phase="Refused")
    assert len(json.dumps(fat.document(), separators=(",", ":"), ensure_ascii=False).encode()) <= 4096
    assert (len(fat.results), fat.results[0].message, len(fat.warnings)) == (5, "m" * 400, 0)


@pytest.mark.parametrize("length", [0, 10, 400, 4000])
@pytest.mark.parametrize("number", [1, 5, 16, 80, 300])
def test_failures_survive_the_cut(number, length):
    """Sentences are cut before names, and names that have no room are counted: nothing fails unsaid."""
    failures = [
        Result(setting=f"notrack/rule-{n}", wanted="w" * 70, observed="", reason="NATConflict", message="ü" * length)
        for n in range(number)
    ]
    warnings = [Refusal(f"w{n}", "TooShort", "m" * 400) for n in range(20)]
    before = None
    for turn in range(12):  # a full history besides
        before = status(before, phase="Refused" if turn % 2 else "Current", results=failures if turn % 2 else (GOOD,))
    fat = status(before, results=(GOOD, *failures), warnings=warnings, phase="Refused")
    assert len(json.dumps(fat.document(), separators=(",", ":"), ensure_ascii=False).encode()) <= 4096
    named = [result.setting for result in fat.results if result.reason == "NATConflict" and result.setting != "node"]
    assert named == [failure.setting for failure in failures[: len(named)]]
    if len(named) < number:
        assert number > 16, "as many as a policy has rules always have room"
        assert fat.results[-1].message.startswith(f"{number - len(named)} more settings failed")


@pytest.mark.parametrize(
    ("phase", "parked", "stalled", "reason"),
    [
        ("Current", False, "False", "NotStalled"),
        ("Trial", False, "False", "NotStalled"),
        ("RolledBack", False, "False", "NotStalled"),
        ("RolledBack", True, "True", "Parked"),
        ("Refused", False, "True", "Refused"),
        ("Contended", False, "True", "Contended"),
        ("Restored", False, "False", "NotStalled"),
    ],
)
def test_stalled_is_said_where_somebody_must_act(phase, parked, stalled, reason):
    """A node that will try again by itself is not stalled; and that it gives up is news."""
    calm = status()
    deed = Deed(phase, (GOOD,), {"buckets": 512}, parked=parked)
    made = status_for(SPEC, calm, deed, Moment(NOW, "boot", calm.usage))
    assert (condition(made, "Stalled").status, condition(made, "Stalled").reason) == (stalled, reason)
    waiting = status_for(SPEC, calm, replace(deed, parked=False), Moment(NOW, "boot", calm.usage))
    assert is_due(waiting, made, NOW, 1.0) is parked


def test_a_trial_says_what_it_is_and_what_failed_before():
    """Ready is False with a sentence; a refusal beside it, or a try that failed, is not where the node is now."""
    first = condition(status(phase="Trial", results=()), "Ready")
    assert (first.status, first.reason) == ("False", "Trial")
    assert first.message.startswith("a change is in force")
    failed = Result(setting="node", wanted="", observed="", reason="ProbeFailed", message="DNS did not answer")
    again = status(phase="Trial", results=(failed, GOOD))
    assert condition(again, "Ready").message.endswith("; DNS did not answer")
    assert again.history[-1].reason == "Trial"


@pytest.mark.parametrize(("before", "now", "full"), [(95, 85, "True"), (95, 84, "False"), (89, 88, "False")])
def test_saturated_has_hysteresis(before, now, full):
    """A node around 90 % does not flap."""
    assert condition(status(status(percent=before), percent=now), "Saturated").status == full


def test_a_long_preview_says_what_it_leaves_out() -> None:
    """A preview never loses its last change and refusal: the node would be taken for one that stays as it is."""
    changes = tuple(Change(f"net.netfilter.nf_conntrack_{number:03}", None, number, "x") for number in range(200))
    refused = tuple(Refusal(f"notrack/{number}", "NATConflict", "why " * 100) for number in range(16))
    deed = Deed("Current", (), preview=Plan(changes, refused, {}, ()), previewed="abc")
    status = status_for(SPEC, None, deed, Moment(NOW, "boot"))
    assert size_of(status) <= MAX_STATUS_BYTES
    assert status.preview
    assert status.preview.changes
    assert status.preview.refused
    assert status.preview.revision == "abc"
    assert status.preview.omitted == 216 - len(status.preview.changes) - len(status.preview.refused)
    assert status.preview.changes[0].from_ == "absent"


def test_a_preview_of_other_settings_is_news() -> None:
    """Whoever edits an Observe policy waits for its preview, even if that comes to the same."""
    told = [
        status_for(SPEC, None, Deed("Current", (), preview=Plan((), (), {}, ()), previewed=each), Moment(NOW, "boot"))
        for each in ("a", "b", "b")
    ]
    assert is_due(told[0], told[1], NOW, 1.0, has_room=False)
    assert not is_due(told[1], told[2], NOW, 1.0, has_room=False)
