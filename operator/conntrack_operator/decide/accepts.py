"""acceptUntracked: what firewalls that accept by state must accept beside it, now that NOTRACK leaves it untracked.

Owns which chains of ours stand in whose tables and from where they are jumped to. An accept in a table of our own
could not overrule a drop elsewhere, so each base chain that drops statefully gets accepts of its own, with its own
tool. Where nothing is stateful there is nothing to accept, and a lone UNTRACKED match would switch tracking on.
A bare UNTRACKED accept is never made: it lets in sources that were refused, and IPv6 router advertisements, which are
untracked, too (both tried on 6.18). What exactly is accepted: `accept_packets`; where: `accept_places`.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice, product

from conntrack_operator.model.journal import Journal
from conntrack_operator.model.notrack import Notrack, NotrackRule
from conntrack_operator.model.surroundings import Firewall, FirewallChain, Match

from . import accept_iptables, accept_nftables
from .accept_packets import Accepted, Hook, What, accepted_by, unbounded
from .accept_places import (
    Blocked,
    Found,
    Spot,
    after_accepts,
    before_refusal,
    count_of,
    is_ours,
    stateful_chains,
)
from .accept_standing import Accepts, Chain, Jump, Standing, Table, Unplaced, standing_of
from .firewall_walk import losses, would_pass
from .notrack_table import digest_of
from .packets import Packets
from .preflight_stateful import AcceptUntracked, without_ours
from .refusal import shorter
from .rule_packets import FILTERED, Direction, packets_of, side_of

__all__ = ["AcceptUntracked", "Accepts", "Standing", "accept_mode", "accepts_for", "standing_of"]

_VERSIONS: dict[str, tuple[int, ...]] = {"ip": (4,), "ip6": (6,), "inet": (4, 6)}
_SHORT: dict[Hook, str] = {"input": "IN", "output": "OUT", "forward": "FWD"}

_RULES_MAX = 4096
"""Rules in one chain. Only iptables, which has no sets, can need so many."""

_UNTOLD_MAX = 64
"""Rules with conditions that are not told, of those that are looked into."""

_JUMPS_MAX = 64
"""Jumps for one base chain: firewalls that accept by state in more places make a chain for each pod."""


def accept_mode(notrack: Notrack | None, journal: Journal | None = None) -> AcceptUntracked:
    """Return which untracked packets to accept; absent means Replies.

    Where nobody asks for rules any more, those that are kept are accepted as `journal` says they were.
    """
    if notrack is None and journal is not None and journal.accept_untracked is not None:
        return journal.accept_untracked
    return (notrack and notrack.accept_untracked) or "Replies"


def accepts_for(rules: Sequence[NotrackRule], accept_untracked: AcceptUntracked, firewall: Firewall) -> Accepts:
    """Return what to accept for `rules` in `firewall`, in whatever order they come; nothing at all for Never.

    The same whether what it returned before stands in `firewall` already or not.
    """
    if accept_untracked == "Never":
        return Accepts()
    ordered = sorted(rules, key=lambda rule: (rule.name, rule.model_dump_json()))
    foreign = without_ours(firewall)
    making = _Making(firewall, [pair for rule in ordered for pair in _wanted(rule, accept_untracked, foreign)])
    for base in stateful_chains(firewall):
        making.base(base)
        making.refused += [
            Unplaced("UnboundedReplies", base.place, _unbounded(rule), "replies")
            for rule in ordered
            if unbounded(rule) and base.hook == "forward"
        ]
    return making.accepts()


def _wanted(
    rule: NotrackRule, accept_untracked: AcceptUntracked, firewall: Firewall
) -> Iterator[tuple[Accepted, frozenset[tuple[str, ...]] | None]]:
    """Yield what `rule` accepts, with the base chains that would refuse it; None where only their looks tell."""
    directions: tuple[Direction, ...] = ("request", "reply")
    requests, replies = (
        list(packets_of(rule, direction, FILTERED[side_of(rule)][direction])) for direction in directions
    )
    places = {
        "replies": _losing(firewall, replies, "established"),
        "requests": _losing(firewall, requests, "new") | _losing(firewall, _begun(firewall, requests), "established"),
    }
    for accepted in accepted_by(rule, requests=accept_untracked == "Both"):
        # Errors are no packets of the rule's protocol; walking tells nothing about them.
        yield accepted, places.get(accepted.what)


def _losing(firewall: Firewall, sets: Iterable[Packets], state: str) -> frozenset[tuple[str, ...]]:
    return frozenset(_key(loss.chain) for packets in sets for loss in losses(firewall, (packets,), state))


def _begun(firewall: Firewall, requests: Sequence[Packets]) -> Iterator[Packets]:
    """Yield the requests that may be let in by a rule with conditions that are not told, such as the SYN flag.

    What follows such a first packet may be accepted by state alone.
    """
    matches = {
        rule.match: None
        for chain in firewall.chains
        for rule in chain.rules
        if not is_ours(chain.name) and rule.verdict == "accept" and rule.match.other and rule.match.states is None
    }
    for packets, match in product(requests, islice(matches, _UNTOLD_MAX)):
        inside, _ = packets.cut(match)
        if inside is not None and would_pass(firewall, inside, "new") != "refused":
            yield inside


class _Making:
    """Chains and jumps as they come up, base chain by base chain."""

    def __init__(
        self, firewall: Firewall, wanted: Sequence[tuple[Accepted, frozenset[tuple[str, ...]] | None]]
    ) -> None:
        self._firewall = firewall
        self._wanted = wanted
        self._chains: dict[tuple[Table, str], Chain] = {}
        self._jumps: dict[tuple[Table, str, int, str, str], Jump] = {}
        self.refused: list[Unplaced] = []

    def accepts(self) -> Accepts:
        return Accepts(tuple(self._chains.values()), tuple(self._jumps.values()), tuple(dict.fromkeys(self.refused)))

    def base(self, base: FirewallChain) -> None:
        hook: Hook = base.hook  # type: ignore[assignment]  # stateful_chains gives no other
        for what in ("replies", "errors", "requests"):
            fitting = [pair for pair in self._wanted if (pair[0].hook, pair[0].what) == (hook, what)]
            if not any(places is None or _key(base) in places for _, places in fitting):
                continue
            # One chain for all base chains of a table at a hook.
            here = _key(base)[:-1]
            wanted = [each for each, places in fitting if places is None or here in {key[:-1] for key in places}]
            chain = _chain(base, hook, what, wanted)
            if not chain.rules:
                continue
            if (base.family, base.table) in self._firewall.owned and base.tool != "iptables-legacy":
                self.refused.append(Unplaced("OwnedTable", base.place, _owned(base), what))
                continue
            if len(chain.rules) > _RULES_MAX:
                number = len(chain.rules)
                self.refused.append(Unplaced("TooManyRules", base.place, _too_many(base, number, "rules"), what))
                continue
            self._place(base, chain, what, {each.protocol for each in wanted})

    def _place(self, base: FirewallChain, chain: Chain, what: What, protocols: set[str]) -> None:
        found = _spots(self._firewall, base, what)
        jumps = [jump for spot in found.spots for jump in _jumps(chain, spot, what, protocols)]
        if len(jumps) > _JUMPS_MAX:
            self.refused.append(Unplaced("TooManyRules", base.place, _too_many(base, len(jumps), "jumps"), what))
            return
        if not jumps and found.blocked:
            blocked = found.blocked[0]
            self.refused.append(Unplaced(blocked.reason, base.place, _blocked(base, what, blocked), what))
        for jump in jumps:
            self._chains[chain.table, chain.name] = chain
            self._jumps[jump.table, jump.chain, jump.index, jump.target, jump.comment] = jump


def _key(chain: FirewallChain) -> tuple[str, ...]:
    return chain.tool, chain.family, chain.table, chain.name


def _spots(firewall: Firewall, base: FirewallChain, what: What) -> Found:
    if what == "requests":
        return before_refusal(firewall, base)
    return after_accepts(firewall, base, "established" if what == "replies" else "related")


def _chain(base: FirewallChain, hook: Hook, what: What, accepted: Iterable[Accepted]) -> Chain:
    table = Table(base.tool, base.family, base.table)
    name = f"conntrack_operator_{hook}_{what}"
    if base.tool != "nftables":
        # XT_EXTENSION_MAXNAMELEN (include/uapi/linux/netfilter/x_tables.h) leaves 28 characters.
        name = f"CONNTRACK-OP-{_SHORT[hook]}-{what.upper()}"
    accepted = list(accepted)
    return Chain(table, name, tuple(_rules(base, accepted)), tuple(each.match for each in accepted))


def _rules(base: FirewallChain, accepted: Iterable[Accepted]) -> Iterator[tuple[str, str]]:
    versions = _VERSIONS[base.family]
    for each in accepted:
        lines = (
            accept_nftables.lines_of(each, versions)
            if base.tool == "nftables"
            else accept_iptables.lines_of(each, versions[0])
        )
        for line in lines:
            yield line, f"{each.subject} {digest_of(line)}"


def _jumps(chain: Chain, spot: Spot, what: What, protocols: set[str]) -> Iterator[Jump]:
    for condition in _conditions(chain.table, what, protocols, spot.scope):
        yield Jump(
            table=chain.table,
            chain=spot.chain.name,
            target=chain.name,
            condition=condition,
            index=spot.index,
            rules=count_of(spot.chain),
            where=spot.where,
            handle=spot.handle if chain.table.tool == "nftables" else 0,
            scope=spot.scope,
        )


def _conditions(table: Table, what: What, protocols: set[str], scope: Match) -> Iterator[str]:
    versions = _VERSIONS[table.family]
    if table.tool == "nftables":
        return accept_nftables.conditions_of(what, protocols, scope, versions)
    return accept_iptables.conditions_of(what, protocols, scope, versions[0])


def _owned(base: FirewallChain) -> str:
    return (
        f"the table of {base.place} belongs to a program that lets nobody else put rules in; let that"
        " program accept untracked packets of these ports itself and set acceptUntracked: Never"
    )


def _too_many(base: FirewallChain, number: int, what: str) -> str:
    return (
        f"{base.place} would need {number} {what}; name fewer ports, addresses and peers (ranges and"
        " wider networks), or let that firewall accept these ports whatever their state"
    )


def _blocked(base: FirewallChain, what: What, blocked: Blocked) -> str:
    if blocked.reason == "StatefulDrop":
        why = f"the rule `{shorter(blocked.rule.text)}` refuses untracked packets before that; let it pass them"
    else:
        why = f"the conditions of the rule `{shorter(blocked.rule.text)}` are not understood; put one without beside it"
    return f"untracked {what} cannot be accepted in {base.place}: {why}"


def _unbounded(rule: NotrackRule) -> str:
    return (
        f"untracked replies of rule {rule.name} could come from anybody who sends from its ports;"
        " name the servers in addresses"
    )
