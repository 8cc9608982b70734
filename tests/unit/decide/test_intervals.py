"""Integer intervals: merging is set union, covering is inclusion, whatever the order and the overlaps."""

import ipaddress
import itertools
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from conntrack_operator.decide.intervals import (
    address_text,
    covers,
    merged,
    network_intervals,
    port_intervals,
    port_text,
    without,
)

_small = st.tuples(st.integers(0, 60), st.integers(0, 12)).map(lambda pair: (pair[0], pair[0] + pair[1]))
_intervals = st.lists(_small, max_size=12)


def _members(intervals: object) -> set[int]:
    return {number for first, last in intervals for number in range(first, last + 1)}


@given(_intervals)
def test_merging_is_the_union_in_its_shortest_form(intervals: list[tuple[int, int]]) -> None:
    """Same members; sorted, and neither overlapping nor touching."""
    joined = merged(intervals)
    assert _members(joined) == _members(intervals)
    assert all(left[1] + 1 < right[0] for left, right in itertools.pairwise(joined))


@given(_intervals, _intervals)
def test_taking_away_is_the_difference(outer: list[tuple[int, int]], taken: list[tuple[int, int]]) -> None:
    """Exactly the members that were not taken, merged."""
    left = without(outer, taken)
    assert _members(left) == _members(outer) - _members(taken)
    assert merged(left) == left


@given(_intervals, st.randoms())
def test_merging_does_not_see_the_order(intervals: list[tuple[int, int]], chance: Random) -> None:
    """Shuffled intervals come to the same."""
    shuffled = list(intervals)
    chance.shuffle(shuffled)
    assert merged(shuffled) == merged(intervals)


@given(_intervals, _intervals)
def test_covering_is_inclusion(outer: list[tuple[int, int]], inner: list[tuple[int, int]]) -> None:
    """Every member of the one is a member of the other."""
    assert covers(merged(outer), merged(inner)) == (_members(inner) <= _members(outer))


def test_ports_as_people_write_them() -> None:
    """Numbers, text and ranges, in any order, overlapping and touching."""
    assert port_intervals([443, "80", "8000-8100", "8050-8200", 81, 65535]) == (
        (80, 81),
        (443, 443),
        (8000, 8200),
        (65535, 65535),
    )
    assert [port_text(interval) for interval in ((80, 80), (80, 81))] == ["80", "80-81"]


def test_networks_of_both_versions() -> None:
    """Addresses and networks, joined where they touch, apart by version; everything and one address alike."""
    found = network_intervals(["10.0.0.0/9", "10.128.0.0/9", "192.0.2.1", "fd00::/8"])
    assert [address_text(interval, 4) for interval in found[4]] == ["10.0.0.0-10.255.255.255", "192.0.2.1"]
    assert [address_text(interval, 6) for interval in found[6]] == ["fd00::-fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"]
    assert network_intervals(["::/0"]) == {6: ((0, 2**128 - 1),)}
    assert network_intervals([]) == {}


@given(st.ip_addresses())
def test_every_address_reads_back(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    """The text of a single address is the address."""
    ((version, (interval,)),) = network_intervals([str(address)]).items()
    assert ipaddress.ip_address(address_text(interval, version)) == address
