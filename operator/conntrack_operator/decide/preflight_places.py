"""Do the accepts that can be placed really let a rule's untracked packets through? Pure.

Preflight tells what a firewall would lose, `decide.accepts` where that is let in again. Here the firewall is walked
once more with these accepts in it: where there was no place for one, or one on a way that no packet goes, a rule loses
its packets all the same, and is refused.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from conntrack_operator.model.notrack import NotrackRule
from conntrack_operator.model.surroundings import Firewall, FirewallChain, FirewallRule

from .accept_packets import accepted_by
from .accept_places import rules_of
from .accept_standing import Accepts, Jump, Unplaced
from .firewall_walk import Loss, losses
from .packets import Packets
from .preflight_stateful import COVERED, AcceptUntracked, losses_of, without_ours
from .refusal import Refusal, shorter
from .rule_packets import Direction

SETTING = "notrack.acceptUntracked"
_ICMP = {4: "icmp", 6: "icmpv6"}
_WHAT: dict[Direction, str] = {"request": "requests", "reply": "replies"}


def place_refusals(
    rules: Sequence[NotrackRule], accepts: Accepts, accept_untracked: AcceptUntracked, firewall: Firewall
) -> tuple[Refusal, ...]:
    """Return why some of `rules` lose packets in `firewall` though `accepts` are in it; at most one refusal a rule."""
    if accept_untracked == "Never":
        return ()
    beside = mended(firewall, accepts)
    return tuple(
        Refusal(f"notrack/{rule.name}", reason, sentence)
        for rule in rules
        for reason, sentence in _first(rule, accepts, accept_untracked, beside)
    )


def place_warnings(accepts: Accepts, refused: Sequence[Refusal]) -> tuple[Refusal, ...]:
    """Return what is said of accepts without a place that no rule was refused for: they may not be needed."""
    told = {each.message for each in refused}
    return tuple(
        Refusal(SETTING, each.reason, each.sentence)
        for each in {each.sentence: each for each in accepts.refused}.values()
        if not any(message.startswith(each.sentence) for message in told)
    )


def mended(firewall: Firewall, accepts: Accepts) -> Firewall:
    """Return `firewall` as it is with these `accepts`, and no others of ours, in it."""
    foreign = without_ours(firewall)
    if not accepts.jumps:
        return foreign
    ours = tuple(
        FirewallChain(
            chain.table.tool,
            chain.table.family,
            chain.table.name,
            chain.name,
            tuple(FirewallRule(match, "accept", f"{chain.name}: accept") for match in chain.openings),
        )
        for chain in accepts.chains
    )
    return replace(foreign, chains=(*(_with_jumps(chain, accepts.jumps) for chain in foreign.chains), *ours))


def _with_jumps(chain: FirewallChain, jumps: Sequence[Jump]) -> FirewallChain:
    here = [
        jump
        for jump in jumps
        if (jump.table.tool, jump.table.family, jump.table.name, jump.chain)
        == (chain.tool, chain.family, chain.table, chain.name)
    ]
    return replace(chain, rules=tuple(_in_order(chain, here))) if here else chain


def _in_order(chain: FirewallChain, jumps: Sequence[Jump]) -> Iterator[FirewallRule]:
    left, number, last = sorted(jumps, key=lambda jump: jump.index), 0, 0
    for rule in rules_of(chain):
        if not rule.handle or rule.handle != last:
            while left and left[0].index <= number:
                yield _rule(left.pop(0))
            number += 1
        last = rule.handle
        yield rule
    yield from map(_rule, left)


def _rule(jump: Jump) -> FirewallRule:
    return FirewallRule(replace(jump.scope, states=frozenset({"untracked"})), "jump", jump.condition, jump.target)


def _first(
    rule: NotrackRule, accepts: Accepts, accept_untracked: AcceptUntracked, beside: Firewall
) -> Iterator[tuple[str, str]]:
    for direction, loss, _ in losses_of(rule, beside):
        if direction in COVERED[accept_untracked]:
            yield _told(loss, _WHAT[direction], rule, accepts)
            return
    for loss in _lost_errors(rule, beside):
        yield _told(loss, "errors", rule, accepts)
        return


def _lost_errors(rule: NotrackRule, beside: Firewall) -> Iterator[Loss]:
    """Yield where ICMP errors about the rule's packets are lost for sure: without them path MTU discovery ends."""
    ways = {(each.hook, each.version) for each in accepted_by(rule, requests=False) if each.what == "errors"}
    for hook, family in sorted(ways):
        found = losses(beside, (Packets(hook, family, _ICMP[family]),), "related")
        yield from (loss for loss in found if loss.sure)


def _told(loss: Loss, what: str, rule: NotrackRule, accepts: Accepts) -> tuple[str, str]:
    known = next((each for each in accepts.refused if _explains(each, loss, what, rule)), None)
    if known:
        return known.reason, known.sentence
    whose = {"errors": "ICMP errors about the packets", "requests": "requests to the ports"}.get(what, "replies")
    sentence = (
        f"{loss.chain.place} refuses untracked {whose} of rule {rule.name} ({shorter(loss.refused_by)}), and where it"
        f" accepts tracked ones ({shorter(loss.accepted_by)}) no accept can be put beside it; let that firewall accept"
        " them whatever their state"
    )
    return "UnclearAccept", sentence


def _explains(each: Unplaced, loss: Loss, what: str, rule: NotrackRule) -> bool:
    named = each.reason != "UnboundedReplies" or f"rule {rule.name} " in each.sentence
    return (each.place, each.what) == (loss.chain.place, what) and named
