"""Where in a firewall untracked packets must be accepted to fare as their tracked twins did. Pure.

Replies and ICMP errors: right after each rule that accepts `established` (errors: `related`), with the conditions of
that rule, in whatever chain it stands. What was refused before a tracked reply got there is refused still, and what
comes after never saw one.
Requests: before the rule that refuses everything else, or at the end of a chain whose policy drops. Whatever refuses
somebody by name comes first.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from conntrack_operator.model.surroundings import Firewall, FirewallChain, FirewallRule, Match

OURS = ("conntrack_operator_", "CONNTRACK-OP-")
"""How the names of our chains in other people's tables begin: nftables, iptables."""

_DEEPEST = 16
"""NFT_JUMP_STACK_SIZE (include/net/netfilter/nf_tables.h)."""

TRACKING_PRIORITY = -200
"""NF_IP_PRI_CONNTRACK (include/uapi/linux/netfilter_ipv4.h): before it no packet has a state."""

_ANY = Match()

_VERSIONS = {"ip": frozenset({4}), "ip6": frozenset({6}), "inet": frozenset({4, 6})}


@dataclass(frozen=True)
class Spot:
    """A place between two rules of somebody's chain.

    `index` is the number of rules before it, ours not counted. `handle` is that of the rule it is beside, `after` or
    `before`; `end` has none. Only packets that match `scope` may be accepted there.
    """

    chain: FirewallChain
    index: int
    where: Literal["after", "before", "end"]
    handle: int = 0
    scope: Match = _ANY


@dataclass(frozen=True)
class Blocked:
    """A reason why there is no place in a chain, with the rule that is to blame."""

    reason: Literal["UnclearAccept", "StatefulDrop"]
    rule: FirewallRule


@dataclass
class Found:
    """What a search found. Spots count when there is one; else `blocked` says why there is none."""

    spots: list[Spot] = field(default_factory=list)
    blocked: list[Blocked] = field(default_factory=list)


def is_ours(name: str) -> bool:
    """Tell whether a chain of this name is one that we make."""
    return name.startswith(OURS)


def rules_of(chain: FirewallChain) -> tuple[FirewallRule, ...]:
    """Return the rules of `chain` but for our jumps and those that match nothing in its family."""
    versions = _VERSIONS[chain.family]
    return tuple(
        # What matches all of the table's family is not narrowed by it.
        replace(rule, match=replace(rule.match, families=_ANY.families)) if versions <= rule.match.families else rule
        for rule in chain.rules
        if not is_ours(rule.target) and versions & rule.match.families
    )


def each_once(chain: FirewallChain) -> Iterator[FirewallRule]:
    """Yield the rules of `chain`, ours too; of one that was read as several (a verdict map) the first."""
    last = 0
    for rule in chain.rules:
        if not rule.handle or rule.handle != last:
            yield rule
        last = rule.handle


def stateful_chains(firewall: Firewall) -> list[FirewallChain]:
    """Return the base filter chains that see states and may refuse an untracked packet, in the order packets take."""
    chains = [
        chain
        for chain in firewall.chains
        if chain.hook in ("input", "output", "forward")
        and chain.type != "nat"
        and chain.priority > TRACKING_PRIORITY
        and _Table(firewall, chain).is_stateful()
    ]
    return sorted(chains, key=lambda chain: chain.priority)


def after_accepts(firewall: Firewall, base: FirewallChain, state: Literal["established", "related"]) -> Found:
    """Return where `base` and the chains it leads to accept packets of `state` and no untracked ones."""
    found = Found()
    _Table(firewall, base).accepts(base, state, found, [], 0)
    return found


def before_refusal(firewall: Firewall, base: FirewallChain) -> Found:
    """Return where `base` refuses whatever nobody has accepted or refused before."""
    found = Found()
    _Table(firewall, base).refusals(base, found, 0)
    unique = {(spot.chain.name, spot.index): spot for spot in found.spots}
    return Found(list(unique.values()), found.blocked)


class _Table:
    """The chains that a base chain can lead to."""

    def __init__(self, firewall: Firewall, base: FirewallChain) -> None:
        self._base = base
        self._chains = {
            chain.name: chain
            for chain in firewall.chains
            if (chain.tool, chain.family, chain.table) == (base.tool, base.family, base.table)
            and not is_ours(chain.name)
        }

    def is_stateful(self) -> bool:
        """Tell whether tracked packets are accepted by their state, and something refuses untracked ones."""
        rules = [rule for chain in self._reachable() for rule in rules_of(chain)]
        by_state = any(_accepts_by_state(rule, state) for rule in rules for state in ("established", "related"))
        return by_state and (self._base.policy == "drop" or any(_refuses_untracked(rule) for rule in rules))

    def accepts(self, chain: FirewallChain, state: str, found: Found, refusing: list[FirewallRule], depth: int) -> bool:
        """Look for accepts of `state`; return whether no packet of that state comes out of `chain` again.

        `refusing` are the rules on the way that refuse every untracked packet, but none of that state.
        """
        for rule, number in _numbered(chain):
            if _accepts_by_state(rule, state):
                if refusing:
                    found.blocked.append(Blocked("StatefulDrop", refusing[0]))
                elif rule.match.other:
                    found.blocked.append(Blocked("UnclearAccept", rule))
                else:
                    scope = replace(rule.match, states=None)
                    found.spots.append(Spot(chain, number, "after", rule.handle, scope))
            if rule.match.states is not None and state not in rule.match.states:
                if _refuses_untracked(rule) and _unscoped(rule):
                    refusing.append(rule)
                continue
            callee = self._callee(rule, depth)
            ends = callee is not None and self.accepts(callee, state, found, refusing, depth + 1)
            if not _takes_all(rule, state):
                continue
            if rule.verdict in ("accept", "drop", "reject", "goto") or ends:
                return True
            if rule.verdict == "return":
                return False
        return False

    def refusals(self, chain: FirewallChain, found: Found, depth: int) -> bool:
        """Look for the last word of `chain`; return whether nothing gets past it."""
        certain = True
        for rule, number in _numbered(chain):
            everything = _takes_all(rule, "untracked")
            callee = self._callee(rule, depth)
            if everything and rule.verdict in ("accept", "return"):
                return certain and rule.verdict == "accept"
            if everything and (rule.verdict in ("drop", "reject") or (callee and self._only_refuses(callee))):
                if _takes_all(rule, "new"):
                    found.spots.append(Spot(chain, number - 1, "before", rule.handle))
                else:
                    # Tracked requests get past it, and others may refuse them further down.
                    found.blocked.append(Blocked("StatefulDrop", rule))
                return certain
            certain = certain and rule.verdict != "return"
            if callee and _scoped_by_interface_alone(rule) and self._decides(callee):
                ends = self.refusals(callee, found, depth + 1)
                if everything and (ends or rule.verdict == "goto"):
                    return certain and ends
        if chain.policy == "drop":
            found.spots.append(Spot(chain, count_of(chain), "end"))
        return False

    def _callee(self, rule: FirewallRule, depth: int) -> FirewallChain | None:
        leads = rule.verdict in ("jump", "goto") and depth < _DEEPEST
        return self._chains.get(rule.target) if leads else None

    def _decides(self, chain: FirewallChain) -> bool:
        """Tell whether `chain` is there to choose whom to accept, and not to refuse those who were chosen before."""
        return any(rule.verdict == "accept" for each in self._reachable(chain) for rule in rules_of(each))

    def _only_refuses(self, chain: FirewallChain) -> bool:
        # A chain that logs and drops is where explicit drops lead, too: nothing may be accepted in there.
        rules = rules_of(chain)
        ends = any(_takes_all(rule, "untracked") and rule.verdict in ("drop", "reject") for rule in rules)
        return ends and all(rule.verdict in ("none", "drop", "reject") for rule in rules)

    def _reachable(self, start: FirewallChain | None = None) -> Iterator[FirewallChain]:
        seen, waiting = set(), [start or self._base]
        while waiting:
            chain = waiting.pop()
            if chain.name not in seen:
                seen.add(chain.name)
                yield chain
                waiting += [self._chains[rule.target] for rule in rules_of(chain) if rule.target in self._chains]


def _numbered(chain: FirewallChain) -> Iterator[tuple[FirewallRule, int]]:
    """Yield the rules with their number from 1. A rule that was read as several (a verdict map) has one number."""
    number, last = 0, 0
    for rule in rules_of(chain):
        number += 0 if rule.handle and rule.handle == last else 1
        last = rule.handle
        yield rule, number


def count_of(chain: FirewallChain) -> int:
    """Return the number of rules of `chain` as its tool counts them, ours left out."""
    numbers: Sequence[int] = [number for _, number in _numbered(chain)]
    return numbers[-1] if numbers else 0


def _accepts_by_state(rule: FirewallRule, state: str) -> bool:
    states = rule.match.states
    return rule.verdict == "accept" and states is not None and state in states and "untracked" not in states


def _refuses_untracked(rule: FirewallRule) -> bool:
    return rule.verdict in ("drop", "reject") and (rule.match.states is None or "untracked" in rule.match.states)


def _unscoped(rule: FirewallRule) -> bool:
    return replace(rule.match, states=None) == _ANY


def _takes_all(rule: FirewallRule, state: str) -> bool:
    return _unscoped(rule) and (rule.match.states is None or state in rule.match.states)


def _scoped_by_interface_alone(rule: FirewallRule) -> bool:
    return replace(rule.match, in_interfaces=None, out_interfaces=None) == _ANY
