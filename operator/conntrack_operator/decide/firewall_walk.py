"""What a firewall does with packets: every base chain walked by two twins at once, one tracked, one untracked. Pure.

The twins are the same packet, so a rule that looks at ports, addresses or interfaces takes both or neither, and only
conditions on connection tracking part them. Where a condition cannot be told (`Match.other`), both ways are gone, with
both twins: what is found behind such a condition is not sure.

An accept ends a base chain and leads to the next one of the hook; a drop is the end (Documentation: nft(8), VERDICT
STATEMENTS). An untracked packet has no connection mark, status or helper: conditions on these fail for it
(nft_ct_get_eval in net/netfilter/nft_ct.c breaks without an entry), `ct state untracked` alone holds.
"""

from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import Literal

from conntrack_operator.model.surroundings import Firewall, FirewallChain, FirewallRule

from .packets import Packets
from .twins import STEPS_MAX, UNTRACKED, Flow, TooMuch, Walk, beside

Passage = Literal["accepted", "refused", "partly", "unknown"]


@dataclass(frozen=True)
class Loss:
    """A base chain in which tracked packets are accepted whose untracked twins are not."""

    chain: FirewallChain
    packets: Packets
    """Some of the packets."""
    accepted_by: str
    """The rule that accepts the tracked ones, as its own tool prints it, or the chain's policy."""
    refused_by: str
    """The rule that refuses the untracked ones, or the chain's policy."""
    sure: bool = True
    """False when a condition on the way cannot be told."""


@dataclass(frozen=True)
class Translation:
    """A rule that translates packets on their way."""

    chain: FirewallChain
    rule: FirewallRule
    packets: Packets
    """Those it reaches and matches."""


def losses(firewall: Firewall, sets: Sequence[Packets], state: str) -> tuple[Loss, ...]:
    """Return one loss for each base chain that treats packets worse when they are untracked than in `state`.

    `sets` are of one hook and IP version, `state` is how tracking sees them today, `new` or `established`. Packets that
    a chain refuses either way are no loss, and none of them comes to the next chain. Each loss is looked at as if the
    ones before it were mended.
    """
    found = []
    for chain in base_chains(firewall, sets[0]) if sets else ():
        try:
            flows = Walk(firewall, chain, state).through(Flow(each) for each in sets)
        except TooMuch:
            words = f"more than {STEPS_MAX} steps to follow"
            found.append(Loss(chain, sets[0], words, words, sure=False))
            continue
        lost = [flow for flow in flows if flow.tracked == "accepted" and flow.untracked == "refused"]
        if lost:
            worst = max(lost, key=lambda flow: flow.sure)
            found.append(Loss(chain, worst.packets, worst.tracked_by, worst.untracked_by, worst.sure))
        sets = tuple({flow.packets: None for flow in flows if flow.tracked == "accepted"})
    return tuple(found)


def passing(firewall: Firewall, packets: Packets, state: str) -> tuple[Packets, ...]:
    """Return those of `packets` that come through all filter chains of their hook, or may, in `state`."""
    sets: tuple[Packets, ...] = (packets,)
    for chain in base_chains(firewall, packets):
        with suppress(TooMuch):
            flows = Walk(firewall, chain, state).through(Flow(each, untracked="waiting") for each in sets)
            sets = tuple({flow.packets: None for flow in flows if flow.tracked == "accepted"})
    return sets


def would_pass(firewall: Firewall, packets: Packets, state: str = UNTRACKED) -> Passage:
    """Tell whether the filter chains of the packets' hook let `packets` through when tracking sees them in `state`."""
    sure, ends = True, set[Passage]()
    sets: Sequence[Packets] = (packets,)
    for chain in base_chains(firewall, packets):
        try:
            flows = Walk(firewall, chain, state).through(Flow(each, untracked="waiting") for each in sets)
        except TooMuch:
            return "unknown"
        refused = [flow for flow in flows if flow.tracked == "refused"]
        sure = sure and all(flow.sure for flow in flows)
        ends.update(("refused",) if refused else ())
        sets = tuple({flow.packets: None for flow in flows if flow.tracked == "accepted"})
    if sets:
        ends.add("accepted")
    if ends == {"refused"}:
        return "refused"
    if ends == {"accepted"}:
        return "accepted"
    return "partly" if sure else "unknown"


def translation_of(firewall: Firewall, packets: Packets, verdicts: Collection[str]) -> Translation | None:
    """Return a rule in the nat chains of the packets' hook that may translate some of `packets`, or None.

    `verdicts` are the kinds of translation that count. What a rule takes is gone for the ones after it.
    """
    for chain in _chains_at(firewall, packets):
        if chain.type == "nat":
            walk = _TranslationWalk(firewall, chain, verdicts)
            try:
                walk.through([Flow(packets, untracked="waiting")])
            except TooMuch:
                walk.found.extend(islice(_reached(firewall, chain, packets, verdicts), 1))
            if walk.found:
                return walk.found[0]
    return None


def translations(firewall: Firewall, packets: Packets, verdicts: Collection[str]) -> Iterator[Translation]:
    """Yield every rule in the nat chains of the packets' hook that matches some of `packets` along a way of jumps.

    Rules before it count as if they took nothing: a node has a rule for each Service, and this asks for all of them.
    """
    for chain in _chains_at(firewall, packets):
        if chain.type == "nat":
            yield from _reached(firewall, chain, packets, verdicts)


def unled_translations(firewall: Firewall, packets: Packets, verdicts: Collection[str]) -> Iterator[Translation]:
    """Yield rules that match some of `packets` in chains to which nothing that was read leads.

    Whoever read a firewall for some ports left out the ways to a translation that is to one of them but begins
    elsewhere: port 6000 of a Service, which ends at port 8080 of interest.
    """
    led_to = {(chain.tool, chain.family, chain.table, rule.target) for chain in firewall.chains for rule in chain.rules}
    family = {4: "ip", 6: "ip6"}[packets.family]
    for chain in firewall.chains:
        place = (chain.tool, chain.family, chain.table, chain.name)
        if chain.hook or chain.family not in (family, "inet") or place in led_to:
            continue
        for rule in chain.rules:
            taken = packets.cut(rule.match)[0] if rule.verdict in verdicts else None
            if taken is not None:
                yield Translation(chain, rule, taken)


def _reached(
    firewall: Firewall, base: FirewallChain, packets: Packets, verdicts: Collection[str]
) -> Iterator[Translation]:
    chains = beside(firewall, base)
    waiting, seen = [(base, packets)], {(base.name, packets)}
    while waiting:
        chain, sent = waiting.pop()
        for rule in chain.rules:
            leads = rule.target in chains and rule.verdict in ("jump", "goto")
            taken = sent.cut(rule.match)[0] if leads or rule.verdict in verdicts else None
            if taken is None:
                continue
            if not leads:
                yield Translation(chain, rule, taken)
            elif (rule.target, taken) not in seen and len(seen) < STEPS_MAX:
                seen.add((rule.target, taken))
                waiting.append((chains[rule.target], taken))


def base_chains(firewall: Firewall, packets: Packets) -> list[FirewallChain]:
    """Return the chains that filter `packets`, in the order in which they see them."""
    return [chain for chain in _chains_at(firewall, packets) if chain.type != "nat"]


def _chains_at(firewall: Firewall, packets: Packets) -> list[FirewallChain]:
    family = {4: "ip", 6: "ip6"}[packets.family]
    chains = [chain for chain in firewall.chains if chain.hook == packets.hook and chain.family in (family, "inet")]
    return sorted(chains, key=lambda chain: chain.priority)


class _TranslationWalk(Walk):
    """A nat chain, walked by new packets until one of them is translated."""

    def __init__(self, firewall: Firewall, chain: FirewallChain, verdicts: Collection[str]) -> None:
        super().__init__(firewall, chain, "new")
        self._verdicts = verdicts
        self.found: list[Translation] = []

    @property
    def _over(self) -> bool:
        return bool(self.found)

    def _meets(self, chain: FirewallChain, rule: FirewallRule, packets: Packets) -> None:
        if rule.verdict in self._verdicts:
            self.found.append(Translation(chain, rule, packets))
