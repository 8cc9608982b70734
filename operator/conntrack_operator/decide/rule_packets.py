"""The packets of a NOTRACK rule at a hook, as sets: what a firewall is asked about. Pure.

A `request` goes to the serving end, a `reply` comes from it. Loopback stays tracked and is in none of the sets.
"""

from collections.abc import Iterator
from typing import Literal

from conntrack_operator.model.notrack import NotrackRule

from .intervals import WIDTHS, Intervals, network_intervals, port_intervals
from .packets import NOT_LOOPBACK, Hook, Interfaces, Packets, common, networks, without

Direction = Literal["request", "reply"]

FILTERED: dict[str, dict[Direction, Hook]] = {
    "Server": {"request": "input", "reply": "output"},
    "Client": {"request": "output", "reply": "input"},
    "Forward": {"request": "forward", "reply": "forward"},
}
"""Where filters see the packets of each side."""

_LOOPBACK = ("127.0.0.0/8", "::1/128")
_INCOMING = ("prerouting", "input")


def protocol_of(rule: NotrackRule) -> str:
    """Return the rule's protocol as firewalls write it: tcp, udp, sctp."""
    return (rule.protocol or "TCP").lower()


def side_of(rule: NotrackRule) -> str:
    """Return the rule's side; absent means Server."""
    return rule.side or "Server"


def ports_of(rule: NotrackRule) -> Intervals:
    """Return the rule's ports, merged."""
    return port_intervals(rule.ports or ())


def serving_addresses(rule: NotrackRule, local: tuple[str, ...] | None) -> tuple[str, ...] | None:
    """Return what the serving end may be, None for anything. `local` are the node's own addresses, where known."""
    if rule.addresses is not None:
        return tuple(rule.addresses)
    return local if side_of(rule) == "Server" else None


def packets_of(
    rule: NotrackRule, direction: Direction, hook: Hook, local: tuple[str, ...] | None = None
) -> Iterator[Packets]:
    """Yield the packets that `rule` leaves untracked, as they are at `hook`, for each IP version it can match.

    With interfaces a Forward rule is two sets: what comes in by them, and what leaves by them.
    """
    serving = serving_addresses(rule, local)
    for family in _families(rule):
        ends = _addresses(serving, family), _addresses(tuple(rule.peers) if rule.peers else None, family)
        server, peer = (without(end, networks(_LOOPBACK, family)) for end in ends)
        if not server or not peer:
            continue
        ports = ports_of(rule)
        for comes_in, goes_out in _ways(rule, hook):
            if direction == "request":
                yield Packets(
                    hook, family, protocol_of(rule), destination_ports=ports, sources=peer, destinations=server,
                    comes_in=comes_in, goes_out=goes_out,
                )  # fmt: skip
            else:
                yield Packets(
                    hook, family, protocol_of(rule), source_ports=ports, sources=server, destinations=peer,
                    comes_in=comes_in, goes_out=goes_out,
                )  # fmt: skip


def overlap(texts: tuple[str, ...] | None, others: tuple[str, ...] | None) -> bool:
    """Tell whether two lists of networks have an address in common; None is every address."""
    if texts is None or others is None:
        return True
    return any(common(networks(texts, family), networks(others, family)) for family in WIDTHS)


def _families(rule: NotrackRule) -> Iterator[int]:
    named = [set(network_intervals(ends)) for ends in (rule.addresses, rule.peers) if ends]
    yield from (family for family in WIDTHS if all(family in families for families in named))


def _addresses(texts: tuple[str, ...] | None, family: int) -> Intervals:
    return ((0, (1 << WIDTHS[family]) - 1),) if texts is None else networks(texts, family)


def _ways(rule: NotrackRule, hook: Hook) -> Iterator[tuple[Interfaces, Interfaces]]:
    named = Interfaces(tuple(sorted(set(rule.interfaces))), ("lo",)) if rule.interfaces else NOT_LOOPBACK
    if not rule.interfaces:
        yield NOT_LOOPBACK, NOT_LOOPBACK
    elif side_of(rule) != "Forward":
        yield (named, NOT_LOOPBACK) if hook in _INCOMING else (NOT_LOOPBACK, named)
    else:
        yield named, NOT_LOOPBACK
        yield NOT_LOOPBACK, named


def words(rule: NotrackRule, ports: Intervals) -> str:
    """Return some ports of a rule for people: `port 80/TCP`, `ports 80,8000-8100/TCP`."""
    shown = [str(first) if first == last else f"{first}-{last}" for first, last in ports[:4]]
    more = f" and {len(ports) - 4} more" if len(ports) > 4 else ""
    noun = "port" if len(ports) == 1 and ports[0][0] == ports[0][1] else "ports"
    return f"{noun} {','.join(shown)}{more}/{rule.protocol or 'TCP'}"
