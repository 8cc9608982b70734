"""Who needs connection tracking on a node, in a list that people can read."""

import pytest

from conntrack_operator.decide.tracking import MOST_NAMED, blockers_of, refusals_for
from conntrack_operator.model.facts import Facts
from conntrack_operator.model.surroundings import (
    Firewall,
    FirewallChain,
    FirewallRule,
    LoadedModule,
    Match,
    Surroundings,
    TrackingState,
)

OFF = TrackingState(families=frozenset())
ON = TrackingState(families=frozenset({4, 6}))


def facts(**sysctls):
    """Return a machine with these sysctls."""
    values = {f"net.netfilter.{name}": value for name, value in sysctls.items()}
    return Facts(memory_bytes=1 << 30, cpus=1, kernel="6.18", sysctls={"net.netfilter.nf_conntrack_max": 1, **values})


def rule(text, verdict="none", **more):
    """Return a rule with this text."""
    return FirewallRule(match=more.pop("match", Match()), verdict=verdict, text=text, **more)


def chain(*rules, tool="nftables", family="inet", table="filter", name="input"):
    """Return a chain of these rules."""
    return FirewallChain(tool=tool, family=family, table=table, name=name, rules=rules)


def blockers(*chains, problems=(), tracking=ON, known=None, **more):
    """Return the blockers' places, texts and counts of a host with these chains."""
    surroundings = Surroundings(firewall=Firewall(chains=chains, problems=problems), tracking=tracking, **more)
    return [(each.where, each.text, each.count) for each in blockers_of(surroundings, known or facts())]


STATE = rule("ct state established accept", "accept", match=Match(states=frozenset({"established"})))
MASQUERADE = rule("-A KUBE-POSTROUTING -j MASQUERADE", "masquerade", tracks=True)

ONE = {
    "state": (chain(STATE), ("nftables inet filter input", '"ct state established accept"', 1)),
    "two of a chain": (chain(STATE, STATE), ("nftables inet filter input", '"ct state established accept"', 2)),
    "mark": (chain(rule("ct mark 1", tracks=True)), ("nftables inet filter input", '"ct mark 1"', 1)),
    "nat": (
        chain(
            rule("-A PREROUTING -j DNAT", "dnat"), tool="iptables-legacy", family="ip", table="nat", name="PREROUTING"
        ),
        ("iptables-legacy ip nat PREROUTING", '"-A PREROUTING -j DNAT"', 1),
    ),
    "helper": (chain(rule("-j CT --helper ftp", "helper")), ("nftables inet filter input", '"-j CT --helper ftp"', 1)),
    "Docker": (
        chain(rule("-j MASQUERADE", "masquerade"), tool="iptables-nft", family="ip", table="nat", name="DOCKER"),
        ("Docker, iptables-nft ip nat DOCKER", '"-j MASQUERADE"', 1),
    ),
    "kube-proxy's own table": (
        chain(rule("masquerade fully-random", "masquerade"), family="ip", table="kube-proxy", name="masquerading"),
        ("kube-proxy, nftables ip kube-proxy masquerading", '"masquerade fully-random"', 1),
    ),
    "firewalld": (
        chain(STATE, table="firewalld", name="filter_INPUT"),
        ("firewalld, nftables inet firewalld filter_INPUT", '"ct state established accept"', 1),
    ),
}


@pytest.mark.parametrize(("found", "expected"), ONE.values(), ids=ONE)
def test_one_blocker(found, expected):
    """Whatever needs tracking is named with table, chain, text and number."""
    assert blockers(found) == [expected]


FREE = {
    "nothing": (),
    "no state": (chain(rule("tcp dport 1 drop", "drop")),),
    "notrack": (chain(rule("notrack", "notrack"), name="prerouting"),),
    "nat chain without rules": (chain(table="nat", name="postrouting"),),
    "jumps of iptables' nat": (chain(rule("-j FOO", "jump", target="FOO"), table="nat"),),
}


@pytest.mark.parametrize("chains", FREE.values(), ids=FREE)
def test_no_blocker(chains):
    """What does not make the kernel track is none, not even in a nat table."""
    assert blockers(*chains, tracking=OFF) == []


def test_ten_thousand_rules_are_one():
    """A program's rules are one blocker with an example, whatever their number; other rules are not lost behind it."""
    services = [
        chain(*[MASQUERADE] * 10, tool="iptables-nft", family="ip", table="nat", name=f"KUBE-SVC-{number}")
        for number in range(1000)
    ]
    found = blockers(*services, chain(STATE), kube_proxy=True)
    assert found == [
        ("kube-proxy, iptables-nft ip nat KUBE-SVC-0", '"-A KUBE-POSTROUTING -j MASQUERADE"', 10_000),
        ("nftables inet filter input", '"ct state established accept"', 1),
    ]


def test_kube_proxy_before_its_first_rule():
    """Its process alone blocks: its rules are about to come."""
    assert [where for where, *_ in blockers(tracking=OFF, kube_proxy=True)] == ["kube-proxy"]


def test_modules_that_track_without_rules():
    """Those are blockers with their users; modules that serve rules are none by themselves."""
    modules = (LoadedModule("nf_nat", 1, ("openvswitch",)), LoadedModule("openvswitch", 3, ("vport_vxlan",)))
    tracking = TrackingState(presence="loaded", families=frozenset(), modules=modules)
    assert blockers(tracking=tracking) == [("module openvswitch", "its being loaded, used by vport_vxlan,", 1)]
    assert [where for where, *_ in blockers(tracking=OFF, modules={"ip_vs": ()})] == ["module ip_vs"]


def test_helpers_by_sysctl():
    """Kernels before 6.0 can attach helpers by themselves."""
    assert [where for where, *_ in blockers(tracking=OFF, known=facts(nf_conntrack_helper=1))] == [
        "net.netfilter.nf_conntrack_helper"
    ]
    assert blockers(tracking=OFF, known=facts(nf_conntrack_helper=0)) == []


def test_what_could_not_be_read():
    """An unreadable firewall blocks, unless the kernel itself says that nothing is tracked."""
    problems = (("LegacyIptablesNeedsNetRaw", "give the agent NET_RAW (agent.iptablesLegacy)"),)
    assert [where for where, *_ in blockers(problems=problems, tracking=ON)] == ["firewall"]
    assert [where for where, *_ in blockers(problems=problems, tracking=TrackingState())] == ["firewall"]
    assert blockers(problems=problems, tracking=OFF) == []


def test_tracked_and_nobody_to_be_seen():
    """When the kernel tracks and no rule says why, that is said, with where to look."""
    (blocker,) = blockers_of(Surroundings(tracking=TrackingState(families=frozenset({6}))), facts())
    assert blocker.where == "IPv6"
    assert "enable_hooks" in blocker.message


def test_absent_is_free():
    """Without the module nothing can track, whatever else was read before it went."""
    assert blockers(chain(STATE), tracking=TrackingState(presence="absent"), kube_proxy=True) == []


def test_refusals_name_cause_and_remedy_and_are_few():
    """Each is one sentence with place, text and remedy; a long list ends with the number of the rest."""
    chains = [chain(STATE, name=f"c{number}") for number in range(MOST_NAMED + 5)]
    refused = refusals_for(blockers_of(Surroundings(firewall=Firewall(chains=tuple(chains))), facts()))
    assert len(refused) == MOST_NAMED
    assert {(each.setting, each.reason) for each in refused} == {("tracking", "TrackingNeeded")}
    assert refused[0].message == (
        'nftables inet filter c0: "ct state established accept" needs connection tracking; remove it'
    )
    assert refused[-1].message.endswith("(and 5 more blockers)")


def test_a_long_rule_is_cut():
    """A rule of ipset or kube-proxy can be longer than a status has room for."""
    ((_, text, _),) = blockers(chain(rule("ct state new " * 50, tracks=True)))
    assert len(text) <= 122
    assert text.endswith('..."')


def test_counters_are_left_out():
    """What a rule counted would change the status with every packet."""
    ((_, text, _),) = blockers(chain(rule("ct state new counter packets 7 bytes 99 accept", tracks=True)))
    assert text == '"ct state new counter accept"'
