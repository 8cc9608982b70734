"""Rules of iptables as data: a line that iptables-save prints becomes conditions and a verdict.

Both variants print the same words. An option that is not understood sets `other`; one of a match that looks at
connection tracking sets `tracks` as well. Read: iptables(8), iptables-extensions(8).
"""

import re
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

from conntrack_operator.model.surroundings import FirewallRule, PortRanges, Verdict

from .firewall_gathering import shortened
from .firewall_match import NAT, PORTS_MAX, STATES, TCP_FLAGS, Conditions, begun, network, networks_between

_TARGETS: dict[str, Verdict] = {
    "ACCEPT": "accept", "DROP": "drop", "REJECT": "reject", "RETURN": "return", "DNAT": "dnat", "NETMAP": "dnat",
    "REDIRECT": "redirect", "SNAT": "snat", "MASQUERADE": "masquerade", "NOTRACK": "notrack", "TPROXY": "tproxy",
    "NFQUEUE": "queue", "QUEUE": "queue",
}  # fmt: skip
_GOES_ON = frozenset({
    "AUDIT", "CHECKSUM", "CLASSIFY", "CLUSTERIP", "CONNMARK", "CONNSECMARK", "CT", "DSCP", "ECN", "HL", "HMARK",
    "IDLETIMER", "IPMARK", "LED", "LOG", "MARK", "NFLOG", "RATEEST", "SECMARK", "SET", "SYNPROXY", "TCPMSS",
    "TCPOPTSTRIP", "TEE", "TOS", "TRACE", "TTL", "ULOG",
})  # fmt: skip
"""Targets after which the next rule is looked at; what is in neither list is a chain."""
_TRACKING_TARGETS = frozenset({"CONNMARK", "CONNSECMARK", "SYNPROXY", "CLUSTERIP"})
_TRACKING_MATCHES = frozenset(
    {"conntrack", "state", "connmark", "connlimit", "connbytes", "connlabel", "helper", "cluster"}
)
_PORT_OPTIONS = {
    "--dport": "destination_ports", "--dports": "destination_ports", "--destination-ports": "destination_ports",
    "--sport": "source_ports", "--sports": "source_ports", "--source-ports": "source_ports",
}  # fmt: skip
_ADDRESSES = {"-s": "sources", "-d": "destinations", "--src-range": "sources", "--dst-range": "destinations"}
_INTERFACES = {"-i": "in_interfaces", "-o": "out_interfaces"}
_RATES = ("--limit", "--hashlimit-upto", "--hashlimit")
_WORD = re.compile(r'"((?:[^"\\]|\\.)*)"|(\S+)')
_ESCAPE = re.compile(r"\\(.)")
_STATES = frozenset({"NEW", "ESTABLISHED", "RELATED", "INVALID", "UNTRACKED", "SNAT", "DNAT"})


class _Target(NamedTuple):
    verdict: Verdict
    chain: str = ""
    to_ports: PortRanges | None = None
    to_addresses: tuple[str, ...] = ()
    fully_random: bool = False
    tracks: bool = False


def words_of(line: str) -> list[str]:
    """Return the words of a line, quotes taken off."""
    if '"' not in line:
        return line.split()
    # shlex takes 0.2 ms a line, and there may be 50,000.
    return [bare or _ESCAPE.sub(r"\1", quoted) for quoted, bare in _WORD.findall(line)]


def rule_of(line: str, family: str, number: int) -> FirewallRule:
    """Return the rule that a line `-A CHAIN ...` says, the `number`th of its chain from 1."""
    words = words_of(line)[2:]
    conditions, comment, rest = _conditions(words, begun(family))
    target = _target(rest)
    return FirewallRule(
        match=conditions.match_for(target.verdict),
        verdict=target.verdict,
        text=shortened(line.strip()),
        target=target.chain,
        to_ports=target.to_ports,
        to_addresses=target.to_addresses,
        fully_random=target.fully_random,
        tracks=conditions.tracks or target.tracks,
        handle=number,
        comment=comment,
    )


def _conditions(words: list[str], conditions: Conditions) -> tuple[Conditions, str, list[str]]:
    """Return what is looked at, the comment, and the words from the target on."""
    comment, module, at, negated = "", "", 0, False
    while at < len(words):
        word = words[at]
        if word in ("-j", "-g"):
            return conditions, comment, words[at:]
        end = at + 1
        while end < len(words) and not words[end].startswith("-") and words[end] != "!":
            end += 1
        values = words[at + 1 : end]
        if word == "!":
            negated, at = True, at + 1
            continue
        if word == "--comment":  # it may hold anything
            comment, end = words[at + 1] if at + 1 < len(words) else "", at + 2
        elif word == "-m":
            module = values[0] if values else ""
            conditions = conditions.tracking() if module in _TRACKING_MATCHES else conditions
        else:
            value = "/".join(values) if word == "--tcp-flags" else values[0] if values else ""
            conditions = _option(conditions, word, value, module, negated=negated)
        at, negated = end, False
    return conditions, comment, []


def _option(  # noqa: PLR0911  one for each kind of option
    conditions: Conditions, word: str, value: str, module: str, *, negated: bool
) -> Conditions:
    if word == "-p":
        return conditions if value in ("all", "0") else conditions.protocol([value], negated=negated)
    if word in _PORT_OPTIONS and (ranges := _ports(value.split(","))):
        return conditions.ports(_PORT_OPTIONS[word], ranges, negated=negated)
    if word in _ADDRESSES and (networks := _networks(value)):
        return conditions.networks(_ADDRESSES[word], networks, negated=negated)
    if word in _INTERFACES:
        name = f"{value[:-1]}*" if value.endswith("+") else value
        return conditions.interfaces(_INTERFACES[word], [name], negated=negated)
    if word in ("--ctstate", "--state") and module in ("conntrack", "state") and {*value.split(",")} <= _STATES:
        if negated and not {word.lower() for word in value.split(",")} <= STATES:
            # A packet of no connection is not translated: xt_conntrack takes it (nft would not).
            return conditions.states(STATES - {word.lower() for word in value.split(",")}).unknown()
        return conditions.states(value.split(","), negated=negated)
    if word == "--tcp-flags":
        mask, wanted = (sum(TCP_FLAGS[name] for name in _flags(part)) for part in f"{value}/".split("/")[:2])
        return conditions.flags(mask, [wanted], negated=negated)
    if word in _RATES and not negated:
        return conditions.rate()
    return conditions.unknown()


def _flags(names: str) -> list[str]:
    """Return flags as iptables prints them, `FIN,SYN`, by the names that nft gives them."""
    return [name for name in names.lower().split(",") if name in TCP_FLAGS]


def _target(words: list[str]) -> _Target:
    if len(words) < 2:
        return _Target("none")
    name, options = words[1], words[2:]
    if words[0] == "-g":
        return _Target("goto", chain=name)
    if name == "CT":
        return _ct(options)
    if name in _GOES_ON:
        return _Target("none", tracks=name in _TRACKING_TARGETS)
    if name not in _TARGETS:
        return _Target("jump", chain=name)
    verdict = _TARGETS[name]
    addresses, ports = _translation(options)
    return _Target(
        verdict,
        to_ports=ports,
        to_addresses=addresses,
        fully_random="--random-fully" in options,
        tracks=verdict in NAT,
    )


def _ct(options: list[str]) -> _Target:
    if "--notrack" in options:
        return _Target("notrack")
    return _Target("helper" if "--helper" in options else "none", tracks=True)


def _translation(options: list[str]) -> tuple[tuple[str, ...], PortRanges | None]:
    """Return the addresses and ports that are translated to."""
    for option, value in pairwise(options):
        if option == "--to-ports":
            return (), _ports([value.partition("/")[0]]) or None
        if option in ("--to-destination", "--to-source"):
            address, _, port = value.rpartition(":") if _has_port(value) else (value, "", "")
            return tuple(_networks(address.strip("[]"))), _ports([port.partition("/")[0]]) or None
    return (), None


def _has_port(value: str) -> bool:
    return "]:" in value or value.count(":") == 1


def _ports(parts: list[str]) -> PortRanges:
    """Return ports and ranges (`8000:8100`, `8000-8100`, `:80`), empty when one is neither."""
    found: list[tuple[int, int]] = []
    for part in parts:
        sign = ":" if ":" in part else "-"
        first, _, last = part.partition(sign)
        ends = first or "0", (last or str(PORTS_MAX)) if sign in part else first
        if not part or not all(end.isascii() and end.isdigit() for end in ends):
            return ()
        found.append((int(ends[0]), int(ends[1])))
    return tuple(found)


def _networks(value: str) -> list[str]:
    """Return addresses, networks and ranges in CIDR form, empty when one is none of them (a mask with holes)."""
    between = _safely(lambda: networks_between(*value.split("-"))) if value.count("-") == 1 else None
    if between is not None:
        return between
    found = [network(part) for part in value.split(",")]
    return found if all(found) else []


def _safely(read: Callable[[], list[str]]) -> list[str] | None:
    try:
        return read()
    except (ValueError, TypeError):
        return None
