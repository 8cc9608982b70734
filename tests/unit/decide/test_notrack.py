"""Rules become exactly these nftables lines, in whatever order they come; what is missing is named."""

import dataclasses
import json
import re
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conntrack_operator.decide import notrack
from conntrack_operator.decide.notrack_table import COMMENT_MAX_BYTES, Chain, Contents
from conntrack_operator.errors import Refused
from conntrack_operator.model.notrack import NotrackRule

_COMMENT = re.compile(r' comment "[^"]*"')


def _rule(name: str = "web", **fields: object) -> NotrackRule:
    return NotrackRule.model_validate({"name": name, "ports": [80], **fields})


def _chains(script: str) -> dict[str, list[str]]:
    """Return the rules of each chain in `script`, without comments."""
    chains: dict[str, list[str]] = {}
    current: list[str] = []
    for line in script.splitlines():
        if line.startswith("\tchain "):
            current = chains.setdefault(line.split()[1], [])
        elif line.startswith("\t\t"):
            current.append(_COMMENT.sub("", line.strip()).replace(" counter notrack accept", ""))
    return chains


def _set_of(name: str, script: str) -> str:
    return re.search(rf"\tset {name} {{\n(.*?)\n\t}}", script, re.DOTALL)[1]


def test_the_shared_set_of_a_server() -> None:
    """The whole script of the commonest policy, but for the comments: this is what most nodes run."""
    script = notrack.ruleset_for([_rule(ports=[80, "8000-8100"]), _rule("tls", ports=[443])]).script()
    assert script.startswith(
        "add table inet conntrack_operator\ndelete table inet conntrack_operator\ntable inet conntrack_operator {\n"
    )
    assert _set_of("confirmed_tcp_server", script) == (
        "\t\ttype inet_service\n\t\tflags interval, timeout\n\t\telements = { 80, 443, 8000-8100 }"
    )
    assert _set_of("exempt6", script) == (
        "\t\ttype ipv6_addr . inet_service . inet_service\n\t\tflags timeout, dynamic\n\t\tsize 32768\n\t\ttimeout 120s"
    )
    into, out = ("saddr . th sport . th dport", "daddr . th dport . th sport")
    errors = (
        (
            "icmp type { destination-unreachable, time-exceeded, parameter-problem }"
            " @th,64,8 0x45 @th,112,16 & 0x1fff 0 jump {hook}_errors4"
        ),
        (
            "icmpv6 type { destination-unreachable, packet-too-big, time-exceeded, parameter-problem }"
            " jump {hook}_errors6"
        ),
    )
    assert _chains(script) == {
        "prerouting": [
            "type filter hook prerouting priority -300; policy accept;",
            'iifname "lo" accept',
            "tcp dport @confirmed_tcp_server jump confirmed_tcp_server_requests",
            *(line.replace("{hook}", "prerouting") for line in errors),
        ],
        "output": [
            "type filter hook output priority -300; policy accept;",
            'oifname "lo" accept',
            "tcp sport @confirmed_tcp_server jump confirmed_tcp_server_replies",
            *(line.replace("{hook}", "output") for line in errors),
        ],
        "postrouting": [
            "type filter hook postrouting priority 101; policy accept;",
            "tcp flags & (syn | rst) == 0x0 accept",
            "tcp flags & (syn | ack) == syn | ack accept",
            'oifname "lo" accept',
            "tcp sport @confirmed_tcp_server goto learn",
        ],
        "confirmed_tcp_server_requests": [
            f"ip {into} @exempt4 goto exempt_in4",
            f"ip6 {into} @exempt6 goto exempt_in6",
            "fib daddr type local",
        ],
        "confirmed_tcp_server_replies": [
            "tcp flags & (syn | ack) == syn goto learn",
            f"ip {out} @exempt4 goto exempt_out4",
            f"ip6 {out} @exempt6 goto exempt_out6",
            "fib saddr type local",
        ],
        "learn": [
            line
            for version, ip in ((4, "ip"), (6, "ip6"))
            for update in (f"update @exempt{version} {{ {ip} {out} timeout 120s }} accept",)
            for line in (
                f"tcp flags & rst == rst {ip} {out} @exempt{version} {update}",
                f"tcp flags & (syn | ack | rst) == syn fib saddr type local {update}",
            )
        ],
        **{
            f"exempt_{way}{version}": [
                f"tcp flags & (fin | rst) != 0x0 update @exempt{version} {{ {ip} {ends} timeout 120s }} accept",
                f"tcp flags & (syn | psh) != 0x0 update @exempt{version} {{ {ip} {ends} timeout 86400s }} accept",
                "accept",
            ]
            for way, ends in (("in", into), ("out", out))
            for version, ip in ((4, "ip"), (6, "ip6"))
        },
        "prerouting_errors4": ["@th,136,8 6 @th,224,16 { 80, 443, 8000-8100 } fib daddr type local"],
        "prerouting_errors6": ["@th,112,8 6 @th,384,16 { 80, 443, 8000-8100 } fib daddr type local"],
        "output_errors4": [
            (
                "icmp type . icmp code { 3 . 2, 3 . 3, 11 . 1, 12 . 0, 12 . 1, 12 . 2 }"
                " @th,136,8 6 @th,240,16 { 80, 443, 8000-8100 }"
            )
        ],
        "output_errors6": [
            (
                "icmpv6 type . icmpv6 code { 1 . 4, 3 . 1, 4 . 0, 4 . 1, 4 . 2, 4 . 3 }"
                " @th,112,8 6 @th,400,16 { 80, 443, 8000-8100 }"
            )
        ],
    }


SIDES = (
    (
        {"addresses": ["192.0.2.1"]},
        "S_requests",
        [
            "ip saddr . th sport . th dport @exempt4 goto exempt_in4",
            "ip daddr @S_addresses4 fib daddr type local",
        ],
    ),
    (
        {"protocol": "UDP", "addresses": ["192.0.2.1"]},
        "prerouting",
        ["udp dport @S ip daddr @S_addresses4 fib daddr type local"],
    ),
    (
        {"addresses": ["192.0.2.1"], "peers": ["10.0.0.0/8"], "interfaces": ["eth0"]},
        "S_replies",
        [
            "tcp flags & (syn | ack) == syn goto learn",
            "ip daddr . th dport . th sport @exempt4 goto exempt_out4",
            "ip saddr @S_addresses4 ip daddr @S_peers4 oifname @S_interfaces fib saddr type local",
        ],
    ),
    (
        {"side": "Client", "addresses": ["192.0.2.1"]},
        "prerouting",
        ["tcp sport @S ip saddr @S_addresses4 tcp flags & (syn | ack) != syn fib daddr type local"],
    ),
    (
        {"side": "Client", "protocol": "SCTP", "addresses": ["2001:db8::1"]},
        "prerouting",
        ["sctp sport @S ip6 saddr @S_addresses6 @th,96,8 != 1 fib daddr type local"],
    ),
    (
        {"side": "Client", "protocol": "UDP", "addresses": ["192.0.2.1"], "peers": ["10.0.0.1"]},
        "output",
        ["udp dport @S ip daddr @S_addresses4 ip saddr @S_peers4 fib saddr type local"],
    ),
    (
        {"side": "Forward", "interfaces": ["eth1", "eth0"]},
        "prerouting",
        [
            f"tcp {port} @S {interface} fib saddr type unicast fib daddr type unicast"
            for port in ("dport", "sport")
            for interface in ("iifname @S_interfaces", 'fib daddr oifname { "eth0", "eth1" }')
        ],
    ),
    (
        {"side": "Forward", "addresses": ["192.0.2.1"], "peers": ["10.0.0.1"]},
        "prerouting",
        [
            "tcp dport @S ip daddr @S_addresses4 ip saddr @S_peers4 fib saddr type unicast fib daddr type unicast",
            "tcp sport @S ip saddr @S_addresses4 ip daddr @S_peers4 fib saddr type unicast fib daddr type unicast",
        ],
    ),
    ({"side": "Forward", "addresses": ["192.0.2.1"]}, "output", []),
    (
        {"addresses": ["192.0.2.0/24"], "peers": ["10.0.0.1"]},
        "prerouting_errors4",
        ["@th,136,8 6 @th,224,16 { 80 } ip daddr @S_addresses4 @th,192,32 { 167772161 } fib daddr type local"],
    ),
    (
        {"side": "Client", "addresses": ["2001:db8::1"]},
        "prerouting_errors6",
        [f"@th,112,8 6 @th,400,16 {{ 80 }} @th,256,128 {{ {0x20010DB8 << 96 | 1} }} fib daddr type local"],
    ),
    (
        {"side": "Client", "addresses": ["192.0.2.1"]},
        "output_errors4",
        [
            (
                "icmp type . icmp code { 3 . 2, 3 . 3, 11 . 1, 12 . 0, 12 . 1, 12 . 2 }"
                " @th,136,8 6 @th,224,16 { 80 } ip daddr @S_addresses4 @th,328,8 & 0x12 != 0x02"
            )
        ],
    ),
    (
        {"side": "Forward", "addresses": ["192.0.2.1"]},
        "output_errors4",
        [
            (
                "icmp type . icmp code != { 3 . 2, 3 . 3, 11 . 1 }"
                " @th,136,8 6 @th,240,16 { 80 } @th,192,32 { 3221225985 } fib daddr type unicast"
            ),
            (
                "icmp type . icmp code != { 3 . 2, 3 . 3, 11 . 1 }"
                " @th,136,8 6 @th,224,16 { 80 } ip daddr @S_addresses4 fib daddr type unicast"
            ),
        ],
    ),
)


@pytest.mark.parametrize(("fields", "chain", "expected"), SIDES)
def test_rules_with_sets_of_their_own(fields: dict[str, object], chain: str, expected: list[str]) -> None:
    """Addresses are the serving end and peers the other one, in every direction, side and quoted packet."""
    script = notrack.ruleset_for([_rule(**fields)]).script()
    name = re.search(r"set (rule_web_[0-9a-f]{8}) ", script)[1]
    rules = [
        rule.replace(name, "S")
        for rule in _chains(script).get(chain.replace("S_", f"{name}_"), [])
        if not rule.startswith("type ") and " jump " not in rule and '"lo"' not in rule
    ]
    assert rules == expected


def test_sets_of_their_own_hold_what_the_rule_names() -> None:
    """One set for each version and purpose, and none for a version that addresses and peers do not share."""
    rule = _rule(addresses=["192.0.2.0/24", "2001:db8::1"], peers=["10.0.0.0/8"], interfaces=["b0", "a.1"])
    sets = notrack.ruleset_for([rule]).expected.sets
    timed = ("interval", "timeout")
    own = {name: found for name, found in sets.items() if name.startswith("rule_")}
    assert {name.split("_", 3)[3] if name.count("_") > 2 else "": found for name, found in own.items()} == {
        "": Contents("inet_service", timed, ((80, 80),)),
        "addresses4": Contents("ipv4_addr", timed, ((0xC0000200, 0xC00002FF),)),
        "peers4": Contents("ipv4_addr", timed, ((0x0A000000, 0x0AFFFFFF),)),
        "interfaces": Contents("ifname", (), (), ("a.1", "b0")),
    }


def test_no_rules_no_table() -> None:
    """Nothing to do means no table, and a script that removes one."""
    empty = notrack.ruleset_for([])
    assert empty.script() == notrack.REMOVE
    assert empty.expected is None
    assert empty.missing_from(None) == ()


_rules = st.builds(
    NotrackRule,
    name=st.from_regex(r"[a-z]{1,8}", fullmatch=True),
    protocol=st.sampled_from([None, "TCP", "UDP", "SCTP"]),
    side=st.sampled_from([None, "Server", "Forward"]),
    ports=st.lists(st.integers(1, 65535), min_size=1, max_size=5),
    addresses=st.sampled_from([None, ["192.0.2.0/24"], ["192.0.2.0/24", "2001:db8::/32"]]),
    peers=st.sampled_from([None, ["10.0.0.0/8"]]),
    interfaces=st.sampled_from([None, ["eth0"], ["eth0", "eth1"]]),
)


@given(st.lists(_rules, max_size=6, unique_by=lambda rule: rule.name), st.randoms())
def test_the_order_of_rules_does_not_matter(rules: list[NotrackRule], chance: Random) -> None:
    """The same rules in another order give the same script: a re-read spec is no change."""
    shuffled = list(rules)
    chance.shuffle(shuffled)
    assert notrack.ruleset_for(shuffled).script() == notrack.ruleset_for(rules).script()


@given(st.lists(_rules, min_size=1, max_size=6, unique_by=lambda rule: rule.name))
def test_what_is_expected_lacks_nothing_and_nothing_lacks_all(rules: list[NotrackRule]) -> None:
    """`missing_from` is empty for the expected table and names every rule when there is none."""
    ruleset = notrack.ruleset_for(rules)
    assert ruleset.missing_from(ruleset.expected) == ()
    assert sorted(ruleset.missing_from(None)) == sorted(rule.name for rule in rules)


@given(st.lists(st.lists(st.integers(1, 99), min_size=1, max_size=5), min_size=1, max_size=5))
def test_shared_sets_hold_the_ports_of_all(ports: list[list[int]]) -> None:
    """The shared set is the union of its rules' ports."""
    rules = [_rule(f"r{at}", ports=each) for at, each in enumerate(ports)]
    found = notrack.ruleset_for(rules).expected.sets["confirmed_tcp_server"].intervals
    assert {port for low, high in found for port in range(low, high + 1)} == {port for each in ports for port in each}


def test_missing_names_the_rules_a_lost_port_belongs_to() -> None:
    """Of rules that share a set, only those whose ports are gone are missing."""
    ruleset = notrack.ruleset_for([_rule(), _rule("tls", ports=[443]), _rule("dns", protocol="UDP", ports=[53])])
    sets = dict(ruleset.expected.sets)
    sets["confirmed_tcp_server"] = dataclasses.replace(sets["confirmed_tcp_server"], intervals=((80, 80),))
    assert ruleset.missing_from(dataclasses.replace(ruleset.expected, sets=sets)) == ("tls",)


def test_a_newcomer_alone_is_missing() -> None:
    """A rule that joins a shared set does not make those that were there look absent, and the table is unequal."""
    before, after = notrack.ruleset_for([_rule()]), notrack.ruleset_for([_rule(), _rule("tls", ports=[443])])
    assert after.missing_from(before.expected) == ("tls",)
    assert after.expected != before.expected
    assert before.missing_from(after.expected) == ()


@pytest.mark.parametrize(
    "chain",
    [
        "prerouting",
        "output",
        "postrouting",
        "confirmed_tcp_server_requests",
        "learn",
        "exempt_in4",
        "prerouting_errors4",
        "output_errors6",
    ],
)
def test_missing_names_the_rules_of_an_emptied_chain(chain: str) -> None:
    """Without any one of its chains' rules a policy rule is not carried out in full."""
    ruleset = notrack.ruleset_for([_rule()])
    chains = dict(ruleset.expected.chains)
    chains[chain] = dataclasses.replace(chains[chain], rules=())
    assert ruleset.missing_from(dataclasses.replace(ruleset.expected, chains=chains)) == ("web",)


def test_missing_names_the_rules_of_a_moved_chain() -> None:
    """A chain of ours at another priority carries nothing out."""
    ruleset = notrack.ruleset_for([_rule()])
    chains = dict(ruleset.expected.chains)
    chains["prerouting"] = dataclasses.replace(chains["prerouting"], priority=0)
    assert ruleset.missing_from(dataclasses.replace(ruleset.expected, chains=chains)) == ("web",)


PROBLEMS = (
    (_rule(), None),
    (_rule(addresses=["192.0.2.1", "fd00::1"], peers=["10.0.0.0/8"]), None),
    (_rule(addresses=["192.0.2.1"], peers=["fd00::/8"]), "no IP version in common"),
    (
        NotrackRule.model_validate(
            {"name": "web", "pods": {"namespace": "a", "selector": {"matchLabels": {"a": "b"}}}}
        ),
        "no ports",
    ),
)


@pytest.mark.parametrize(("rule", "words"), PROBLEMS)
def test_rules_that_match_nothing_are_refused(rule: NotrackRule, words: str | None) -> None:
    """A rule that could never match is refused with its name and a remedy, not installed and called applied."""
    problem = notrack.problem_with(rule)
    if words is None:
        assert problem is None
        assert notrack.ruleset_for([rule]).expected is not None
    else:
        assert problem.startswith("rule web: ")
        assert words in problem
        with pytest.raises(Refused, match=words):
            notrack.ruleset_for([rule])


DESCRIPTIONS = (
    (_rule(), "TCP 80 Server"),
    (_rule(ports=["8000-8100", 80], protocol="UDP", side="Forward"), "UDP 80,8000-8100 Forward"),
    (_rule(ports=[1, 3, 5, 7, 9, 11]), "TCP 1,3,5,7 and 2 more Server"),
    (
        _rule(side="Client", addresses=["192.0.2.1"], peers=["10.0.0.1"], interfaces=["eth0"]),
        "TCP 80 Client, addresses 192.0.2.1, peers 10.0.0.1, interfaces eth0",
    ),
)


@pytest.mark.parametrize(("rule", "text"), DESCRIPTIONS)
def test_descriptions_are_short(rule: NotrackRule, text: str) -> None:
    """What statuses and plans print of a rule."""
    assert notrack.description_of(rule) == text


@given(st.from_regex(r"[a-z0-9]([a-z0-9.-]{0,315}[a-z0-9])?", fullmatch=True))
def test_comments_fit(name: str) -> None:
    """However long the name, every comment is within nft's limit and needs no escape."""
    rule = _rule(addresses=["192.0.2.1"]).model_copy(update={"name": name})
    for chain in notrack.ruleset_for([rule]).expected.chains.values():
        for comment in chain.rules:
            assert len(comment.encode()) < COMMENT_MAX_BYTES
            assert re.fullmatch(r"[A-Za-z0-9/.~ -]+", comment)


def test_an_edited_generator_is_noticed() -> None:
    """A comment ends in a digest of its rule, so another text is another comment."""
    one, other = (
        notrack.ruleset_for([_rule(side="Forward", interfaces=[name])]).expected.chains["prerouting"].rules
        for name in ("eth0", "eth1")
    )
    assert [line.split()[:-1] for line in one] == [line.split()[:-1] for line in other]
    assert one != other


def _listing(*items: dict[str, object]) -> dict[str, object]:
    return {"nftables": [{"metainfo": {"version": "1.0.6"}}, {"table": {"name": "conntrack_operator"}}, *items]}


FORMS = (
    ([80, {"range": [8000, 8100]}], ((80, 80), (8000, 8100)), ()),
    ([{"range": [8000, 8100]}, 80], ((80, 80), (8000, 8100)), ()),
    ([80, 81, {"range": [82, 90]}], ((80, 90),), ()),
    ([{"elem": {"val": 80, "comment": "x"}}], ((80, 80),), ()),
    ([{"elem": {"val": {"range": [1, 2]}, "timeout": 60, "expires": 59}}, 80], ((80, 80),), ((1, 2),)),
)


@pytest.mark.parametrize(("elements", "lasting", "timed"), FORMS)
def test_elements_are_read_in_all_their_forms(elements: list[object], lasting: object, timed: object) -> None:
    """Single values, ranges, wrapped elements and timed ones; order and touching intervals do not show."""
    found = notrack.installed_from(
        _listing({"set": {"name": "s", "type": "inet_service", "flags": ["timeout", "interval"], "elem": elements}})
    )
    assert found.sets["s"] == Contents("inet_service", ("interval", "timeout"), lasting, (), timed)


ADDRESS_FORMS = (
    ("ipv4_addr", ["192.0.2.0", {"range": ["192.0.2.1", "192.0.2.255"]}]),
    ("ipv4_addr", [{"prefix": {"addr": "192.0.2.0", "len": 24}}]),
    (
        "ipv4_addr",
        [{"elem": {"val": {"prefix": {"addr": "192.0.2.0", "len": 25}}}}, {"range": ["192.0.2.128", "192.0.2.255"]}],
    ),
)


@pytest.mark.parametrize(("kind", "elements"), ADDRESS_FORMS)
def test_prefixes_and_ranges_are_the_same(kind: str, elements: list[object]) -> None:
    """Versions of nft print one network as prefix or as range."""
    found = notrack.installed_from(_listing({"set": {"name": "s", "type": kind, "elem": elements}}))
    assert found.sets["s"].intervals == ((0xC0000200, 0xC00002FF),)


STRANGE = (
    [{"elem": {}}],
    [{"concat": [1, 2]}],
    [{"set": ["a"]}],
    [None, [], {"range": ["x", "y"]}, {"prefix": {}}],
    ["no-such-service"],
)


@pytest.mark.parametrize("elements", STRANGE)
@pytest.mark.parametrize("kind", ["inet_service", "ipv4_addr", "mark", ["ipv4_addr", "inet_service"], {"typeof": "x"}])
def test_strange_elements_are_foreign_not_fatal(kind: object, elements: list[object]) -> None:
    """Whatever somebody puts into our table is read without an error and is not taken for a port."""
    found = notrack.installed_from(_listing({"set": {"name": "s", "type": kind, "elem": elements}}))
    assert found.sets["s"].intervals == ()
    assert len(found.sets["s"].names) == len(elements)


def test_handles_and_counters_do_not_show() -> None:
    """Two listings that differ in what changes by itself are the same table."""
    one, other = (
        notrack.installed_from(
            _listing(
                {
                    "chain": {
                        "name": "prerouting",
                        "handle": number,
                        "type": "filter",
                        "hook": "prerouting",
                        "prio": -300,
                    }
                },
                {
                    "rule": {
                        "chain": "prerouting",
                        "handle": number,
                        "comment": "a",
                        "expr": [{"counter": {"packets": number}}],
                    }
                },
                {"rule": {"chain": "prerouting", "handle": number}},
            )
        )
        for number in (1, 2)
    )
    assert one == other
    assert one.chains["prerouting"] == Chain(("a", ""), "filter", "prerouting", -300, None)


def test_foreign_kinds_and_flags_show() -> None:
    """Maps, counters and a table switched off are part of what is compared."""
    listing = _listing({"map": {"name": "m"}}, {"counter": {"name": "c"}})
    listing["nftables"][1]["table"]["flags"] = "dormant"
    found = notrack.installed_from(listing)
    assert found.foreign == ("counter c", "map m")
    assert found.flags == ("dormant",)


def test_counters_are_summed_by_label_and_part() -> None:
    """Rules of both IP versions of one policy rule are one row; foreign rules are none."""
    rule = {"chain": "c", "expr": [{"counter": {"packets": 2, "bytes": 100}}, {"notrack": None}]}
    listing = _listing(
        {"rule": {**rule, "comment": "web requests 01234567"}},
        {"rule": {**rule, "comment": "web requests 89abcdef"}},
        {"rule": {**rule, "comment": "tcp/server errors 01234567"}},
        {"rule": {**rule, "comment": "somebody else's"}},
        {"rule": {"chain": "c", "comment": "loopback stays tracked 01234567", "expr": [{"accept": None}]}},
    )
    assert notrack.bypassed_from(json.loads(json.dumps(listing))) == (
        notrack.Bypassed("tcp/server", "errors", 2, 100),
        notrack.Bypassed("web", "requests", 4, 200),
    )
