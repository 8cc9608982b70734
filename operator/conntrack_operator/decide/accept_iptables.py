"""Accepts in the words of iptables, the same for iptables-nft and iptables-legacy. Pure.

iptables has no sets: ports go into multiport matches of 15 (a range counts two), addresses into a rule each. What an
ICMP error quotes is read by u32 (man iptables-extensions), which takes ten values a test and ten tests a rule.
"""

import ipaddress
from collections.abc import Iterable, Iterator, Sequence
from itertools import product

from conntrack_operator.model.surroundings import Match, PortRanges

from .accept_packets import Accepted, Hook, What
from .intervals import WIDTHS, Intervals
from .notrack_lines import PROTOCOL_NUMBERS

_MULTIPORT_MAX = 15
"""XT_MULTI_PORTS (include/uapi/linux/netfilter/xt_multiport.h)."""

_U32_MAX = 10
"""XT_U32_MAXSIZE (include/uapi/linux/netfilter/xt_u32.h), for values as for tests."""

_LOCALITY: dict[Hook, str] = {
    "input": "-m addrtype --dst-type LOCAL",
    "output": "-m addrtype --src-type LOCAL",
    "forward": "-m addrtype --src-type UNICAST --dst-type UNICAST",
}
_ICMP = {4: "icmp", 6: "ipv6-icmp"}
_NOT_OPENING = {"tcp": "-m tcp ! --tcp-flags SYN,ACK SYN", "sctp": "-m sctp ! --chunk-types any INIT", "udp": ""}

# u32 finds a word of four bytes by its place, counted from the IP header or, behind `@`, from the ICMP header.
# IPv4: types 3, 11 and 12; a quoted header of 20 bytes, not of a later fragment. IPv6: types 1 to 4, no extension
# header before them. The quoted IP header begins 8 bytes into the ICMP message.
_AT_ICMP = {4: "0>>22&0x3C@", 6: ""}
_ERROR = {
    4: ("0>>22&0x3C@0>>24=3,11:12", "0>>22&0x3C@8>>24=0x45", "0>>22&0x3C@12&0x1FFF=0"),
    6: ("4>>8&0xFF=58", "40>>24=1:4"),
}
_PROTOCOL = {4: "16>>16&0xFF", 6: "52>>8&0xFF"}
_PORTS = {4: 28, 6: 88}
_DADDR = {4: 24, 6: 72}


def lines_of(accepted: Accepted, version: int) -> Iterator[str]:
    """Yield the conditions of the rules for `accepted` in the table of one IP version."""
    if accepted.version in (0, version):
        yield from _errors(accepted, version) if accepted.what == "errors" else _packets(accepted, version)


def conditions_of(what: What, protocols: Iterable[str], scope: Match, version: int) -> Iterator[str]:
    """Yield the conditions of the jumps into a chain for `what`, as narrow as `scope`; none when nothing can match."""
    if version not in scope.families:
        return
    for protocol in _guards(what, sorted(protocols), scope, version):
        ways = [
            [f"-p {protocol}"] if protocol else [""],
            _ports("sports", scope.source_ports),
            _ports("dports", scope.destination_ports),
            _ends("src", scope.sources, version),
            _ends("dst", scope.destinations, version),
            [""] if scope.in_interfaces is None else [f"-i {_name(each)}" for each in scope.in_interfaces],
            [""] if scope.out_interfaces is None else [f"-o {_name(each)}" for each in scope.out_interfaces],
            ["-m conntrack --ctstate UNTRACKED"],
        ]
        yield from (_joined(words) for words in product(*ways))


def _guards(what: What, protocols: list[str], scope: Match, version: int) -> Iterator[str]:
    if what == "errors":
        named = scope.protocols is None or scope.protocols & {"icmp", "icmpv6", "ipv6-icmp"}
        if named and scope.source_ports is None and scope.destination_ports is None:
            yield _ICMP[version]
        return
    yield from (protocol for protocol in protocols if scope.protocols is None or protocol in scope.protocols)


def _packets(accepted: Accepted, version: int) -> Iterator[str]:
    option = "dports" if accepted.direction == "request" else "sports"
    ends = accepted.ends
    ways = [
        [f"-p {accepted.protocol}"],
        [_NOT_OPENING[accepted.protocol] if accepted.what == "replies" else ""],
        _ports(option, accepted.ports),
        _networks("-s", ends.get("saddr"), version),
        _networks("-d", ends.get("daddr"), version),
        _interfaces(accepted),
        [_LOCALITY[accepted.hook]],
    ]
    yield from (_joined(words) for words in product(*ways))


def _errors(accepted: Accepted, version: int) -> Iterator[str]:
    at, ends = _AT_ICMP[version], accepted.ends
    shift = "&0xFFFF" if accepted.direction == "request" else ">>16"
    number = PROTOCOL_NUMBERS[accepted.protocol]
    quotes = []
    for ports in _groups(accepted.ports, _U32_MAX, 1):
        values = ",".join(str(first) if first == last else f"{first}:{last}" for first, last in ports)
        tests = (*_ERROR[version], f"{at}{_PROTOCOL[version]}={number}", f"{at}{_PORTS[version]}{shift}={values}")
        quotes.append(" && ".join(tests))
    quoted = (
        [""] if ends.get("daddr") is None else [_u32_network(each, version) for each in _cidrs(ends["daddr"], version)]
    )
    both = ["-m addrtype --dst-type UNICAST"] if accepted.hook == "forward" else [_LOCALITY[accepted.hook]]
    # An error goes to the sender of what it quotes.
    ways = [[f"-p {_ICMP[version]}"], _networks("-d", ends.get("saddr"), version), _interfaces(accepted), both]
    for words in product(*ways):
        for quote, network in product(quotes, quoted):
            yield _joined([*words, f'-m u32 --u32 "{" && ".join(filter(None, (quote, network)))}"'])


def _u32_network(network: ipaddress.IPv4Network | ipaddress.IPv6Network, version: int) -> str:
    """Return the tests for a quoted destination in `network`, a word of 32 bits at a time."""
    first, last, tests = int(network.network_address), int(network.broadcast_address), []
    for number in range(WIDTHS[version] // 32):
        shift = WIDTHS[version] - 32 * (number + 1)
        low, high = first >> shift & 0xFFFFFFFF, last >> shift & 0xFFFFFFFF
        if (low, high) != (0, 0xFFFFFFFF):
            place = f"{_AT_ICMP[version]}{_DADDR[version] + 4 * number}"
            tests.append(f"{place}={low:#x}" if low == high else f"{place}={low:#x}:{high:#x}")
    return " && ".join(tests)


def _ports(option: str, ranges: PortRanges | Intervals | None) -> list[str]:
    if ranges is None:
        return [""]
    groups = _groups(ranges, _MULTIPORT_MAX, 2)
    return [
        f"-m multiport --{option} "
        + ",".join(str(first) if first == last else f"{first}:{last}" for first, last in group)
        for group in groups
    ]


def _groups(intervals: Intervals, most: int, range_counts: int) -> list[Intervals]:
    groups: list[list[tuple[int, int]]] = [[]]
    used = 0
    for first, last in intervals:
        size = 1 if first == last else range_counts
        if used + size > most:
            groups.append([])
            used = 0
        groups[-1].append((first, last))
        used += size
    return [tuple(group) for group in groups]


def _networks(option: str, intervals: Intervals | None, version: int) -> list[str]:
    return [""] if intervals is None else [f"{option} {network}" for network in _cidrs(intervals, version)]


def _cidrs(intervals: Intervals, version: int) -> Iterator[ipaddress.IPv4Network | ipaddress.IPv6Network]:
    kind = ipaddress.IPv4Address if version == 4 else ipaddress.IPv6Address
    for first, last in intervals:
        yield from ipaddress.summarize_address_range(kind(first), kind(last))


def _ends(which: str, networks: Sequence[str] | None, version: int) -> list[str]:
    """Return the ways to satisfy a scope's networks, which may be ranges such as 192.0.2.1-192.0.2.9."""
    if networks is None:
        return [""]
    mine = [each for each in networks if (":" in each) == (version == 6)]
    return [f"-m iprange --{which}-range {each}" if "-" in each else f"-{which[0]} {each}" for each in mine]


def _interfaces(accepted: Accepted) -> list[str]:
    options = {"input": ("-i",), "output": ("-o",), "forward": ("-i", "-o")}[accepted.hook]
    return [f"{option} {name}" for option in options for name in accepted.interfaces] or [""]


def _name(interface: str) -> str:
    return f"{interface[:-1]}+" if interface.endswith("*") else interface


def _joined(words: Iterable[str]) -> str:
    return " ".join(filter(None, words))
