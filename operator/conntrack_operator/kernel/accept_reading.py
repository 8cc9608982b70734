"""What stands of ours in other people's tables: the accepts of `decide.accepts`, found by the names of our chains.

Names of chains come by netlink, at the cost of a few bytes each; only tables in which one of ours stands are listed,
with their own tool. A jump of ours cannot be where no chain of ours is: the kernel keeps a chain that is jumped to.
"""

import json
import shlex
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from conntrack_operator.decide.accepts import OURS, Standing, Table, is_ours
from conntrack_operator.decide.notrack import TABLE
from conntrack_operator.errors import Retry, Unsupported

from .accept_tools import Failed, nft, save
from .netlink import BODY, HEADER, NLM_F_DUMP, NLM_F_REQUEST, Netlink, aligned, attributes, ends, message

_GET_CHAIN = 10 << 8 | 4  # NFNL_SUBSYS_NFTABLES, NFT_MSG_GETCHAIN
_CHAIN_TABLE, _CHAIN_NAME = 1, 3  # NFTA_CHAIN_*, include/uapi/linux/netfilter/nf_tables.h
_FAMILIES: dict[int, Literal["ip", "ip6", "inet"]] = {1: "inet", 2: "ip", 10: "ip6"}  # NFPROTO_*
_ATTEMPTS = 5

_LEGACY_NAMES: dict[Literal["ip", "ip6"], Path] = {
    # The namespace of this thread; /proc/net is that of the process.
    "ip": Path("/proc/thread-self/net/ip_tables_names"),
    "ip6": Path("/proc/thread-self/net/ip6_tables_names"),
}
_LEGACY_FILTERS = ("filter", "mangle", "security")


@dataclass(frozen=True)
class SeenChain:
    """A chain of a table as it is."""

    rules: tuple[tuple[str, str, int], ...]
    """(target, comment, handle) of each rule, in order. Only ours need have the first two; iptables has no handles."""

    @property
    def foreign(self) -> int:
        """How many rules are not our jumps."""
        return sum(not is_ours(target) for target, _, _ in self.rules)


Seen = dict[Table, dict[str, SeenChain]]


def read_tables(wanted: Iterable[Table] = ()) -> Seen:
    """Return the tables in which something of ours stands, and those `wanted` that exist.

    Raises Unsupported and Retry as `kernel.nftables.read_table` does. Tables of iptables-legacy that may not be read
    (no NET_RAW, no program) are left out: nothing of ours can have got in there.
    """
    seen: Seen = {}
    for table in sorted({*_nft_tables(), *wanted}):
        if table.tool != "iptables-legacy":
            chains = _nft_listing(table) if table.tool == "nftables" else _saved(table)
            if chains is not None:
                seen[table] = chains
    for table in _legacy_tables():
        try:
            chains = _saved(table)
        except Unsupported:
            continue
        if chains is not None and (table in wanted or any(is_ours(name) for name in chains)):
            seen[table] = chains
    return seen


def standing_of(seen: Seen) -> Standing:
    """Return what of ours is in `seen`, in the form of `Accepts.standing`."""
    chains, jumps = {}, []
    for table, contents in seen.items():
        for name, chain in contents.items():
            if is_ours(name):
                chains[table, name] = tuple(comment for _, comment, _ in chain.rules)
                continue
            index = 0
            for target, comment, _ in chain.rules:
                if is_ours(target):
                    jumps.append((table, name, index, target, comment))
                else:
                    index += 1
    return Standing(chains, tuple(sorted(jumps)))


def _nft_tables() -> Iterator[Table]:
    for attempt in range(_ATTEMPTS):
        try:
            found = set(_chain_names())
            break
        except Retry:  # somebody changed the ruleset meanwhile
            if attempt == _ATTEMPTS - 1:
                raise
    for family, table, name in found:
        if name.startswith(OURS[0]) and (family, table) != ("inet", TABLE):
            yield Table("nftables", family, table)
        elif name.startswith(OURS[1]):
            yield Table("iptables-nft", family, table)


def _chain_names() -> Iterator[tuple[Literal["ip", "ip6", "inet"], str, str]]:
    with Netlink() as netlink:
        request = message(_GET_CHAIN, NLM_F_REQUEST | NLM_F_DUMP, netlink.next_sequence())
        for datagram in netlink.datagrams(request):
            at = 0
            while at < len(datagram):
                if ends(datagram, at):
                    return
                (length, *_) = HEADER.unpack_from(datagram, at)
                family = _FAMILIES.get(datagram[at + HEADER.size])
                found = {each.type: each for each in attributes(datagram, at + BODY, at + length)}
                if family is not None and _CHAIN_TABLE in found and _CHAIN_NAME in found:
                    table, name = (
                        datagram[found[kind].start : found[kind].end].rstrip(b"\0").decode(errors="replace")
                        for kind in (_CHAIN_TABLE, _CHAIN_NAME)
                    )
                    yield family, table, name
                at += aligned(length)


def _nft_listing(table: Table) -> dict[str, SeenChain] | None:
    try:
        listing: dict[str, Any] = json.loads(nft("-j", "list", "table", table.family, table.name))
    except Failed as error:
        if "No such file or directory" in error.complaint:
            return None
        raise error.as_error("list", table) from None
    except ValueError as error:
        raise Retry(f"nft printed a listing of {table.place} that is no JSON; it will be read again") from error
    rules: dict[str, list[tuple[str, str, int]]] = defaultdict(list)
    names = []
    for item in listing.get("nftables", ()):
        if chain := item.get("chain"):
            names.append(chain["name"])
        if rule := item.get("rule"):
            rules[rule["chain"]].append((_target(rule.get("expr", ())), rule.get("comment", ""), rule["handle"]))
    return {name: SeenChain(tuple(rules[name])) for name in names}


def _target(expressions: Iterable[Any]) -> str:
    for each in expressions:
        for verdict in ("jump", "goto"):
            if isinstance(each, dict) and isinstance(each.get(verdict), dict):
                return str(each[verdict].get("target", ""))
    return ""


def _legacy_tables() -> Iterator[Table]:
    for family, path in _LEGACY_NAMES.items():
        try:
            names = path.read_text().split()
        except OSError:
            continue
        for name in names:
            if name in _LEGACY_FILTERS:
                yield Table("iptables-legacy", family, name)


def _saved(table: Table) -> dict[str, SeenChain] | None:
    try:
        text = save(table)
    except Failed as error:
        if "does not exist" in error.complaint or "No such file" in error.complaint:
            return None
        raise error.as_error("list", table) from None
    rules: dict[str, list[tuple[str, str, int]]] = {}
    for line in text.splitlines():
        if line.startswith(":"):
            rules.setdefault(line[1:].split()[0], [])
        elif line.startswith("-A "):
            chain = line.split(maxsplit=2)[1]
            rules.setdefault(chain, []).append((*_words(line), 0))
    return {name: SeenChain(tuple(found)) for name, found in rules.items()}


def _words(line: str) -> tuple[str, str]:
    """Return the target and the comment of a rule that is ours, in our chains or into them; empty for others."""
    if OURS[1] not in line:
        return "", ""
    after = dict(pairwise(shlex.split(line)))
    return after.get("-j", after.get("-g", "")), after.get("--comment", "")
