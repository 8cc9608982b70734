"""What somebody changed, and when changing it back ends."""

import pytest

from conntrack_operator.decide.draft import RETURNED
from conntrack_operator.decide.drift import LEFT_ALONE, Drift, Repairs, drift_of, mending_of, with_contended
from conntrack_operator.decide.plan import Change, Plan
from conntrack_operator.model.node import Result

MAX = "net.netfilter.nf_conntrack_max"
ACCT = "net.netfilter.nf_conntrack_acct"
HOUR = 3600.0


def plan(*changes):
    """Return a plan of these changes."""
    return Plan(changes=changes, refused=(), wanted={}, rules=())


LOWERED = Change(MAX, 262144, 1048576, "table.size.maxEntries")
FLUSHED = tuple(Change(f"notrack/{name}", "absent", f"TCP {name} Server", "notrack.rules") for name in "ab")


def test_drift_is_the_plan_of_what_was_confirmed():
    """From and to change places: wanted is what was confirmed. What is still being given back is no drift."""
    waiting = Change(ACCT, 1, 0, RETURNED)
    assert drift_of(plan(LOWERED, waiting)) == (Drift(MAX, 1048576, 262144),)
    assert drift_of(plan(waiting)) == ()
    assert drift_of(plan()) == ()


def fight(repairs, times, key=MAX):
    """Let somebody change a setting at these times; return when it was repaired."""
    done = []
    for time in times:
        if repairs.may_repair(key, time):
            repairs.repaired(key, time)
            done.append(time)
    return done


WARS = {
    "one repair": ([0], [0], False),
    "three in an hour": ([0, 100, 200], [0, 100, 200], False),
    "more than three in an hour": ([0, 1, 2, 3, 4, 100], [0, 1, 2], True),
    "four in more than an hour": ([0, 100, 200, HOUR], [0, 100, 200, HOUR], False),
    "once every twenty minutes": ([0, 1200, 2400, 3600, 4800], [0, 1200, 2400, 3600, 4800], False),
    "one try an hour later": ([0, 1, 2, 3, HOUR + 1, HOUR + 2, HOUR + 3], [0, 1, 2, HOUR + 2], True),
}


@pytest.mark.parametrize(("changed", "repaired", "contended"), WARS.values(), ids=WARS)
def test_a_war_ends(changed, repaired, contended):
    """Three repairs an hour, then one try an hour."""
    repairs = Repairs()
    assert fight(repairs, changed) == repaired
    assert repairs.contended(changed[-1]) == ((MAX,) if contended else ())
    assert repairs.total == len(repaired)


def test_peace_after_an_hour():
    """A setting that has been as confirmed for an hour is contended no more, and has its three repairs again."""
    repairs = Repairs()
    fight(repairs, [0, 1, 2, 3])
    assert repairs.contended(3 + HOUR - 1) == (MAX,)
    assert repairs.contended(3 + HOUR) == ()
    assert len(fight(repairs, [3 * HOUR, 3 * HOUR + 1, 3 * HOUR + 2, 3 * HOUR + 3])) == 3


def test_a_new_wish_ends_the_war():
    """Another revision gets its own tries; the count of repairs goes on."""
    repairs = Repairs()
    fight(repairs, [0, 1, 2, 3])
    repairs.forget()
    assert repairs.contended(4) == ()
    assert fight(repairs, [5]) == [5]
    assert dict(repairs.totals) == {MAX: 4}


def test_settings_are_counted_apart():
    """A war about one is peace for the others."""
    repairs = Repairs()
    fight(repairs, [0, 1, 2, 3])
    assert fight(repairs, [3], ACCT) == [3]
    assert repairs.contended(4) == (MAX,)


def test_one_flush_is_one_repair():
    """However many rules were in our table."""
    repairs = Repairs()
    mending = mending_of(plan(*FLUSHED), repairs, 0.0)
    assert [drift.setting for drift in mending.repairing] == ["notrack/a", "notrack/b"]
    mending.note((), repairs, 0.0)
    assert dict(repairs.totals) == {"notrack": 1}


def test_contended_settings_are_left():
    """The rest is repaired all the same, and what is left is known for the report."""
    repairs = Repairs()
    fight(repairs, [0, 1, 2])
    mending = mending_of(plan(LOWERED, *FLUSHED), repairs, 3.0)
    assert mending.plan.changes == FLUSHED
    assert mending.left == (Drift(MAX, 1048576, 262144),)
    assert [drift.setting for drift in mending.repairing] == ["notrack/a", "notrack/b"]


def test_a_failed_write_is_no_repair():
    """What we cannot write is refused, not fought over."""
    repairs = Repairs()
    for second in range(10):
        mending = mending_of(plan(LOWERED), repairs, second)
        mending.note((MAX,), repairs, second)
    assert repairs.total == 0
    assert repairs.contended(10) == ()


def test_contended_results():
    """The result says Contended and by whom, and keeps what was wanted and seen."""
    results = (
        Result(setting=MAX, wanted="1048576", observed="262144", reason="ReadBackDiffers", message="?"),
        Result(setting=ACCT, wanted="1", observed="1", reason="Applied"),
    )
    changed, same = with_contended(results, {MAX: "kube-proxy did it"})
    assert (changed.reason, changed.message, changed.observed) == (
        "Contended",
        f"kube-proxy did it; {LEFT_ALONE}",
        "262144",
    )
    assert same == results[1]


def test_what_we_do_ourselves_is_no_drift():
    """A rule that preflight withdraws, or that comes back after that, is carried out in any war and not counted."""
    gone = Change("notrack/c", "TCP 80 Server", "absent", "NATConflict")
    moves = plan(*FLUSHED, gone)
    assert [drift.setting for drift in drift_of(moves)] == ["notrack/a", "notrack/b"]
    assert [drift.setting for drift in drift_of(moves, {"a", "c"})] == ["notrack/a"]
    repairs = Repairs()
    fight(repairs, range(4), key="notrack")
    mending = mending_of(moves, repairs, 5.0, {"a", "b", "c"})
    assert mending.plan.changes == (gone,)
    assert {drift.setting for drift in mending.left} == {"notrack/a", "notrack/b"}
