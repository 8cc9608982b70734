"""What firewalls there are in this network namespace, whoever made them: every chain but those of our own table.

Read are nftables' tables of the families ip, ip6 and inet. Families bridge, netdev and arp are left out: they see
packets outside of IP's own hooks. Dormant tables are left out too: they are not at work.
"""

from conntrack_operator.decide.notrack import TABLE
from conntrack_operator.errors import ConntrackOperatorError
from conntrack_operator.model.surroundings import Firewall, FirewallChain, PortRanges

from .firewall_names import BaseChain, TableName, read_base_chains, read_tables
from .firewall_nft import read_table
from .programs import Gone

OWN = ("inet", TABLE)


def read_firewall(interest: PortRanges | None = None) -> Firewall:
    """Return the chains of this network namespace, and what could not be read. Raises nothing.

    With `interest`, translations that can concern none of these ports are left out, and so are chains that only they
    lead to; everything else is told. Needs NET_ADMIN, and nft where there is a table.
    """
    try:
        tables, bases = read_tables(), read_base_chains()
    except ConntrackOperatorError as error:
        return Firewall(problems=(("FirewallUnread", f"nftables' tables cannot be listed: {error}"),))
    chains: list[FirewallChain] = []
    problems: list[tuple[str, str]] = []
    for table in tables:
        if (table.family, table.name) == OWN or table.dormant:
            continue
        try:
            chains.extend(read_table(table, _bases_of(table, bases), interest))
        except Gone:
            continue
        except ConntrackOperatorError as error:
            problems.append(("FirewallUnread", f"table {table.family} {table.name} cannot be read: {error}"))
    owned = frozenset((table.family, table.name) for table in tables if table.owned)
    return Firewall(tuple(chains), owned, tuple(problems))


def _bases_of(table: TableName, bases: list[BaseChain]) -> list[BaseChain]:
    return [base for base in bases if (base.family, base.table) == (table.family, table.name)]
