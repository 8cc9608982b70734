"""What firewalls there are in this network namespace, whoever made them: every chain but those of our own table.

Read are nftables' tables of the families ip, ip6 and inet, among them those of iptables-nft, and iptables-legacy where
it is in use. Families bridge, netdev and arp are left out: they see packets outside of IP's own hooks. Dormant tables
are left out too: they are not at work.
"""

import contextlib
from collections.abc import Callable
from typing import Literal

from conntrack_operator.decide.notrack import TABLE
from conntrack_operator.errors import ConntrackOperatorError, Retry, Unsupported
from conntrack_operator.model.surroundings import UNREAD, Firewall, FirewallChain, PortRanges

from . import firewall_iptables as iptables
from . import firewall_kube_proxy as kube_proxy
from . import firewall_nft as nftables
from .firewall_names import BaseChain, TableName, read_chains, read_tables
from .programs import Gone, NotInstalled, NotPermitted

Backend = Literal["nf_tables", "legacy"]
"""Which half of the kernel a table is in: iptables-nft's are nf_tables'."""

OWN = ("inet", TABLE)
ATTEMPTS = 3
NEEDS_NET_RAW = "LegacyIptablesNeedsNetRaw"


def read_firewall(
    interest: PortRanges | None = None, wanted: Callable[[Backend, str, str], bool] | None = None
) -> Firewall:
    """Return the chains of this network namespace, and what could not be read. Raises nothing.

    With `wanted`, called with backend, family and name, the tables for which it is false are passed over.
    With `interest`, translations that can concern none of these ports are left out, and so are chains that only they
    lead to; everything else is told. Needs NET_ADMIN, nft where there is a table, the save programs of iptables where
    there are tables of theirs, and NET_RAW for those of iptables-legacy.
    """
    reading = _Reading(interest, wanted or (lambda *_: True))
    owned = reading.read_nftables()
    for family in ("ip", "ip6"):
        reading.read_legacy(family)
    return Firewall(tuple(reading.chains), owned, tuple(reading.problems), reading.nat)


class _Reading:
    """Gathers chains and problems from one table after another."""

    def __init__(self, interest: PortRanges | None, wanted: Callable[[Backend, str, str], bool]) -> None:
        self._interest = interest
        self._wanted = wanted
        self.chains: list[FirewallChain] = []
        self.problems: list[tuple[str, str]] = []
        self.nat = False

    def read_nftables(self) -> frozenset[tuple[str, str]]:
        """Read every table of nftables; return those with an owner."""
        try:
            tables, (bases, numbers) = read_tables(), read_chains()
        except ConntrackOperatorError as error:
            self.problems.append((UNREAD, f"nftables' tables cannot be listed: {error}"))
            self.nat = True
            return frozenset()
        self.nat = any(base.type == "nat" for base in bases)
        for table in tables:
            named = table.family, table.name
            if named != OWN and not table.dormant and self._wanted("nf_tables", *named):
                hooked = [base for base in bases if (base.family, base.table) == (table.family, table.name)]
                self._read_table(table, hooked, numbers.get((table.family, table.name), 0))
        return frozenset((table.family, table.name) for table in tables if table.owned)

    def _read_table(self, table: TableName, bases: list[BaseChain], chains: int) -> None:
        for _ in range(ATTEMPTS - 1):
            with contextlib.suppress(Retry):  # somebody changed it meanwhile; Gone, which is one too, is met again
                self.chains.extend(self._chains_of(table, bases, chains))
                return
        try:
            self.chains.extend(self._chains_of(table, bases, chains))
        except Gone:
            pass
        except ConntrackOperatorError as error:
            self.problems.append((UNREAD, f"table {table.family} {table.name} cannot be read: {error}"))

    def _chains_of(self, table: TableName, bases: list[BaseChain], chains: int) -> list[FirewallChain]:
        if self._interest is not None and kube_proxy.is_large(table, chains):
            return kube_proxy.read_table(table, bases, self._interest)
        found = self._read_iptables(table, bases) if iptables.is_iptables(table, bases) else None
        return nftables.read_table(table, bases, self._interest) if found is None else found

    def _read_iptables(self, table: TableName, bases: list[BaseChain]) -> list[FirewallChain] | None:
        """Return the chains of a table of iptables-nft's; None when it is left to nft, which sees less of it."""
        family: Literal["ip", "ip6"] = "ip" if table.family == "ip" else "ip6"
        existing = [base.name for base in bases]
        try:
            return iptables.read_table("iptables-nft", family, table.name, self._interest, existing)
        except iptables.Incompatible:
            return None  # somebody put rules of nft's into it; of those of iptables, nft tells the words
        except NotInstalled as error:
            self.problems.append(
                (UNREAD, f"table {family} {table.name} is iptables' and {error}: what its rules match is not known")
            )
            return None

    def read_legacy(self, family: Literal["ip", "ip6"]) -> None:
        """Read the tables of iptables-legacy, where there are some."""
        try:
            tables = iptables.legacy_tables(family)
        except Unsupported as error:
            self.problems.append((UNREAD, f"{family}tables-legacy cannot be looked for: {error}"))
            self.nat = True
            return
        self.nat = self.nat or "nat" in tables
        try:
            for table in tables:
                if not self._wanted("legacy", family, table):
                    continue
                self.chains.extend(iptables.read_table("iptables-legacy", family, table, self._interest))
        except NotPermitted:
            self.problems.append((NEEDS_NET_RAW, _needs_net_raw(family)))
        except Unsupported as error:
            self.problems.append((UNREAD, f"{family}tables-legacy is in use here and cannot be read: {error}"))
        except ConntrackOperatorError as error:
            self.problems.append((UNREAD, f"{family}tables-legacy cannot be read this time: {error}"))


def _needs_net_raw(family: str) -> str:
    return (
        f"{family}tables-legacy is in use on this node and only NET_RAW may read it; set agent.iptablesLegacy, or run"
        " as root with NET_ADMIN and NET_RAW"
    )
