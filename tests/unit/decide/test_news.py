"""When a status is written: at once what is waited for, paced what flaps, seldom what only moves."""

import itertools
from datetime import UTC, datetime, timedelta

import pytest

from conntrack_operator.decide.news import NEWS_BURST, Allowance, is_due
from conntrack_operator.decide.plan import Change, Plan
from conntrack_operator.decide.refusal import Refusal
from conntrack_operator.decide.report import Deed, Moment, status_for
from conntrack_operator.model.node import NodeSpec, Result, Usage

NOW = datetime(2026, 5, 1, 12, 0, 0, tzinfo=UTC)
SPEC = NodeSpec(revision="abc", mode="Apply", node_uid="uid-1")
GOOD = Result(setting="net.netfilter.nf_conntrack_max", wanted="1", observed="1", reason="Applied")
BAD = Result(setting="notrack/web", wanted="x", observed="", reason="Unsupported", message="write ports")
ODD = Refusal("net.netfilter.nf_conntrack_tcp_timeout_established", "BelowKeepalive", "is 10m; use 24h")
PREVIEW = Plan((Change("a", 1, 2, ""),), (), {}, ())
OTHER = Plan((Change("a", 1, 3, ""),), (), {}, ())


def status(
    previous=None, spec=SPEC, phase="Current", results=(GOOD,), percent=10, drops=0, warnings=(), full_in=None,
    preview=None, previewed="", parked=False, boot="boot", now=NOW,
):  # fmt: skip
    """Return a status with a use of `percent`."""
    usage = Usage(entries=percent, max_entries=100, percent=percent, drops_per_second=drops, seconds_to_full=full_in)
    deed = Deed(phase, results, {"buckets": 512}, preview, previewed, warnings, parked)
    return status_for(spec, previous, deed, Moment(now, boot, usage))


def due(reported, fresh, seconds=30.0, has_room=True):
    """Tell whether `fresh` would be written that many seconds after `reported`."""
    return is_due(reported, fresh, NOW + timedelta(seconds=seconds), 1.0, has_room=has_room)


ANSWERS = [
    {"spec": SPEC.model_copy(update={"revision": "new"})},
    {"spec": SPEC.model_copy(update={"attempt": "again"})},
    {"spec": SPEC.model_copy(update={"node_uid": "another"})},
    {"boot": "another"},
    {"preview": PREVIEW, "previewed": "new"},
]
NEWS = [
    {"phase": "Refused"},
    {"phase": "RolledBack", "parked": True},
    {"results": (GOOD, BAD)},
    {"results": (GOOD.model_copy(update={"observed": "7"}),)},
    {"warnings": (ODD,)},
    {"preview": OTHER, "previewed": "p"},
    {"preview": None},
]
USAGE = [{"percent": 40}, {"drops": 5}, {"full_in": 300}]


@pytest.mark.parametrize(
    "change",
    [{}, {"percent": 12}, {"full_in": 2000}, {"results": (GOOD.model_copy(update={"message": "another number"}),)}],
)
def test_an_unchanged_node_writes_nothing(change):
    """Small movements and other words for the same are no news, whenever."""
    before = status()
    assert not due(before, status(before, **change), seconds=299)


@pytest.mark.parametrize("change", ANSWERS)
def test_an_answer_never_waits(change):
    """What was asked anew, for another node or after a boot, is answered at once, however much was said before."""
    before = status()
    assert due(before, status(before, **change), seconds=0, has_room=False)


@pytest.mark.parametrize("phase", ["Current", "RolledBack", "Refused"])
def test_the_end_of_a_trial_never_waits(phase):
    """A rollout waits for it."""
    trial = status(phase="Trial")
    assert due(trial, status(trial, phase=phase), seconds=0, has_room=False)


@pytest.mark.parametrize(
    "change", [{"phase": "RolledBack", "parked": True}, {"phase": "Current"}, {"phase": "Refused"}]
)
def test_the_end_of_an_attempt_never_waits(change):
    """Even where the trials between were not told: that it works now, or was given up."""
    trying = status(phase="RolledBack", results=(BAD,))
    assert due(trying, status(trying, **{"results": (BAD,), **change}), seconds=0, has_room=False)
    assert not due(trying, status(trying, phase="Trial", results=(BAD,)), seconds=0, has_room=False)


@pytest.mark.parametrize("change", NEWS)
def test_news_waits_only_where_much_was_said(change):
    """Phase, results, warnings and preview are news: at once, or with the next heartbeat at the latest."""
    before = status(preview=PREVIEW, previewed="p")
    change = {"preview": PREVIEW, "previewed": "p", **change}
    assert not due(before, status(before, preview=PREVIEW, previewed="p"), seconds=0)
    assert due(before, status(before, **change), seconds=0)
    assert not due(before, status(before, **change), seconds=59, has_room=False)
    assert due(before, status(before, **change), seconds=300, has_room=False)


@pytest.mark.parametrize("change", USAGE)
def test_usage_waits_for_a_minute_of_silence(change):
    """A band, drops, a table soon full: a minute after the last write, whatever that was about."""
    before = status()
    assert not due(before, status(before, **change), seconds=59)
    assert due(before, status(before, **change), seconds=60, has_room=False)


def test_a_rival_that_keeps_writing_is_no_news_each_time():
    """Of a contended setting, whatever its rival wrote last, nothing new is to be said."""
    left = GOOD.model_copy(update={"reason": "Contended", "message": "by kube-proxy"})
    before = status(phase="Contended", results=(left,))
    assert not due(before, status(before, phase="Contended", results=(left.model_copy(update={"observed": "7"}),)))
    assert due(before, status(before))


@pytest.mark.parametrize(("seconds", "expected"), [(0, False), (299, False), (300, True), (-5, True)])
def test_heartbeat(seconds, expected):
    """Every five minutes; a report from the future (a clock set back) is written over."""
    before = status()
    assert due(before, status(before), seconds=seconds) is expected


def test_first_report():
    """What was never reported is due."""
    assert is_due(None, status(), NOW, 1.0, has_room=False)


def written_while_flapping(seconds, every=5):
    """Return when a node writes whose phase is another one at every look."""
    reported, allowance, written = status(), Allowance(), []
    for number in range(seconds // every):
        at = number * every
        now = NOW + timedelta(seconds=at)
        fresh = status(reported, phase="Refused" if number % 2 == 0 else "Contended", now=now)
        if is_due(reported, fresh, now, 1.0, has_room=allowance.has_room(at)):
            reported, allowance = fresh, allowance.spent(at)
            written.append(at)
    return written


def test_what_flaps_is_told_in_a_burst_and_then_once_a_minute():
    """An hour of flapping is no hour of writing."""
    written = written_while_flapping(3600)
    assert written[:NEWS_BURST] == [number * 5 for number in range(NEWS_BURST)]
    assert len(written) <= NEWS_BURST + 60
    later = itertools.pairwise(written[NEWS_BURST:])
    assert all(50 <= after - before <= 70 for before, after in later)


def test_a_quiet_time_gives_the_burst_back():
    """After six minutes of silence a node may say as much as at first."""
    allowance = Allowance()
    for second in range(NEWS_BURST):
        assert allowance.has_room(second)
        allowance = allowance.spent(second)
    assert not allowance.has_room(NEWS_BURST)
    for second in range(400, 400 + NEWS_BURST):
        assert allowance.has_room(second)
        allowance = allowance.spent(second)
    assert not allowance.has_room(400 + NEWS_BURST)
