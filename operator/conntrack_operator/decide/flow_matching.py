"""Which flows NOTRACK rules leave untracked, told from addresses and ports alone, as entries and sockets have them.

The mirror of `notrack_lines`: it says which packets a rule matches, this says which flows those packets are of. A flow
is a `Path`, the way its first packet went. It is a `request` of a rule when that packet went to the serving end, a
`reply` when it came from there: a connection that was picked up in the middle, or one that merely has a port of the
rule at its near end, such as the node's own outgoing connection from a source port inside a Server rule's ports. The
rule's packets are the same for both, so both lose their tracking; what may be done to them is not the same.

Interfaces are not told by an entry or a socket: a rule that names some matches by everything else here.
"""

import ipaddress
from bisect import bisect_right
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

from conntrack_operator.model.notrack import NotrackRule

from .intervals import Intervals, network_intervals, port_intervals, without
from .notrack_lines import PROTOCOL_NUMBERS, Side

Direction = Literal["request", "reply"]

TRANSLATED = 1 << 4 | 1 << 5
"""IPS_SRC_NAT | IPS_DST_NAT (include/uapi/linux/netfilter/nf_conntrack_common.h)."""

_PORTS = 65_536
_BROADCAST4 = b"\xff\xff\xff\xff"
_SHOWN = 3


class Path(NamedTuple):
    """One direction of a flow. Addresses as packets carry them: 4 or 16 bytes."""

    protocol: int
    """IP protocol number."""
    source: bytes
    source_port: int
    destination: bytes
    destination_port: int

    @property
    def back(self) -> "Path":
        """The way of an answer that nobody translated."""
        return Path(self.protocol, self.destination, self.destination_port, self.source, self.source_port)


def is_translated(original: Path, reply: Path, status: int = 0) -> bool:
    """Tell whether NAT touches a flow: its status (enum ip_conntrack_status) says so, or its answers look otherwise."""
    return bool(status & TRANSLATED) or reply != original.back


class Matcher:
    """`rules` made ready for many questions: about 2 µs each, whatever the number of ports.

    `local_addresses` are those of the node, as text; the loopback network always belongs to them. A flow between two
    local addresses goes over the loopback interface, which is exempt: it never matches.
    """

    def __init__(self, rules: Iterable[NotrackRule], local_addresses: Collection[str]) -> None:
        self._local = frozenset(ipaddress.ip_address(address).packed for address in local_addresses)
        self._parts = [_Part(rule) for rule in rules]

    @property
    def ports(self) -> Mapping[int, bytes]:
        """A quick no: by protocol number, 65,536 bytes of which those of the rules' ports are 1.

        A flow that has neither port there, or whose protocol is missing, matches no rule.
        """
        tables: dict[int, bytearray] = {}
        for part in self._parts:
            table = tables.setdefault(part.protocol, bytearray(_PORTS))
            for first, last in part.intervals:
                table[first : last + 1] = b"\1" * (last + 1 - first)
        return {protocol: bytes(table) for protocol, table in tables.items()}

    def direction_of(self, path: Path) -> Direction | None:
        """Return what the first packet of the flow `path` was to the rules, None when they leave it alone."""
        if any(self._is_request(part, path) for part in self._parts):
            return "request"
        back = path.back
        return "reply" if any(self._is_request(part, back) for part in self._parts) else None

    def _is_request(self, part: "_Part", path: Path) -> bool:
        return (
            path.protocol == part.protocol
            and part.has_port(path.destination_port)
            and self._stands(part.side, path)
            and _within(part.addresses, path.destination)
            and _within(part.peers, path.source)
        )

    def _stands(self, side: Side, path: Path) -> bool:
        serving, other = self._is_local(path.destination), self._is_local(path.source)
        match side:
            case "Server":
                return serving and not other
            case "Client":
                return other and not serving
            case _:
                return not serving and not other and _is_unicast(path.destination) and _is_unicast(path.source)

    def _is_local(self, address: bytes) -> bool:
        return address in self._local or _is_loopback(address)


def without_interfaces(rules: Iterable[NotrackRule]) -> tuple[NotrackRule, ...]:
    """Return the rules of which it is certain that they leave every flow that matches untracked."""
    return tuple(rule for rule in rules if not rule.interfaces)


def for_sockets(rules: Iterable[NotrackRule]) -> tuple[NotrackRule, ...]:
    """Return the rules whose flows end in a socket of this node: those of Server and Client."""
    return tuple(rule for rule in rules if rule.side != "Forward")


def forward_withdrawal_problem(rules: Sequence[NotrackRule], tcp_loose: bool) -> str | None:  # noqa: FBT001 - a fact
    """Return what breaks when `rules` are withdrawn and the remedy, or None.

    `tcp_loose` is nf_conntrack_tcp_loose: whether tracking picks up a TCP connection in the middle. Routed connections
    have no sockets on this node from which entries could be made first. UDP needs none: any packet makes one. SCTP is
    no question of `tcp_loose`: see `kernel.flow_editing.seed`.
    """
    names = [rule.name for rule in rules if rule.side == "Forward" and (rule.protocol or "TCP") == "TCP"]
    if not names or tcp_loose:
        return None
    shown = ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
    return (
        f"rule{'s' if len(names) > 1 else ''} {shown}: withdrawing now breaks the TCP connections routed under"
        f" {'them' if len(names) > 1 else 'it'}, because nf_conntrack_tcp_loose is 0 and tracking takes up no"
        " connection in the middle; set tcp.loose: true first, or notrack.onConflict: Force to let them break"
    )


def is_covered(rule: NotrackRule, wanted: Iterable[NotrackRule]) -> bool:
    """Tell whether one of `wanted` leaves all of the flows of `rule` untracked too; unsure is no."""
    as_rule = {"name": rule.name, "ports": rule.ports}
    return any(
        other.model_copy(update=as_rule) == rule
        and not without(port_intervals(rule.ports or ()), port_intervals(other.ports or ()))
        for other in wanted
    )


class _Part:
    """One rule, with its ports as a table to look into and its addresses as numbers."""

    def __init__(self, rule: NotrackRule) -> None:
        self.protocol = PROTOCOL_NUMBERS[(rule.protocol or "TCP").lower()]
        self.side: Side = rule.side or "Server"
        self.intervals = port_intervals(rule.ports or ())
        self.addresses = _ends(rule.addresses)
        self.peers = _ends(rule.peers)
        self._starts = [first for first, _ in self.intervals]

    def has_port(self, port: int) -> bool:
        """Tell whether `port` is one of the rule's."""
        place = bisect_right(self._starts, port) - 1
        return place >= 0 and port <= self.intervals[place][1]


_Ends = dict[int, tuple[list[int], Intervals]]


def _ends(networks: Sequence[str] | None) -> _Ends | None:
    """Return the networks by an address's length in bytes, each with the starts to search in; None is anyone."""
    if not networks:
        return None
    found = network_intervals(networks)
    return {4 if version == 4 else 16: (list(_starts(held)), held) for version, held in found.items()}


def _starts(intervals: Intervals) -> Iterator[int]:
    return (first for first, _ in intervals)


def _within(ends: _Ends | None, address: bytes) -> bool:
    if ends is None:
        return True
    if len(address) not in ends:
        return False
    starts, intervals = ends[len(address)]
    number = int.from_bytes(address, "big")
    place = bisect_right(starts, number) - 1
    return place >= 0 and number <= intervals[place][1]


def _is_loopback(address: bytes) -> bool:
    return address[0] == 127 if len(address) == 4 else address == bytes(15) + b"\1"


def _is_unicast(address: bytes) -> bool:
    if len(address) == 4:
        return address[0] & 0xF0 != 0xE0 and address != _BROADCAST4
    return address[0] != 0xFF
