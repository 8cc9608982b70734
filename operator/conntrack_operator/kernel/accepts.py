"""Accepts for untracked packets in other people's tables: put there, looked for, and taken away without a trace.

Each table is changed by its own tool in one transaction: our chains with their rules, and the jumps into them. What is
no longer wanted goes in the same transaction. Other people's rules are counted, never touched. A killed run leaves a
table as it was or as it was to be; chains are known by their names, so that anybody can clean up after anybody.

The accepts match untracked packets alone and do no harm when the NOTRACK rules are gone: they go in before those and
out after them.
"""

import re
from collections import defaultdict
from collections.abc import Collection, Iterator

from conntrack_operator.decide.accept_places import count_of, each_once, is_ours
from conntrack_operator.decide.accept_standing import Accepts, Chain, Jump, Standing, Table, standing_of
from conntrack_operator.errors import Retry, Unsupported
from conntrack_operator.model.surroundings import Firewall, FirewallChain

from .accept_tools import Failed, restore, run_nft
from .firewall import Backend, read_firewall
from .firewall_names import read_chain_names

_LEGACY_FILTERS = ("filter", "mangle", "security")
"""Tables of iptables that filter where connections have a state."""

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_./-]*")
"""What nft's grammar takes as a name (token string in its scanner)."""


def read_accepts() -> Standing:
    """Return what of ours stands in other people's tables; in place when it equals `Accepts.standing`.

    Compare it with the accepts for the firewall as it is now: a flush takes our jumps away, a rule put in front of one
    changes its index. Raises Unsupported and Retry as `kernel.nftables.read_table` does.
    """
    return standing_of(_read(frozenset()))


def write_accepts(accepts: Accepts) -> None:
    """Make it so everywhere, and take what stands elsewhere away. Writes nothing where it is so already.

    One transaction for each tool and family. Raises Retry when a table has changed since `accepts` was decided (decide
    again), Unsupported when a tool is missing, not permitted or lacks a module. Needs NET_ADMIN; NET_RAW too for
    iptables-legacy.
    """
    firewall = _read({chain.table for chain in accepts.chains})
    standing = standing_of(firewall)
    wanted = accepts.standing
    differing = [
        table for table in sorted({*standing.tables, *wanted.tables}) if standing.within(table) != wanted.within(table)
    ]
    _carry_out(differing, accepts, firewall)


def remove_accepts() -> None:
    """Remove every chain and every jump of ours, whoever put them there. Raises as `write_accepts` does."""
    write_accepts(Accepts())


def _read(tables: Collection[Table]) -> Firewall:
    """Return `tables` and all others in which something of ours stands.

    Names of chains come by netlink, at a few bytes each, and tables without one of ours are not listed: a jump of ours
    cannot be where no chain of ours is, the kernel keeps what is jumped to. iptables-legacy has no such list of names;
    what of it cannot be read (no NET_RAW, no program) cannot hold anything of ours.
    """
    ours = {(family, table) for family, table, chain in read_chain_names() if is_ours(chain)}
    named = ours | {(table.family, table.name) for table in tables if table.tool != "iptables-legacy"}

    def is_wanted(backend: Backend, family: str, name: str) -> bool:
        return name in _LEGACY_FILTERS if backend == "legacy" else (family, name) in named

    firewall = read_firewall(wanted=is_wanted)
    found = {(chain.family, chain.table) for chain in firewall.chains if chain.tool != "iptables-legacy"}
    if firewall.problems and not ours <= found:
        raise Retry("; ".join(sentence for _, sentence in firewall.problems))
    return firewall


def _carry_out(tables: list[Table], accepts: Accepts, firewall: Firewall) -> None:
    scripts: dict[tuple[str, str], list[str]] = defaultdict(list)
    for table in tables:
        chains = [chain for chain in accepts.chains if chain.table == table]
        jumps = [jump for jump in accepts.jumps if jump.table == table]
        seen = {chain.name: chain for chain in firewall.chains if _table_of(chain) == table}
        if not seen and firewall.problems:
            raise Unsupported("; ".join(sentence for _, sentence in firewall.problems))
        if not seen:
            raise Retry(f"{table.place} is gone since it was read; it will be read again")
        if table.tool == "nftables":
            scripts[table.tool, ""] += _nft_lines(table, chains, jumps, seen)
        else:
            scripts[table.tool, table.family] += _iptables_lines(table, chains, jumps, seen)
    for (tool, family), lines in scripts.items():
        text = "".join(f"{line}\n" for line in lines)
        try:
            if tool == "nftables":
                run_nft(text)
            else:
                restore(tool, family, text)
        except Failed as error:
            places = ", ".join(table.place for table in tables if table.tool == tool)
            raise error.as_error(places) from None


def _nft_lines(table: Table, chains: list[Chain], jumps: list[Jump], seen: dict[str, FirewallChain]) -> Iterator[str]:
    where = f"{table.family} {_plain(table.name)}"
    for name, found in seen.items():
        for rule in each_once(found):
            if is_ours(rule.target) and not is_ours(name):
                yield f"delete rule {where} {_plain(name)} handle {rule.handle}"
    kept = {chain.name for chain in chains}
    for name in seen:
        if is_ours(name):
            yield f"flush chain {where} {name}"
            if name not in kept:
                yield f"delete chain {where} {name}"
    for chain in chains:
        yield f"add chain {where} {chain.name}"
        for line, comment in chain.rules:
            yield f'add rule {where} {chain.name} {line} comment "{comment}"'
    for jump in jumps:
        verb = "insert" if jump.where == "before" else "add"
        beside = f"handle {jump.handle} " if jump.where != "end" else ""
        yield (
            f"{verb} rule {where} {_plain(jump.chain)} {beside}{jump.condition}"
            f' jump {jump.target} comment "{jump.comment}"'
        )


def _iptables_lines(
    table: Table, chains: list[Chain], jumps: list[Jump], seen: dict[str, FirewallChain]
) -> Iterator[str]:
    for jump in jumps:
        if jump.chain not in seen or count_of(seen[jump.chain]) != jump.rules:
            raise Retry(f"chain {jump.chain} of {table.place} has changed since it was read; it will be read again")
    yield f"*{table.name}"
    for chain in chains:
        yield f":{chain.name} - [0:0]"  # makes it, or flushes it
    for name, found in seen.items():
        if not is_ours(name):
            numbers = [number for number, rule in enumerate(each_once(found), 1) if is_ours(rule.target)]
            yield from (f"-D {name} {number}" for number in reversed(numbers))
    kept = {chain.name for chain in chains}
    stale = [name for name in seen if is_ours(name) and name not in kept]
    yield from (f"-F {name}" for name in stale)
    yield from (f"-X {name}" for name in stale)
    for chain in chains:
        for rule, comment in chain.rules:
            yield f'-A {chain.name} {rule} -m comment --comment "{comment}" -j ACCEPT'
    # From the end, so that the numbers in front stay what they are.
    for jump in sorted(jumps, key=lambda jump: jump.index, reverse=True):
        yield (
            f'-I {jump.chain} {jump.index + 1} {jump.condition} -m comment --comment "{jump.comment}" -j {jump.target}'
        )
    yield "COMMIT"


def _table_of(chain: FirewallChain) -> Table:
    return Table(chain.tool, chain.family, chain.table)


def _plain(name: str) -> str:
    """Return a name that can stand in a script of nft; the kernel takes others (by netlink), nft cannot name them."""
    if not _NAME.fullmatch(name):
        raise Unsupported(f"nft cannot write the name {name!r} of a chain or table; give it a plain name")
    return name
