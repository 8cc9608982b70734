"""Preflight: each trap of NOTRACK rules is found, named with its cause and remedy, and nothing harmless is refused."""

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.lab.firewalls import chain, firewalld, jump, nftables, rule, ufw

from conntrack_operator.decide.preflight import FORCIBLE, judge
from conntrack_operator.model.notrack import Notrack, NotrackRule
from conntrack_operator.model.surroundings import FailsafePort, Firewall, Service, Surroundings

HERE = ("192.0.2.10", "2001:db8::10")
NEW_80 = rule("accept", "tcp dport 80 ct state new accept", protocols={"tcp"}, ports=[80], states={"new"})
PLAIN_80 = rule("accept", "tcp dport 80 accept", protocols={"tcp"}, ports=[80])


def wanted(**fields):
    """Return a rule named web, by default Server port 80/TCP."""
    return NotrackRule.model_validate({"name": "web", "ports": [80], **fields})


CLIENT = wanted(side="Client", ports=[9200], addresses=["10.96.0.0/16"])
FORWARD = wanted(side="Forward", ports=[2049], addresses=["198.51.100.0/24"], peers=["10.1.0.0/16"])


def around(firewall=None, **fields):
    """Return a node at HERE, by default without a firewall."""
    return Surroundings(firewall=firewall or Firewall(), **{"local_addresses": HERE, **fields})


def judged(web, surroundings, **notrack):
    """Return the refusals of one rule."""
    return judge([web], surroundings, Notrack.model_validate(notrack)).refused


def nat(*chains, prerouting=(), output=(), postrouting=()):
    """Return a nat table with these rules in its base chains, and `chains` beside them."""
    return Firewall((
        chain("PREROUTING", *prerouting, hook="prerouting", kind="nat"),
        chain("OUTPUT", *output, hook="output", kind="nat"),
        chain("POSTROUTING", *postrouting, hook="postrouting", kind="nat"),
        *chains,
    ))  # fmt: skip


def dnat(to="10.1.0.5", port=8080, **match):
    """Return a DNAT rule, its text as iptables prints it."""
    text = f"-j DNAT --to-destination {to}:{port}"
    return rule("dnat", text, to_ports=[port] if port else None, to_addresses=(to,), **match)


def kube_proxy():
    """Return kube-proxy's chains in iptables mode: ClusterIP 10.96.0.7:80 and NodePort 30080, both to 10.1.0.5:8080."""
    mark = {"tool": "iptables-nft", "kind": "nat"}
    return nat(
        chain(
            "KUBE-SERVICES",
            jump("KUBE-SVC-WEB", protocols={"tcp"}, ports=[80], destinations=("10.96.0.7/32",)),
            rule("jump", "-m addrtype --dst-type LOCAL -j KUBE-NODEPORTS", target="KUBE-NODEPORTS", other=True),
            **mark,
        ),
        chain("KUBE-NODEPORTS", jump("KUBE-EXT-WEB", protocols={"tcp"}, ports=[30080]), **mark),
        chain("KUBE-EXT-WEB", jump("KUBE-SVC-WEB"), **mark),
        chain("KUBE-SVC-WEB", jump("KUBE-SEP-WEB", other=True), **mark),
        chain("KUBE-SEP-WEB", dnat(protocols={"tcp"}), **mark),
        chain(
            "KUBE-POSTROUTING",
            rule("return", "-m mark ! --mark 0x4000/0x4000 -j RETURN", other=True),
            rule("masquerade", "-j MASQUERADE --random-fully"),
            **mark,
        ),
        prerouting=[jump("KUBE-SERVICES")],
        output=[jump("KUBE-SERVICES")],
        postrouting=[jump("KUBE-POSTROUTING")],
    )


MASQUERADE = rule(
    "masquerade", "-s 10.1.0.0/16 -o eth0 -j MASQUERADE", sources=("10.1.0.0/16",), out_interfaces=("eth0",)
)


@pytest.mark.parametrize(
    ("web", "firewall", "words"),
    [
        pytest.param(wanted(), nat(prerouting=[dnat(protocols={"tcp"}, ports=[80])]), "is translated by", id="dnat"),
        pytest.param(wanted(), nat(prerouting=[dnat(protocols={"udp"}, ports=[80])]), None, id="udp only"),
        pytest.param(wanted(), nat(prerouting=[dnat(ports=[81])]), None, id="another port"),
        pytest.param(wanted(), nat(prerouting=[dnat(ports=[(79, 85)])]), "80/TCP is translated", id="a range of it"),
        pytest.param(
            wanted(), nat(prerouting=[rule("redirect", "redirect to :8080", ports=[80], to_ports=[8080])]),
            "redirect to :8080", id="redirect",
        ),
        pytest.param(wanted(), nat(prerouting=[dnat(other=True)]), "is translated by", id="a set nobody can read"),
        pytest.param(
            wanted(interfaces=["eth1"]), nat(prerouting=[dnat(ports=[80], in_interfaces=("eth0",))]), None,
            id="another interface",
        ),
        pytest.param(
            wanted(interfaces=["eth0"]), nat(prerouting=[dnat(ports=[80], in_interfaces=("eth+",))]),
            "is translated by", id="the same interface",
        ),
        pytest.param(
            wanted(peers=["10.0.0.0/8"]), nat(prerouting=[dnat(ports=[80], sources=("172.16.0.0/12",))]), None,
            id="other peers",
        ),
        pytest.param(
            wanted(), nat(prerouting=[dnat(ports=[80], destinations=("10.96.0.7",))]), None, id="another's address",
        ),
        pytest.param(
            wanted(), nat(prerouting=[dnat(ports=[80], destinations=("192.0.2.10",))]), "is translated by",
            id="an address of this node",
        ),
        pytest.param(
            wanted(ports=[8080]), nat(prerouting=[dnat("192.0.2.10", ports=[80])]), "is where", id="leads to this node"
        ),
        pytest.param(wanted(ports=[8080]), nat(prerouting=[dnat(ports=[80])]), None, id="leads to a pod elsewhere"),
        pytest.param(
            wanted(ports=[8080]), nat(prerouting=[rule("redirect", ports=[80], to_ports=[8080])]), "is where",
            id="redirected here",
        ),
        pytest.param(
            wanted(), nat(prerouting=[dnat("192.0.2.10", None, ports=[80], destinations=("203.0.113.1",))]), "is where",
            id="a virtual address, same port",
        ),
        pytest.param(wanted(), nat(postrouting=[MASQUERADE]), None, id="masquerade beside a TCP server"),
        pytest.param(wanted(ports=[30080]), kube_proxy(), "10.1.0.5:8080", id="NodePort by its rules"),
        pytest.param(wanted(), kube_proxy(), None, id="a ClusterIP of the same port"),
        pytest.param(
            wanted(side="Client", addresses=["10.96.0.0/16"]), kube_proxy(), "iptables-nft ip nat KUBE-SEP-WEB",
            id="a client of the ClusterIP",
        ),
        pytest.param(
            wanted(side="Client", addresses=["198.51.100.7"]), kube_proxy(), None, id="a client of somebody else"
        ),
        pytest.param(
            wanted(side="Client", addresses=["10.1.0.0/16"], ports=[8080]), kube_proxy(), "is where",
            id="a client of a ClusterIP's pod",
        ),
        pytest.param(
            wanted(side="Client", addresses=["10.1.0.0/16"], ports=[8081]), kube_proxy(), None, id="another port of it"
        ),
        pytest.param(
            wanted(ports=[8080]), nat(chain("UNLED", dnat("192.0.2.10", ports=[6000]), kind="nat")), "is where",
            id="leads to this node from a port that was not read about",
        ),
        pytest.param(
            wanted(ports=[8080]), nat(chain("UNLED", dnat(ports=[6000]), kind="nat")), None,
            id="leads to a pod elsewhere from such a port",
        ),
        pytest.param(
            CLIENT, nat(postrouting=[rule("snat", "snat to 203.0.113.9", out_interfaces=("eth0",))]), "the sources of",
            id="a client's address is changed",
        ),
        pytest.param(CLIENT, nat(postrouting=[MASQUERADE]), "gets this node's address", id="pods are masqueraded"),
        pytest.param(
            CLIENT, nat(postrouting=[rule("return", destinations=("10.0.0.0/8",)), MASQUERADE]), None,
            id="pods are masqueraded to elsewhere",
        ),
        pytest.param(
            CLIENT, nat(postrouting=[rule("masquerade", sources=("192.0.2.10/32",))]), None,
            id="the node's own are masqueraded",
        ),
        pytest.param(CLIENT, kube_proxy(), None, id="kube-proxy masquerades Services"),
        pytest.param(
            wanted(side="Client", ports=[8080], addresses=["10.1.0.5"]), kube_proxy(), "is where",
            id="a client of what a Service leads to",
        ),
        pytest.param(FORWARD, nat(postrouting=[MASQUERADE]), "-o eth0 -j MASQUERADE", id="masquerade of its peers"),
        pytest.param(
            FORWARD.model_copy(update={"peers": ["10.2.0.0/16"]}), nat(postrouting=[MASQUERADE]), None,
            id="masquerade of others",
        ),
        pytest.param(
            FORWARD, nat(postrouting=[rule("return", destinations=("198.51.100.0/24",)), MASQUERADE]), None,
            id="not masqueraded to there",
        ),
        pytest.param(FORWARD, kube_proxy(), "MASQUERADE --random-fully", id="kube-proxy's mark cannot be told"),
        pytest.param(
            FORWARD, nat(prerouting=[dnat("198.51.100.7", 2049, ports=[12049])]), "is where", id="leads to a server"
        ),
    ],
)  # fmt: skip
def test_nat_rules(web, firewall, words):
    """The rules of the nat table that touch a rule's packets, by what they match along the way, and no others."""
    found = judged(web, around(firewall))
    assert [refusal.reason for refusal in found] == (["NATConflict"] if words else [])
    if words:
        assert words in found[0].message
        assert found[0].message.endswith("; onConflict: Force installs it all the same")


def test_unknown_local_addresses_may_be_any():
    """Where nobody looked which addresses are the node's, a translation to or at any of them counts."""
    firewall = nat(prerouting=[dnat(ports=[80], destinations=("10.96.0.7",))])
    assert judged(wanted(), around(firewall, local_addresses=None))
    assert judged(wanted(ports=[8080]), around(firewall, local_addresses=None))


def service(kind, port=80, *addresses, protocol="TCP"):
    """Return a Service shop/web."""
    return Service(name="shop/web", kind=kind, protocol=protocol, port=port, addresses=list(addresses))


@pytest.mark.parametrize(
    ("web", "found", "words"),
    [
        (wanted(), service("NodePort"), "port 80/TCP is NodePort of Service shop/web"),
        (wanted(), service("LoadBalancer"), "port 80/TCP is LoadBalancer of Service shop/web"),
        (wanted(), service("ExternalIP"), "port 80/TCP is ExternalIP of Service shop/web"),
        (wanted(), service("HostPort"), "port 80/TCP is HostPort of pod shop/web"),
        (
            wanted(),
            service("TargetPort"),
            "port 80/TCP is the target of Service shop/web in a pod of this node's network",
        ),
        (wanted(), service("ClusterIP", 80, "10.96.0.7"), None),
        (wanted(), service("NodePort", 81), None),
        (wanted(), service("NodePort", protocol="UDP"), None),
        (wanted(ports=["30000-32767"]), service("NodePort", 30080), "port 30080/TCP is NodePort of Service shop/web"),
        (wanted(addresses=["192.0.2.10"]), service("ExternalIP", 80, "203.0.113.1"), None),
        (wanted(addresses=["192.0.2.0/24"]), service("ExternalIP", 80, "192.0.2.10"), "ExternalIP"),
        (CLIENT, service("ClusterIP", 9200, "10.96.3.4"), "port 9200/TCP is ClusterIP of Service shop/web"),
        (CLIENT, service("ClusterIP", 9200, "10.97.3.4"), None),
        (CLIENT, service("NodePort", 9200), None),
        (FORWARD, service("NodePort", 2049), "NodePort"),
        (FORWARD, service("ClusterIP", 2049, "198.51.100.4"), "ClusterIP"),
        (FORWARD, service("TargetPort", 2049), None),
    ],
)
def test_services(web, found, words):
    """A Service is named with its kind; what it translates elsewhere is left in peace."""
    refused = judged(web, around(services=(found,)))
    assert [refusal.reason for refusal in refused] == (["NATConflict"] if words else [])
    assert not words or words in refused[0].message


@pytest.mark.parametrize(
    ("web", "fields", "refused"),
    [
        (wanted(), {"translated": {("tcp", 80): "10.1.0.9:4000 -> 192.0.2.10:80"}}, True),
        (wanted(), {"translated": {("udp", 80): "x"}}, False),
        (wanted(), {"translated_elsewhere": {("tcp", 80): "x"}}, False),
        (FORWARD, {"translated_elsewhere": {("tcp", 2049): "x"}}, True),
        (CLIENT, {"translated": {("tcp", 9200): "x"}}, False),
    ],
)
def test_live_entries(web, fields, refused):
    """A flow that is translated now says more than any rule; one example is named."""
    found = judged(web, around(**fields))
    assert [refusal.reason for refusal in found] == (["NATConflict"] if refused else [])
    assert not refused or "is translated right now (" in found[0].message


@pytest.mark.parametrize(
    ("fields", "firewall", "words"),
    [
        ({"protocol": "UDP", "ports": [40000]}, None, "net.ipv4.ip_local_port_range is 32768 60999"),
        ({"protocol": "SCTP", "ports": ["30000-40000"]}, None, "32768-40000/SCTP"),
        ({"protocol": "TCP", "ports": [40000]}, None, None),
        ({"protocol": "UDP", "ports": [53]}, nat(postrouting=[MASQUERADE]), None),
        ({"protocol": "UDP", "ports": [4789]}, None, None),
        ({"protocol": "UDP", "ports": [4789]}, nat(postrouting=[MASQUERADE]), "-o eth0 -j MASQUERADE"),
        ({"protocol": "UDP", "ports": [53]}, nat(postrouting=[rule("snat", to_ports=[53])]), "53/UDP may be picked"),
        ({"protocol": "UDP", "ports": [4789]}, nat(postrouting=[rule("snat", to_ports=[53])]), None),
        ({"protocol": "UDP", "ports": [4789]}, nat(postrouting=[rule("masquerade", protocols={"tcp"})]), None),
        ({"protocol": "UDP", "ports": [40000], "side": "Client", "addresses": ["192.0.2.1"]}, None, None),
    ],
)
def test_source_ports(fields, firewall, words):
    """UDP and SCTP servers on ports that the node or masquerade may send from; TCP learns such flows."""
    found = judged(wanted(**fields), around(firewall))
    assert [refusal.reason for refusal in found] == (["SourcePortOverlap"] if words else [])
    assert not words or words in found[0].message


FAILSAFE = (
    FailsafePort(10250, "TCP", "Server", "the kubelet's port"),
    FailsafePort(6443, "TCP", "Client", "the API server's port"),
)


@pytest.mark.parametrize(
    ("fields", "refused"),
    [
        ({"ports": ["10000-11000"]}, "port 10250/TCP (Server side) is the kubelet's port"),
        ({"ports": [10250], "protocol": "UDP"}, None),
        ({"ports": [6443]}, None),
        ({"ports": [6443], "side": "Client", "addresses": ["192.0.2.1"]}, "the API server's port"),
        ({"ports": [443], "side": "Client", "addresses": ["192.0.2.1"]}, "port 443/TCP (Client side)"),
        ({"ports": [53], "side": "Client", "addresses": ["192.0.2.1"], "protocol": "UDP"}, "DNS"),
        ({"ports": [443]}, None),
        ({"ports": [10250], "side": "Forward"}, None),
    ],
)
def test_failsafe_ports(fields, refused):
    """What the node lives by is refused, Force or not."""
    for force in ("Refuse", "Force"):
        found = judged(wanted(**fields), around(failsafe=FAILSAFE), onConflict=force)
        assert [refusal.reason for refusal in found] == (["FailsafePort"] if refused else [])
        assert not refused or refused in found[0].message


def test_another_machine_is_judged_by_what_every_node_lives_by():
    """A plan from facts alone has no surroundings; DNS and TLS are refused all the same, NAT is not looked for."""
    rules = [
        wanted(name="tls", side="Client", ports=[443], addresses=["192.0.2.1"]),
        wanted(protocol="UDP", ports=[40000]),
    ]
    assert [(each.setting, each.reason) for each in judge(rules, None, None).refused] == [
        ("notrack/tls", "FailsafePort")
    ]


BAD_ASK = "accepts requests to port 80/TCP by state alone"
BAD_ANSWER = "accepts replies from port 80/TCP by state alone"
FROM = ("10.0.0.0/8",)
FROM_10 = rule("accept", "ip saddr 10.0.0.0/8 tcp dport 80 accept", ports=[80], sources=FROM)
OUT_BY_STATE = nftables(hook="output")
OUT_NEW_80 = nftables(rule("accept", "dport 80 new", ports=[80], states={"new"}), hook="output")
OUT_PLAIN_80 = nftables(rule("accept", "dport 80", ports=[80]), hook="output")
IN_CLOSED = nftables()
CLIENT_80 = wanted(side="Client", addresses=["198.51.100.7"])
ROUTED_80 = wanted(side="Forward")


def both(*firewalls):
    """Return one firewall of several."""
    return Firewall(tuple(chain for firewall in firewalls for chain in firewall.chains))


@pytest.mark.parametrize(
    ("web", "firewall", "never", "replies", "both_ways"),
    [
        pytest.param(wanted(), Firewall(), None, None, None, id="none"),
        pytest.param(wanted(), nftables(PLAIN_80), None, None, None, id="stateless accept"),
        pytest.param(wanted(), nftables(NEW_80), BAD_ASK, BAD_ASK, None, id="accept by state"),
        pytest.param(wanted(), nftables(), None, None, None, id="refused before"),
        pytest.param(wanted(), both(nftables(PLAIN_80), OUT_BY_STATE), BAD_ANSWER, None, None, id="answers by state"),
        pytest.param(wanted(), both(nftables(), OUT_BY_STATE), None, None, None, id="no request, no answer"),
        pytest.param(CLIENT_80, IN_CLOSED, BAD_ANSWER, None, None, id="client, answers by state"),
        pytest.param(CLIENT_80, both(IN_CLOSED, OUT_NEW_80), BAD_ASK, BAD_ASK, None, id="client by state"),
        pytest.param(CLIENT_80, both(IN_CLOSED, OUT_PLAIN_80), BAD_ANSWER, None, None, id="client, stateless"),
        pytest.param(ROUTED_80, nftables(NEW_80, hook="forward"), BAD_ASK, BAD_ASK, None, id="routed"),
        pytest.param(ROUTED_80, nftables(PLAIN_80, hook="forward"), BAD_ANSWER, None, None, id="routed, stateless"),
        pytest.param(ROUTED_80, nftables(NEW_80), None, None, None, id="INPUT is not on a routed packet's way"),
        pytest.param(wanted(), ufw(PLAIN_80), None, None, None, id="ufw"),
        pytest.param(wanted(), firewalld(PLAIN_80), None, None, None, id="firewalld, no state"),
        pytest.param(wanted(), firewalld(NEW_80), BAD_ASK, BAD_ASK, None, id="firewalld"),
        pytest.param(
            wanted(interfaces=["eth0"]),
            nftables(rule("accept", ports=[80], in_interfaces=("eth0",)), NEW_80), None, None, None,
            id="by state on other interfaces alone",
        ),
        pytest.param(
            wanted(side="Forward", interfaces=["eth0"]),
            nftables(rule("accept", ports=[80], in_interfaces=("eth0",)), hook="forward"), BAD_ANSWER, None, None,
            id="routed by one interface",
        ),
        pytest.param(
            wanted(side="Forward", interfaces=["eth0"]),
            nftables(
                rule("drop", in_interfaces=("eth0",), out_interfaces=("eth0",)),
                rule("accept", ports=[80], in_interfaces=("eth0",)),
                rule("accept", source_ports=[80], out_interfaces=("eth0",)), hook="forward",
            ), None, None, None, id="routed by one interface and back by it",
        ),
        pytest.param(
            wanted(),
            both(nftables(FROM_10), nftables(rule("accept", source_ports=[80], destinations=FROM), hook="output")),
            None, None, None, id="answers to those who may ask",
        ),
        pytest.param(
            wanted(peers=["10.0.0.0/8"]),
            nftables(rule("accept", ports=[80], sources=("10.0.0.0/8",)), NEW_80), None, None, None, id="peers let in",
        ),
        pytest.param(
            wanted(addresses=["192.0.2.10"]), dataclasses.replace(nftables(NEW_80), owned=frozenset({("inet", "x")})),
            BAD_ASK, BAD_ASK, None, id="another table is owned",
        ),
    ],
)  # fmt: skip
def test_stateful_firewalls(web, firewall, never, replies, both_ways):
    """Refused exactly where acceptUntracked does not cover what the firewall accepts by state; absent is Replies."""
    for accept, words in (("Never", never), ("Replies", replies), (None, replies), ("Both", both_ways)):
        found = judged(web, around(firewall), **({"acceptUntracked": accept} if accept else {}))
        assert [refusal.reason for refusal in found] == (["StatefulAccept"] if words else []), accept
        assert not words or words in found[0].message


def test_a_stateful_refusal_names_everything():
    """Table and chain, the rule that accepts, what refuses, and both remedies."""
    (found,) = judged(wanted(), around(nftables(NEW_80)))
    assert found.message == (
        "nftables inet filter input accepts requests to port 80/TCP by state alone (tcp dport 80 ct state new accept)"
        " and refuses them untracked (policy drop); write notrack.acceptUntracked: Both, or let the firewall accept the"
        " port whatever its state; onConflict: Force installs it all the same"
    )


@pytest.mark.parametrize("name", ["CONNTRACK-OP-IN-REQUESTS", "conntrack_operator_input_requests"])
def test_accept_rules_of_our_own_prove_nothing(name):
    """They come and go with the rules: a port that only they let in is still accepted by state alone."""
    ours = jump(name), chain(name, rule("accept", states={"untracked"}))
    base = nftables(ours[0], NEW_80).chains[0]
    beside = dataclasses.replace(ours[1], tool=base.tool, family=base.family, table=base.table)
    assert [each.reason for each in judged(wanted(), around(Firewall((base, beside))))] == ["StatefulAccept"]


def test_a_table_of_another_owner():
    """Where an accept rule is needed and cannot be put, the rule is refused by the table's name, Force or not."""
    firewall = dataclasses.replace(nftables(NEW_80), owned=frozenset({("inet", "filter")}))
    for force in ("Refuse", "Force"):
        (found,) = judged(wanted(), around(firewall), acceptUntracked="Both", onConflict=force)
        assert (found.setting, found.reason) == ("notrack/web", "OwnedTable")
        assert "nftables inet filter input" in found.message


def test_what_cannot_be_seen_or_tried_is_refused():
    """A firewall nobody can read and a kernel whose timed elements stay; Force does not override them."""
    blind = Firewall(
        problems=(("LegacyIptablesNeedsNetRaw", "iptables-legacy needs NET_RAW; set agent.iptablesLegacy"),)
    )
    for surroundings, reason in (
        (around(blind), "LegacyIptablesNeedsNetRaw"),
        (around(timed_elements=False), "Unsupported"),
    ):
        (found,) = judged(wanted(), surroundings, onConflict="Force")
        assert (found.reason, found.setting) == (reason, "notrack/web")


UNTRACKED_DROPPED = rule("drop", "ct state untracked drop", states={"untracked"})
ODD_ANSWER = rule("accept", "ct state established,related odd accept", states={"established", "related"}, other=True)


@pytest.mark.parametrize(
    ("web", "firewall", "reason", "words"),
    [
        (wanted(), nftables(UNTRACKED_DROPPED, PLAIN_80), "StatefulDrop", "`ct state untracked drop` refuses"),
        (wanted(), both(nftables(PLAIN_80), Firewall((
            chain("output", ODD_ANSWER, hook="output", policy="drop", tool="nftables", family="inet"),
        ))), "UnclearAccept", "odd accept"),
        (wanted(), both(nftables(PLAIN_80), Firewall((
            chain("output", rule("accept", "ct mark 1 accept", tracks=True, other=True), hook="output", policy="drop",
                  tool="nftables", family="inet"),
        ))), "UnclearAccept", "no accept can be put beside it"),
        (wanted(side="Forward", protocol="UDP", ports=[53]),
         nftables(rule("accept", ports=[53], protocols={"udp"}), hook="forward"), "UnboundedReplies", "addresses"),
        (wanted(), dataclasses.replace(nftables(PLAIN_80), owned=frozenset({("inet", "filter")})), "OwnedTable",
         "lets nobody else"),
    ],
)  # fmt: skip
def test_a_rule_whose_accepts_have_no_place_is_refused(web, firewall, reason, words):
    """By its own name, for the reason and with the remedy; Force installs it with the same words as a warning."""
    (found,) = judge([web], around(firewall), Notrack(accept_untracked="Both")).refused
    assert (found.setting, found.reason) == ("notrack/web", reason)
    assert words in found.message
    forced = judge([web], around(firewall), Notrack(accept_untracked="Both", on_conflict="Force"))
    if reason == "OwnedTable":
        assert [each.reason for each in forced.refused] == ["OwnedTable"]
    else:
        assert (forced.refused, {each.reason for each in forced.warned}) == ((), {reason})


def test_force_overrides_what_a_person_may_know_better():
    """NATConflict, SourcePortOverlap and the reasons about accepts become warnings; the rule is allowed."""
    rules = [wanted(), wanted(name="dns", protocol="UDP", ports=[40000])]
    surroundings = around(nftables(NEW_80), services=(service("NodePort"),))
    plain = judge(rules, surroundings, None)
    reasons = {"NATConflict", "SourcePortOverlap", "StatefulAccept"}
    assert {each.reason for each in plain.refused} == reasons < FORCIBLE
    assert not any(plain.allow(each) for each in rules)
    forced = judge(rules, surroundings, Notrack(on_conflict="Force"))
    assert (forced.refused, {each.reason for each in forced.warned}) == ((), reasons)
    assert all(forced.allow(each) for each in rules)
    assert all(each.message.endswith("(installed by onConflict: Force)") for each in forced.warned)


ZOO = [
    wanted(name=f"r{number}", **fields)
    for number, fields in enumerate([
        {}, {"ports": [443]}, {"ports": [10250]}, {"protocol": "UDP", "ports": [40000]}, {"ports": [30080]},
        {"side": "Client", "addresses": ["10.96.0.0/16"]}, {"side": "Forward"}, {"addresses": ["192.0.2.10"]},
        {"side": "Client", "ports": [53], "addresses": ["192.0.2.1"]}, {"protocol": "UDP", "ports": [53]},
    ])
]  # fmt: skip
CROWDED = around(
    both(kube_proxy(), nftables(NEW_80)), failsafe=FAILSAFE, services=(service("LoadBalancer", 443),),
    translated={("tcp", 30080): "x"},
)  # fmt: skip


@settings(max_examples=25, deadline=None)
@given(st.permutations(ZOO), st.sampled_from(["Refuse", "Force"]))
def test_the_order_of_rules_decides_nothing(rules, force):
    """The same rules are refused for the same reasons in whatever order a policy names them."""
    notrack = Notrack(on_conflict=force)
    shuffled, sorted_ = judge(rules, CROWDED, notrack), judge(ZOO, CROWDED, notrack)
    assert set(shuffled.refused) == set(sorted_.refused)
    assert set(shuffled.warned) == set(sorted_.warned)
    alone = {refusal for each in rules for refusal in judge([each], CROWDED, notrack).refused}
    assert set(shuffled.refused) == alone


def test_every_refusal_is_one_sentence_with_a_remedy():
    """Setting, reason in CamelCase, cause; remedy. At most 512 characters, one of each reason."""
    refused = judge(ZOO, CROWDED, None).refused
    assert len(refused) >= 8
    assert len({(each.setting, each.reason) for each in refused}) == len(refused)
    for each in refused:
        assert each.setting.startswith("notrack/r")
        assert each.reason[0].isupper()
        assert "; " in each.message
        assert "\n" not in each.message
        assert len(each.message) <= 512
