"""Firewalls of other people, loaded by their own tools, come out as what they do."""

import subprocess
from collections.abc import Mapping
from typing import Any

import pytest
from tests.lab.namespaces import Lab, Namespace
from tests.lab.programs import wait_until

from conntrack_operator.decide.notrack import TABLE
from conntrack_operator.kernel.firewall import read_firewall
from conntrack_operator.model.surroundings import Firewall, FirewallChain, FirewallRule, Match

IPV4, IPV6 = frozenset({4}), frozenset({6})
TCP = frozenset({"tcp"})

# A rule as nft prints it, and what must be known of it beside the defaults of Match and FirewallRule.
NFT_INPUT: tuple[tuple[str, dict[str, Any], dict[str, Any]], ...] = (
    (
        "tcp dport { 22, 80, 1000-2000 } accept",
        {"protocols": TCP, "destination_ports": ((22, 22), (80, 80), (1000, 2000))},
        {"verdict": "accept"},
    ),
    (
        "tcp dport != { 22, 80 } drop",
        {"protocols": TCP, "destination_ports": ((0, 21), (23, 79), (81, 65535))},
        {"verdict": "drop"},
    ),
    ("tcp dport != 22 drop", {"protocols": TCP, "destination_ports": ((0, 21), (23, 65535))}, {"verdict": "drop"}),
    ("tcp dport >= 1024 accept", {"protocols": TCP, "destination_ports": ((1024, 65535),)}, {"verdict": "accept"}),
    (
        "tcp dport @ports accept",
        {"protocols": TCP, "destination_ports": ((80, 80), (8000, 8100))},
        {"verdict": "accept"},
    ),
    ("udp sport 53 accept", {"protocols": frozenset({"udp"}), "source_ports": ((53, 53),)}, {"verdict": "accept"}),
    (
        "meta l4proto { tcp, udp } th dport 53 accept",
        {"protocols": frozenset({"tcp", "udp"}), "destination_ports": ((53, 53),)},
        {"verdict": "accept"},
    ),
    (
        "ip saddr @nets accept",
        {
            "families": IPV4,
            "sources": ("10.0.0.0/8", "192.0.2.1/32", "198.51.100.0/29", "198.51.100.8/31", "198.51.100.10/32"),
        },
        {"verdict": "accept"},
    ),
    ("ip6 saddr fe80::/10 accept", {"families": IPV6, "sources": ("fe80::/10",)}, {"verdict": "accept"}),
    ("ip saddr != 10.0.0.0/8 drop", {"families": IPV4, "other": True}, {"verdict": "drop"}),
    ("ip saddr @filled drop", {"families": IPV4, "other": True}, {"verdict": "drop"}),
    (
        "ip saddr 10.0.0.0/8 tcp dport 22 accept",
        {"families": IPV4, "sources": ("10.0.0.0/8",), "protocols": TCP, "destination_ports": ((22, 22),)},
        {"verdict": "accept"},
    ),
    ('iifname { "eth0", "eth1*" } accept', {"in_interfaces": ("eth0", "eth1*")}, {"verdict": "accept"}),
    ("ip protocol icmp accept", {"families": IPV4, "protocols": frozenset({"icmp"})}, {"verdict": "accept"}),
    ("ip6 nexthdr ipv6-icmp accept", {"families": IPV6, "protocols": frozenset({"icmpv6"})}, {"verdict": "accept"}),
    ("meta nfproto ipv4 accept", {"families": IPV4}, {"verdict": "accept"}),
    ("tcp flags syn / fin,syn,rst,ack drop", {"protocols": TCP, "other": True}, {"verdict": "drop"}),
    (
        'ct state established,related accept comment "answers"',
        {"states": frozenset({"established", "related"})},
        {"verdict": "accept", "tracks": True, "comment": "answers"},
    ),
    (
        "ct state { new, untracked } accept",
        {"states": frozenset({"new", "untracked"})},
        {"verdict": "accept", "tracks": True},
    ),
    (
        "ct state != invalid accept",
        {"states": frozenset({"new", "established", "related", "untracked"})},
        {"verdict": "accept", "tracks": True},
    ),
    (
        "ct state new limit rate 5/second accept",
        {"states": frozenset({"new"}), "other": True},
        {"verdict": "accept", "tracks": True},
    ),
    ("ct status dnat accept", {"states": frozenset({"dnat"})}, {"verdict": "accept", "tracks": True}),
    ("ct mark 0x00000001 accept", {"other": True}, {"verdict": "accept", "tracks": True}),
    ("meta mark set ct mark", {}, {"verdict": "none", "tracks": True}),
    ("meta mark 0x00000001 accept", {"other": True}, {"verdict": "accept"}),
    (
        "fib daddr type local tcp dport 80 jump other",
        {"protocols": TCP, "destination_ports": ((80, 80),), "other": True},
        {"verdict": "jump", "target": "other"},
    ),
    ("meta l4proto tcp reject with tcp reset", {"protocols": TCP}, {"verdict": "reject"}),
    ('log prefix "x"', {}, {"verdict": "none"}),
    ("goto other", {}, {"verdict": "goto", "target": "other"}),
)
NFT_RAW = (
    (
        'tcp dport 21 ct helper set "ftp-21"',
        {"protocols": TCP, "destination_ports": ((21, 21),)},
        {"verdict": "helper", "tracks": True},
    ),
    ("tcp dport 80 notrack", {"protocols": TCP, "destination_ports": ((80, 80),)}, {"verdict": "notrack"}),
    ("tcp dport 80 notrack accept", {"protocols": TCP, "destination_ports": ((80, 80),)}, {"verdict": "notrack"}),
    (
        "tcp dport 81 tproxy ip to 127.0.0.1:90 accept",
        {"protocols": TCP, "destination_ports": ((81, 81),)},
        {"verdict": "tproxy"},
    ),
)
NFT_DNAT = (
    (
        "tcp dport 80 dnat ip to 10.0.0.1:8080",
        {"families": IPV4, "protocols": TCP, "destination_ports": ((80, 80),)},
        {"verdict": "dnat", "tracks": True, "to_ports": ((8080, 8080),), "to_addresses": ("10.0.0.1/32",)},
    ),
    (
        "tcp dport 90-99 dnat ip to 10.0.0.1-10.0.0.2:8000-8009",
        {"families": IPV4, "protocols": TCP, "destination_ports": ((90, 99),)},
        {
            "verdict": "dnat",
            "tracks": True,
            "to_ports": ((8000, 8009),),
            "to_addresses": ("10.0.0.1/32", "10.0.0.2/32"),
        },
    ),
    (
        "tcp dport 81 redirect to :8081",
        {"protocols": TCP, "destination_ports": ((81, 81),)},
        {"verdict": "redirect", "tracks": True, "to_ports": ((8081, 8081),)},
    ),
    (
        "dnat ip to tcp dport map { 80 : 10.0.0.9 }",
        {"families": IPV4, "other": True},
        {"verdict": "dnat", "tracks": True},
    ),
)
NFT_SNAT = (
    ("masquerade fully-random", {}, {"verdict": "masquerade", "tracks": True, "fully_random": True}),
    (
        'oifname "eth0" meta l4proto tcp snat ip to 192.0.2.1:1000-2000',
        {"families": IPV4, "out_interfaces": ("eth0",), "protocols": TCP},
        {"verdict": "snat", "tracks": True, "to_ports": ((1000, 2000),), "to_addresses": ("192.0.2.1/32",)},
    ),
    (
        "snat ip6 to 2001:db8::1",
        {"families": IPV6},
        {"verdict": "snat", "tracks": True, "to_addresses": ("2001:db8::1/128",)},
    ),
)
NFT = {
    "in": ("type filter hook input priority 0; policy drop;", NFT_INPUT),
    "raw": ("type filter hook prerouting priority -300;", NFT_RAW),
    "pre": ("type nat hook prerouting priority -100;", NFT_DNAT),
    "post": ("type nat hook postrouting priority 100;", NFT_SNAT),
}
NFT_SETS = """
    set ports { type inet_service; flags interval; elements = { 80, 8000-8100 } }
    set nets { type ipv4_addr; flags interval; elements = { 10.0.0.0/8, 192.0.2.1, 198.51.100.0-198.51.100.10 } }
    set filled { type ipv4_addr; flags dynamic, timeout; elements = { 10.9.9.9 } }
    ct helper ftp-21 { type "ftp" protocol tcp; }
    chain other { return; }
"""


@pytest.fixture
def node(netns: Lab) -> Namespace:
    """Give a namespace of its own."""
    return netns.namespace()


def firewall(node: Namespace, interest: Any = None) -> Firewall:
    """Read the firewall of a namespace, which must be readable."""
    with node.inside():
        found = read_firewall(interest)
    assert found.problems == ()
    return found


def chain(found: Firewall, *place: str) -> FirewallChain:
    """Return the one chain at (family, table, name)."""
    (only,) = (each for each in found.chains if (each.family, each.table, each.name) == place)
    return only


def expected(text: str, match: Mapping[str, Any], rule: Mapping[str, Any], families: frozenset[int]) -> FirewallRule:
    """Return a rule by what differs from the defaults; its handle is not compared."""
    return FirewallRule(match=Match(**{"families": families, **match}), text=text, **rule)


def told(rule: FirewallRule) -> dict[str, Any]:
    """Return a rule without its handle."""
    return {name: value for name, value in vars(rule).items() if name != "handle"}


def test_every_shape_of_nftables_rule_is_told(node: Namespace) -> None:
    """Ports, sets by name, addresses, interfaces, states, translations: as nft prints them, in their order."""
    chains = "".join(
        f"chain {name} {{ {head}\n" + "\n".join(text for text, *_ in rules) + "\n}\n"
        for name, (head, rules) in NFT.items()
    )
    node.nft(f"table inet fw {{ {NFT_SETS} {chains} }}")
    found = firewall(node)
    for name, (_, rules) in NFT.items():
        read = chain(found, "inet", "fw", name)
        assert [told(rule) for rule in read.rules] == [
            told(expected(text, match, rule, frozenset({4, 6}))) for text, match, rule in rules
        ]
        assert all(rule.handle for rule in read.rules)
    place = chain(found, "inet", "fw", "in")
    assert (place.tool, place.type, place.hook, place.priority, place.policy) == (
        "nftables",
        "filter",
        "input",
        0,
        "drop",
    )
    assert chain(found, "inet", "fw", "pre").priority == -100
    assert chain(found, "inet", "fw", "other").hook == ""


def test_verdict_maps_become_a_rule_for_each_element(node: Namespace) -> None:
    """Maps with and without a name, single and concatenated keys, as kube-proxy and others write them."""
    node.nft("""table ip fw {
        map services { type ipv4_addr . inet_proto . inet_service : verdict; elements = {
            10.0.0.1 . tcp . 80 : goto web, 10.0.0.2 . udp . 53 comment "shop/dns" : drop } }
        chain web { return; }
        chain in { type filter hook input priority 0;
            ip daddr . meta l4proto . th dport vmap @services
            ct state vmap { established : accept, invalid : drop }
            ip saddr . tcp dport { 10.0.0.1 . 22, 10.0.0.2 . 23 } accept
        }
        }""")
    rules = chain(firewall(node), "ip", "fw", "in").rules
    by_text = sorted(rules[:2], key=lambda rule: rule.text)
    lookup = "ip daddr . meta l4proto . th dport vmap @services"
    assert [(rule.text, rule.verdict, rule.target) for rule in by_text] == [
        (f"{lookup} {{ 10.0.0.1 . tcp . 80 : goto web }}", "goto", "web"),
        (f"{lookup} {{ 10.0.0.2 . udp . 53 : drop }}", "drop", ""),
    ]
    assert by_text[0].match == Match(IPV4, TCP, destination_ports=((80, 80),), destinations=("10.0.0.1/32",))
    assert {(rule.match.states, rule.verdict) for rule in rules[2:4]} == {
        (frozenset({"established"}), "accept"),
        (frozenset({"invalid"}), "drop"),
    }
    assert all(rule.tracks for rule in rules[2:4])
    assert {(rule.match.sources, rule.match.destination_ports) for rule in rules[4:]} == {
        (("10.0.0.1/32",), ((22, 22),)),
        (("10.0.0.2/32",), ((23, 23),)),
    }


def test_only_what_is_at_work_is_told_and_nothing_of_ours(node: Namespace) -> None:
    """Our own table, tables of other families, sleeping tables: none of them. An owned table is named as such."""
    chain_at_work = "chain in {\ntype filter hook input priority 0; tcp dport 80 accept;\n}\n"
    node.nft(f"""
        table inet {TABLE} {{ {chain_at_work} }}
        table inet sleeping {{ flags dormant; {chain_at_work} }}
        table arp other {{ chain in {{ type filter hook input priority 0; }}; }}
        table ip6 mine {{ {chain_at_work} }}
    """)
    with node.inside():
        holder = subprocess.Popen(["nft", "-i"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdin
        holder.stdin.write(
            "add table ip held { flags owner; }; add chain ip held in { type filter hook input priority 0; }\n"
        )
        holder.stdin.flush()
        wait_until(lambda: "ip held" in node.run("nft", "list", "tables").stdout, 5, "the owned table")
        found = firewall(node)
        assert {each.place for each in found.chains} == {"nftables ip6 mine in", "nftables ip held in"}
        assert found.owned == {("ip", "held")}
    finally:
        holder.kill()
        holder.communicate()
