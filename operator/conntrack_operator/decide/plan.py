"""The plan: what must change on one machine so that it is as its settings say.

Pure, and the same for everybody:
the agent applies it, `plan` prints it, an Observe policy previews it, and a restore is the plan of empty settings.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from conntrack_operator.model import catalogue
from conntrack_operator.model.facts import Facts
from conntrack_operator.model.journal import AppliedRule, Journal
from conntrack_operator.model.node import PolicyUse
from conntrack_operator.model.notrack import NotrackRule
from conntrack_operator.model.policy import Settings
from conntrack_operator.model.surroundings import Surroundings

from . import notrack
from .accepts import Accepts, accept_mode, accepts_for
from .cluster_only import refusals_of_cluster_fields
from .draft import BUCKETS, MAX, RETURNED, Draft, put_back, want_sizes, want_values
from .flow_matching import forward_withdrawal_problem, is_covered
from .preflight import judge, sparing_blind
from .refusal import Refusal
from .timeouts import warnings_of
from .tracking import SETTING as TRACKING
from .tracking_off import Off, judged, settings_while_off, warnings_while_off

LOOSE = catalogue.PREFIX + "nf_conntrack_tcp_loose"
LOW_THRESHOLD = catalogue.PREFIX + "nf_conntrack_frag6_low_thresh"
WITHDRAWAL_BREAKS = "WithdrawalBreaks"
ABSENT = "absent"
"""What a rule that is withdrawn changes to."""

__all__ = ["BUCKETS", "MAX", "Change", "Plan", "TableState", "ordered", "plan_for"]


@dataclass(frozen=True)
class Change:
    """One thing to write. `setting` is a sysctl's full dotted name, `notrack/<rule>` or `tracking`."""

    setting: str
    from_: int | str | None
    to: int | str
    reason: str

    def document(self) -> dict[str, Any]:
        """Return the change as `plan -o json` prints it."""
        return {"setting": self.setting, "from": self.from_, "to": self.to, "reason": self.reason}


@dataclass(frozen=True)
class Plan:
    """Changes in the order they are to be made, refusals, and what the machine should look like afterwards."""

    changes: tuple[Change, ...]
    refused: tuple[Refusal, ...]
    wanted: Mapping[str, int]
    """Every accepted sysctl, changed or not."""
    rules: tuple[NotrackRule, ...]
    """Every rule that should be in force, the kept ones of past policies among them."""
    released: tuple[str, ...] = ()
    """Journal entries to drop once the changes are made: put back, or taken over by somebody else."""
    warnings: tuple[Refusal, ...] = ()
    """What will be had as asked and may surprise somebody; the same form as a refusal."""
    stuck: tuple[str, ...] = ()
    """Names of rules that were installed and cannot be touched, since nft cannot be used: they are there still."""
    accepts: Accepts | None = None
    """What has to stand in other people's firewalls for the rules; None where nobody looked at these."""
    off: Off | None = None
    """With `tracking: Disabled`, when nobody needs tracking: what that comes to here."""

    def document(self) -> dict[str, Any]:
        """Return the plan as `plan -o json` prints it; `warnings` only where there are some."""
        document = {
            "changes": [change.document() for change in self.changes],
            "refused": [refusal.document() for refusal in self.refused],
        }
        if self.warnings:
            document["warnings"] = [warning.document() for warning in self.warnings]
        return document


@dataclass(frozen=True)
class TableState:
    """What is known of our nftables table: its parts, None when there is none; `problem` when nft cannot be used."""

    installed: notrack.Installed | None = None
    problem: str = ""


def plan_for(  # noqa: PLR0913, PLR0917 - all that a plan is a function of
    settings: Settings,
    facts: Facts,
    table: TableState | None = None,
    journal: Journal | None = None,
    uses: Sequence[PolicyUse] = (),
    surroundings: Surroundings | None = None,
) -> Plan:
    """Return what must change on the machine of `facts` to make `settings` true.

    `table` is our nftables table as it is, `journal` what was written before; without them nothing was. `uses` are the
    policies the settings were merged from, `surroundings` what else on the machine looks at the same packets: without
    them rules are judged by what every node lives by alone, and `tracking: Disabled` is refused. A rule that preflight
    refuses is not in force: one that is installed already is withdrawn by the plan.
    """
    draft = Draft(facts, surroundings)
    draft.refused.extend(refusals_of_cluster_fields(settings))
    off, refusals = judged(settings, facts, surroundings)
    draft.refused.extend(refusals)
    if off:
        draft.warned.extend(warnings_while_off(settings, off))
        settings = settings_while_off(settings, off)
    want_sizes(draft, settings, journal.originals if journal else {})
    want_values(draft, settings)
    if off is None or off.loaded:
        # Without the module there are no values; what they were stays in the journal until it is back.
        put_back(draft, journal.originals if journal else {})
    sysctl_changes = ordered(
        Change(name, facts.sysctls.get(name), value, draft.reasons[name])
        for name, value in draft.wanted.items()
        if facts.sysctls.get(name) != value
    )
    applied = _claimed(journal.applied_rules if journal else {}, uses)
    restoring = not uses and settings == Settings()
    rules, rule_changes = _rules_and_changes(draft, settings, table or TableState(), applied, restoring=restoring)
    accepts = None
    if surroundings is not None:
        accepts = accepts_for(rules, accept_mode(settings.notrack, journal), surroundings.firewall)
    draft.warned.extend(warnings_of(settings, draft.wanted, facts, surroundings))
    returned = {name for name in draft.wanted if draft.reasons[name] == RETURNED}
    return Plan(
        changes=(*sysctl_changes, *rule_changes, *_unloading(off)),
        refused=tuple(draft.refused),
        wanted={name: value for name, value in draft.wanted.items() if name not in returned},
        rules=rules,
        released=(*draft.released, *sorted(returned)),
        warnings=tuple(draft.warned),
        stuck=tuple(sorted(applied)) if table and table.problem else (),
        accepts=accepts,
        off=off,
    )


def _unloading(off: Off | None) -> Iterator[Change]:
    # Last: a rule of ours that is about to go holds the module too.
    if off and off.unload:
        yield Change(TRACKING, "nf_conntrack is loaded", f"unloaded: {', '.join(off.unload)}", "tracking: Disabled")


def _claimed(applied: Mapping[str, AppliedRule], uses: Sequence[PolicyUse]) -> Mapping[str, AppliedRule]:
    """Return `applied` without the keep of rules that a policy still speaks for.

    onDelete is about policies that are gone. A rule whose policy is there and that is not to be in force (its pods have
    left the node, or it is refused now) goes.
    """
    fields = {field for use in uses for field in use.fields}
    return {
        name: rule.model_copy(update={"keep": False}) if f"notrack.rules[{name}]" in fields else rule
        for name, rule in applied.items()
    }


def ordered(changes: Iterable[Change]) -> list[Change]:
    """Return changes of sysctls, harmless ones first: growing buckets, then max; what lowers last, max first.

    The kernel refuses a frag6_low_thresh above frag6_high_thresh at any moment (nf_ct_net_init,
    net/ipv6/netfilter/nf_conntrack_reasm.c; tried): raised from above, lowered from below.
    """

    def rank(change: Change) -> tuple[int, str]:
        lowers = isinstance(change.from_, int) and isinstance(change.to, int) and change.to < change.from_
        first = {BUCKETS: 0, MAX: 1}.get(change.setting, 2)
        last = {MAX: 4, BUCKETS: 5}.get(change.setting, 3)
        # Of the two thresholds the upper one comes first by its name, which is right for what grows.
        return (last if lowers else first, "" if lowers and change.setting == LOW_THRESHOLD else change.setting)

    return sorted(changes, key=rank)


def _rules_and_changes(
    draft: Draft, settings: Settings, table: TableState, applied: Mapping[str, AppliedRule], *, restoring: bool
) -> tuple[tuple[NotrackRule, ...], list[Change]]:
    possible = list(_possible_rules(draft, settings, table))
    # A kept rule of a past policy does not stand in for one of its name that was refused today.
    names = {rule.name for rule in possible}
    kept = [past.rule for name, past in applied.items() if past.keep and name not in names]
    verdicts = sparing_blind(judge(possible, draft.surroundings, settings.notrack, kept), possible, applied)
    draft.refused.extend(verdicts.refused)
    draft.warned.extend(verdicts.warned)
    rules = [*(rule for rule in possible if verdicts.allow(rule)), *kept]
    if table.problem:
        for name in applied:
            if not draft.refuses(f"notrack/{name}"):
                draft.refuse(f"notrack/{name}", "Unsupported", f"{table.problem}; the rule may be in force still")
        return tuple(rules), []
    rules = _while_forwarding(draft, settings, rules, applied, restoring=restoring)
    ruleset = notrack.ruleset_for(rules)
    if ruleset.expected == table.installed:
        return tuple(rules), []
    missing = ruleset.missing_from(table.installed)
    changes = list(_rule_changes(draft, rules, missing, applied))
    changed = Change("notrack/*", "changed by somebody else", "as the policies say", "our own table")
    return tuple(rules), changes or [changed]


def _while_forwarding(
    draft: Draft,
    settings: Settings,
    rules: list[NotrackRule],
    applied: Mapping[str, AppliedRule],
    *,
    restoring: bool,
) -> list[NotrackRule]:
    """Return `rules` with those Forward rules left in force whose withdrawal would break routed connections.

    Force overrules it, and so does a restore, which must come to an end, and preflight, whose reason is worse.
    """
    loose = bool(draft.wanted.get(LOOSE, draft.facts.sysctls.get(LOOSE, 1)))
    force = restoring or (settings.notrack is not None and settings.notrack.on_conflict == "Force")
    held = []
    for name, before in applied.items():
        setting, problem = f"notrack/{name}", forward_withdrawal_problem([before.rule], tcp_loose=loose)
        if problem is None or is_covered(before.rule, rules):
            continue
        if force or draft.refuses(setting):
            draft.warned.append(Refusal(setting, WITHDRAWAL_BREAKS, problem))
        else:
            draft.refuse(setting, WITHDRAWAL_BREAKS, problem)
            held.append(before.rule)
    names = {rule.name for rule in held}
    return [*(rule for rule in rules if rule.name not in names), *held]


def _possible_rules(draft: Draft, settings: Settings, table: TableState) -> Iterator[NotrackRule]:
    for rule in (settings.notrack and settings.notrack.rules) or ():
        if rule.ports is None:
            continue  # It follows pods, and outside a cluster there are none; refused by name in decide.cluster_only.
        if table.problem:
            draft.refuse(f"notrack/{rule.name}", "Unsupported", table.problem)
        elif problem := notrack.problem_with(rule):
            draft.refuse(f"notrack/{rule.name}", "NothingToMatch", problem)
        else:
            yield rule


def _rule_changes(
    draft: Draft, rules: Sequence[NotrackRule], missing: Collection[str], applied: Mapping[str, AppliedRule]
) -> Iterator[Change]:
    for rule in rules:
        before = applied.get(rule.name)
        edited = before is not None and before.rule != rule
        if edited or rule.name in missing:
            was = notrack.description_of(before.rule) if before and edited else "absent"
            yield Change(f"notrack/{rule.name}", was, notrack.description_of(rule), "notrack.rules")
    for name in applied.keys() - {rule.name for rule in rules}:
        setting, was = f"notrack/{name}", notrack.description_of(applied[name].rule)
        refusal = next((refusal for refusal in draft.refused if refusal.setting == setting), None)
        yield Change(setting, was, ABSENT, refusal.reason if refusal else "no policy has it any more")
