"""What a rule looks at, gathered condition by condition: the part that nftables and iptables have in common.

A condition that cannot be told in a `Match` (a negation, a mark, a rate) is not lost: it sets `other`, which says that
the rule may match less than it seems to.
"""

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass, replace

from conntrack_operator.decide.intervals import merged
from conntrack_operator.model.surroundings import Match, PortRanges

PORTS_MAX = 65535
ICMPV6 = "icmpv6"
PROTOCOLS = {
    "1": "icmp", "6": "tcp", "17": "udp", "33": "dccp", "47": "gre", "50": "esp", "51": "ah", "58": ICMPV6,
    "132": "sctp", "136": "udplite", "ipv6-icmp": ICMPV6,
}  # fmt: skip
"""Names of protocols by their numbers (IANA), for tools that have no /etc/protocols to look into; one name each."""
WITH_PORTS = frozenset({"tcp", "udp", "sctp", "dccp", "udplite"})
STATES = frozenset({"new", "established", "related", "invalid", "untracked"})
FAMILIES = {"ip": frozenset({4}), "ip6": frozenset({6}), "inet": frozenset({4, 6})}
TCP_FLAGS = {"fin": 0x01, "syn": 0x02, "rst": 0x04, "psh": 0x08, "ack": 0x10, "urg": 0x20, "ecn": 0x40, "cwr": 0x80}
"""Bits of TCP's flags (RFC 9293, RFC 3168) as nft and, in capitals, iptables name them."""
_SEGMENTS = {"first": (0x02,), "later": (0x10, 0x18)}
"""Flags that make up nearly all of a flow: SYN; ACK, PSH with ACK."""
NAT = frozenset({"dnat", "redirect", "snat", "masquerade"})


@dataclass(frozen=True)
class Conditions:
    """A `Match` in the making, with `tracks` beside it. Each method returns these conditions and one more."""

    match: Match
    tracks: bool = False
    rated: bool = False

    def unknown(self) -> "Conditions":
        """Add a condition that a Match has no words for."""
        return self if self.match.other else self._with(other=True)

    def flags(self, mask: int, wanted: Iterable[int], *, negated: bool = False) -> "Conditions":
        """Add a condition on TCP's flags: `flags & mask` is one of `wanted`; negated, none of them."""
        found = frozenset(wanted)
        return self.segments(
            name
            for name, samples in _SEGMENTS.items()
            if any((flags & mask in found) is not negated for flags in samples)
        )

    def segments(self, names: Iterable[str]) -> "Conditions":
        """Add that only these packets of a flow match; there may be more to it."""
        known, found = self.match.segments, frozenset(names)
        return self._with(other=True, segments=found if known is None else known & found)

    def rate(self) -> "Conditions":
        """Add that packets match until there are too many."""
        return replace(self.unknown(), rated=True)

    def match_for(self, verdict: str) -> Match:
        """Return the match of a rule with this verdict: an accept up to a rate is none for a whole flow."""
        rated = self.rated and verdict == "accept"
        return self.segments(("first",)).match if rated else self.match

    def tracking(self) -> "Conditions":
        """Note that connection tracking is needed to look at this."""
        return replace(self, tracks=True)

    def family(self, families: frozenset[int]) -> "Conditions":
        """Add a condition on the IP version."""
        return self._with(families=self.match.families & families)

    def protocol(self, names: Iterable[str], *, negated: bool = False) -> "Conditions":
        """Add a condition on the protocol, by name or number; `all` is none."""
        found = frozenset(protocol_name(name) for name in names)
        if negated:
            return self.unknown()
        known = self.match.protocols
        return self._with(protocols=found if known is None else known & found)

    def ports(self, field: str, ranges: Iterable[tuple[int, int]], *, negated: bool = False) -> "Conditions":
        """Add a condition on `source_ports` or `destination_ports`; a negated one is the complement."""
        found = merged(ranges)
        if negated:
            found = complement(found)
        known: PortRanges | None = getattr(self.match, field)
        return self._with(**{field: found if known is None else intersection(known, found)})

    def networks(self, field: str, networks: Iterable[str], *, negated: bool = False) -> "Conditions":
        """Add a condition on `sources` or `destinations`. Only their first one is told."""
        return self._first(field, tuple(networks), negated=negated)

    def interfaces(self, field: str, names: Iterable[str], *, negated: bool = False) -> "Conditions":
        """Add a condition on `in_interfaces` or `out_interfaces`; a wildcard ends with `*`."""
        return self._first(field, tuple(names), negated=negated)

    def states(self, names: Iterable[str], *, negated: bool = False) -> "Conditions":
        """Add a condition on the state of the connection, or on its being translated (dnat, snat)."""
        found = frozenset(name.lower() for name in names)
        if negated:
            if not found <= STATES:
                return self.tracking().unknown()
            found = STATES - found
        known = self._first("states", found)
        return known.tracking()

    def _first(self, field: str, found: object, *, negated: bool = False) -> "Conditions":
        if negated or getattr(self.match, field) is not None:
            return self.unknown()
        return self._with(**{field: found})

    def _with(self, **changes: object) -> "Conditions":
        return replace(self, match=replace(self.match, **changes))  # type: ignore[arg-type]  # fields are checked above


def begun(family: str) -> Conditions:
    """Return the conditions of a rule that looks at nothing, in a table of `family`."""
    return Conditions(Match(families=FAMILIES[family]))


def protocol_name(name: str) -> str:
    """Return one name for a protocol, whatever a tool calls it."""
    bare = name.lower()
    return PROTOCOLS.get(bare, bare)


def complement(ranges: PortRanges) -> PortRanges:
    """Return the ports that are in none of these merged ranges."""
    found, start = [], 0
    for first, last in ranges:
        if start < first:
            found.append((start, first - 1))
        start = last + 1
    if start <= PORTS_MAX:
        found.append((start, PORTS_MAX))
    return tuple(found)


def intersection(left: PortRanges, right: PortRanges) -> PortRanges:
    """Return the ports that are in both."""
    return merged(
        (max(first, begin), min(last, end)) for first, last in left for begin, end in right
        if max(first, begin) <= min(last, end)
    )  # fmt: skip


def networks_between(first: str, last: str) -> list[str]:
    """Return a range of addresses as networks in CIDR form."""
    ends = ipaddress.ip_address(first), ipaddress.ip_address(last)
    return [str(network) for network in ipaddress.summarize_address_range(*ends)]


def network(text: str) -> str:
    """Return an address or a network in CIDR form; empty when it is neither (a mask with holes)."""
    try:
        return str(ipaddress.ip_network(text, strict=False))
    except ValueError:
        return ""
