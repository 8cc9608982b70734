"""Firewalls that accept by connection state: does what acceptUntracked opens suffice for a NOTRACK rule? Pure."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from typing import Literal

from conntrack_operator.model.notrack import NotrackRule
from conntrack_operator.model.surroundings import Firewall, FirewallRule

from .accept_places import TRACKING_PRIORITY, is_ours
from .firewall_walk import Loss, losses, passing
from .packets import Hook, Packets
from .refusal import shorter
from .rule_packets import FILTERED, Direction, packets_of, side_of, words
from .twins import FOLLOWING

AcceptUntracked = Literal["Never", "Replies", "Both"]

COVERED: dict[AcceptUntracked, frozenset[Direction]] = {
    "Never": frozenset(),
    "Replies": frozenset({"reply"}),
    "Both": frozenset({"request", "reply"}),
}
"""The directions in which each acceptUntracked makes accept rules."""

STATES: dict[Direction, str] = {"request": "new", "reply": "established"}
"""How tracking sees a packet of each direction that matters: the first one is new, and it alone opens a connection."""

_BEYOND: dict[str, dict[Hook, tuple[Direction, ...]]] = {
    "Server": {"prerouting": ("request",), "postrouting": ("reply",)},
    "Client": {"prerouting": ("reply",), "postrouting": ("request",)},
    "Forward": {"prerouting": ("request", "reply"), "postrouting": ("request", "reply")},
}
"""Where else filters may see the packets of each side."""

_REMEDIES: dict[Direction, str] = {
    "request": "write notrack.acceptUntracked: Both, or let the firewall accept the port whatever its state",
    "reply": "write notrack.acceptUntracked: Replies, or let the firewall accept the replies whatever their state",
}


def stateful_refusals(
    rule: NotrackRule, firewall: Firewall, accept_untracked: AcceptUntracked
) -> Iterator[tuple[str, str]]:
    """Yield (reason, sentence): StatefulAccept where packets would be lost, OwnedTable where they cannot be let in.

    At most one of each. Packets that the firewall refuses today are no loss.
    """
    firewall = without_ours(firewall)
    seen = set()
    for direction, loss, following in losses_of(rule, firewall):
        if direction not in COVERED[accept_untracked]:
            reason, sentence = "StatefulAccept", _stateful_sentence(rule, direction, loss, following=following)
        elif (loss.chain.family, loss.chain.table) in firewall.owned:
            reason, sentence = "OwnedTable", _owned_sentence(rule, loss)
        else:
            continue
        if reason not in seen:
            seen.add(reason)
            yield reason, sentence
    if "StatefulAccept" not in seen:
        yield from islice(
            (("StatefulAccept", _beyond_sentence(rule, *lost)) for lost in _lost_beyond(rule, firewall)), 1
        )


def _lost_beyond(rule: NotrackRule, firewall: Firewall) -> Iterator[tuple[Direction, Loss]]:
    """Yield what filters in prerouting and postrouting would lose, where acceptUntracked puts nothing.

    Before conntrack's own priority no packet has a state, and no filter can ask for one.
    """
    chains = tuple(chain for chain in firewall.chains if not chain.hook or chain.priority > TRACKING_PRIORITY)
    stateful = replace(firewall, chains=chains)
    for hook, directions in _BEYOND[side_of(rule)].items():
        if any(chain.hook == hook and chain.type != "nat" for chain in chains):
            for direction in directions:
                for packets in packets_of(rule, direction, hook):
                    for loss in losses(stateful, (packets,), STATES[direction]):
                        yield direction, loss


def losses_of(rule: NotrackRule, firewall: Firewall) -> Iterator[tuple[Direction, Loss, bool]]:
    """Yield every chain in which the packets of `rule` are worse off untracked, requests first.

    With true where first packets come through and those that follow do not (rules about SYN, rates). Replies count
    where their requests come through today: what nobody may ask is not answered either.
    """
    hooks = FILTERED[side_of(rule)]
    replies = []
    for request, reply in zip(
        packets_of(rule, "request", hooks["request"]), packets_of(rule, "reply", hooks["reply"]), strict=True
    ):
        for loss in losses(firewall, (request,), STATES["request"]):
            yield "request", loss, False
        let_in = passing(firewall, request, STATES["request"])
        for loss in losses(firewall, let_in, FOLLOWING):
            yield "request", loss, True
        replies.append([_answering(each, reply) for each in let_in])
    for sets in replies:
        for loss in losses(firewall, sets, STATES["reply"]):
            yield "reply", loss, False


def _answering(request: Packets, reply: Packets) -> Packets:
    """Return the replies to `request` alone.

    Routed ones come in where the request went out; the node's own use any of the rule's interfaces.
    """
    routed = reply.hook == "forward"
    return replace(
        reply,
        source_ports=request.destination_ports,
        destination_ports=request.source_ports,
        sources=request.destinations,
        destinations=request.sources,
        comes_in=request.goes_out if routed else reply.comes_in,
        goes_out=request.comes_in if routed else reply.goes_out,
    )


def without_ours(firewall: Firewall) -> Firewall:
    """Return the firewall without jumps into accept chains of our own, which come and go with the rules."""
    chains = tuple(
        replace(chain, rules=tuple(rule for rule in chain.rules if not _is_ours(rule)))
        if any(map(_is_ours, chain.rules))
        else chain
        for chain in firewall.chains
    )
    return replace(firewall, chains=chains)


def _is_ours(rule: FirewallRule) -> bool:
    return is_ours(rule.target)


def _stateful_sentence(rule: NotrackRule, direction: Direction, loss: Loss, *, following: bool) -> str:
    packets: Packets = loss.packets
    ports = packets.destination_ports if direction == "request" else packets.source_ports
    whose = "requests to" if direction == "request" else "replies from"
    verb = "accepts" if loss.sure else "may accept"
    if following:
        return (
            f"{loss.chain.place} accepts no more than the first of the {whose} {words(rule, ports)} whatever their"
            f" state ({shorter(loss.accepted_by)}) and refuses untracked ones that follow"
            f" ({shorter(loss.refused_by)}); {_REMEDIES[direction]}"
        )
    return (
        f"{loss.chain.place} {verb} {whose} {words(rule, ports)} by state alone ({shorter(loss.accepted_by)}) and"
        f" refuses them untracked ({shorter(loss.refused_by)}); {_REMEDIES[direction]}"
    )


def _beyond_sentence(rule: NotrackRule, direction: Direction, loss: Loss) -> str:
    ports = loss.packets.destination_ports if direction == "request" else loss.packets.source_ports
    whose = "requests to" if direction == "request" else "replies from"
    return (
        f"{loss.chain.place} accepts {whose} {words(rule, ports)} by state alone ({shorter(loss.accepted_by)}) and"
        f" refuses them untracked ({shorter(loss.refused_by)}), where acceptUntracked puts nothing; let that chain pass"
        " them whatever their state, or filter them in the chains of input, forward and output"
    )


def _owned_sentence(rule: NotrackRule, loss: Loss) -> str:
    return (
        f"{loss.chain.place} refuses untracked packets of rule {rule.name} ({shorter(loss.refused_by)}), and its table"
        " belongs to another program (flags owner), so that no accept rule can be put there; let that program accept"
        " untracked packets of these ports, or remove the rule"
    )
