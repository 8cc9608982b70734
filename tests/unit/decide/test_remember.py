"""The journal around a plan: originals before the first write, nothing forgotten too early, Keep honoured."""

import pytest

from conntrack_operator.decide.plan import BUCKETS, MAX, plan_for
from conntrack_operator.decide.remember import (
    is_kept,
    journal_after,
    journal_before,
    journal_confirmed,
    journal_of_next_boot,
    journal_on_trial,
    journal_undone,
    judged_anew,
    without_keeps,
)
from conntrack_operator.model.facts import Facts
from conntrack_operator.model.journal import AppliedRule, Failures, Journal, Original
from conntrack_operator.model.node import NodeSpec, PolicyUse
from conntrack_operator.model.notrack import NotrackRule
from conntrack_operator.model.policy import Settings

TIME_WAIT = "net.netfilter.nf_conntrack_tcp_timeout_time_wait"
EMPTY = Journal(boot_id="b")


def facts(time_wait=120):
    """Return a machine with this timeout."""
    return Facts(memory_bytes=1, cpus=1, kernel="6.18", sysctls={TIME_WAIT: time_wait, MAX: 262144, BUCKETS: 262144})


def wish(seconds):
    """Return settings that ask for this timeout."""
    return Settings.model_validate({"timeouts": {"tcp": {"timeWait": seconds}}})


def use(*fields, on_delete="Restore"):
    """Return a policy's share."""
    return PolicyUse(name="web", revision="r", fields=list(fields), on_delete=on_delete)


def kept_before(settings, now, journal, *uses):
    """Return the journal before `settings` are applied."""
    return journal_before(plan_for(settings, facts(now), journal=journal), journal, facts(now), uses)


def test_original_is_kept_once():
    """The first value found is the original, whatever is written afterwards; each of our values is known as ours."""
    first = kept_before(wish(30), 120, EMPTY)
    assert first.originals == {TIME_WAIT: Original(value=120, ours=[30])}
    second = kept_before(wish(40), 30, first)
    assert second.originals == {TIME_WAIT: Original(value=120, ours=[30, 40])}
    assert kept_before(wish(40), 40, second) == second


def test_killed_between_journal_and_write():
    """The value in the kernel is either the original or one of ours, so a restore always knows what to do."""
    journal = kept_before(wish(40), 30, kept_before(wish(30), 120, EMPTY))
    for found in (30, 40):
        plan = plan_for(Settings(), facts(found), journal=journal)
        assert [(change.setting, change.to) for change in plan.changes] == [(TIME_WAIT, 120)]


def test_equal_already():
    """A value that was right before us has no original to put back."""
    assert kept_before(wish(120), 120, EMPTY) == EMPTY


def test_forgotten_when_put_back():
    """After the original is back the journal is empty; when the write failed it still knows."""
    journal = kept_before(wish(30), 120, EMPTY)
    plan = plan_for(Settings(), facts(30), journal=journal)
    assert journal_before(plan, journal, facts(30), ()) == journal
    assert journal_after(plan, journal, {}) == EMPTY
    assert journal_after(plan, journal, {TIME_WAIT: OSError()}) == journal


def test_keep_follows_the_policy():
    """onDelete can change while the value does not."""
    restored = kept_before(wish(30), 120, EMPTY, use("timeouts.tcp.timeWait"))
    kept = kept_before(wish(30), 30, restored, use("timeouts.tcp.timeWait", on_delete="Keep"))
    assert (restored.originals[TIME_WAIT].keep, kept.originals[TIME_WAIT].keep) == (False, True)
    assert plan_for(Settings(), facts(30), journal=kept).changes == ()
    back = kept_before(wish(30), 30, kept, use("timeouts.tcp.timeWait"))
    assert not back.originals[TIME_WAIT].keep


def test_keep_said_at_the_last_moment():
    """An onDelete that changed just before the policy went is honoured; policies that say nothing change nothing."""
    journal = kept_before(wish(30), 120, EMPTY, use("timeouts.tcp.timeWait"))
    kept = judged_anew(journal, [use("timeouts.tcp.timeWait", on_delete="Keep")])
    assert kept.originals[TIME_WAIT].keep
    assert judged_anew(kept, [use("timeouts.icmp")]) == kept
    assert not judged_anew(kept, [use("timeouts.tcp.timeWait")]).originals[TIME_WAIT].keep
    assert without_keeps(kept) == journal


@pytest.mark.parametrize("on_delete", ["Keep", "Restore"])
def test_rules(on_delete):
    """A rule is journalled before it is installed, and leaves the journal when it is gone, unless it is kept."""
    settings = Settings.model_validate({"notrack": {"rules": [{"name": "web", "ports": [80]}]}})
    plan = plan_for(settings, facts())
    journal = journal_before(plan, EMPTY, facts(), [use("notrack.rules[web]", on_delete=on_delete)])
    assert journal.applied_rules["web"].keep is (on_delete == "Keep")
    gone = plan_for(Settings(), facts(), journal=journal)
    after = journal_after(gone, journal_before(gone, journal, facts(), ()), {})
    assert set(after.applied_rules) == ({"web"} if on_delete == "Keep" else set())
    failed = journal_after(gone, journal, {"notrack/web": OSError()})
    assert set(failed.applied_rules) == {"web"}


@pytest.mark.parametrize(
    ("name", "field", "kept"),
    [
        (MAX, "table.size", True),
        (BUCKETS, "table.size", True),
        (BUCKETS, "table.entriesPerBucket", True),
        (MAX, "table.entriesPerBucket", False),
        (TIME_WAIT, "timeouts.tcp.timeWait", True),
        ("net.netfilter.nf_conntrack_acct", "sysctls.nf_conntrack_acct", True),
        ("net.netfilter.nf_conntrack_acct", "timeouts.icmp", False),
    ],
)
def test_which_field_keeps_what(name, field, kept):
    """Every sysctl belongs to the field that sets it."""
    assert is_kept(name, frozenset({field})) is kept


WEB, DNS = NotrackRule(name="web", ports=[80]), NotrackRule(name="dns", ports=[53])
TRIED = {"timeouts": {"tcp": {"timeWait": 40}}, "notrack": {"rules": [{"name": "web", "ports": ["80-81"]}]}}


def on_trial(journal, now=120):
    """Return the plan of `TRIED`, and the journal while it is tried."""
    spec = NodeSpec(revision="r", attempt="a", mode="Apply", node_uid="", settings=Settings.model_validate(TRIED))
    plan = plan_for(spec.settings, facts(now), journal=journal)
    return plan, journal_on_trial(plan, journal, facts(now), spec, 77.5)


def test_on_trial():
    """The trial's own values before and after are noted; rules confirmed before stay what they are."""
    before = Journal(boot_id="b", applied_rules={"web": AppliedRule(rule=WEB), "dns": AppliedRule(rule=DNS)})
    plan, journal = on_trial(before)
    assert journal.applied_rules == before.applied_rules
    record = journal.trial
    assert record is not None
    assert (record.before, record.written, record.new_originals) == ({TIME_WAIT: 120}, {TIME_WAIT: 40}, [TIME_WAIT])
    assert (record.revision, record.attempt, record.deadline, record.touches_rules) == ("r", "a", 77.5, True)
    assert [rule.ports for rule in record.new_rules] == [["80-81"]]
    assert Journal.model_validate_json(journal.model_dump_json(by_alias=True, exclude_none=True)) == journal
    confirmed = journal_confirmed(plan, journal, facts(40), (), {})
    assert {name: applied.rule.ports for name, applied in confirmed.applied_rules.items()} == {"web": ["80-81"]}
    assert (confirmed.trial, confirmed.originals[TIME_WAIT].value) == (None, 120)
    without_rules = journal_confirmed(plan, journal, facts(40), (), {"notrack/web": OSError()})
    assert without_rules.applied_rules["web"].rule == WEB


def test_undone():
    """Originals of what only the trial wrote are forgotten, older ones are not."""
    _, journal = on_trial(EMPTY)
    failures = Failures(revision="r", count=1, reason="x", message="y")
    assert journal_undone(journal, failures) == EMPTY.model_copy(update={"failures": failures})
    older = kept_before(wish(30), 120, EMPTY)
    _, journal = on_trial(older, 30)
    assert journal_undone(journal, None).originals[TIME_WAIT].value == 120


def test_next_boot():
    """Nothing but the failures outlives a boot; a trial that was under way is one more."""
    _, journal = on_trial(EMPTY.model_copy(update={"timed_elements": True}))
    after = journal_of_next_boot(journal, "next")
    assert (after.boot_id, after.originals, after.applied_rules, after.trial, after.timed_elements) == (
        "next", {}, {}, None, None,
    )  # fmt: skip
    assert after.failures is not None
    assert (after.failures.count, after.failures.reason, after.failures.at) == (1, "NodeRebooted", 0)
    assert journal_of_next_boot(after, "third").failures == after.failures
    _, again = on_trial(after)
    twice = journal_of_next_boot(again, "third").failures
    assert twice is not None
    assert twice.count == 2
