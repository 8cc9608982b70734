"""Sets of ports and of addresses as merged integer intervals: the one form in which ours and the kernel's compare.

nftables lists the same set as single values, ranges or prefixes, by version and by content; rules name the same
ports in any order and overlapping. Both become sorted, disjoint, non-adjacent (first, last) pairs here. We merge
ourselves and never ask nftables for auto-merge, which makes timed elements permanent (tried on 6.18).
"""

import ipaddress
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence

from conntrack_operator.model.values import ports_in

Interval = tuple[int, int]
Intervals = tuple[Interval, ...]

WIDTHS = {4: 32, 6: 128}
"""Bits of an address, by IP version."""


def merged(intervals: Iterable[Interval]) -> Intervals:
    """Return the same set of integers as sorted intervals that neither overlap nor touch. Both ends are included."""
    joined: list[Interval] = []
    for first, last in sorted(intervals):
        if joined and first <= joined[-1][1] + 1:
            joined[-1] = (joined[-1][0], max(joined[-1][1], last))
        else:
            joined.append((first, last))
    return tuple(joined)


def covers(outer: Sequence[Interval], inner: Iterable[Interval]) -> bool:
    """Tell whether every integer of `inner` is in `outer`, which must be merged."""
    every = list(inner)
    return len(within(outer, every)) == len(every)


def within(outer: Sequence[Interval], intervals: Iterable[Interval]) -> list[Interval]:
    """Return those of `intervals` that lie in `outer`, which must be merged, as a whole."""
    starts = [first for first, _ in outer]
    places = ((each, bisect_right(starts, each[0]) - 1) for each in intervals)
    return [each for each, place in places if place >= 0 and each[1] <= outer[place][1]]


def without(outer: Iterable[Interval], taken: Iterable[Interval]) -> Intervals:
    """Return what is left of `outer` when every integer of `taken` is gone, merged."""
    holes = merged(taken)
    ends = [last for _, last in holes]
    left: list[Interval] = []
    for start, last in merged(outer):
        at = bisect_left(ends, start)
        while at < len(holes) and holes[at][0] <= last:
            if holes[at][0] > start:
                left.append((start, holes[at][0] - 1))
            start = holes[at][1] + 1  # noqa: PLW2901  what is left of the interval begins behind the hole
            at += 1
        if start <= last:
            left.append((start, last))
    return tuple(left)


def port_intervals(ports: Iterable[int | str]) -> Intervals:
    """Return the ports of a rule, merged. They were judged by the model: what is no port is left out."""
    return merged(interval for port in ports if (interval := ports_in(port)) is not None)


def network_intervals(networks: Iterable[str]) -> dict[int, Intervals]:
    """Return the addresses of `networks` by IP version, merged; a version without any has no key."""
    found: dict[int, list[Interval]] = {}
    for text in networks:
        network = ipaddress.ip_network(text)
        interval = (int(network.network_address), int(network.broadcast_address))
        found.setdefault(network.version, []).append(interval)
    return {version: merged(intervals) for version, intervals in found.items()}


def port_text(interval: Interval) -> str:
    """Return a port interval as nftables reads it: `80` or `8000-8100`."""
    first, last = interval
    return str(first) if first == last else f"{first}-{last}"


def address_text(interval: Interval, version: int) -> str:
    """Return an address interval as nftables reads it: `192.0.2.1` or `192.0.2.0-192.0.2.255`."""
    kind = ipaddress.IPv4Address if version == 4 else ipaddress.IPv6Address
    first, last = (str(kind(end)) for end in interval)
    return first if first == last else f"{first}-{last}"
