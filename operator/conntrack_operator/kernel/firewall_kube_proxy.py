"""kube-proxy's own table in nftables mode, where it is large: its maps alone, which say all that is translated.

nft holds a table in memory to print it. Tried with nft 1.0.6 and 10,000 Services, 22,000 chains: 394 MB and 7 s for the
table, and 5 s for any one chain of it, since each Service's anonymous map is asked for one by one; but 34 MB and 0.2 s
for a named map. Where a Service leads to is left out then; the controller knows that.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from conntrack_operator.model.surroundings import FirewallChain, FirewallRule, Match, PortRanges

from .firewall_gathering import Gathering
from .firewall_match import FAMILIES
from .firewall_names import BaseChain, TableName
from .firewall_nft import chain_of, keeper, rules_in
from .json_stream import objects
from .programs import output_of

TABLE = "kube-proxy"
MANY = 1000
"""Chains from which on a table is large: some 500 Services, 20 MB of nft."""

_PROTOCOL, _PORT = {"meta": {"key": "l4proto"}}, {"payload": {"protocol": "th", "field": "dport"}}


def is_large(table: TableName, chains: int) -> bool:
    """Tell whether a table is kube-proxy's, and large."""
    return table.name == TABLE and table.family in ("ip", "ip6") and chains > MANY


def read_table(table: TableName, bases: Sequence[BaseChain], interest: PortRanges) -> list[FirewallChain]:
    """Return its base chains: where packets come in with a DNAT rule for each Service, where they leave a masquerade.

    The chains of its filter are left empty: they refuse packets to Services without endpoints. Raises as
    `firewall_nft.read_table` does.
    """
    gathering = Gathering({TABLE}, interest, thin=True)
    for name, key in (
        ("service-ips", [{"payload": {"protocol": table.family, "field": "daddr"}}, _PROTOCOL, _PORT]),
        ("service-nodeports", [_PROTOCOL, _PORT]),
    ):
        _read_map(table, name, key, gathering)
    translations = dict(gathering.chains()).get(TABLE, ())
    rules = {"prerouting": translations, "output": translations, "postrouting": (_masquerade(table),)}
    return [chain_of(table, base.name, base, rules.get(base.hook, ()) if base.type == "nat" else ()) for base in bases]


def _read_map(table: TableName, name: str, key: list[dict[str, Any]], gathering: Gathering) -> None:
    lookup = {"vmap": {"key": {"concat": key}, "data": f"@{name}"}}
    concerns = keeper(gathering.interest)

    def take(header: dict[str, Any], element: Any) -> bool:
        """Make a rule of an element at once: 10,000 of them as JSON would be 20 MB."""
        if concerns(header, element):
            for rule in rules_in([lookup], table.family, {name: [element]}):
                if rule.verdict == "goto":
                    text = f"vmap @{name}{rule.text}"
                    gathering.take(TABLE, replace(rule, verdict="dnat", target="", tracks=True, text=text))
        return False

    with output_of(["nft", "-j", "list", "map", table.family, table.name, name]) as stream:
        for _ in objects(stream.read, take):
            pass


def _masquerade(table: TableName) -> FirewallRule:
    """Return what every kube-proxy does in nftables mode (pkg/proxy/nftables/proxier.go, the chain masquerading)."""
    match = Match(families=FAMILIES[table.family], other=True)
    return FirewallRule(match, "masquerade", "masquerade fully-random", fully_random=True, tracks=True)
