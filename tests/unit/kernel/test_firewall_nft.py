"""Expressions of `nft -j` that other versions print, and those that nobody can tell in a match."""

from typing import Any

import pytest

from conntrack_operator.kernel.firewall_nft import rules_in
from conntrack_operator.kernel.firewall_nft_match import mentions_conntrack, ports_in_element
from conntrack_operator.model.surroundings import Match

DPORT = {"payload": {"protocol": "tcp", "field": "dport"}}
STATE = {"ct": {"key": "state"}}
ACCEPT = {"accept": None}
TCP = frozenset({"tcp"})


def match(left: Any, right: Any, operator: str = "==") -> dict[str, Any]:
    """Return a match as nft prints it."""
    return {"match": {"op": operator, "left": left, "right": right}}


CASES: list[tuple[list[Any], dict[str, Any], bool]] = [
    ([match({"&": [STATE, ["established", "related"]]}, 0, "!=")],
     {"states": frozenset({"established", "related"})}, True),
    ([match(STATE, {"set": "new"})], {"states": frozenset({"new"})}, True),
    ([match(STATE, "@states")], {"other": True}, True),
    ([match(DPORT, "@unknown")], {"protocols": TCP, "other": True}, False),
    ([match(DPORT, "@empty")], {"protocols": TCP, "destination_ports": ()}, False),
    ([match(DPORT, {"set": [{"elem": {"val": 80, "comment": "web"}}, 81]})],
     {"protocols": TCP, "destination_ports": ((80, 81),)}, False),
    ([match(DPORT, {"set": [1, {"range": [2, 9]}]}), match(DPORT, 5, "!=")],
     {"protocols": TCP, "destination_ports": ((1, 4), (6, 9))}, False),
    ([match({"meta": {"key": "l4proto"}}, {"set": [6, 17, "ipv6-icmp"]})],
     {"protocols": frozenset({"tcp", "udp", "icmpv6"})}, False),
    ([match({"meta": {"key": "l4proto"}}, "tcp", "!=")], {"other": True}, False),
    ([match({"ct": {"key": "status"}}, "dnat", "in")], {"states": frozenset({"dnat"})}, True),
    ([match({"ct": {"key": "mark"}}, 1)], {"other": True}, True),
    ([match({"rt": {"key": "mtu"}}, 1000)], {"other": True}, False),
    ([None], {"other": True}, False),
    ([{"xt": None}], {}, False),
    ([{"xt": {"type": "match", "name": "conntrack"}}], {"other": True}, True),
    ([{"xt": {"type": "match", "name": "comment"}}], {}, False),
    ([{"ct count": {"val": 3}}], {"other": True}, True),
    ([{"limit": {"rate": 5, "per": "second"}}], {"other": True, "segments": frozenset({"first"})}, False),
    ([{"limit": {"rate": 5, "per": "second", "inv": True}}], {"other": True}, False),
    ([{"mangle": {"key": {"meta": {"key": "mark"}}, "value": {"ct": {"key": "mark"}}}}], {}, True),
    ([{"flow": {"op": "add", "flowtable": "@f"}}], {}, True),
]  # fmt: skip


@pytest.mark.parametrize(("expressions", "looked_at", "tracks"), CASES, ids=[str(case[0]) for case in CASES])
def test_an_expression_is_what_it_looks_at(expressions: list[Any], looked_at: dict[str, Any], *, tracks: bool) -> None:
    """What a version prints otherwise is understood; what cannot be told is `other`, never nothing."""
    (rule,) = rules_in([*expressions, ACCEPT], "inet", {"empty": []})
    assert rule.match == Match(**looked_at)
    assert rule.tracks is tracks
    assert rule.verdict == "accept"


def test_a_lookup_that_packets_can_pass_by_goes_on_to_the_rest_of_the_rule() -> None:
    """Elements first, in their order, then what happens to everything else."""
    lookup = {"vmap": {"key": DPORT, "data": {"set": [[22, {"drop": None}], ["*", {"jump": {"target": "x"}}]]}}}
    rules = list(rules_in([lookup, ACCEPT], "ip", {}))
    assert [(rule.verdict, rule.target) for rule in rules] == [("drop", ""), ("jump", "x"), ("accept", "")]
    assert rules[1].match.other


@pytest.mark.parametrize(
    ("kinds", "key", "ports"),
    [
        ("inet_service", 80, ((80, 80),)),
        (["ipv4_addr", "inet_service"], {"concat": ["10.0.0.1", {"range": [80, 90]}]}, ((80, 90),)),
        (["ipv4_addr", "inet_service"], "*", None),
        ("ipv4_addr", "10.0.0.1", None),
        ({"typeof": {}}, {"concat": ["tcp", 80]}, None),
    ],
)
def test_ports_of_an_element(kinds: Any, key: Any, ports: Any) -> None:
    """Known by the map's type; an element without, or of a type nobody knows, may be for any port."""
    assert ports_in_element(kinds, [{"elem": {"val": key}}, {"drop": None}]) == ports


def test_a_word_that_looks_like_tracking_in_a_comment_is_none() -> None:
    """Only what is named as a key counts."""
    assert not mentions_conntrack({"log": {"prefix": "ct"}})
    assert mentions_conntrack([{"vmap": {"key": STATE, "data": {"set": []}}}])
