"""Accepts in the words of nftables. Pure."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import product

from conntrack_operator.model.surroundings import Match, PortRanges

from .accept_packets import Accepted, Hook, What
from .intervals import Intervals, address_text, port_text
from .notrack_lines import ERRORS, PROTOCOL_NUMBERS, QUOTES

_FAMILY = {4: "ip", 6: "ip6"}
_NFPROTO = {4: "meta nfproto ipv4", 6: "meta nfproto ipv6"}
_ICMP = {"icmp", "icmpv6", "ipv6-icmp"}

LOCALITY: dict[Hook, str] = {
    "input": "fib daddr type local",
    "output": "fib saddr type local",
    "forward": "fib saddr type unicast fib daddr type unicast",
}


def lines_of(accepted: Accepted, versions: Sequence[int]) -> Iterator[str]:
    """Yield the rules for `accepted`, without their comments, for a table of these IP versions."""
    if accepted.version and accepted.version not in versions:
        return
    words = list(_error(accepted) if accepted.what == "errors" else _packet(accepted))
    for interface in _interfaces(accepted):
        yield " ".join([*words, *interface, _locality(accepted), "counter accept"])


def conditions_of(what: What, protocols: Iterable[str], scope: Match, versions: Sequence[int]) -> Iterator[str]:
    """Yield the conditions of the jumps into a chain for `what`, as narrow as `scope`; none when nothing can match."""
    guard = _guard(what, sorted(protocols), scope)
    if guard is None:
        return
    for version in _split(scope, versions):
        ways = [
            [_NFPROTO[version]] if version and len(versions) > 1 else [""],
            [guard],
            _names("iifname", scope.in_interfaces),
            _names("oifname", scope.out_interfaces),
            _ports("sport", scope.source_ports),
            _ports("dport", scope.destination_ports),
            _ends("saddr", scope.sources, version),
            _ends("daddr", scope.destinations, version),
            ["ct state untracked"],
        ]
        yield from (" ".join(filter(None, words)) for words in product(*ways))


def _guard(what: What, protocols: list[str], scope: Match) -> str | None:
    if what == "errors":
        if scope.source_ports is not None or scope.destination_ports is not None:
            return None
        if scope.protocols is not None and not scope.protocols & _ICMP:
            return None
        return "meta l4proto { icmp, ipv6-icmp }"
    left = [protocol for protocol in protocols if scope.protocols is None or protocol in scope.protocols]
    return f"meta l4proto {_set(left)}" if left else None


def _split(scope: Match, versions: Sequence[int]) -> Iterable[int]:
    """Return the IP versions that need conditions of their own; 0 for all of the table's at once."""
    possible = [version for version in versions if version in scope.families]
    together = scope.sources is None and scope.destinations is None and len(possible) == len(versions)
    return [0] if together else possible


def _names(key: str, names: Sequence[str] | None) -> list[str]:
    if names is None:
        return [""]
    if any(name.endswith("*") for name in names):
        return [f'{key} "{name}"' for name in names]
    return [f"{key} {_quoted(names)}"]


def _ports(key: str, ranges: PortRanges | None) -> list[str]:
    return [""] if ranges is None else [f"th {key} {_set(map(port_text, ranges))}"]


def _ends(key: str, networks: Sequence[str] | None, version: int) -> list[str]:
    """Return the ways to satisfy a scope's networks: none where all of them are of the other IP version."""
    if networks is None:
        return [""]
    mine = [each for each in networks if (":" in each) == (version == 6)]
    return [f"{_FAMILY[version]} {key} {_set(mine)}"] if mine else []


def _packet(accepted: Accepted) -> Iterator[str]:
    port = "dport" if accepted.direction == "request" else "sport"
    yield f"{accepted.protocol} {port} {_set(map(port_text, accepted.ports))}"
    if accepted.what == "replies" and accepted.protocol == "tcp":
        yield "tcp flags & (syn | ack) != syn"
    elif accepted.what == "replies" and accepted.protocol == "sctp":
        yield "@th,96,8 != 1"  # the first chunk's type; 1 is INIT, RFC 9260
    for end, intervals in accepted.ends.items():
        yield f"{_FAMILY[accepted.version]} {end} {_addresses(intervals, accepted.version)}"


def _error(accepted: Accepted) -> Iterator[str]:
    quote = QUOTES[accepted.version]
    yield ERRORS[accepted.version]
    yield f"@th,{quote.protocol},8 {PROTOCOL_NUMBERS[accepted.protocol]}"
    yield f"@th,{quote.port(accepted.direction)},16 {_set(map(port_text, accepted.ports))}"
    ends = accepted.ends
    if "saddr" in ends:
        # An error goes to the sender of what it quotes.
        yield f"{_FAMILY[accepted.version]} daddr {_addresses(ends['saddr'], accepted.version)}"
    if "daddr" in ends:
        # Raw payload takes numbers, not addresses.
        yield f"@th,{quote.daddr},{quote.address_bits} {_set(map(port_text, ends['daddr']))}"


def _interfaces(accepted: Accepted) -> Iterator[tuple[str, ...]]:
    if not accepted.interfaces:
        yield ()
        return
    if accepted.hook in ("input", "forward"):
        yield (f"iifname {_quoted(accepted.interfaces)}",)
    if accepted.hook in ("output", "forward"):
        yield (f"oifname {_quoted(accepted.interfaces)}",)


def _locality(accepted: Accepted) -> str:
    if accepted.what == "errors" and accepted.hook == "forward":
        # Routers on the way send errors from any address of theirs.
        return "fib daddr type unicast"
    return LOCALITY[accepted.hook]


def _addresses(intervals: Intervals, version: int) -> str:
    return _set(address_text(interval, version) for interval in intervals)


def _quoted(names: Iterable[str]) -> str:
    return _set(f'"{name}"' for name in names)


def _set(values: Iterable[str]) -> str:
    return f"{{ {', '.join(values)} }}"
