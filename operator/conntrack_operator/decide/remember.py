"""What the journal must say before a plan is carried out, and what it may forget afterwards. Pure.

Before: the original of everything about to be written, and the new value among ours, so that a kill between any two
writes leaves nothing unknown. Afterwards: what was put back is forgotten.
"""

from collections.abc import Mapping, Sequence

from conntrack_operator.model import catalogue
from conntrack_operator.model.facts import Facts
from conntrack_operator.model.journal import AppliedRule, Failures, Journal, Original, TrialRecord
from conntrack_operator.model.node import NodeSpec, PolicyUse

from .plan import BUCKETS, MAX, Plan
from .trial import NODE_REBOOTED, Wishing, failed_again, new_rules, rules_named

OURS_KEPT = 4
"""Values of ours to remember for one key: more than can be in flight between two journal writes."""


def journal_before(plan: Plan, journal: Journal, facts: Facts, uses: Sequence[PolicyUse]) -> Journal:
    """Return the journal to sync before `plan` is carried out on the machine of `facts`."""
    keeps = kept_fields(uses)
    originals = dict(journal.originals)
    for name, value in plan.wanted.items():
        known = originals.get(name)
        now = facts.sysctls.get(name)
        if known is None and (now is None or now == value):
            continue
        known = known or Original(value=now or 0, ours=[])
        ours = [*(old for old in known.ours if old != value), value][-OURS_KEPT:]
        originals[name] = Original(value=known.value, ours=ours, keep=is_kept(name, keeps))
    rules = dict(journal.applied_rules)
    for rule in plan.rules:
        known_rule = rules.get(rule.name)
        asked = any(f"notrack.rules[{rule.name}]" in use.fields for use in uses)
        keep = f"notrack.rules[{rule.name}]" in keeps if asked else bool(known_rule and known_rule.keep)
        rules[rule.name] = AppliedRule(rule=rule, keep=keep)
    return journal.model_copy(update={"originals": originals, "applied_rules": rules})


def journal_after(plan: Plan, journal: Journal, failed: Mapping[str, object]) -> Journal:
    """Return the journal once `plan` was carried out; what failed stays remembered, so that it is tried again."""
    originals = {
        name: original for name, original in journal.originals.items() if name not in plan.released or name in failed
    }
    names = {rule.name for rule in plan.rules} | set(plan.stuck)
    rules = {name: rule for name, rule in journal.applied_rules.items() if name in names or f"notrack/{name}" in failed}
    return journal.model_copy(update={"originals": originals, "applied_rules": rules})


def journal_on_trial(plan: Plan, journal: Journal, facts: Facts, spec: NodeSpec, deadline: float) -> Journal:
    """Return the journal to sync before `plan` is tried on the machine of `facts`, until `deadline` on CLOCK_BOOTTIME.

    The rules confirmed before stay what they are; the new ones are nobody's until they are confirmed.
    """
    noted = journal_before(plan, journal, facts, spec.policies)
    writes = {change.setting: int(change.to) for change in plan.changes if change.setting.startswith(catalogue.PREFIX)}
    record = TrialRecord(
        revision=spec.revision,
        attempt=spec.attempt,
        deadline=deadline,
        before={name: facts.sysctls[name] for name in writes},
        written=writes,
        touches_rules=bool(rules_named(plan)),
        new_rules=new_rules(plan, journal),
        new_originals=sorted(noted.originals.keys() - journal.originals.keys()),
    )
    return noted.model_copy(update={"applied_rules": journal.applied_rules, "trial": record})


def journal_confirmed(
    plan: Plan, journal: Journal, facts: Facts, uses: Sequence[PolicyUse], failed: Mapping[str, object]
) -> Journal:
    """Return the journal of a node whose trial of `plan` is confirmed; rules that did not go in are left as before."""
    if any(setting in rules_named(plan) for setting in failed):
        rules = journal.applied_rules
    else:
        rules = journal_before(plan, journal, facts, uses).applied_rules
    noted = journal_after(plan, journal.model_copy(update={"applied_rules": rules}), failed)
    return noted.model_copy(update={"trial": None, "failures": None})


def journal_undone(journal: Journal, failures: Failures | None) -> Journal:
    """Return the journal of a node whose trial was taken back, with `failures` counted."""
    new = set(journal.trial.new_originals) if journal.trial else set()
    originals = {name: original for name, original in journal.originals.items() if name not in new}
    return journal.model_copy(update={"originals": originals, "trial": None, "failures": failures})


def journal_of_next_boot(journal: Journal, boot_id: str) -> Journal:
    """Return the journal of a node that has booted since `journal` was written.

    The kernel's values are its own again and nobody's original is known. A trial that was under way counts as failed:
    the node may have gone down because of it, so it is not tried for ever.
    """
    failures = journal.failures and journal.failures.model_copy(update={"at": 0})
    if journal.trial is not None:
        wish = Wishing(journal.trial.revision, journal.trial.attempt)
        failures = failed_again(journal, wish, 0, NODE_REBOOTED, "the node rebooted before the change was confirmed")
    return Journal(boot_id=boot_id, failures=failures)


def judged_anew(journal: Journal, uses: Sequence[PolicyUse]) -> Journal:
    """Return `journal` with onDelete as `uses` have it now; it may have changed since the last write."""
    keeps = kept_fields(uses)
    named = frozenset(name for use in uses for name in use.fields)
    originals = {
        name: original.model_copy(update={"keep": is_kept(name, keeps)}) if is_kept(name, named) else original
        for name, original in journal.originals.items()
    }
    rules = {
        name: applied.model_copy(update={"keep": field in keeps}) if field in named else applied
        for name, applied in journal.applied_rules.items()
        for field in (f"notrack.rules[{name}]",)
    }
    return journal.model_copy(update={"originals": originals, "applied_rules": rules})


def without_keeps(journal: Journal) -> Journal:
    """Return `journal` with nothing to be left behind."""
    originals = {name: original.model_copy(update={"keep": False}) for name, original in journal.originals.items()}
    rules = {name: applied.model_copy(update={"keep": False}) for name, applied in journal.applied_rules.items()}
    return journal.model_copy(update={"originals": originals, "applied_rules": rules})


def kept_fields(uses: Sequence[PolicyUse]) -> frozenset[str]:
    """Return the fields whose policy said onDelete: Keep."""
    return frozenset(name for use in uses if use.on_delete == "Keep" for name in use.fields)


def is_kept(name: str, keeps: frozenset[str]) -> bool:
    """Tell whether sysctl `name` (full dotted) is set by one of the fields in `keeps`."""
    if name == BUCKETS:
        return bool(keeps & {"table.entriesPerBucket", "table.size"})
    if name == MAX:
        return "table.size" in keeps
    entry = catalogue.BY_NAME[name.removeprefix(catalogue.PREFIX)]
    return (entry.field or f"sysctls.{entry.name}") in keeps
