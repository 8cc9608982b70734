"""What stands, or is to stand, of ours in other people's tables: chains and jumps as values that compare. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, NamedTuple

from conntrack_operator.model.surroundings import Firewall, Match, Tool

from .accept_packets import What
from .accept_places import each_once, is_ours
from .notrack_table import digest_of

ANY = Match()


@dataclass(frozen=True, order=True)
class Table:
    """Somebody else's table."""

    tool: Tool
    family: Literal["ip", "ip6", "inet"]
    name: str

    @property
    def place(self) -> str:
        """As a person would look for it: `nftables inet filter`."""
        return f"{self.tool} {self.family} {self.name}"


@dataclass(frozen=True)
class Chain:
    """One of our chains: its rules in the words of its table's tool, each with its comment."""

    table: Table
    name: str
    rules: tuple[tuple[str, str], ...]
    openings: tuple[Match, ...] = ()
    """The same as data: what it accepts of untracked packets."""


@dataclass(frozen=True)
class Jump:
    """A rule in somebody's chain that leads to one of ours.

    `index` is the number of rules in front of it and `rules` that of all in the chain, ours not counted. nftables puts
    it `after` or `before` the rule of this `handle`, or at the `end`.
    """

    table: Table
    chain: str
    target: str
    condition: str
    index: int
    rules: int
    where: Literal["after", "before", "end"]
    handle: int = 0
    scope: Match = ANY
    """What packets must match to be accepted there, beside being untracked."""

    @property
    def comment(self) -> str:
        """Whose it is, with a digest of all of it."""
        return f"conntrack-operator {digest_of(f'{self.condition} {self.target}')}"


@dataclass(frozen=True)
class Standing:
    """Our chains and jumps in other people's tables as a value that compares.

    `chains`: the comments of the rules in each. `jumps`: (table, chain, index, target, comment), sorted.
    """

    chains: Mapping[tuple[Table, str], tuple[str, ...]] = field(default_factory=dict)
    jumps: tuple[tuple[Table, str, int, str, str], ...] = ()

    @property
    def tables(self) -> list[Table]:
        """Tables in which something of ours stands."""
        return sorted({table for table, _ in self.chains} | {jump[0] for jump in self.jumps})

    def within(self, table: Table) -> "Standing":
        """Return the part that is in `table`."""
        chains = {key: rules for key, rules in self.chains.items() if key[0] == table}
        return Standing(chains, tuple(jump for jump in self.jumps if jump[0] == table))


class Unplaced(NamedTuple):
    """An accept for which there is no place.

    Reasons: OwnedTable, UnclearAccept, StatefulDrop, UnboundedReplies, TooManyRules.
    """

    reason: str
    place: str
    """The base chain."""
    sentence: str
    """With the remedy."""
    what: What


@dataclass(frozen=True)
class Accepts:
    """All that has to stand in other people's tables, and what could not be placed."""

    chains: tuple[Chain, ...] = ()
    jumps: tuple[Jump, ...] = ()
    refused: tuple[Unplaced, ...] = ()

    @cached_property
    def standing(self) -> Standing:
        """What `kernel.accepts.read_accepts` must show."""
        chains = {(chain.table, chain.name): tuple(comment for _, comment in chain.rules) for chain in self.chains}
        jumps = sorted((jump.table, jump.chain, jump.index, jump.target, jump.comment) for jump in self.jumps)
        return Standing(chains, tuple(jumps))


def standing_of(firewall: Firewall) -> Standing:
    """Return what of ours stands in `firewall`, in the form of `Accepts.standing`."""
    chains, jumps = {}, []
    for chain in firewall.chains:
        table = Table(chain.tool, chain.family, chain.table)
        if is_ours(chain.name):
            chains[table, chain.name] = tuple(rule.comment for rule in each_once(chain))
            continue
        index = 0
        for rule in each_once(chain):
            if is_ours(rule.target):
                jumps.append((table, chain.name, index, rule.target, rule.comment))
            else:
                index += 1
    return Standing(chains, tuple(sorted(jumps)))
