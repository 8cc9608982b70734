"""Accepts for untracked packets in other people's tables: put there, looked for, and taken away without a trace.

Each table is changed by its own tool in one transaction: our chains with their rules, and the jumps into them. What is
no longer wanted goes in the same transaction. Other people's rules are counted, never touched. A killed run leaves a
table as it was or as it was to be; chains are known by their names, so that anybody can clean up after anybody.

The accepts match untracked packets alone and do no harm when the NOTRACK rules are gone: they go in before those and
out after them.
"""

import re
from collections import defaultdict
from collections.abc import Iterator

from conntrack_operator.decide.accepts import Accepts, Chain, Jump, Standing, Table, is_ours
from conntrack_operator.errors import Retry, Unsupported

from .accept_reading import Seen, SeenChain, read_tables, standing_of
from .accept_tools import Failed, nft, restore

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_./-]*")
"""What nft's grammar takes as a name (token string in its scanner)."""


def read_accepts() -> Standing:
    """Return what of ours stands in other people's tables; in place when it equals `Accepts.standing`.

    Compare it with the accepts for the firewall as it is now: a flush takes our jumps away, a rule put in front of one
    changes its index. Raises Unsupported and Retry as `kernel.nftables.read_table` does.
    """
    return standing_of(read_tables())


def write_accepts(accepts: Accepts) -> None:
    """Make it so everywhere, and take what stands elsewhere away. Writes nothing where it is so already.

    One transaction for each tool and family. Raises Retry when a table has changed since `accepts` was decided (decide
    again), Unsupported when a tool is missing, not permitted or lacks a module. Needs NET_ADMIN; NET_RAW too for
    iptables-legacy.
    """
    seen = read_tables({chain.table for chain in accepts.chains})
    standing = standing_of(seen)
    wanted = accepts.standing
    differing = [
        table for table in sorted({*standing.tables, *wanted.tables}) if standing.within(table) != wanted.within(table)
    ]
    _carry_out(differing, accepts, seen)


def remove_accepts() -> None:
    """Remove every chain and every jump of ours, whoever put them there. Raises as `write_accepts` does."""
    write_accepts(Accepts())


def _carry_out(tables: list[Table], accepts: Accepts, seen: Seen) -> None:
    scripts: dict[tuple[str, str], list[str]] = defaultdict(list)
    for table in tables:
        chains = [chain for chain in accepts.chains if chain.table == table]
        jumps = [jump for jump in accepts.jumps if jump.table == table]
        if table not in seen:
            raise Retry(f"{table.place} is gone since it was read; it will be read again")
        if table.tool == "nftables":
            scripts[table.tool, ""] += _nft_lines(table, chains, jumps, seen[table])
        else:
            scripts[table.tool, table.family] += _iptables_lines(table, chains, jumps, seen[table])
    for (tool, family), lines in scripts.items():
        text = "".join(f"{line}\n" for line in lines)
        try:
            if tool == "nftables":
                nft("-f", "-", text=text)
            else:
                restore(tool, family, text)
        except Failed as error:
            places = ", ".join(table.place for table in tables if table.tool == tool)
            raise error.as_error(f"change {places}") from None


def _nft_lines(table: Table, chains: list[Chain], jumps: list[Jump], seen: dict[str, SeenChain]) -> Iterator[str]:
    where = f"{table.family} {_plain(table.name)}"
    for name, found in seen.items():
        for target, _, handle in found.rules:
            if is_ours(target) and not is_ours(name):
                yield f"delete rule {where} {_plain(name)} handle {handle}"
    kept = {chain.name for chain in chains}
    for name in seen:
        if is_ours(name):
            yield f"flush chain {where} {name}"
            if name not in kept:
                yield f"delete chain {where} {name}"
    for chain in chains:
        yield f"add chain {where} {chain.name}"
        for rule, comment in chain.rules:
            yield f'add rule {where} {chain.name} {rule} comment "{comment}"'
    for jump in jumps:
        verb = "insert" if jump.where == "before" else "add"
        beside = f"handle {jump.handle} " if jump.where != "end" else ""
        yield (
            f"{verb} rule {where} {_plain(jump.chain)} {beside}{jump.condition}"
            f' jump {jump.target} comment "{jump.comment}"'
        )


def _iptables_lines(table: Table, chains: list[Chain], jumps: list[Jump], seen: dict[str, SeenChain]) -> Iterator[str]:
    for jump in jumps:
        if jump.chain not in seen or seen[jump.chain].foreign != jump.rules:
            raise Retry(f"chain {jump.chain} of {table.place} has changed since it was read; it will be read again")
    yield f"*{table.name}"
    for chain in chains:
        yield f":{chain.name} - [0:0]"  # makes it, or flushes it
    for name, found in seen.items():
        if not is_ours(name):
            numbers = [number for number, (target, _, _) in enumerate(found.rules, 1) if is_ours(target)]
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


def _plain(name: str) -> str:
    """Return a name that can stand in a script of nft; the kernel takes others (by netlink), nft cannot name them."""
    if not _NAME.fullmatch(name):
        raise Unsupported(f"nft cannot write the name {name!r} of a chain or table; give it a plain name")
    return name
