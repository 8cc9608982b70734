"""What a firewall does with packets: every base chain walked by two twins at once, one tracked, one untracked. Pure.

The twins are the same packet, so a rule that looks at ports, addresses or interfaces takes both or neither, and only
conditions on connection tracking part them. Where a condition cannot be told (`Match.other`), both ways are gone, with
both twins: what is found behind such a condition is not sure.

An accept ends a base chain and leads to the next one of the hook; a drop is the end (Documentation: nft(8), VERDICT
STATEMENTS). An untracked packet has no connection mark, status or helper: conditions on these fail for it
(nft_ct_get_eval in net/netfilter/nft_ct.c breaks without an entry), `ct state untracked` alone holds.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from typing import Literal

from conntrack_operator.model.surroundings import Firewall, FirewallChain, FirewallRule, Match

from .packets import Packets

UNTRACKED = "untracked"

Passage = Literal["accepted", "refused", "partly", "unknown"]

_Where = Literal["going", "left", "waiting", "accepted", "refused"]
"""A twin goes through the chain, has left it by return or goto, waits for its twin in a chain it is not in, is done."""

_VERDICTS: dict[str, _Where] = {
    "accept": "accepted", "drop": "refused", "reject": "refused", "return": "left", "dnat": "accepted",
    "redirect": "accepted", "snat": "accepted", "masquerade": "accepted", "tproxy": "accepted", "queue": "accepted",
}  # fmt: skip
_TRANSLATIONS = ("dnat", "redirect", "snat", "masquerade")
_DEEPEST = 16
"""NFT_JUMP_STACK_SIZE (include/net/netfilter/nf_tables.h)."""
_STEPS_MAX = 100_000
"""Looks of one set of packets at one rule, about a second; beyond it nothing is sure and the worst is taken."""
_SETS_MAX = 256
"""Sets of packets followed at once; beyond it they are not cut any finer, which finds more than there is."""
_PIECES_MAX = 512
"""Intervals in one set of packets, likewise."""


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


@dataclass(frozen=True)
class _Flow:
    packets: Packets
    tracked: _Where = "going"
    untracked: _Where = "going"
    sure: bool = True
    tracked_by: str = ""
    untracked_by: str = ""

    @property
    def ended(self) -> bool:
        return self.tracked == "refused" or "going" not in (self.tracked, self.untracked)


def losses(firewall: Firewall, sets: Sequence[Packets], state: str) -> tuple[Loss, ...]:
    """Return one loss for each base chain that treats packets worse when they are untracked than in `state`.

    `sets` are of one hook and IP version, `state` is how tracking sees them today, `new` or `established`. Packets that
    a chain refuses either way are no loss, and none of them comes to the next chain. Each loss is looked at as if the
    ones before it were mended.
    """
    found = []
    for chain in base_chains(firewall, sets[0]) if sets else ():
        try:
            flows = _Walk(firewall, chain, state).through(_Flow(each) for each in sets)
        except _TooMuch:
            words = f"more than {_STEPS_MAX} steps to follow"
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
        with suppress(_TooMuch):
            flows = _Walk(firewall, chain, state).through(_Flow(each, untracked="waiting") for each in sets)
            sets = tuple({flow.packets: None for flow in flows if flow.tracked == "accepted"})
    return sets


def would_pass(firewall: Firewall, packets: Packets, state: str = UNTRACKED) -> Passage:
    """Tell whether the filter chains of the packets' hook let `packets` through when tracking sees them in `state`."""
    sure, ends = True, set[Passage]()
    sets: Sequence[Packets] = (packets,)
    for chain in base_chains(firewall, packets):
        try:
            flows = _Walk(firewall, chain, state).through(_Flow(each, untracked="waiting") for each in sets)
        except _TooMuch:
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
                walk.through([_Flow(packets, untracked="waiting")])
            except _TooMuch:
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


def _reached(
    firewall: Firewall, base: FirewallChain, packets: Packets, verdicts: Collection[str]
) -> Iterator[Translation]:
    chains = _beside(firewall, base)
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
            elif (rule.target, taken) not in seen and len(seen) < _STEPS_MAX:
                seen.add((rule.target, taken))
                waiting.append((chains[rule.target], taken))


def base_chains(firewall: Firewall, packets: Packets) -> list[FirewallChain]:
    """Return the chains that filter `packets`, in the order in which they see them."""
    return [chain for chain in _chains_at(firewall, packets) if chain.type != "nat"]


def _chains_at(firewall: Firewall, packets: Packets) -> list[FirewallChain]:
    family = {4: "ip", 6: "ip6"}[packets.family]
    chains = [chain for chain in firewall.chains if chain.hook == packets.hook and chain.family in (family, "inet")]
    return sorted(chains, key=lambda chain: chain.priority)


def _beside(firewall: Firewall, chain: FirewallChain) -> dict[str, FirewallChain]:
    """Return the chains that rules of `chain` can jump to, by name."""
    place = (chain.tool, chain.family, chain.table)
    return {each.name: each for each in firewall.chains if (each.tool, each.family, each.table) == place}


class _TooMuch(Exception):
    """The firewall takes more steps than we are ready to go."""


class _Walk:
    """One base chain, walked with everything it jumps to."""

    def __init__(self, firewall: Firewall, chain: FirewallChain, state: str) -> None:
        self._base = chain
        self._state = state
        self._chains = _beside(firewall, chain)
        self._steps = 0

    @property
    def _over(self) -> bool:
        """Whether enough is known."""
        return False

    def _meets(self, chain: FirewallChain, rule: FirewallRule, packets: Packets) -> None:
        """See a rule that decides on packets."""

    def through(self, flows: Iterable[_Flow]) -> list[_Flow]:
        """Return the flows with both twins accepted, refused or waiting."""
        policy: _Where = "refused" if self._base.policy == "drop" else "accepted"
        words = f"policy {self._base.policy or 'accept'}"
        return [
            replace(
                flow,
                tracked=policy if flow.tracked in ("going", "left") else flow.tracked,
                untracked=policy if flow.untracked in ("going", "left") else flow.untracked,
                tracked_by=flow.tracked_by or words,
                untracked_by=flow.untracked_by or words,
            )
            for flow in self._chain(self._base, flows, 0)
        ]

    def _chain(self, chain: FirewallChain, flows: Iterable[_Flow], depth: int) -> list[_Flow]:
        ended: dict[object, _Flow] = {}
        going: dict[object, _Flow] = {}
        _sort_in(flows, going, ended)
        for rule in chain.rules:
            if not going or self._over:
                break
            before, going = going, {}
            crowded = len(before) > _SETS_MAX
            for flow in before.values():
                coarse = crowded or flow.packets.pieces > _PIECES_MAX
                _sort_in(self._rule(chain, rule, flow, depth, coarse=coarse), going, ended)
        return [*ended.values(), *going.values()]

    def _rule(
        self, chain: FirewallChain, rule: FirewallRule, flow: _Flow, depth: int, *, coarse: bool
    ) -> Iterator[_Flow]:
        self._steps += 1
        if self._steps > _STEPS_MAX:
            raise _TooMuch
        target = self._chains.get(rule.target) if rule.verdict in ("jump", "goto") and depth < _DEEPEST else None
        tracked = flow.tracked == "going" and _holds(rule, self._state)
        untracked = flow.untracked == "going" and _holds(rule, UNTRACKED)
        inside, outside = flow.packets.cut(rule.match) if tracked or untracked else (None, ())
        if inside is None or (target is None and rule.verdict not in _VERDICTS):
            yield flow
            return
        blurred = coarse and bool(outside)
        taken = replace(flow, packets=inside, sure=flow.sure and not rule.match.other and not blurred)
        if target is not None:
            came_of_it = list(self._inside(target, rule, taken, depth, (tracked, untracked)))
        else:
            self._meets(chain, rule, inside)
            came_of_it = [_decided(taken, rule, (tracked, untracked))]
        idle = [each for each in came_of_it if (each.tracked, each.untracked) == (flow.tracked, flow.untracked)]
        moved = [each for each in came_of_it if (each.tracked, each.untracked) != (flow.tracked, flow.untracked)]
        if not moved:
            yield flow
            return
        yield from moved
        if blurred:
            yield replace(flow, sure=False)
            return
        yield from (replace(flow, packets=rest) for rest in outside)
        yield from idle
        if rule.match.other:
            yield replace(flow, packets=inside, sure=False)

    def _inside(
        self, target: FirewallChain, rule: FirewallRule, flow: _Flow, depth: int, twins: tuple[bool, bool]
    ) -> Iterator[_Flow]:
        tracked, untracked = twins
        entered = replace(
            flow,
            tracked="waiting" if flow.tracked == "going" and not tracked else flow.tracked,
            untracked="waiting" if flow.untracked == "going" and not untracked else flow.untracked,
        )
        back: _Where = "going" if rule.verdict == "jump" else "left"
        for end in self._chain(target, (entered,), depth + 1):
            yield replace(
                end,
                tracked=_after(end.tracked, back) if tracked else flow.tracked,
                untracked=_after(end.untracked, back) if untracked else flow.untracked,
            )


def _decided(flow: _Flow, rule: FirewallRule, twins: tuple[bool, bool]) -> _Flow:
    tracked, untracked = twins
    end, text = _VERDICTS[rule.verdict], "" if rule.verdict == "return" else rule.text
    if tracked:
        flow = replace(flow, tracked=end, tracked_by=text)
    if untracked:
        flow = replace(flow, untracked=end, untracked_by=text)
    return flow


class _TranslationWalk(_Walk):
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


def _after(end: _Where, back: _Where) -> _Where:
    return back if end in ("going", "left") else end


def _holds(rule: FirewallRule, state: str) -> bool:
    """Tell whether what a rule wants of connection tracking can hold for a packet in `state`."""
    match: Match = rule.match
    if match.states is not None:
        return state in match.states
    # Marks, status, helpers: what the packet of no connection has not.
    return not (state == UNTRACKED and rule.tracks and match.other and rule.verdict not in _TRANSLATIONS)


def _sort_in(flows: Iterable[_Flow], going: dict[object, _Flow], ended: dict[object, _Flow]) -> None:
    """Put each flow where it belongs; of two that differ in sureness alone the sure one stays."""
    for flow in flows:
        into = ended if flow.ended else going
        key = (flow.packets, flow.tracked, flow.untracked)
        known = into.get(key)
        if known is None or (flow.sure and not known.sure):
            into[key] = flow
