"""Rules of nftables as data: an expression list of `nft -j` becomes conditions and verdicts.

A verdict map and a match on a concatenation become one rule for each of their elements. What is not understood is
never ignored: a condition sets `other`, and anything that names `ct` sets `tracks`. Format: libnftables-json(5).
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from conntrack_operator.model.surroundings import PortRanges, Verdict

from .firewall_match import NAT, Conditions, begun
from .firewall_nft_match import (
    FAMILY_WORDS,
    Sets,
    as_dict,
    bare,
    elements_of,
    matched,
    mentions_conntrack,
    networks_in,
    ports_in,
)

_PLAIN: dict[str, Verdict] = {
    "accept": "accept", "drop": "drop", "reject": "reject", "return": "return", "continue": "none",
    "jump": "jump", "goto": "goto",
    "notrack": "notrack", "tproxy": "tproxy", "queue": "queue", "ct helper": "helper",
}  # fmt: skip
_HARMLESS = frozenset({"counter", "log", "mangle", "ct timeout", "ct expectation", "flow", "dup", "comment"})
"""Statements that let every packet go on to the next one."""
_TRANSLATIONS: dict[str, Verdict] = {
    "dnat": "dnat", "redirect": "redirect", "snat": "snat", "masquerade": "masquerade",
}  # fmt: skip
_STRONG = NAT | {"notrack", "tproxy", "queue", "helper"}
"""A rule that does one of these and then accepts is told by it."""
_XT_VERDICTS: dict[str, Verdict] = {
    "REJECT": "reject", "DNAT": "dnat", "REDIRECT": "redirect", "SNAT": "snat", "MASQUERADE": "masquerade",
    "TPROXY": "tproxy", "NFQUEUE": "queue", "NOTRACK": "notrack", "CT": "helper",
}  # fmt: skip


class Outcome(NamedTuple):
    """What comes of one rule for one choice of elements."""

    conditions: Conditions
    verdict: Verdict
    target: str = ""
    to_ports: PortRanges | None = None
    to_addresses: tuple[str, ...] = ()
    fully_random: bool = False
    element: Any = None
    """The element of a named verdict map that it stands for."""


def outcomes(expressions: Sequence[Any], family: str, sets: Sets) -> Iterator[Outcome]:
    """Yield what a rule does: once, or once for each element of the maps and concatenations that it looks into."""
    yield from _go_on(list(expressions), Outcome(begun(family), "none"), sets)


def _go_on(rest: list[Any], sofar: Outcome, sets: Sets) -> Iterator[Outcome]:
    for at, statement in enumerate(rest):
        kind, body = _parted(statement)
        if mentions_conntrack(statement):
            sofar = sofar._replace(conditions=sofar.conditions.tracking())
        if kind == "match" and "concat" in as_dict(body["left"]) and body["op"] in ("==", "in"):
            for element in elements_of(body["right"], sets):
                taken = matched(sofar.conditions, body["left"], "==", bare(element), sets)
                yield from _go_on(rest[at + 1 :], sofar._replace(conditions=taken), sets)
            return
        if kind == "vmap":
            mapped = list(_mapped(body, sofar, sets))
            yield from mapped
            if mapped and at == len(rest) - 1:
                return
            continue  # a packet that no element matches goes on
        sofar = _stated(kind, body, sofar, sets)
    yield sofar


def _mapped(body: Any, sofar: Outcome, sets: Sets) -> Iterator[Outcome]:
    named = isinstance(body["data"], str)
    for element in elements_of(body["data"], sets):
        key, verdict = element if isinstance(element, list) and len(element) == 2 else (element, {})
        taken = matched(sofar.conditions, body["key"], "==", bare(key), sets)
        kind, told = _parted(verdict)
        outcome = _stated(kind, told, sofar._replace(conditions=taken), sets)
        yield outcome._replace(element=element if named else None)


def _stated(  # noqa: PLR0911  one for each kind of statement
    kind: str, body: Any, sofar: Outcome, sets: Sets
) -> Outcome:
    if kind == "match":
        taken = matched(sofar.conditions, body["left"], body["op"], body["right"], sets)
        return sofar._replace(conditions=taken)
    if kind in ("jump", "goto"):
        return sofar._replace(verdict=_PLAIN[kind], target=str(body["target"]))
    if kind in _TRANSLATIONS:
        return _translated(_TRANSLATIONS[kind], as_dict(body), sofar)
    if kind in _PLAIN:
        return sofar if sofar.verdict in _STRONG else sofar._replace(verdict=_PLAIN[kind])
    if kind in _HARMLESS or (kind == "xt" and as_dict(body).get("name") == "comment"):
        return sofar
    if kind == "limit":
        over = bool(as_dict(body).get("inv"))
        return sofar._replace(conditions=sofar.conditions.unknown() if over else sofar.conditions.rate())
    if kind == "xt" and as_dict(body).get("type") != "match":
        return _xt_target(str(as_dict(body).get("name")), sofar)
    return sofar._replace(conditions=sofar.conditions.unknown())


def _xt_target(name: str, sofar: Outcome) -> Outcome:
    verdict = _XT_VERDICTS.get(name, "none")
    conditions = sofar.conditions.tracking() if verdict in NAT else sofar.conditions
    return sofar._replace(verdict=verdict, conditions=conditions)


def _translated(kind: Verdict, body: dict[str, Any], sofar: Outcome) -> Outcome:
    flags = body.get("flags", ())
    port, address = body.get("port"), body.get("addr")
    conditions = sofar.conditions.tracking()
    if "family" in body:
        conditions = conditions.family(FAMILY_WORDS[body["family"]])
    if isinstance(address, dict) and "map" in address:  # what is not in the map is not translated
        conditions = conditions.unknown()
    return sofar._replace(
        verdict=kind,
        conditions=conditions,
        to_ports=ports_in([port]) if port is not None else None,
        to_addresses=tuple(networks_in([address]) or ()) if address is not None else (),
        fully_random="fully-random" in ([flags] if isinstance(flags, str) else flags),
    )


def _parted(statement: Any) -> tuple[str, Any]:
    """Return a statement's kind and content; nft prints null for what it cannot put into JSON."""
    return next(iter(statement.items())) if isinstance(statement, dict) and statement else ("", None)
