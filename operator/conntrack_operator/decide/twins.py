"""One chain of a firewall, walked by a packet and its untracked twin at once. Pure; `decide.firewall_walk` uses it."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from conntrack_operator.model.surroundings import Firewall, FirewallChain, FirewallRule, Match

from .packets import Packets

UNTRACKED = "untracked"
"""The state of a packet that NOTRACK took."""
FOLLOWING = "following"
"""No state but a question: may what follows an untracked first packet come, wherever that one may?"""


class Twin(NamedTuple):
    """How one of two twins looks to a firewall: its state, and which packet of its flow it is."""

    state: str
    segment: Literal["first", "later"]


_TWINS = {
    "new": (Twin("new", "first"), Twin(UNTRACKED, "first")),
    UNTRACKED: (Twin(UNTRACKED, "first"), Twin(UNTRACKED, "first")),
    FOLLOWING: (Twin(UNTRACKED, "first"), Twin(UNTRACKED, "later")),
}
"""Who is compared with whom; in every other state packets are later ones, both of them."""

Where = Literal["going", "left", "waiting", "accepted", "refused"]
"""A twin goes through the chain, has left it by return or goto, waits for its twin in a chain it is not in, is done."""

_VERDICTS: dict[str, Where] = {
    "accept": "accepted", "drop": "refused", "reject": "refused", "return": "left", "dnat": "accepted",
    "redirect": "accepted", "snat": "accepted", "masquerade": "accepted", "tproxy": "accepted", "queue": "accepted",
}  # fmt: skip
_TRANSLATIONS = ("dnat", "redirect", "snat", "masquerade")
_DEEPEST = 16
"""NFT_JUMP_STACK_SIZE (include/net/netfilter/nf_tables.h)."""
STEPS_MAX = 100_000
"""Looks of one set of packets at one rule, about a second; beyond it nothing is sure and the worst is taken."""
_SETS_MAX = 256
"""Sets of packets followed at once; beyond it they are not cut any finer, which finds more than there is."""
_PIECES_MAX = 512
"""Intervals in one set of packets, likewise."""


@dataclass(frozen=True)
class Flow:
    """The same packets twice: where each twin is, and by which rule. `sure` unless a condition could not be told."""

    packets: Packets
    tracked: Where = "going"
    untracked: Where = "going"
    sure: bool = True
    tracked_by: str = ""
    untracked_by: str = ""

    @property
    def ended(self) -> bool:
        """Whether no rule of this chain matters to them any more."""
        return self.tracked == "refused" or "going" not in (self.tracked, self.untracked)


class TooMuch(Exception):
    """The firewall takes more steps than we are ready to go."""


class Walk:
    """One base chain, walked with everything it jumps to."""

    def __init__(self, firewall: Firewall, chain: FirewallChain, state: str) -> None:
        self._base = chain
        self._twins = _TWINS.get(state, (Twin(state, "later"), Twin(UNTRACKED, "later")))
        self._chains = beside(firewall, chain)
        self._idle = _idle(self._chains)
        self._steps = 0

    @property
    def _over(self) -> bool:
        """Whether enough is known."""
        return False

    def _meets(self, chain: FirewallChain, rule: FirewallRule, packets: Packets) -> None:
        """See a rule that decides on packets."""

    def through(self, flows: Iterable[Flow]) -> list[Flow]:
        """Return the flows with both twins accepted, refused or waiting."""
        policy: Where = "refused" if self._base.policy == "drop" else "accepted"
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

    def _chain(self, chain: FirewallChain, flows: Iterable[Flow], depth: int) -> list[Flow]:
        ended: dict[object, Flow] = {}
        going: dict[object, Flow] = {}
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
        self, chain: FirewallChain, rule: FirewallRule, flow: Flow, depth: int, *, coarse: bool
    ) -> Iterator[Flow]:
        self._steps += 1
        if self._steps > STEPS_MAX:
            raise TooMuch
        if rule.verdict == "jump" and rule.target in self._idle:
            yield flow  # marks, counters, logs: they come back as they went
            return
        target = self._chains.get(rule.target) if rule.verdict in ("jump", "goto") and depth < _DEEPEST else None
        tracked = flow.tracked == "going" and _holds(rule, self._twins[0])
        untracked = flow.untracked == "going" and _holds(rule, self._twins[1])
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
        self, target: FirewallChain, rule: FirewallRule, flow: Flow, depth: int, twins: tuple[bool, bool]
    ) -> Iterator[Flow]:
        tracked, untracked = twins
        entered = replace(
            flow,
            tracked="waiting" if flow.tracked == "going" and not tracked else flow.tracked,
            untracked="waiting" if flow.untracked == "going" and not untracked else flow.untracked,
        )
        back: Where = "going" if rule.verdict == "jump" else "left"
        for end in self._chain(target, (entered,), depth + 1):
            yield replace(
                end,
                tracked=_after(end.tracked, back) if tracked else flow.tracked,
                untracked=_after(end.untracked, back) if untracked else flow.untracked,
            )


def _decided(flow: Flow, rule: FirewallRule, twins: tuple[bool, bool]) -> Flow:
    tracked, untracked = twins
    end, text = _VERDICTS[rule.verdict], "" if rule.verdict == "return" else rule.text
    if tracked:
        flow = replace(flow, tracked=end, tracked_by=text)
    if untracked:
        flow = replace(flow, untracked=end, untracked_by=text)
    return flow


def _idle(chains: Mapping[str, FirewallChain]) -> frozenset[str]:
    """Return the chains that decide nothing, with everything they lead to."""
    deciding = {
        name
        for name, chain in chains.items()
        if any(rule.verdict in _VERDICTS and rule.verdict != "return" for rule in chain.rules)
    }
    callers: dict[str, list[str]] = {}
    for name, chain in chains.items():
        for rule in chain.rules:
            callers.setdefault(rule.target, []).append(name)
    waiting = [*deciding]
    while waiting:
        found = [name for name in callers.get(waiting.pop(), ()) if name not in deciding]
        deciding.update(found)
        waiting += found
    return frozenset(chains.keys() - deciding)


def beside(firewall: Firewall, chain: FirewallChain) -> dict[str, FirewallChain]:
    """Return the chains that rules of `chain` can jump to, by name."""
    place = (chain.tool, chain.family, chain.table)
    return {each.name: each for each in firewall.chains if (each.tool, each.family, each.table) == place}


def _after(end: Where, back: Where) -> Where:
    return back if end in ("going", "left") else end


def _holds(rule: FirewallRule, twin: Twin) -> bool:
    """Tell whether what a rule wants of connection tracking, and of the place in a flow, can hold for a packet."""
    match: Match = rule.match
    if match.segments is not None and twin.segment not in match.segments:
        return False
    if match.states is not None:
        return twin.state in match.states
    # Marks, status, helpers: what the packet of no connection has not.
    return not (twin.state == UNTRACKED and rule.tracks and match.other and rule.verdict not in _TRANSLATIONS)


def _sort_in(flows: Iterable[Flow], going: dict[object, Flow], ended: dict[object, Flow]) -> None:
    """Put each flow where it belongs; of two that differ in sureness alone the sure one stays."""
    for flow in flows:
        into = ended if flow.ended else going
        key = (flow.packets, flow.tracked, flow.untracked)
        known = into.get(key)
        if known is None or (flow.sure and not known.sure):
            into[key] = flow
