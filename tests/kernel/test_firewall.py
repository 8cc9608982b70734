"""Firewalls of other people, loaded by their own tools, come out as what they do."""

import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import pytest
from tests.lab.namespaces import Lab, Namespace
from tests.lab.programs import wait_until

from conntrack_operator.decide.notrack import TABLE
from conntrack_operator.kernel import firewall_kube_proxy
from conntrack_operator.kernel.firewall import read_firewall
from conntrack_operator.kernel.firewall_gathering import CROWD
from conntrack_operator.model.surroundings import Firewall, FirewallChain, FirewallRule, Match

IPV4, IPV6 = frozenset({4}), frozenset({6})
TCP = frozenset({"tcp"})
FIRST, LATER = frozenset({"first"}), frozenset({"later"})

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
    ("tcp flags syn / fin,syn,rst,ack drop", {"protocols": TCP, "other": True, "segments": FIRST}, {"verdict": "drop"}),
    (
        "tcp flags != syn / fin,syn,rst,ack drop",
        {"protocols": TCP, "other": True, "segments": LATER},
        {"verdict": "drop"},
    ),
    ("tcp flags == syn accept", {"protocols": TCP, "other": True, "segments": FIRST}, {"verdict": "accept"}),
    ("tcp flags psh,ack drop", {"protocols": TCP, "other": True, "segments": LATER}, {"verdict": "drop"}),
    (
        "tcp flags fin,syn / fin,syn drop",
        {"protocols": TCP, "other": True, "segments": frozenset()},
        {"verdict": "drop"},
    ),
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
        {"states": frozenset({"new"}), "other": True, "segments": FIRST},
        {"verdict": "accept", "tracks": True},
    ),
    ("limit rate over 5/second drop", {"other": True}, {"verdict": "drop"}),
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
        wait_until(lambda: "ip held" in node.run("nft", "list", "tables").stdout, 30, "the owned table")
        found = firewall(node)
        assert {each.place for each in found.chains} == {"nftables ip6 mine in", "nftables ip held in"}
        assert found.owned == {("ip", "held")}
    finally:
        holder.kill()
        holder.communicate()


# Arguments for iptables, and what must be known of the rule; the text is what the save program prints.
IPTABLES: tuple[tuple[str, str, str, dict[str, Any], dict[str, Any]], ...] = (
    ("filter", "INPUT", "-m state --state RELATED,ESTABLISHED -j ACCEPT",
     {"states": frozenset({"established", "related"})}, {"verdict": "accept", "tracks": True}),
    ("filter", "INPUT", '-p tcp -m multiport --dports 80,443,8000:8100 -m comment --comment "a -b c" -j ACCEPT',
     {"protocols": TCP, "destination_ports": ((80, 80), (443, 443), (8000, 8100))},
     {"verdict": "accept", "comment": "a -b c"}),
    ("filter", "INPUT", "-s 10.0.0.0/8 -p tcp -m tcp --dport 22 -j ACCEPT",
     {"sources": ("10.0.0.0/8",), "protocols": TCP, "destination_ports": ((22, 22),)}, {"verdict": "accept"}),
    ("filter", "INPUT", "-i eth+ -p tcp -m tcp ! --dport 22 -j DROP",
     {"in_interfaces": ("eth*",), "protocols": TCP, "destination_ports": ((0, 21), (23, 65535))}, {"verdict": "drop"}),
    ("filter", "INPUT", "-m conntrack --ctstate NEW,DNAT -j ACCEPT",
     {"states": frozenset({"new", "dnat"})}, {"verdict": "accept", "tracks": True}),
    ("filter", "INPUT", "-m conntrack --ctstate NEW --ctorigdst 10.0.0.1 -j ACCEPT",
     {"states": frozenset({"new"}), "other": True}, {"verdict": "accept", "tracks": True}),
    ("filter", "INPUT", "! -s 10.0.0.0/8 -p udp -m udp --sport 53 -j ACCEPT",
     {"protocols": frozenset({"udp"}), "source_ports": ((53, 53),), "other": True}, {"verdict": "accept"}),
    ("filter", "INPUT", "-p tcp -m tcp --tcp-flags SYN,RST SYN -j ACCEPT",
     {"protocols": TCP, "other": True, "segments": FIRST}, {"verdict": "accept"}),
    ("filter", "INPUT", "-p tcp -m tcp ! --tcp-flags FIN,SYN,RST,ACK SYN -j ACCEPT",
     {"protocols": TCP, "other": True, "segments": LATER}, {"verdict": "accept"}),
    ("filter", "INPUT", "-p tcp -m tcp --tcp-flags FIN,SYN,RST,PSH,ACK,URG NONE -j DROP",
     {"protocols": TCP, "other": True, "segments": frozenset()}, {"verdict": "drop"}),
    ("filter", "INPUT", "-m limit --limit 5/sec -j ACCEPT",
     {"other": True, "segments": FIRST}, {"verdict": "accept"}),
    ("filter", "INPUT", "-m limit --limit 5/sec -j RETURN", {"other": True}, {"verdict": "return"}),
    ("filter", "INPUT", "-j REJECT --reject-with icmp-port-unreachable", {}, {"verdict": "reject"}),
    ("filter", "INPUT", "-j MINE", {}, {"verdict": "jump", "target": "MINE"}),
    ("filter", "INPUT", "-g MINE", {}, {"verdict": "goto", "target": "MINE"}),
    ("filter", "INPUT", "-j LOG", {}, {"verdict": "none"}),
    ("filter", "MINE", "-j RETURN", {}, {"verdict": "return"}),
    ("nat", "PREROUTING", "-p tcp -m tcp --dport 80 -j DNAT --to-destination 10.0.0.1:8080",
     {"protocols": TCP, "destination_ports": ((80, 80),)},
     {"verdict": "dnat", "tracks": True, "to_ports": ((8080, 8080),), "to_addresses": ("10.0.0.1/32",)}),
    ("nat", "PREROUTING", "-p tcp -m addrtype --dst-type LOCAL -j DNAT --to-destination 10.0.0.1",
     {"protocols": TCP, "other": True}, {"verdict": "dnat", "tracks": True, "to_addresses": ("10.0.0.1/32",)}),
    ("nat", "PREROUTING", "-p tcp -m tcp --dport 82 -j REDIRECT --to-ports 83",
     {"protocols": TCP, "destination_ports": ((82, 82),)},
     {"verdict": "redirect", "tracks": True, "to_ports": ((83, 83),)}),
    ("nat", "POSTROUTING", "-o eth0 -j MASQUERADE --random-fully",
     {"out_interfaces": ("eth0",)}, {"verdict": "masquerade", "tracks": True, "fully_random": True}),
    ("nat", "POSTROUTING", "-p tcp -j SNAT --to-source 192.0.2.1:1000-2000",
     {"protocols": TCP},
     {"verdict": "snat", "tracks": True, "to_ports": ((1000, 2000),), "to_addresses": ("192.0.2.1/32",)}),
    ("raw", "PREROUTING", "-p tcp -m tcp --dport 21 -j CT --helper ftp",
     {"protocols": TCP, "destination_ports": ((21, 21),)}, {"verdict": "helper", "tracks": True}),
    ("raw", "PREROUTING", "-p tcp -m tcp --dport 23 -j CT --notrack",
     {"protocols": TCP, "destination_ports": ((23, 23),)}, {"verdict": "notrack"}),
    ("mangle", "PREROUTING", "-j CONNMARK --restore-mark --nfmask 0xffffffff --ctmask 0xffffffff",
     {}, {"verdict": "none", "tracks": True}),
    ("mangle", "PREROUTING", "-p tcp -j TPROXY --on-port 90 --on-ip 0.0.0.0 --tproxy-mark 0x0/0x0",
     {"protocols": TCP}, {"verdict": "tproxy"}),
    ("mangle", "PREROUTING", "-p tcp -j NFQUEUE --queue-num 1", {"protocols": TCP}, {"verdict": "queue"}),
)  # fmt: skip
IPTABLES_PLACES = {
    ("filter", "INPUT"): ("filter", "input", 0, "drop"),
    ("filter", "MINE"): ("", "", 0, ""),
    ("nat", "PREROUTING"): ("nat", "prerouting", -100, "accept"),
    ("nat", "POSTROUTING"): ("nat", "postrouting", 100, "accept"),
    ("raw", "PREROUTING"): ("filter", "prerouting", -300, "accept"),
    ("mangle", "PREROUTING"): ("filter", "prerouting", -150, "accept"),
}


@pytest.fixture(params=["nft", "legacy"])
def variant(request: pytest.FixtureRequest) -> str:
    """Give each variant of iptables that is installed."""
    if shutil.which(f"iptables-{request.param}") is None:
        pytest.skip(f"not installed: iptables-{request.param}")
    return str(request.param)


def test_every_shape_of_iptables_rule_is_told(node: Namespace, variant: str) -> None:
    """The same chains and rules of either variant, each as its own save program prints it."""
    program = f"iptables-{variant}"
    node.run(program, "-N", "MINE")
    node.run(program, "-P", "INPUT", "DROP")
    for table, name, arguments, *_ in IPTABLES:
        node.run(program, "-t", table, "-A", name, *shlex.split(arguments))
    found = firewall(node)
    for (table, name), place in IPTABLES_PLACES.items():
        read = chain(found, "ip", table, name)
        assert read.tool == program
        assert (read.type, read.hook, read.priority, read.policy) == place
        rules = [(f"-A {name} {text}", match, rule) for where, which, text, match, rule in IPTABLES
                 if (where, which) == (table, name)]  # fmt: skip
        assert [told(rule) for rule in read.rules] == [told(expected(*each, IPV4)) for each in rules]
        assert [rule.handle for rule in read.rules] == list(range(1, len(rules) + 1))
    assert {each.tool for each in found.chains} == {program}


def test_ipv6_has_tables_of_its_own(node: Namespace, variant: str) -> None:
    """ip6tables is read by its own program, a translation to an address in brackets included."""
    destination = "[fd00::1]:8080"
    node.run(f"ip6tables-{variant}", "-A", "INPUT", "-s", "fe80::/10", "-p", "ipv6-icmp", "-j", "ACCEPT")
    arguments = ("-p", "tcp", "--dport", "80", "-j", "DNAT", "--to-destination", destination)
    node.run(f"ip6tables-{variant}", "-t", "nat", "-A", "PREROUTING", *arguments)
    found = firewall(node)
    (accepted,) = chain(found, "ip6", "filter", "INPUT").rules
    assert accepted.match == Match(IPV6, frozenset({"icmpv6"}), sources=("fe80::/10",))
    (translated,) = chain(found, "ip6", "nat", "PREROUTING").rules
    assert (translated.to_addresses, translated.to_ports) == (("fd00::1/128",), ((8080, 8080),))


def test_reading_leaves_no_table_behind(node: Namespace) -> None:
    """Where there is no firewall none is made: running iptables-legacy would make tables, so it is not run."""
    assert firewall(node) == Firewall()
    assert node.run("nft", "list", "tables").stdout == ""
    for names in ("ip_tables_names", "ip6_tables_names"):
        assert node.run("cat", f"/proc/net/{names}", check=False).stdout == ""


def test_legacy_tables_without_net_raw_are_a_problem_and_not_nothing(node: Namespace) -> None:
    """A process with NET_ADMIN alone says that it cannot see them, and how it could."""
    if shutil.which("iptables-legacy") is None:
        pytest.skip("not installed: iptables-legacy")
    node.run("iptables-legacy", "-A", "INPUT", "-j", "DROP")
    code = "from conntrack_operator.kernel.firewall import read_firewall; print(read_firewall().problems)"
    bounded = ("setpriv", "--bounding-set", "-all,+net_admin", "--inh-caps", "-all,+net_admin")
    done = node.run(*bounded, sys.executable, "-c", code)
    assert "LegacyIptablesNeedsNetRaw" in done.stdout
    assert "agent.iptablesLegacy" in done.stdout


def test_foreign_chains_in_an_iptables_table_are_seen(node: Namespace) -> None:
    """iptables-nft-save shows such a table as empty or refuses it; nft tells what is in it."""
    node.run("iptables-nft", "-A", "INPUT", "-m", "conntrack", "--ctstate", "NEW", "-j", "DROP")
    node.nft("table ip filter { chain mine { type filter hook input priority 5; tcp dport 80 accept; }; }")
    found = firewall(node)
    assert chain(found, "ip", "filter", "mine").rules[0].match.destination_ports == ((80, 80),)
    (dropped,) = chain(found, "ip", "filter", "INPUT").rules
    assert dropped.verdict == "drop"
    assert dropped.tracks
    assert dropped.match.other


def test_only_translations_of_other_ports_are_left_out(node: Namespace) -> None:
    """Asked about port 80, the filter is told whole, of the translations those that can concern port 80."""
    node.nft(
        """table ip fw {
        map services { type ipv4_addr . inet_proto . inet_service : verdict; elements = {
            10.0.0.1 . tcp . 80 : goto web, 10.0.0.2 . tcp . 81 : goto other } }
        chain filter { type filter hook input priority 0; tcp dport 22 accept; tcp dport 80 accept; }
        chain backend { meta l4proto tcp dnat to 10.1.0.1:8080; }
        chain web { jump backend; }
        chain other { meta l4proto tcp dnat to 10.1.0.2:8081; }
        chain stray { meta l4proto tcp dnat to 10.1.0.3:80; meta l4proto tcp dnat to 10.1.0.3:82; }
        chain pre {
            type nat hook prerouting priority -100;
            ip daddr . meta l4proto . th dport vmap @services
            tcp dport 90 redirect to :91
            udp dport 79-80 redirect to :91
            tcp dport 90 redirect to :80
            masquerade
        }
        }""".replace("            masquerade\n", "")
    )
    found = firewall(node, ((80, 80),))
    assert len(chain(found, "ip", "fw", "filter").rules) == 2
    assert [rule.match.destination_ports for rule in chain(found, "ip", "fw", "pre").rules] == [
        ((80, 80),), ((79, 80),), ((90, 90),),
    ]  # fmt: skip
    assert [rule.to_ports for rule in chain(found, "ip", "fw", "backend").rules] == [((8080, 8080),)]
    assert [rule.to_ports for rule in chain(found, "ip", "fw", "stray").rules] == [((80, 80),)]
    assert {each.name for each in found.chains} == {"filter", "pre", "web", "backend", "stray"}


def test_a_crowd_of_services_at_one_port_is_told_by_its_first_and_the_rest_together(node: Namespace) -> None:
    """Every address is still there, and the number of rules is bounded."""
    addresses = [f"10.96.0.{number}" for number in range(1, 101)]
    elements = ", ".join(f"{address} . tcp . 80 : goto web" for address in addresses)
    node.nft(f"""table ip fw {{
        map services {{ type ipv4_addr . inet_proto . inet_service : verdict; elements = {{ {elements} }}
        }}
        chain web {{ meta l4proto tcp dnat to 10.1.0.1:8080; }}
        chain pre {{
            type nat hook prerouting priority -100;
            ip daddr . meta l4proto . th dport vmap @services
        }}
        }}""")
    rules = chain(firewall(node, ((80, 80),)), "ip", "fw", "pre").rules
    assert len(rules) == CROWD + 1
    assert {each for rule in rules for each in rule.match.destinations or ()} == {f"{each}/32" for each in addresses}
    assert rules[-1].target == "web"
    assert rules[-1].text.endswith(f"(and {100 - CROWD - 1} more like it)")
    assert len(chain(firewall(node), "ip", "fw", "pre").rules) == 100


def test_a_large_table_of_kube_proxy_is_read_by_its_maps(node: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every way to a Service at the ports asked for is a DNAT rule on each hook that kube-proxy translates at."""
    node.nft("""table ip kube-proxy {
        map service-ips { type ipv4_addr . inet_proto . inet_service : verdict; elements = {
            10.0.0.1 . tcp . 80 : goto web, 10.0.0.2 . tcp . 81 : goto web } }
        map service-nodeports { type inet_proto . inet_service : verdict; elements = { tcp . 30080 : goto web } }
        chain web { meta l4proto tcp dnat to 10.1.0.1:8080; }
        chain nat-prerouting {
            type nat hook prerouting priority -100
            ip daddr . meta l4proto . th dport vmap @service-ips
        }
        chain nat-output { type nat hook output priority -100; }
        chain nat-postrouting { type nat hook postrouting priority 100; masquerade; }
        chain filter-input { type filter hook input priority -110; }
        }""")
    monkeypatch.setattr(firewall_kube_proxy, "MANY", 4)
    found = firewall(node, ((80, 80), (30080, 30080)))
    for name in ("nat-prerouting", "nat-output"):
        assert [
            (rule.verdict, rule.match.destinations, rule.match.destination_ports, rule.tracks)
            for rule in chain(found, "ip", "kube-proxy", name).rules
        ] == [("dnat", ("10.0.0.1/32",), ((80, 80),), True), ("dnat", None, ((30080, 30080),), True)]
    (masquerade,) = chain(found, "ip", "kube-proxy", "nat-postrouting").rules
    assert masquerade.verdict == "masquerade"
    assert masquerade.fully_random
    assert chain(found, "ip", "kube-proxy", "filter-input").rules == ()
