"""Sets of packets, as a product of ranges: what a rule matches of them, and what it leaves. Pure.

A set has one IP version and one protocol; ports and addresses are merged intervals, interfaces are names. Cutting a
set by a firewall rule's match gives one set inside and a few outside, none of which overlap.
"""

import ipaddress
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from operator import itemgetter
from typing import Any, Literal

from conntrack_operator.model.surroundings import Match

from .intervals import WIDTHS, Interval, Intervals, merged

Hook = Literal["prerouting", "input", "forward", "output", "postrouting"]

_FEW = 8
"""How many times fewer intervals are worth searching for instead of going through all."""

EVERY_PORT: Intervals = ((0, 65535),)


@dataclass(frozen=True)
class Interfaces:
    """Names of interfaces: those of `only`, None for any, but none of `never`. A name may end in * or + (any rest)."""

    only: tuple[str, ...] | None = None
    never: tuple[str, ...] = ()

    def common(self, names: tuple[str, ...]) -> "Interfaces":
        """Return those that are among `names` too."""
        if self.only is None:
            both = names
        else:
            both = tuple(narrow for mine in self.only for name in names if (narrow := _narrower(mine, name)))
        return Interfaces(tuple(name for name in both if not _any_covers(self.never, name)), self.never)

    def without(self, names: tuple[str, ...]) -> "Interfaces":
        """Return those that are not among `names`."""
        only = self.only and tuple(name for name in self.only if not _any_covers(names, name))
        return Interfaces(only, (*self.never, *(name for name in names if name not in self.never)))

    @property
    def empty(self) -> bool:
        """Whether there is none."""
        return self.only == ()


NOT_LOOPBACK = Interfaces(None, ("lo",))


@dataclass(frozen=True)
class Packets:
    """Packets at one hook of the stack. Addresses are intervals of integers of the family, 4 or 6."""

    hook: Hook
    family: int
    protocol: str
    source_ports: Intervals = EVERY_PORT
    destination_ports: Intervals = EVERY_PORT
    sources: Intervals | None = None
    """None is every address."""
    destinations: Intervals | None = None
    comes_in: Interfaces = NOT_LOOPBACK
    goes_out: Interfaces = NOT_LOOPBACK

    def cut(self, match: Match) -> tuple["Packets | None", tuple["Packets", ...]]:
        """Return what `match` takes of them, None for nothing, and what it leaves. `other` and states do not count."""
        if self.family not in match.families or (match.protocols is not None and self.protocol not in match.protocols):
            return None, (self,)
        inside, outside = self, list[Packets]()
        cuts = list(self._cuts(match))
        if any(taken is None for _, taken, _ in cuts):
            return None, (self,)
        for name, taken, left in cuts:
            if (rest := left()) is not None:
                outside.append(_with(inside, name, rest))
            inside = _with(inside, name, taken)
        return inside, tuple(outside)

    @property
    def pieces(self) -> int:
        """Intervals and names it takes to tell this set."""
        parts = (self.source_ports, self.destination_ports, self.sources or (), self.destinations or ())
        names = (self.comes_in.only or (), self.comes_in.never, self.goes_out.only or (), self.goes_out.never)
        return sum(map(len, parts)) + sum(map(len, names))

    def _cuts(self, match: Match) -> Iterator[tuple[str, object, Callable[[], object]]]:
        """Yield what each part of the match takes of a field, and how to learn what it leaves; nothing is None."""
        every = ((0, (1 << WIDTHS[self.family]) - 1),)
        for name, mine, wanted in (
            ("source_ports", self.source_ports, match.source_ports),
            ("destination_ports", self.destination_ports, match.destination_ports),
            ("sources", self.sources or every, self._of_family(match.sources)),
            ("destinations", self.destinations or every, self._of_family(match.destinations)),
        ):
            if wanted is not None:
                yield name, common(mine, wanted) or None, partial(_left, mine, wanted)
        for name, interfaces, names in (
            ("comes_in", self.comes_in, match.in_interfaces),
            ("goes_out", self.goes_out, match.out_interfaces),
        ):
            if names is not None:
                both, rest = interfaces.common(names), interfaces.without(names)
                yield name, None if both.empty else both, partial(_not_empty, rest)

    def _of_family(self, texts: tuple[str, ...] | None) -> Intervals | None:
        return None if texts is None else networks(texts, self.family)


def _left(mine: Intervals, wanted: Intervals) -> Intervals | None:
    return without(mine, wanted) or None


def _not_empty(interfaces: Interfaces) -> Interfaces | None:
    return None if interfaces.empty else interfaces


def _with(packets: Packets, name: str, value: Any) -> Packets:
    changes: dict[str, Any] = {name: value}
    return replace(packets, **changes)


def common(first: Intervals, second: Intervals) -> Intervals:
    """Return the integers in both. Both must be merged."""
    if len(first) > _FEW * len(second):
        return _found_in(first, second)
    if len(second) > _FEW * len(first):
        return _found_in(second, first)
    found: list[Interval] = []
    mine, yours = 0, 0
    while mine < len(first) and yours < len(second):
        low = max(first[mine][0], second[yours][0])
        high = min(first[mine][1], second[yours][1])
        if low <= high:
            found.append((low, high))
        if first[mine][1] < second[yours][1]:
            mine += 1
        else:
            yours += 1
    return tuple(found)


def without(first: Intervals, second: Intervals) -> Intervals:
    """Return the integers of `first` that are not in `second`. Both must be merged."""
    if len(first) > _FEW * len(second):
        return _taken_from(first, second)
    left: list[Interval] = []
    for low, high in first:
        start = low
        for begin, end in second:
            if end < start:
                continue
            if begin > high:
                break
            if begin > start:
                left.append((start, begin - 1))
            start = end + 1
        if start <= high:
            left.append((start, high))
    return tuple(left)


def _end(interval: Interval) -> int:
    return interval[1]


def _found_in(many: Intervals, few: Intervals) -> Intervals:
    """Return the integers in both, at the cost of a few searches: a rule has a port, a policy a thousand."""
    found: list[Interval] = []
    for low, high in few:
        at = bisect_left(many, low, key=_end)
        while at < len(many) and many[at][0] <= high:
            found.append((max(low, many[at][0]), min(high, many[at][1])))
            at += 1
    return tuple(found)


def _taken_from(many: Intervals, few: Intervals) -> Intervals:
    for low, high in few:
        start = bisect_left(many, low, key=_end)
        end = bisect_right(many, high, key=itemgetter(0))
        if start < end:
            edges = (many[start][0], low - 1), (high + 1, many[end - 1][1])
            many = (*many[:start], *(edge for edge in edges if edge[0] <= edge[1]), *many[end:])
    return many


@lru_cache(maxsize=4096)
def networks(texts: tuple[str, ...], family: int) -> Intervals:
    """Return the addresses of one IP version in `texts`, networks, addresses or ranges such as 192.0.2.1-192.0.2.9."""
    found: list[Interval] = []
    for text in texts:
        first, _, last = text.partition("-")
        try:
            network = ipaddress.ip_network(first, strict=False)
            end = ipaddress.ip_address(last) if last else network.broadcast_address
        except ValueError:
            # Not to be told, so it may be any.
            return ((0, (1 << WIDTHS[family]) - 1),)
        if network.version == family:
            found.append((int(network.network_address), int(end)))
    return merged(found)


def _narrower(one: str, other: str) -> str | None:
    if _covers(one, other):
        return other
    return one if _covers(other, one) else None


def _any_covers(patterns: tuple[str, ...], name: str) -> bool:
    return any(_covers(pattern, name) for pattern in patterns)


def _covers(pattern: str, name: str) -> bool:
    return name == pattern or (pattern.endswith(("*", "+")) and name.startswith(pattern[:-1]))
