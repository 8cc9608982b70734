"""The nftables rules that leave packets untracked, as text: what exactly each side of a rule matches.

Addresses are always the serving end, peers always the other end, whichever way a packet goes. A packet is a
`request` (its destination port is the rule's) or a `reply` (its source port is).

    side     prerouting                          output
    Server   requests to a local address         replies from it
    Client   replies to a local address          requests from it
    Forward  both, where neither end is local

ICMP errors about an untracked packet would be INVALID (nf_conntrack_inet_error in net/netfilter/
nf_conntrack_proto_icmp.c finds no entry for the packet they quote) and path MTU discovery would end at the next
`ct state invalid drop`. So they stay untracked too, found by the packet they quote:
- Errors go to the sender of the quoted packet. What was sent through output brings errors into prerouting; what
  came in brings errors of our own through output.
- nftables looks up the quoted ports as raw payload, which named sets of ports refuse ("datatype mismatch, expected
  integer", tried with nft 1.0.6): those lookups have constant sets of their own in the rule.
- In output a quoted destination cannot be asked whether it is local. The kernel's own habit decides: port and
  protocol unreachable and failed reassembly come from local delivery (Server, Client), everything else from routing
  (Forward). An error about a routed and translated flow must stay tracked, or its quote is not translated back.
- An IPv4 quote with IP options, or of a later fragment, has its ports elsewhere or not at all: stays tracked.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from .intervals import Intervals, port_text
from .notrack_exemptions import LEARN, Hook, exempting

Side = Literal["Server", "Client", "Forward"]
Direction = Literal["request", "reply"]

UNTRACK = "counter notrack accept"
"""What a rule does that leaves packets untracked; accept ends our chain only, so that each is counted once."""

TRIAL = "trial_"
"""What the names of everything begin with that is there during a trial alone."""

PROTOCOL_NUMBERS = {"tcp": 6, "udp": 17, "sctp": 132}

_PACKETS: dict[Side, tuple[tuple[Hook, Direction], ...]] = {
    "Server": (("prerouting", "request"), ("output", "reply")),
    "Client": (("prerouting", "reply"), ("output", "request")),
    "Forward": (("prerouting", "request"), ("prerouting", "reply")),
}
_ERRORS: dict[Side, tuple[tuple[Hook, Direction], ...]] = {
    "Server": (("prerouting", "reply"), ("output", "request")),
    "Client": (("prerouting", "request"), ("output", "reply")),
    "Forward": (("prerouting", "request"), ("prerouting", "reply"), ("output", "request"), ("output", "reply")),
}
_LOCAL_END: dict[Hook, str] = {"prerouting": "daddr", "output": "saddr"}
_INTERFACE: dict[Hook, str] = {"prerouting": "iifname", "output": "oifname"}
_FAMILY = {4: "ip", 6: "ip6"}


@dataclass(frozen=True)
class Quote:
    """Where the fields of a quoted packet lie, in bits from the start of the ICMP header, which is 8 bytes long."""

    protocol: int
    daddr: int
    address_bits: int
    ports: int

    def port(self, direction: Direction) -> int:
        """Return where the port lies that is the rule's in a packet of this direction."""
        return self.ports + (16 if direction == "request" else 0)


# 64 bits of ICMP, then an IPv4 header of 20 bytes or an IPv6 header of 40.
QUOTES = {4: Quote(64 + 72, 64 + 128, 32, 64 + 160), 6: Quote(64 + 48, 64 + 192, 128, 64 + 320)}

# (type, code): destination-unreachable 3/1, time-exceeded 11/3, parameter-problem 12/4; RFC 792 and RFC 4443.
_LOCAL_DELIVERY = {4: "3 . 2, 3 . 3, 11 . 1", 6: "1 . 4, 3 . 1"}
_EITHER_PLACE = {4: "12 . 0, 12 . 1, 12 . 2", 6: "4 . 0, 4 . 1, 4 . 2, 4 . 3"}
_TYPE_AND_CODE = {4: "icmp type . icmp code", 6: "icmpv6 type . icmpv6 code"}

ERRORS = {
    4: "icmp type { destination-unreachable, time-exceeded, parameter-problem } @th,64,8 0x45 @th,112,16 & 0x1fff 0",
    6: "icmpv6 type { destination-unreachable, packet-too-big, time-exceeded, parameter-problem }",
}
"""What leads into the chains of error rules, by IP version; IPv4 wants a quote of 20 bytes at fragment offset 0."""


@dataclass(frozen=True)
class Target:
    """What a group of rules matches. `addresses` and `peers` by IP version; None is anyone, {} nobody.

    `label` starts the comment of every rule, `set_name` the names of the sets. A target on `trial` has chains apart.
    """

    label: str
    set_name: str
    protocol: str
    side: Side
    ports: Intervals
    addresses: dict[int, Intervals] | None = None
    peers: dict[int, Intervals] | None = None
    interfaces: tuple[str, ...] = ()
    trial: bool = False

    @property
    def exempts(self) -> bool:
        """Whether an outgoing connection can get one of its ports as source port and must then be told apart."""
        return self.protocol == "tcp" and self.side == "Server"

    @property
    def prefix(self) -> str:
        """What the names of its chains begin with."""
        return TRIAL if self.trial else ""

    @property
    def families(self) -> tuple[int, ...]:
        """IP versions in which a packet can match."""
        named = [ends for ends in (self.addresses, self.peers) if ends is not None]
        return tuple(version for version in (4, 6) if all(version in ends for ends in named))

    def ends(self, direction: Direction) -> dict[str, str]:
        """Return the sets that restrict the header's ends, as {saddr or daddr: suffix of the set's name}."""
        serving, other = ("daddr", "saddr") if direction == "request" else ("saddr", "daddr")
        restricted = {}
        if self.addresses is not None:
            restricted[serving] = "addresses"
        if self.peers is not None:
            restricted[other] = "peers"
        return restricted


@dataclass(frozen=True)
class Match:
    """One rule: its chain, condition and action; `part` says what it matches, for the comment."""

    chain: str
    condition: str
    part: str
    action: str = UNTRACK


def matches_of(target: Target) -> Iterator[Match]:
    """Yield the rules of `target`, packets first."""
    narrowed = target.addresses is not None or target.peers is not None
    for hook, direction in _PACKETS[target.side]:
        part = "requests" if direction == "request" else "replies"
        chain, port = f"{target.prefix}{hook}", _port_condition(target, direction)
        if target.exempts:
            # Most packets fail the port. What passes it may be of a learned exemption, and only that is asked then.
            yield Match(chain, port, "port", f"jump {target.set_name}_{part}")
            chain, port = f"{target.set_name}_{part}", ""
            for condition, action in exempting(hook, target.families):
                yield Match(chain, condition, "exempted", action)
        for version in target.families if narrowed else (0,):
            for condition in _packet_conditions(target, hook, direction, version):
                yield Match(chain, f"{port} {condition}".lstrip(), part)
    if target.exempts:
        yield Match(f"{target.prefix}postrouting", _port_condition(target, "reply"), "learned", f"goto {LEARN}")
    for hook, direction in _ERRORS[target.side]:
        for version in target.families:
            for condition in _error_conditions(target, hook, direction, version):
                yield Match(f"{target.prefix}{error_chain(hook, version)}", condition, "errors")


def error_chain(hook: Hook, version: int) -> str:
    """Return the name of the chain for ICMP errors of one IP version seen at `hook`."""
    return f"{hook}_errors{version}"


def _port_condition(target: Target, direction: Direction) -> str:
    # The port comes first: it is the cheapest lookup and the one that most packets fail.
    return f"{target.protocol} {'dport' if direction == 'request' else 'sport'} @{target.set_name}"


def _packet_conditions(target: Target, hook: Hook, direction: Direction, version: int) -> Iterator[str]:
    words = []
    for end, suffix in target.ends(direction).items():
        words.append(f"{_FAMILY[version]} {end} @{target.set_name}_{suffix}{version}")
    if target.side == "Client" and hook == "prerouting":
        words.extend(_not_opening(target.protocol))
    for interface in _interface_conditions(target, hook):
        yield " ".join([*words, *interface, *_locality(target.side, hook)])


def _not_opening(protocol: str) -> Iterator[str]:
    # Somebody who opens connections from the server's port is no server of ours: tracked, and judged by the firewall.
    if protocol == "tcp":
        yield "tcp flags & (syn | ack) != syn"
    elif protocol == "sctp":
        yield "@th,96,8 != 1"  # the first chunk's type; 1 is INIT, RFC 9260


def _quote_not_opening(protocol: str, quote: Quote) -> Iterator[str]:
    if protocol == "tcp":
        yield f"@th,{quote.ports + 104},8 & 0x12 != 0x02"  # 0x10 ACK, 0x02 SYN
    elif protocol == "sctp":
        yield f"@th,{quote.ports + 96},8 != 1"


def _locality(side: Side, hook: Hook) -> tuple[str, ...]:
    if side == "Forward":
        return ("fib saddr type unicast", "fib daddr type unicast")
    return (f"fib {_LOCAL_END[hook]} type local",)


def _interface_conditions(target: Target, hook: Hook) -> Iterator[tuple[str, ...]]:
    """Yield the ways to satisfy `interfaces`. A routed packet may come in by one of them or leave by one."""
    if not target.interfaces:
        yield ()
        return
    yield (f"{_INTERFACE[hook]} @{target.set_name}_interfaces",)
    if target.side == "Forward" and hook == "prerouting":
        # A named set is refused here: "expected string, expression has type network interface name" (nft 1.0.6).
        names = ", ".join(f'"{name}"' for name in target.interfaces)
        yield (f"fib daddr oifname {{ {names} }}",)


def _error_conditions(target: Target, hook: Hook, direction: Direction, version: int) -> Iterator[str]:
    quote = QUOTES[version]
    words = [] if hook == "prerouting" else [_codes(target.side, version)]
    words.append(f"@th,{quote.protocol},8 {PROTOCOL_NUMBERS[target.protocol]}")
    words.append(f"@th,{quote.port(direction)},16 {_constants(target.ports)}")
    restricted = target.ends(direction)
    if suffix := restricted.get("saddr"):
        # The quoted packet's sender is whom the error goes to; the header's lookup can use the named set.
        words.append(f"{_FAMILY[version]} daddr @{target.set_name}_{suffix}{version}")
    if suffix := restricted.get("daddr"):
        quoted = (target.addresses if suffix == "addresses" else target.peers) or {}
        words.append(f"@th,{quote.daddr},{quote.address_bits} {_constants(quoted[version])}")
    if target.side == "Client" and hook == "output":
        words.extend(_quote_not_opening(target.protocol, quote))
    for interface in _interface_conditions(target, hook):
        yield " ".join([*words, *interface, *_error_locality(target.side, hook)])


def _error_locality(side: Side, hook: Hook) -> tuple[str, ...]:
    if side == "Forward":
        return ("fib daddr type unicast",)
    return ("fib daddr type local",) if hook == "prerouting" else ()


def _codes(side: Side, version: int) -> str:
    if side == "Forward":
        return f"{_TYPE_AND_CODE[version]} != {{ {_LOCAL_DELIVERY[version]} }}"
    return f"{_TYPE_AND_CODE[version]} {{ {_LOCAL_DELIVERY[version]}, {_EITHER_PLACE[version]} }}"


def _constants(intervals: Intervals) -> str:
    return f"{{ {', '.join(port_text(interval) for interval in intervals)} }}"
