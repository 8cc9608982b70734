"""Twins in a firewall: where the tracked one gets through and the untracked one does not, and nowhere else."""

import pytest
from tests.lab.firewalls import REPLIES, chain, firewalld, jump, nftables, number, rule, ufw

from conntrack_operator.decide.firewall_walk import losses, translation_of, translations, would_pass
from conntrack_operator.decide.packets import EVERY_PORT, Interfaces, Packets, common, without
from conntrack_operator.model.surroundings import Firewall, Match

REQUESTS = Packets("input", 4, "tcp", destination_ports=((80, 80),))
ANSWERS = Packets("input", 4, "tcp", source_ports=((80, 80),))
NEW_80 = rule("accept", "tcp dport 80 ct state new accept", protocols={"tcp"}, ports=[80], states={"new"})
PLAIN_80 = rule("accept", "tcp dport 80 accept", protocols={"tcp"}, ports=[80])
FROM_10 = rule("accept", "ip saddr 10.0.0.0/8 tcp dport 80 accept", ports=[80], sources=("10.0.0.0/8",))
NEW_FROM_10 = rule(
    "accept",
    "ip saddr 10.0.0.0/8 tcp dport 80 ct state new accept",
    ports=[80],
    sources=("10.0.0.0/8",),
    states={"new"},
)
DENY = rule("drop", "ip saddr 192.0.2.0/24 drop", sources=("192.0.2.0/24",))


@pytest.mark.parametrize(
    ("firewall", "packets", "state", "lost"),
    [
        pytest.param(Firewall(), REQUESTS, "new", [], id="no firewall"),
        pytest.param(nftables(NEW_80), REQUESTS, "new", [(NEW_80.text, "policy drop")], id="accepted when new alone"),
        pytest.param(nftables(PLAIN_80), REQUESTS, "new", [], id="accepted whatever its state"),
        pytest.param(nftables(), REQUESTS, "new", [], id="refused before"),
        pytest.param(nftables(policy="accept"), REQUESTS, "new", [], id="open"),
        pytest.param(nftables(), ANSWERS, "established", [(REPLIES.text, "policy drop")], id="replies by state"),
        pytest.param(nftables(policy="accept"), ANSWERS, "established", [], id="replies into an open chain"),
        pytest.param(nftables(FROM_10), REQUESTS, "new", [], id="sources restricted, no state"),
        pytest.param(nftables(NEW_FROM_10), REQUESTS, "new", [(NEW_FROM_10.text, "policy drop")], id="and state"),
        pytest.param(nftables(FROM_10, NEW_FROM_10), REQUESTS, "new", [], id="let in before state is asked"),
        pytest.param(nftables(DENY, PLAIN_80), REQUESTS, "new", [], id="a source kept out"),
        pytest.param(
            nftables(NEW_80, rule("drop", "ct state untracked drop", states={"untracked"}), policy="accept"),
            REQUESTS, "new", [(NEW_80.text, "ct state untracked drop")], id="untracked dropped by name",
        ),
        pytest.param(
            nftables(rule("drop", "ct state != new drop", states={"established", "invalid", "untracked"}), PLAIN_80),
            REQUESTS, "new", [(PLAIN_80.text, "ct state != new drop")], id="everything but new dropped",
        ),
        pytest.param(ufw(PLAIN_80), REQUESTS, "new", [], id="ufw allow 80"),
        pytest.param(ufw(NEW_80), REQUESTS, "new", [(NEW_80.text, "policy drop")], id="ufw limit-like"),
        pytest.param(ufw(), REQUESTS, "new", [], id="ufw without a rule"),
        pytest.param(ufw(), ANSWERS, "established", [(REPLIES.text, "-j DROP")], id="ufw, replies"),
        pytest.param(firewalld(PLAIN_80), REQUESTS, "new", [], id="firewalld, no state"),
        pytest.param(
            firewalld(NEW_80), REQUESTS, "new", [(NEW_80.text, "reject with icmpx admin-prohibited")], id="firewalld"
        ),
    ],
)  # fmt: skip
def test_losses(firewall, packets, state, lost):
    """A loss names what let the tracked packet in and what stops the untracked one; refused before is no loss."""
    found = losses(firewall, [packets], state)
    assert [(loss.accepted_by, loss.refused_by) for loss in found] == lost


def test_only_its_own_part_of_the_packets_is_lost():
    """Half of the ports accepted by state: the loss is about these."""
    wide = Packets("input", 4, "tcp", destination_ports=((80, 81),))
    (loss,) = losses(nftables(NEW_80, rule("accept", ports=[81])), [wide], "new")
    assert (loss.packets.destination_ports, loss.sure) == (((80, 80),), True)


def test_what_cannot_be_told_is_not_sure():
    """A rule with a condition nobody understands may be the one that lets the packets in."""
    odd = rule("accept", "set match and state", ports=[80], states={"new"}, other=True)
    (loss,) = losses(nftables(odd), [REQUESTS], "new")
    assert not loss.sure
    assert losses(nftables(rule("accept", "a stateless set", ports=[80], other=True)), [REQUESTS], "new") == ()


def test_connection_marks_do_not_hold_for_untracked_packets():
    """`ct mark 1 accept` lets nobody in who has no connection."""
    mark = rule("accept", "ct mark 1 accept", tracks=True, other=True)
    assert [loss.accepted_by for loss in losses(nftables(mark), [REQUESTS], "new")] == [mark.text]


def test_every_chain_that_would_lose_them_is_found():
    """Two base chains of one hook, both by state: both need help. A chain after a refusal is never asked."""
    first, second = nftables(NEW_80).chains[0], ufw(NEW_80).chains
    places = [loss.chain.name for loss in losses(Firewall((first, *second)), [REQUESTS], "new")]
    assert places == ["input", "INPUT"]
    closed = nftables().chains[0]
    assert losses(Firewall((closed, *second)), [REQUESTS], "new") == ()


def test_state_dependent_jumps_part_the_twins():
    """The tracked packet enters a chain its twin does not, and comes back to it unless it was accepted there."""
    place = {"tool": "nftables", "family": "inet", "table": "filter"}
    base = chain(
        "input", jump("fresh", states={"new"}), rule("accept", "tcp dport 80 accept", ports=[80]), hook="input",
        policy="drop", **place,
    )  # fmt: skip
    assert losses(Firewall((base, chain("fresh", rule("return", other=True), **place))), [REQUESTS], "new") == ()
    closing = chain("input", jump("fresh", states={"new"}), hook="input", policy="drop", **place)
    accepting = chain("fresh", rule("accept", "in fresh"), **place)
    assert [loss.accepted_by for loss in losses(Firewall((closing, accepting)), [REQUESTS], "new")] == ["in fresh"]


@pytest.mark.parametrize(
    ("firewall", "state", "expected"),
    [
        (Firewall(), "untracked", "accepted"),
        (nftables(NEW_80), "untracked", "refused"),
        (nftables(NEW_80), "new", "accepted"),
        (nftables(PLAIN_80), "untracked", "accepted"),
        (nftables(FROM_10), "untracked", "partly"),
        (nftables(rule("accept", other=True)), "untracked", "unknown"),
        (nftables(), "established", "accepted"),
    ],
)
def test_would_pass(firewall, state, expected):
    """One packet set, one state: through, not through, some of them, or nobody knows."""
    assert would_pass(firewall, REQUESTS, state) == expected


def test_translations_follow_jumps():
    """The path's matches add up: a NodePort chain reached by local packets alone, a mark that returns first."""
    nat = Firewall((
        chain("PREROUTING", jump("KUBE-SERVICES"), hook="prerouting", kind="nat"),
        chain("KUBE-SERVICES", jump("KUBE-NODEPORTS", other=True), kind="nat"),
        chain("KUBE-NODEPORTS", jump("KUBE-EXT-WEB", protocols={"tcp"}, ports=[30080]), kind="nat"),
        chain("KUBE-EXT-WEB", rule("dnat", "-j DNAT --to-destination 10.1.0.5:8080", to_ports=[8080]), kind="nat"),
    ))  # fmt: skip

    def touching(port, protocol="tcp"):
        packets = Packets("prerouting", 4, protocol, destination_ports=((port, port),))
        found = translation_of(nat, packets, ("dnat",))
        assert ([found] if found else []) == [*translations(nat, packets, ("dnat", "snat"))]
        return [found.rule.text] if found else []

    assert touching(30080) == ["-j DNAT --to-destination 10.1.0.5:8080"]
    assert (touching(80), touching(30080, "udp")) == ([], [])


def test_what_was_returned_before_is_not_translated():
    """A return for the same packets stands before the masquerade."""
    nat = Firewall((
        chain("POSTROUTING", rule("return", destinations=("10.0.0.0/8",)), rule("masquerade"), hook="postrouting",
              kind="nat"),
    ))  # fmt: skip
    inner, outer = (Packets("postrouting", 4, "tcp", destinations=number(to)) for to in ("10.0.0.1", "192.0.2.1"))
    assert translation_of(nat, inner, ("masquerade",)) is None
    assert translation_of(nat, outer, ("snat",)) is None
    assert translation_of(nat, outer, ("masquerade",)).packets == outer


def test_a_thousand_rules_are_followed():
    """A long list of sources is one cut set, not a thousand; chains that jump in circles end."""
    sources = [rule("accept", ports=[80], sources=(f"10.{number}.0.0/16",)) for number in range(256)] * 4
    assert losses(nftables(*sources), [REQUESTS], "new") == ()
    place = {"tool": "nftables", "family": "inet", "table": "filter"}
    circle = chain("input", jump("a"), hook="input", **place), chain("a", jump("a"), jump("a"), **place)
    assert would_pass(Firewall(circle), REQUESTS) in {"accepted", "unknown"}


def test_thousands_of_services_cost_little():
    """kube-proxy writes a chain for each: a walk by every port's packets stays one look at each rule."""
    number = 2000
    jumps = [
        jump(f"S{each}", protocols={"tcp"}, ports=[80], destinations=(f"10.{each // 250}.{each % 250}.1",))
        for each in range(number)
    ]
    ends = [chain(f"S{each}", rule("dnat", to_ports=[each + 1], other=True), kind="nat") for each in range(number)]
    nat = Firewall((chain("PREROUTING", *jumps, hook="prerouting", kind="nat"), *ends))
    every = Packets("prerouting", 4, "tcp")
    assert len([*translations(nat, every, ("dnat",))]) == number
    last = Packets("prerouting", 4, "tcp", destination_ports=((80, 80),))
    nowhere = nat.chains[:1] + tuple(chain(f"S{each}", kind="nat") for each in range(number))
    assert translation_of(nat, last, ("dnat",)).rule.to_ports == ((1, 1),)
    assert translation_of(Firewall(nowhere), last, ("dnat",)) is None


def test_sets_of_packets():
    """Cutting loses nothing and doubles nothing."""
    inside, outside = Packets("input", 4, "tcp").cut(
        Match(destination_ports=((80, 90),), sources=("10.0.0.0/8",), in_interfaces=("eth0", "lo"))
    )
    assert inside.comes_in == Interfaces(("eth0",), ("lo",))
    assert len(outside) == 3
    assert outside[0].destination_ports == ((0, 79), (91, 65535))
    assert Packets("input", 4, "tcp").cut(Match(protocols=frozenset({"udp"})))[0] is None
    assert Packets("input", 4, "tcp").cut(Match(in_interfaces=("lo",)))[0] is None
    assert Packets("input", 6, "tcp").cut(Match(sources=("10.0.0.0/8",)))[0] is None
    assert common(EVERY_PORT, ((5, 9),)) == ((5, 9),)
    assert without(((1, 10),), ((3, 4), (6, 20))) == ((1, 2), (5, 5))


@pytest.mark.parametrize(
    ("mine", "names", "both", "empty_rest"),
    [
        (Interfaces(), ("eth0",), ("eth0",), False),
        (Interfaces(("eth0",)), ("eth*",), ("eth0",), True),
        (Interfaces(("eth0", "wlan0")), ("eth+",), ("eth0",), False),
        (Interfaces(("eth0",)), ("wlan0",), (), False),
    ],
)
def test_interfaces(mine, names, both, empty_rest):
    """Wildcards of nftables and of iptables count."""
    assert mine.common(names).only == both
    assert mine.without(names).empty is empty_rest
