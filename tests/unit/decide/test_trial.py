"""The schedule of a trial: never later than its deadline, never confirmed with a probe failing, never for ever."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conntrack_operator.decide.plan import BUCKETS, MAX, Change, Plan
from conntrack_operator.decide.refusal import Refusal
from conntrack_operator.decide.trial import (
    FAILURES_MAX,
    PROBE_SECONDS,
    Budget,
    Confirm,
    Round,
    Undo,
    Wait,
    Wishing,
    budget_for,
    failed_again,
    known_part,
    needs_trial,
    seconds_to_next_try,
    undoing,
    verdict,
    why_again,
    why_not_now,
)
from conntrack_operator.model.facts import Facts
from conntrack_operator.model.journal import Confirmed, Journal, TrialRecord
from conntrack_operator.model.notrack import NotrackRule
from conntrack_operator.model.policy import Settings, Trial

A, B = "API server 10.0.0.1:443", "DNS 10.0.0.10"
MINUTE = Budget(60, 5)
ICMP = "net.netfilter.nf_conntrack_icmp_timeout"
WEB = NotrackRule(name="web", ports=[80])
DNS = NotrackRule(name="dns", protocol="UDP", ports=[53])


def passed(*times):
    """Return rounds that passed, each of 0.1 s."""
    return [Round(time, time + 0.1) for time in times]


def missed(time, *names):
    """Return a round in which these did not answer."""
    return Round(time, time + PROBE_SECONDS, frozenset(names or [A]))


@pytest.mark.parametrize(
    ("rounds", "now", "expected"),
    [
        pytest.param([], 0.2, Wait(0.2), id="the first round at once"),
        pytest.param(passed(0.2), 0.3, Wait(1.3), id="again a second later"),
        pytest.param(passed(0, 1, 2, 3, 4), 4.1, Wait(5.0), id="the last one as soon as the soak is over"),
        pytest.param(passed(0, 1, 2, 3, 4, 5), 5.1, Confirm(), id="soaked"),
        pytest.param([*passed(0, 1, 2, 3), missed(4)], 6, Wait(7.0), id="a failure is not the end"),
        pytest.param([missed(0), *passed(3, 4, 5, 6, 7)], 7.1, Wait(8.0), id="the soak begins anew after it"),
        pytest.param([missed(0), *passed(3, 4, 5, 6, 7, 8)], 8.1, Confirm(), id="back inside the budget"),
        pytest.param(passed(0, 6), 56, Undo, id="too late, however well it went"),
        pytest.param(passed(50), 50.1, Undo, id="a soak that cannot be over in time"),
        pytest.param([missed(45)], 47, Wait(48.0), id="there is just time"),
        pytest.param([missed(47)], 49, Undo, id="there is no time any more"),
    ],
)
def test_when_to_do_what(rounds, now, expected):
    """A minute, a soak of 5 s, one probe."""
    decision = verdict(MINUTE, [A], rounds, now)
    if isinstance(expected, Wait):
        assert decision == Wait(pytest.approx(expected.next_round))
    elif expected is Undo:
        assert isinstance(decision, Undo)
    else:
        assert decision == expected


def test_what_an_undo_says():
    """The probe is named, and whether it never came back or only now and then."""
    gone = verdict(MINUTE, [A, B], [missed(0, A, B), missed(46)], 49)
    assert isinstance(gone, Undo)
    assert (gone.reason, gone.message.split(";")[0]) == (
        "ProbeFailed",
        f"{A} answered before the change and did not within 49 s after it",
    )
    flapping = verdict(MINUTE, [A], [missed(46), *passed(49)], 49.5)
    assert isinstance(flapping, Undo)
    assert "did not steadily within" in flapping.message
    late = verdict(MINUTE, [A], passed(0), 70)
    assert isinstance(late, Undo)
    assert late.reason == "TrialExpired"


def test_nothing_to_probe():
    """What no probe watches is confirmed at once, but not after its time."""
    assert verdict(MINUTE, [], [], 0.1) == Confirm()
    assert isinstance(verdict(MINUTE, [], [], 55.5), Undo)


@pytest.mark.parametrize(
    ("trial", "expected"),
    [
        (None, (60, 5)),
        (Trial(), (60, 5)),
        (Trial(timeout_seconds=10), (10, 0)),
        (Trial(timeout_seconds=13), (13, 3)),
        (Trial(timeout_seconds=3600, soak_seconds=600), (3600, 600)),
        (Trial(soak_seconds=50), (60, 50)),
    ],
)
def test_defaults(trial, expected):
    """A minute and 5 s; in a short trial the default soak gives way."""
    budget = budget_for(trial)
    assert (budget.timeout_seconds, budget.soak_seconds) == expected


@st.composite
def budgets(draw):
    """Draw any pair that a policy may have."""
    timeout = draw(st.integers(10, 3600))
    return Budget(timeout, draw(st.integers(0, min(600, timeout - 10))))


def run(budget, began, random, fails):
    """Play a trial whose change took until `began`, on probes that take what `random` says; return its end."""
    now, rounds = began, []
    while True:
        decision = verdict(budget, [A], rounds, now)
        if not isinstance(decision, Wait):
            return decision, now, rounds
        assert decision.next_round >= (rounds[-1].ended if rounds else 0)
        now = max(now, decision.next_round)
        took = random.choice([0.0, 0.01, 1.0, PROBE_SECONDS])
        failed = frozenset([A]) if random.random() < fails else frozenset[str]()
        rounds.append(Round(now, now + took, failed))
        now += took


@settings(deadline=None, max_examples=150)
@given(budgets(), st.floats(0, 4000), st.randoms(use_true_random=False), st.sampled_from([0.0, 0.01, 0.3, 1.0]))
def test_everything_ends_before_the_deadline(budget, began, random, fails):
    """For every pair allowed, however slow change and probes are: rounds end and confirmations begin in time."""
    decision, now, rounds = run(budget, began, random, fails)
    assert budget.last_confirm < budget.timeout_seconds
    assert all(each.ended <= budget.last_confirm + 1e-6 for each in rounds)
    if isinstance(decision, Confirm):
        assert now <= budget.last_confirm
        assert budget.timeout_seconds - now >= min(5, budget.timeout_seconds / 5) - 1e-6
        soaked = [each for each in rounds if each.ended >= now - budget.soak_seconds]
        assert soaked
        assert not any(each.failed for each in soaked)


@settings(deadline=None, max_examples=150)
@given(budgets(), st.floats(0, 2), st.randoms(use_true_random=False))
def test_what_is_good_is_confirmed(budget, began, random):
    """For every pair allowed: a change made within 2 s whose probes pass is confirmed, and not long after its soak."""
    decision, now, _ = run(budget, began, random, 0.0)
    assert decision == Confirm()
    assert now <= began + budget.soak_seconds + 2 * PROBE_SECONDS


def plan(*changes, rules=(), released=(), refused=()):
    """Return a plan of these (setting, value)."""
    made = tuple(Change(setting, 1, value, "") for setting, value in changes)
    return Plan(made, tuple(refused), {}, tuple(rules), tuple(released))


CONFIRMED = Confirmed(revision="r", settings=Settings(), sysctls={ICMP: 10}, rules=[WEB])


@pytest.mark.parametrize(
    ("case", "tried"),
    [
        pytest.param(plan(), False, id="nothing"),
        pytest.param(plan((ICMP, 10)), False, id="a value confirmed before, put right"),
        pytest.param(plan((ICMP, 11)), True, id="another value"),
        pytest.param(plan((ICMP, 30), released=[ICMP]), False, id="an original"),
        pytest.param(plan(("notrack/web", "x"), rules=[WEB]), False, id="a rule confirmed before, put right"),
        pytest.param(plan(("notrack/dns", "x"), rules=[WEB, DNS]), True, id="another rule"),
        pytest.param(plan(("notrack/web", "x"), rules=[WEB.model_copy(update={"ports": [81]})]), True, id="edited"),
        pytest.param(plan(("notrack/web", "absent")), False, id="a rule withdrawn"),
        pytest.param(plan(("notrack/*", "x"), rules=[WEB]), False, id="our table, put right"),
        pytest.param(plan(("notrack/*", "x"), rules=[DNS]), True, id="our table, with another rule"),
        pytest.param(plan(refused=[Refusal("x", "y", "z")]), False, id="refused"),
    ],
)
def test_what_needs_a_trial(case, tried):
    """What goes back and what was proved here needs none."""
    assert needs_trial(case, CONFIRMED) is tried
    assert not needs_trial(known_part(case, CONFIRMED), CONFIRMED)


def test_without_anything_confirmed_everything_is_tried():
    """But what goes back."""
    assert needs_trial(plan((ICMP, 10)), None)
    assert not needs_trial(plan((ICMP, 10), released=[ICMP]), None)


def test_the_known_part():
    """Is made; the rest is left out, rules too."""
    mixed = plan((ICMP, 10), (MAX, 5), ("notrack/web", "x"), ("notrack/dns", "x"), rules=[WEB, DNS])
    known = known_part(mixed, CONFIRMED)
    assert [change.setting for change in known.changes] == [ICMP, "notrack/web"]
    assert known.rules == (WEB,)


def facts(entries=0, **sysctls):
    """Return a machine with these values."""
    names = {"icmp": ICMP, "max": MAX, "buckets": BUCKETS}
    return Facts(
        memory_bytes=1,
        cpus=1,
        kernel="6.18",
        entries=entries,
        sysctls={names[key]: value for key, value in sysctls.items()},
    )


RECORD = TrialRecord(
    revision="r",
    deadline=1,
    before={ICMP: 30, MAX: 100, BUCKETS: 512},
    written={ICMP: 10, MAX: 1000, BUCKETS: 1024},
)


@pytest.mark.parametrize(
    ("now", "changes", "left"),
    [
        pytest.param(
            facts(icmp=10, max=1000, buckets=1024),
            [(ICMP, 30), (MAX, 100), (BUCKETS, 512)],
            0,
            id="all of it, max first",
        ),
        pytest.param(facts(icmp=30, max=100, buckets=512), [], 0, id="killed before the first write"),
        pytest.param(facts(icmp=30, max=100, buckets=1024), [(BUCKETS, 512)], 0, id="killed after the first write"),
        pytest.param(facts(icmp=77, max=1000, buckets=1024), [(MAX, 100), (BUCKETS, 512)], 1, id="somebody else's"),
        pytest.param(facts(entries=101, icmp=10, max=1000, buckets=1024), [(ICMP, 30)], 1, id="would drop connections"),
        pytest.param(facts(), [], 0, id="keys that are gone"),
    ],
)
def test_compare_and_swap(now, changes, left):
    """Only what is still ours goes back, in an order in which nothing is too small for a moment."""
    way = undoing(RECORD, now)
    assert [(change.setting, change.to) for change in way.changes] == changes
    assert len(way.left) == left


def test_three_failures_park_a_wish():
    """Each waits longer; the third parks; a new revision or attempt begins anew."""
    wish, journal = Wishing("r", "1"), Journal(boot_id="b")
    pauses = []
    for _ in range(FAILURES_MAX):
        journal = replace_failures(journal, failed_again(journal, wish, 100, "ProbeFailed", "it did not answer"))
        pauses.append(seconds_to_next_try(journal.failures, wish, 110))
    assert pauses == [20, 50, None]
    assert journal.failures is not None
    assert "rollout.retry" in why_not_now(journal.failures, None)
    first = journal.failures.model_copy(update={"count": 1})
    assert why_again(first) == "it did not answer; now it is tried again, 2 of 3 times"
    for other in (Wishing("r", "2"), Wishing("s", "1")):
        assert seconds_to_next_try(journal.failures, other, 110) == 0
        assert failed_again(journal, other, 1, "x", "y").count == 1
    assert seconds_to_next_try(journal.failures.model_copy(update={"count": 2}), wish, 500) == 0


def replace_failures(journal, failures):
    """Return `journal` with these."""
    return journal.model_copy(update={"failures": failures})


def test_a_plan_can_be_cut():
    """`known_part` leaves refusals alone."""
    refused = plan((MAX, 5), refused=[Refusal("x", "y", "z")])
    assert replace(known_part(refused, None), changes=()) == replace(refused, changes=())
