"""Preflight: which NOTRACK rules would hurt on this node, why, and what to do about it. Pure.

Each rule is judged on its own, so the order of rules in a policy decides nothing; the accepts they need are then placed
for all of them together. A rule gets at most one refusal a
reason: the first cause found is enough to refuse it, and a status has room for few.

`onConflict: Force` turns into warnings the reasons where the person may know better: somebody may want a port out of
NAT's hands, know that the overlap never happens, or accept the packets in a firewall elsewhere. It does not override
what costs the node (FailsafePort: a trial undoes it, but only after it has cut the node off), what cannot be done
(OwnedTable, Unsupported), and not seeing at all (LegacyIptablesNeedsNetRaw: nobody can know what they overrule).
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from conntrack_operator.model.journal import AppliedRule
from conntrack_operator.model.notrack import Notrack, NotrackRule
from conntrack_operator.model.surroundings import UNREAD, FailsafePort, Surroundings

from .accepts import accept_mode, accepts_for
from .packets import common
from .preflight_nat import nat_conflict, source_port_overlap
from .preflight_places import place_refusals, place_warnings
from .preflight_stateful import stateful_refusals
from .refusal import Refusal
from .rule_packets import ports_of, protocol_of, side_of, words

FORCIBLE = frozenset({
    "NATConflict", "SourcePortOverlap", "StatefulAccept",
    "StatefulDrop", "TooManyRules", "UnboundedReplies", "UnclearAccept",
})  # fmt: skip

ALWAYS = tuple(
    FailsafePort(port, protocol, "Client", what)
    for port, what in ((53, "DNS"), (443, "the API server's and every registry's way in"))
    for protocol in ("tcp", "udp")
)
"""What every node lives by as a client, whatever was found on it."""


@dataclass(frozen=True)
class Verdicts:
    """What preflight says of a node's rules."""

    refused: tuple[Refusal, ...] = ()
    warned: tuple[Refusal, ...] = ()
    """Conflicts that onConflict: Force overrules, and accepts that have no place and may not be needed."""

    def allow(self, rule: NotrackRule) -> bool:
        """Tell whether `rule` may be installed."""
        return all(refusal.setting != f"notrack/{rule.name}" for refusal in self.refused)


def judge(
    rules: Sequence[NotrackRule],
    surroundings: Surroundings | None,
    notrack: Notrack | None,
    kept: Sequence[NotrackRule] = (),
) -> Verdicts:
    """Return what is wrong with `rules` among `surroundings`, under the policy's acceptUntracked and onConflict.

    Without surroundings (a plan for another machine) only what every node lives by is judged. `kept` are rules of
    policies that are gone; they need accepts, too.
    """
    force = notrack is not None and notrack.on_conflict == "Force"
    if surroundings is None:
        return _weighed((refusal for rule in rules for refusal in _failsafe_only(rule)), force=force)
    alone = _weighed((found for rule in rules for found in _refusals(rule, surroundings, notrack)), force=force)
    allowed, mode = [rule for rule in rules if alone.allow(rule)], accept_mode(notrack)
    accepts = accepts_for((*kept, *allowed), mode, surroundings.firewall)
    warned = {warning.setting for warning in alone.warned}
    found = place_refusals(
        # Nothing more is said of a rule that is forced into a firewall.
        [rule for rule in allowed if f"notrack/{rule.name}" not in warned], accepts, mode, surroundings.firewall
    )  # fmt: skip
    placed = _weighed(found, force=force)
    if placed.refused:
        allowed = [rule for rule in allowed if placed.allow(rule)]
        accepts = accepts_for((*kept, *allowed), mode, surroundings.firewall)
    return Verdicts(
        (*alone.refused, *placed.refused),
        (*alone.warned, *placed.warned, *place_warnings(accepts, placed.warned)),
    )


def _weighed(found: Iterable[Refusal], *, force: bool) -> Verdicts:
    refused, warned = [], []
    for refusal in found:
        if refusal.reason not in FORCIBLE:
            refused.append(refusal)
        elif force:
            warned.append(replace(refusal, message=f"{refusal.message} (installed by onConflict: Force)"))
        else:
            refused.append(replace(refusal, message=f"{refusal.message}; onConflict: Force installs it all the same"))
    return Verdicts(tuple(refused), tuple(warned))


def sparing_blind(verdicts: Verdicts, rules: Sequence[NotrackRule], applied: Mapping[str, AppliedRule]) -> Verdicts:
    """Return `verdicts` in which a firewall that cannot be read is no reason to withdraw a rule that is in force.

    It keeps new rules out. To one that was judged before, and went through its trial, not being able to look changes
    nothing: a program that fails once must not take rules away.
    """
    in_force = {f"notrack/{rule.name}" for rule in rules if rule.name in applied and applied[rule.name].rule == rule}
    spared = [each for each in verdicts.refused if each.reason == UNREAD and each.setting in in_force]
    told = (replace(each, message=f"{each.message}; it stays in force as it is") for each in spared)
    return Verdicts(tuple(each for each in verdicts.refused if each not in spared), (*verdicts.warned, *told))


def _failsafe_only(rule: NotrackRule) -> Iterator[Refusal]:
    yield from _failsafe(rule, ALWAYS)


def _refusals(rule: NotrackRule, surroundings: Surroundings, notrack: Notrack | None) -> Iterator[Refusal]:
    setting = f"notrack/{rule.name}"
    if not surroundings.timed_elements:
        yield Refusal(
            setting,
            "Unsupported",
            "set elements with a timeout do not expire on this kernel, so that no rule could be tried safely;"
            " use a newer kernel, or remove the rule",
        )
    for reason, sentence in surroundings.firewall.problems:
        yield Refusal(setting, reason, f"nobody can tell what the rule would break: {sentence}")
    yield from _failsafe(rule, (*surroundings.failsafe, *ALWAYS))
    for reason, problem in (
        ("NATConflict", nat_conflict(rule, surroundings)),
        ("SourcePortOverlap", source_port_overlap(rule, surroundings)),
    ):
        if problem:
            yield Refusal(setting, reason, problem)
    for reason, problem in stateful_refusals(rule, surroundings.firewall, accept_mode(notrack)):
        yield Refusal(setting, reason, problem)


def _failsafe(rule: NotrackRule, ports: Sequence[FailsafePort]) -> Iterator[Refusal]:
    for each in ports:
        if each.side != side_of(rule) or each.protocol.lower() != protocol_of(rule):
            continue
        if common(ports_of(rule), ((each.port, each.port),)):
            yield Refusal(
                f"notrack/{rule.name}",
                "FailsafePort",
                f"{words(rule, ((each.port, each.port),))} ({each.side} side) is {each.what}, which this node lives by;"
                " take it out of the rule",
            )
            return
