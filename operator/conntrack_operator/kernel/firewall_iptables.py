"""Tables of iptables, of either variant, through their own save programs: nft cannot tell what iptables matches.

iptables-legacy is run only where its tables are there already: running it loads modules and makes tables. Its names
are in /proc/net/ip_tables_names, which only root may read, and reading its tables needs NET_RAW (tried). Tried:
iptables 1.8.9.
"""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Literal

from conntrack_operator.errors import Unsupported
from conntrack_operator.model.surroundings import FirewallChain, FirewallRule, PortRanges

from .firewall_gathering import Gathering, gathered
from .firewall_iptables_rules import rule_of
from .firewall_names import BaseChain, TableName
from .programs import output_of

Variant = Literal["iptables-nft", "iptables-legacy"]

HOOKS = {"PREROUTING": "prerouting", "INPUT": "input", "FORWARD": "forward", "OUTPUT": "output"}
HOOKS |= {"POSTROUTING": "postrouting"}
PRIORITIES = {"raw": -300, "mangle": -150, "filter": 0, "security": 50}
"""Of tables, include/uapi/linux/netfilter_ipv4.h; that of nat differs between its chains."""
NAMES = {"ip": "ip_tables_names", "ip6": "ip6_tables_names"}
# A thread may be in another network namespace than its process.
_PROC_NET = Path("/proc/thread-self/net")


class Incompatible(Unsupported):
    """iptables-nft-save cannot tell what is in a table, though its chains have iptables' names."""


def is_iptables(table: TableName, bases: Sequence[BaseChain]) -> bool:
    """Tell whether iptables-nft made a table: by its name, and by the names of its base chains, if there are any."""
    return (
        table.family in NAMES
        and (table.name == "nat" or table.name in PRIORITIES)
        and all(HOOKS.get(base.name) == base.hook for base in bases)
    )


def legacy_tables(family: Literal["ip", "ip6"]) -> list[str]:
    """Return the names of iptables-legacy's tables, none where it is not in use. Raises errors.Unsupported."""
    try:
        return sorted((_PROC_NET / NAMES[family]).read_text().split())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise Unsupported(f"/proc/net/{NAMES[family]} cannot be read ({error.strerror}): run as root") from error


def read_table(
    variant: Variant,
    family: Literal["ip", "ip6"],
    table: str,
    interest: PortRanges | None,
    existing: Collection[str] = tuple(HOOKS),
) -> list[FirewallChain]:
    """Return the chains of one table. `existing` are the built-in chains there are: iptables-nft-save prints them all.

    Raises Incompatible, errors.Unsupported (not installed, not permitted) and errors.Retry.
    """
    listing = _Listing(variant, family, table)
    gathering = gathered({*HOOKS}, interest, listing.read_into, thin=table == "nat")
    chains = dict(gathering.chains())
    bases = [name for name in listing.policies if name in existing]
    return [
        *(listing.base(name, chains.get(name, ())) for name in bases),
        *(FirewallChain(variant, family, table, name, rules) for name, rules in chains.items() if name not in HOOKS),
    ]


class _Listing:
    """What a save program prints of one table."""

    def __init__(self, variant: Variant, family: Literal["ip", "ip6"], table: str) -> None:
        self._variant, self._family, self._table = variant, family, table
        self._command = (f"{family}tables-{variant.removeprefix('iptables-')}-save", "-t", table)
        self.policies: dict[str, Literal["accept", "drop"]] = {}

    def read_into(self, gathering: Gathering) -> None:
        begun = False
        numbers: dict[str, int] = {}
        with output_of(self._command) as lines:
            for line in lines:
                begun = begun or line.startswith("*")
                if line.startswith(":"):
                    self._declare(gathering, *line[1:].split()[:2])
                elif line.startswith("-A "):
                    self._take(gathering, line, numbers)
                elif line.startswith("# Table") and "incompatible" in line:
                    begun = False
                    break
        if not begun:
            raise Incompatible(f"{self._command[0]} cannot tell what is in table {self._family} {self._table}")

    def _declare(self, gathering: Gathering, name: str, policy: str) -> None:
        if name in HOOKS:
            self.policies[name] = "drop" if policy == "DROP" else "accept"
        else:
            gathering.chain(name)

    def _take(self, gathering: Gathering, line: str, numbers: dict[str, int]) -> None:
        chain = line.split(maxsplit=2)[1]
        numbers[chain] = numbers.get(chain, 0) + 1
        stray = gathering.skips(chain)
        if not stray or _may_lead_to(line, gathering.interest):
            gathering.take(chain, rule_of(line, self._family, numbers[chain]), stray=stray)

    def base(self, name: str, rules: tuple[FirewallRule, ...]) -> FirewallChain:
        """Return a built-in chain, which is where the kernel puts it."""
        kind = "nat" if self._table == "nat" else "route" if (self._table, name) == ("mangle", "OUTPUT") else "filter"
        nat = 100 if name in ("INPUT", "POSTROUTING") else -100
        priority = PRIORITIES.get(self._table, nat)
        return FirewallChain(
            self._variant, self._family, self._table, name, rules, kind, HOOKS[name], priority, self.policies[name]
        )


def _may_lead_to(line: str, interest: PortRanges | None) -> bool:
    """Tell whether a line may translate to a port of interest, without reading all of it."""
    if "--to-" not in line:
        return False
    port = line.rstrip().rpartition(":")[2]
    return not port.isdigit() or interest is None or any(first <= int(port) <= last for first, last in interest)
