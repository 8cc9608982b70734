"""Matches of nftables as data: what `left operator right` of `nft -j` looks at. Format: libnftables-json(5).

What is not understood is never ignored: it sets `other`, and whatever names `ct` sets `tracks`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from conntrack_operator.decide.intervals import merged
from conntrack_operator.model.surroundings import PortRanges

from .firewall_match import PORTS_MAX, STATES, TCP_FLAGS, WITH_PORTS, Conditions, network, networks_between

Sets = Mapping[str, Sequence[Any]]
"""Elements of the table's named sets and maps, as nft prints them; one that is missing here holds nobody knows what."""

ANYTHING = "*"
"""A catch-all element, or the content of a set that packets fill by themselves."""

FAMILY_WORDS = {"ipv4": frozenset({4}), "ip": frozenset({4}), "ipv6": frozenset({6}), "ip6": frozenset({6})}
_CONNTRACK = frozenset({"ct", "ct helper", "ct timeout", "ct expectation", "ct count", "flow", "synproxy"})
_XT_CONNTRACK = frozenset({"conntrack", "state", "connmark", "CONNMARK", "connlimit", "helper", "CONNSECMARK", "CT"})
_PORT_FIELDS = {"sport": "source_ports", "dport": "destination_ports"}
_ADDRESS_FIELDS = {"saddr": "sources", "daddr": "destinations"}
_INTERFACE_FIELDS = {key: f"{way}_interfaces" for way in ("in", "out") for key in (f"{way[0]}if", f"{way[0]}ifname")}


def matched(  # noqa: PLR0911  one for each kind of left side
    conditions: Conditions, left: Any, operator: str, right: Any, sets: Sets
) -> Conditions:
    """Add what `left operator right` says."""
    key = as_dict(left)
    if mentions_conntrack(left):
        conditions = conditions.tracking()
    if right == ANYTHING:
        return conditions.unknown()
    if "concat" in key:
        return _concatenated(conditions, key["concat"], operator, right, sets)
    if key == {"payload": {"protocol": "tcp", "field": "flags"}}:
        return _tcp_flags(conditions.protocol(["tcp"]), operator, right, sets)
    if "payload" in key:
        return _payload(conditions, as_dict(key["payload"]), operator, right, sets)
    values = [bare(element) for element in elements_of(right, sets)]
    negated = operator == "!="
    if ANYTHING in values:
        return conditions.unknown()
    if "ct" in key:
        return _connection(conditions, as_dict(key["ct"]), values, negated=negated)
    if "&" in key:
        return _masked(conditions, key["&"], operator, right)
    if "meta" in key and operator in ("==", "in", "!="):
        return _meta(conditions, str(key["meta"].get("key")), values, negated=negated)
    return conditions.unknown()


def _masked(conditions: Conditions, sides: Any, operator: str, right: Any) -> Conditions:
    """Add what `sides[0] & sides[1] operator right` says."""
    masked, mask = sides if isinstance(sides, list) and len(sides) == 2 else (None, None)
    if "ct" in as_dict(masked) and operator == "!=" and right == 0 and isinstance(mask, (list, str)):
        # How some versions print `ct state established,related`.
        return _connection(conditions, as_dict(as_dict(masked)["ct"]), [mask], negated=False)
    payload = as_dict(as_dict(masked).get("payload"))
    if payload.get("protocol") == "tcp":
        conditions = conditions.protocol(["tcp"])
        bits, wanted = _flags_in(mask), _flags_in(right)
        if payload.get("field") == "flags" and None not in (bits, wanted) and operator in ("==", "!="):
            return conditions.flags(bits or 0, [wanted or 0], negated=operator == "!=")
    return conditions.unknown()


def _tcp_flags(conditions: Conditions, operator: str, right: Any, sets: Sets) -> Conditions:
    """Add what `tcp flags operator right` says; `in` wants one of the flags set, `!` none of them."""
    wanted = [_flags_in(bare(element)) for element in elements_of(right, sets)]
    known = [flags for flags in wanted if flags is not None]
    if len(known) < len(wanted):
        return conditions.unknown()
    if operator in ("in", "!") and len(known) == 1:
        return conditions.flags(known[0], [0], negated=operator == "in")
    if operator in ("in", "==", "!="):
        return conditions.flags(0xFF, known, negated=operator == "!=")
    return conditions.unknown()


def _flags_in(value: Any) -> int | None:
    """Return TCP flags as a number: `"syn"`, `["syn", "ack"]`, `{"|": ["syn", "ack"]}` or a number; else None."""
    names = as_dict(value).get("|", value)
    if isinstance(names, int):
        return names
    bits = [TCP_FLAGS.get(name) for name in ([names] if isinstance(names, str) else names) if isinstance(name, str)]
    return None if None in bits or isinstance(names, dict) else sum({bit for bit in bits if bit})


def _concatenated(conditions: Conditions, parts: list[Any], operator: str, right: Any, sets: Sets) -> Conditions:
    values = as_dict(right).get("concat")
    if operator not in ("==", "in") or not isinstance(values, list):
        return conditions.unknown()
    for part, value in zip(parts, values, strict=False):
        conditions = matched(conditions, part, "==", value, sets)
    return conditions


def _meta(conditions: Conditions, name: str, values: list[Any], *, negated: bool) -> Conditions:
    words = [str(value) for value in values]
    if name == "l4proto":
        return conditions.protocol(words, negated=negated)
    if name in _INTERFACE_FIELDS:
        return conditions.interfaces(_INTERFACE_FIELDS[name], words, negated=negated)
    if name in ("nfproto", "protocol") and not negated and all(word in FAMILY_WORDS for word in words):
        return conditions.family(frozenset().union(*(FAMILY_WORDS[word] for word in words)))
    return conditions.unknown()


def _connection(conditions: Conditions, key: dict[str, Any], values: list[Any], *, negated: bool) -> Conditions:
    names: list[str] = []
    for value in values:
        names.extend(map(str, value) if isinstance(value, list) else [str(value)])
    if key.get("key") == "state" and set(names) <= STATES:
        return conditions.states(names, negated=negated)
    if key.get("key") == "status" and set(names) <= {"dnat", "snat"}:
        return conditions.states(names, negated=negated)
    return conditions.tracking().unknown()


def _payload(conditions: Conditions, key: dict[str, Any], operator: str, right: Any, sets: Sets) -> Conditions:
    protocol, field = str(key.get("protocol")), str(key.get("field"))
    negated = operator == "!="
    if protocol in WITH_PORTS | {"icmp", "icmpv6"}:
        conditions = conditions.protocol([protocol])
    if protocol in ("ip", "ip6"):
        conditions = conditions.family(FAMILY_WORDS[protocol])
    if field in _PORT_FIELDS:
        ranges = _compared(operator, right) or ports_in(elements_of(right, sets))
        if ranges is not None:
            return conditions.ports(_PORT_FIELDS[field], ranges, negated=negated)
    elif operator in ("==", "in", "!="):
        values = [bare(element) for element in elements_of(right, sets)]
        if protocol in ("ip", "ip6") and field in _ADDRESS_FIELDS:
            found = networks_in(values)
            if found is not None:
                return conditions.networks(_ADDRESS_FIELDS[field], found, negated=negated)
        if (protocol, field) in (("ip", "protocol"), ("ip6", "nexthdr")):
            return conditions.protocol([str(value) for value in values], negated=negated)
        if (protocol, field) == ("ether", "type"):
            return _meta(conditions, "protocol", values, negated=negated)
    return conditions.unknown()


def _compared(operator: str, right: Any) -> PortRanges | None:
    if not isinstance(right, int):
        return None
    bounds = {"<": (0, right - 1), "<=": (0, right), ">": (right + 1, PORTS_MAX), ">=": (right, PORTS_MAX)}
    return (bounds[operator],) if operator in bounds else None


def ports_in(elements: Sequence[Any]) -> PortRanges | None:
    """Return numbers and ranges as merged ranges, None when one of the elements is neither."""
    found: list[tuple[int, int]] = []
    for element in elements:
        value = bare(element)
        limits = value["range"] if isinstance(value, dict) and "range" in value else [value, value]
        if not all(isinstance(limit, int) for limit in limits):
            return None
        found.append((limits[0], limits[1]))
    return merged(found)


def networks_in(values: Sequence[Any]) -> list[str] | None:
    """Return addresses, prefixes and ranges as networks in CIDR form, None when one of the values is none of them."""
    found: list[str] = []
    for value in values:
        if isinstance(value, str) and (single := network(value)):
            found.append(single)
        elif isinstance(value, dict) and "prefix" in value:
            found.append(network(f"{value['prefix']['addr']}/{value['prefix']['len']}"))
        elif isinstance(value, dict) and "range" in value:
            found.extend(networks_between(*value["range"]))
        else:
            return None
    return found


def elements_of(value: Any, sets: Sets) -> Sequence[Any]:
    """Return the values that a right side stands for: of a set with or without a name, or the one that it is."""
    if isinstance(value, str) and value.startswith("@"):
        return sets.get(value[1:], (ANYTHING,))
    if isinstance(value, dict) and "set" in value:
        inside = value["set"]
        return inside if isinstance(inside, list) else [inside]
    return [value]


def bare(element: Any) -> Any:
    """Return the value of an element without its timeout, comment and counter."""
    return element["elem"]["val"] if isinstance(element, dict) and "elem" in element else element


def mentions_conntrack(expression: Any) -> bool:
    """Tell whether anything in an expression needs connection tracking to be looked at or changed."""
    if isinstance(expression, dict):
        if expression.keys() & _CONNTRACK:
            return True
        if "xt" in expression:
            return as_dict(expression["xt"]).get("name") in _XT_CONNTRACK
        return any(mentions_conntrack(value) for value in expression.values())
    return isinstance(expression, list) and any(mentions_conntrack(value) for value in expression)


def as_dict(value: Any) -> dict[str, Any]:
    """Return a JSON object as it is, anything else as an empty one."""
    return value if isinstance(value, dict) else {}


def ports_in_element(kinds: Any, element: Any) -> PortRanges | None:
    """Return the ports that an element of a verdict map is for, None when it is for all. `kinds` is the map's type."""
    key = bare(element[0] if isinstance(element, list) else element)
    names = [kinds] if isinstance(kinds, str) else kinds
    parts = key["concat"] if isinstance(key, dict) and "concat" in key else [key]
    if not isinstance(names, list) or "inet_service" not in names or len(parts) != len(names):
        return None
    return ports_in([part for part, name in zip(parts, names, strict=True) if name == "inet_service"])
