"""Tables of nftables, one by one: never the whole ruleset at once, neither asked for nor held in memory.

Of each table nft prints JSON, from which conditions come, and once more text, from which a rule's words come, matched
by handle. Tried: nft 1.0.6.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from conntrack_operator.decide.packets import common
from conntrack_operator.model.surroundings import FirewallChain, FirewallRule, PortRanges

from .firewall_gathering import Gathering, gathered, shortened
from .firewall_names import BaseChain, TableName
from .firewall_nft_match import ports_in_element
from .firewall_nft_rules import Outcome, outcomes
from .json_stream import objects
from .programs import output_of

_HANDLE = re.compile(r"^\s*(.*?) # handle (\d+)$")


def read_table(table: TableName, bases: Sequence[BaseChain], interest: PortRanges | None) -> list[FirewallChain]:
    """Return the chains of one table, its base chains first. Only chains that packets of interest come to are kept.

    Raises programs.Gone when the table is not there any more, errors.Unsupported and errors.Retry as nft fails.
    """
    thin = interest is not None and any(base.type == "nat" for base in bases)
    wanted = {base.name for base in bases}
    gathering = gathered(wanted, interest, lambda into: _listed(table, into), thin=thin)
    chains = dict(gathering.chains())
    texts = _texts(table, {rule.handle for rules in chains.values() for rule in rules})
    places = {base.name: base for base in bases}
    ordered = [*places, *(name for name in chains if name not in places)]
    return [chain_of(table, name, places.get(name), _worded(chains.get(name, ()), texts)) for name in ordered]


def rules_in(
    expressions: Sequence[Any], family: str, sets: Mapping[str, Sequence[Any]], handle: int = 0, comment: str = ""
) -> Iterator[FirewallRule]:
    """Yield what an expression list of `nft -j` says, in this package's words. The text is left to the caller."""
    for outcome in outcomes(expressions, family, sets):
        yield FirewallRule(
            match=outcome.conditions.match_for(outcome.verdict),
            verdict=outcome.verdict,
            text=_element_words(outcome),
            target=outcome.target,
            to_ports=outcome.to_ports,
            to_addresses=outcome.to_addresses,
            fully_random=outcome.fully_random,
            tracks=outcome.conditions.tracks,
            handle=handle,
            comment=comment,
        )


def _listed(table: TableName, gathering: Gathering) -> None:
    sets: dict[str, Sequence[Any]] = {}
    with output_of(["nft", "-j", "list", "table", table.family, table.name]) as stream:
        for kind, found in objects(stream.read, keeper(gathering.interest)):
            # What is put in for a time may be another thing a moment later. 1.0.6 does not print `dynamic` (tried).
            if kind in ("set", "map") and not {"dynamic", "timeout"} & {*_flags(found)}:
                sets[found["name"]] = found.get("elem", ())
            elif kind == "chain":
                gathering.chain(found["name"])
            elif kind == "rule":
                stray = gathering.skips(found["chain"])
                if stray and "dnat" not in str(found["expr"]) and "redirect" not in str(found["expr"]):
                    continue
                comment = found.get("comment", "")
                for rule in rules_in(found["expr"], table.family, sets, found["handle"], comment):
                    gathering.take(found["chain"], rule, stray=stray)


def keeper(interest: PortRanges | None) -> Callable[[dict[str, Any], Any], bool]:
    """Return what chooses the elements to keep: of maps to verdicts those of interest, of maps to data none."""

    def keep(header: dict[str, Any], element: Any) -> bool:
        if "map" not in header:
            return True
        if header["map"] != "verdict":
            return False
        ports = ports_in_element(header.get("type"), element)
        return interest is None or ports is None or bool(common(ports, interest))

    return keep


def _flags(found: dict[str, Any]) -> Sequence[str]:
    flags = found.get("flags", ())
    return [flags] if isinstance(flags, str) else flags


def _texts(table: TableName, handles: set[int]) -> dict[int, str]:
    """Return the words of these rules, from a listing without the elements of named sets."""
    found: dict[int, str] = {}
    if handles:
        with output_of(["nft", "-a", "-s", "-t", "list", "table", table.family, table.name]) as lines:
            for line in lines:
                match = _HANDLE.match(line)
                if match and int(match[2]) in handles:
                    found[int(match[2])] = match[1]
    return found


def _worded(rules: Sequence[FirewallRule], texts: Mapping[int, str]) -> tuple[FirewallRule, ...]:
    return tuple(
        replace(rule, text=shortened(f"{texts.get(rule.handle, f'rule with handle {rule.handle}')}{rule.text}"))
        for rule in rules
    )


def _element_words(outcome: Outcome) -> str:
    if outcome.element is None:
        return ""
    key, verdict = outcome.element
    ((kind, told),) = verdict.items()
    target = f" {told['target']}" if isinstance(told, dict) and "target" in told else ""
    return f" {{ {_key_words(key)} : {kind}{target} }}"


def _key_words(key: Any) -> str:
    if isinstance(key, dict) and "elem" in key:
        return _key_words(key["elem"]["val"])
    if isinstance(key, dict) and "concat" in key:
        return " . ".join(_key_words(part) for part in key["concat"])
    if isinstance(key, dict) and "range" in key:
        return "-".join(map(str, key["range"]))
    if isinstance(key, dict) and "prefix" in key:
        return f"{key['prefix']['addr']}/{key['prefix']['len']}"
    return str(key)


def chain_of(table: TableName, name: str, base: BaseChain | None, rules: tuple[FirewallRule, ...]) -> FirewallChain:
    """Return a chain; `base` is None for one that hangs on no hook."""
    if base is None:
        return FirewallChain("nftables", table.family, table.name, name, rules)
    return FirewallChain(
        "nftables", table.family, table.name, name, rules, base.type, base.hook, base.priority, base.policy
    )
