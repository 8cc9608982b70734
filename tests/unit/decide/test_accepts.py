"""Where accepts for untracked packets stand in the firewalls that people have, and what exactly they accept."""

from dataclasses import replace

import pytest

from conntrack_operator.decide.accepts import Accepts, Standing, accepts_for, standing_of
from conntrack_operator.kernel.firewall_iptables_rules import rule_of
from conntrack_operator.model.notrack import NotrackRule
from conntrack_operator.model.surroundings import Firewall, FirewallChain, FirewallRule, Match

HOOKS = {"INPUT": "input", "FORWARD": "forward", "OUTPUT": "output"}
BY_STATE = frozenset({"established", "related"})


def _rule(name: str = "web", **fields: object) -> NotrackRule:
    return NotrackRule.model_validate({"name": name, "ports": [80], **fields})


def _saved(text: str, tool: str = "iptables-nft", family: str = "ip", **changes: object) -> Firewall:
    """Return a filter table of iptables as its save program would print it."""
    policies: dict[str, str] = {}
    rules: dict[str, list[FirewallRule]] = {}
    for line in text.strip().splitlines():
        if line.startswith(":"):
            name, policy = line[1:].split()[:2]
            policies[name] = policy.lower()
            rules[name] = []
        else:
            chain = rules[line.split()[1]]
            chain.append(rule_of(line, family, len(chain) + 1))
    return Firewall(
        tuple(
            FirewallChain(tool, family, "filter", name, tuple(rules[name]), "filter", HOOKS[name], 0, policies[name])
            if name in HOOKS
            else FirewallChain(tool, family, "filter", name, tuple(rules[name]))
            for name in rules
        ),
        **changes,
    )


def _nft(table: str, **chains: tuple[str, str, tuple[FirewallRule, ...]]) -> Firewall:
    """Return a table of family inet: chains as (hook or nothing, policy, rules), handles from 1 through all of them."""
    handle, made = 0, []
    for name, (hook, policy, rules) in chains.items():
        numbered = []
        for rule in rules:
            handle += 1
            numbered.append(replace(rule, handle=handle))
        base = {"type": "filter", "hook": hook, "policy": policy} if hook else {}
        made.append(FirewallChain("nftables", "inet", table, name, tuple(numbered), **base))
    return Firewall(tuple(made))


def _does(verdict: str, target: str = "", **match: object) -> FirewallRule:
    return FirewallRule(Match(**match), verdict, f"{verdict} {target}".strip(), target)


def _places(accepts: Accepts) -> set[tuple[str, int, str]]:
    """Return (chain, number of rules in front, what) of every jump."""
    return {(jump.chain, jump.index, jump.target.lower().replace("_", "-").rsplit("-", 1)[1]) for jump in accepts.jumps}


def _lines(accepts: Accepts, end: str) -> list[str]:
    return [line for chain in accepts.chains if chain.name.endswith(end) for line, _ in chain.rules]


UFW = """
:INPUT DROP [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
:ufw-before-logging-input - [0:0]
:ufw-before-input - [0:0]
:ufw-after-input - [0:0]
:ufw-reject-input - [0:0]
:ufw-logging-deny - [0:0]
:ufw-not-local - [0:0]
:ufw-user-input - [0:0]
:ufw-before-forward - [0:0]
:ufw-before-output - [0:0]
-A INPUT -j ufw-before-logging-input
-A INPUT -j ufw-before-input
-A INPUT -j ufw-after-input
-A INPUT -j ufw-reject-input
-A FORWARD -j ufw-before-forward
-A OUTPUT -j ufw-before-output
-A ufw-before-input -i lo -j ACCEPT
-A ufw-before-input -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A ufw-before-input -m conntrack --ctstate INVALID -j ufw-logging-deny
-A ufw-before-input -m conntrack --ctstate INVALID -j DROP
-A ufw-before-input -p icmp -m icmp --icmp-type 3 -j ACCEPT
-A ufw-before-input -j ufw-not-local
-A ufw-before-input -d 224.0.0.251/32 -p udp -m udp --dport 5353 -j ACCEPT
-A ufw-before-input -j ufw-user-input
-A ufw-logging-deny -m conntrack --ctstate INVALID -m limit --limit 3/min --limit-burst 10 -j RETURN
-A ufw-not-local -m addrtype --dst-type LOCAL -j RETURN
-A ufw-not-local -m addrtype --dst-type MULTICAST -j RETURN
-A ufw-not-local -m limit --limit 3/min --limit-burst 10 -j ufw-logging-deny
-A ufw-not-local -j DROP
-A ufw-user-input -s 192.0.2.66/32 -j DROP
-A ufw-user-input -p tcp -m tcp --dport 80 -j ACCEPT
-A ufw-before-forward -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A ufw-before-output -o lo -j ACCEPT
-A ufw-before-output -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
"""
STATE = "-m conntrack --ctstate"
PLAIN = f"""
:INPUT DROP [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT DROP [0:0]
-A INPUT -i lo -j ACCEPT
-A INPUT {STATE} RELATED,ESTABLISHED -j ACCEPT
-A INPUT -s 192.0.2.66/32 -j DROP
-A INPUT -p tcp -m tcp --dport 80 {STATE} NEW -j ACCEPT
-A OUTPUT -o lo -j ACCEPT
-A OUTPUT {STATE} RELATED,ESTABLISHED -j ACCEPT
-A OUTPUT -p tcp -m tcp --dport 80 -j ACCEPT
"""
REJECTING = PLAIN.replace(":INPUT DROP", ":INPUT ACCEPT") + "-A INPUT -j REJECT --reject-with icmp-port-unreachable\n"
LOGGING = (
    PLAIN.replace(":OUTPUT", ":LOGDROP - [0:0]\n:OUTPUT").replace("192.0.2.66/32 -j DROP", "192.0.2.66/32 -j LOGDROP")
    + "-A INPUT -j LOGDROP\n-A LOGDROP -j LOG\n-A LOGDROP -j DROP\n"
)
DOCKER = f"""
:INPUT ACCEPT [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
:DOCKER - [0:0]
:DOCKER-USER - [0:0]
:DOCKER-ISOLATION-STAGE-1 - [0:0]
-A FORWARD -j DOCKER-USER
-A FORWARD -j DOCKER-ISOLATION-STAGE-1
-A FORWARD -o docker0 {STATE} RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -o docker0 -j DOCKER
-A FORWARD -i docker0 -j ACCEPT
-A DOCKER -d 172.17.0.2/32 -o docker0 -p tcp -m tcp --dport 80 {STATE} NEW -j ACCEPT
-A DOCKER-USER -j RETURN
"""
OPEN = PLAIN.replace(" DROP [", " ACCEPT [").replace("-A INPUT -s 192.0.2.66/32 -j DROP\n", "")
STATELESS = """
:INPUT DROP [0:0]
:OUTPUT DROP [0:0]
-A INPUT -p tcp --dport 80 -j ACCEPT
-A OUTPUT -p tcp --sport 80 -j ACCEPT
"""
SYN_ALONE = PLAIN.replace(f"--dport 80 {STATE} NEW", "--dport 80 --tcp-flags FIN,SYN,RST,ACK SYN")
ANY_NEW = PLAIN.replace(f"-p tcp -m tcp --dport 80 {STATE} NEW", f"{STATE} NEW")

CLIENT = {"side": "Client", "addresses": ["192.0.2.0/24"]}
FORWARD = {"side": "Forward", "addresses": ["172.17.0.2/32"]}


@pytest.mark.parametrize("tool", ["iptables-nft", "iptables-legacy"])
@pytest.mark.parametrize(
    ("text", "which", "fields", "expected"),
    [
        pytest.param(UFW, "Replies", CLIENT, {("ufw-before-input", 2, "replies"), ("ufw-before-input", 2, "errors")},
                     id="UFW: replies behind its own accept, in the chain where that stands"),
        pytest.param(UFW, "Both", {}, {("ufw-before-input", 2, "errors")},
                     id="UFW accepts the port whatever its state, and all output: errors alone"),
        pytest.param(PLAIN, "Replies", {}, {("OUTPUT", 2, "replies"), ("OUTPUT", 2, "errors"), ("INPUT", 2, "errors")},
                     id="plain: a server's replies"),
        pytest.param(PLAIN, "Both", {}, {("OUTPUT", 2, "replies"), ("OUTPUT", 2, "errors"), ("INPUT", 2, "errors"),
                                         ("INPUT", 4, "requests")},
                     id="plain: requests at the end, behind who is refused by name"),
        pytest.param(SYN_ALONE, "Both", {}, {("OUTPUT", 2, "replies"), ("OUTPUT", 2, "errors"), ("INPUT", 2, "errors"),
                                             ("INPUT", 4, "requests")},
                     id="SYN alone accepted whatever its state: what follows needs an accept"),
        pytest.param(REJECTING, "Both", {}, {("OUTPUT", 2, "replies"), ("OUTPUT", 2, "errors"), ("INPUT", 2, "errors"),
                                             ("INPUT", 4, "requests")},
                     id="requests before the last reject"),
        pytest.param(LOGGING, "Both", {}, {("OUTPUT", 2, "replies"), ("OUTPUT", 2, "errors"), ("INPUT", 2, "errors"),
                                           ("INPUT", 4, "requests")},
                     id="requests before the jump to the chain that logs and drops, never in it"),
        pytest.param(DOCKER, "Both", FORWARD, {("FORWARD", 3, "replies"), ("FORWARD", 3, "errors"),
                                               ("FORWARD", 5, "requests")},
                     id="docker: replies and errors to its bridge alone"),
        pytest.param(DOCKER, "Both", {}, set(), id="docker: nothing of it concerns a server"),
        pytest.param(PLAIN, "Never", {}, set(), id="Never"),
        pytest.param(OPEN, "Both", {}, set(), id="nothing is refused"),
        pytest.param(STATELESS, "Both", {}, set(), id="nothing is stateful"),
        pytest.param(":INPUT DROP [0:0]\n", "Both", {}, set(), id="nothing is accepted"),
    ],
)  # fmt: skip
def test_places_in_iptables(
    tool: str, text: str, which: str, fields: dict[str, object], expected: set[tuple[str, int, str]]
) -> None:
    """Chain, number of rules in front and what is accepted, for firewalls as their makers save them."""
    accepts = accepts_for([_rule(**fields)], which, _saved(text, tool))
    assert _places(accepts) == expected
    assert accepts.refused == ()
    assert {jump.table.tool for jump in accepts.jumps} <= {tool}


def _firewalld(default: FirewallRule) -> Firewall:
    return _nft(
        "firewalld",
        filter_INPUT=("input", "accept", (
            _does("accept", states=frozenset({"established", "related"})),
            _does("accept", in_interfaces=("lo",)),
            _does("drop", states=frozenset({"invalid"})),
            _does("jump", "filter_INPUT_ZONES"),
            _does("reject"),
        )),
        filter_INPUT_ZONES=("", "", (
            _does("goto", "filter_IN_internal", in_interfaces=("eth1",)),
            _does("goto", "filter_IN_blocked", sources=("192.0.2.66/32",)),
            _does("goto", "filter_IN_public"),
        )),
        filter_IN_public=("", "", (
            _does("jump", "filter_IN_public_deny"),
            _does("jump", "filter_IN_public_allow"),
            default,
        )),
        filter_IN_public_deny=("", "", (_does("drop", sources=("192.0.2.67/32",)),)),
        filter_IN_public_allow=("", "", (
            _does("accept", protocols=frozenset({"tcp"}), destination_ports=((80, 80),), states=frozenset({"new"})),
        )),
        filter_IN_internal=("", "", (
            _does("accept", protocols=frozenset({"tcp"}), destination_ports=((22, 22),)),
            _does("reject"),
        )),
        filter_IN_blocked=("", "", (_does("drop"),)),
    )  # fmt: skip


def test_places_in_firewalld() -> None:
    """Requests before the zones' last words, never in a zone that only drops; errors behind the first accept."""
    accepts = accepts_for([_rule()], "Both", _firewalld(_does("reject")))
    assert _places(accepts) == {
        ("filter_INPUT", 1, "errors"), ("filter_IN_public", 2, "requests"), ("filter_IN_internal", 1, "requests")
    }  # fmt: skip
    assert {(jump.where, jump.handle) for jump in accepts.jumps} == {("after", 1), ("before", 11), ("before", 15)}


def test_a_verdict_map_counts_as_one_rule() -> None:
    """`ct state vmap { established : accept, related : accept, invalid : drop }` is read as three and is one."""
    states = (("accept", "established"), ("accept", "related"), ("drop", "invalid"))
    mapped = tuple(replace(_does(verdict, states=frozenset({state})), handle=7) for verdict, state in states)
    chain = FirewallChain("nftables", "inet", "filter", "out", mapped, "filter", "output", 0, "drop")
    accepts = accepts_for([_rule()], "Replies", Firewall((chain,)))
    assert _places(accepts) == {("out", 1, "replies"), ("out", 1, "errors")}
    assert {(jump.where, jump.handle) for jump in accepts.jumps} == {("after", 7)}


def test_every_table_at_a_hook_gets_its_own() -> None:
    """A packet must pass all base chains of its hook: of two tables that drop statefully none can be left out."""
    out = {"out": ("output", "drop", (_does("accept", states=BY_STATE),))}
    firewall = Firewall((*_nft("first", **out).chains, *_nft("second", **out).chains))
    accepts = accepts_for([_rule()], "Replies", firewall)
    assert {(jump.table.name, jump.target) for jump in accepts.jumps} == {
        (table, f"conntrack_operator_output_{what}") for table in ("first", "second") for what in ("replies", "errors")
    }


@pytest.mark.parametrize("text", [UFW, PLAIN, REJECTING, LOGGING, DOCKER])
@pytest.mark.parametrize("fields", [{}, CLIENT, FORWARD])
def test_what_stands_already_changes_nothing(text: str, fields: dict[str, object]) -> None:
    """Read with our own jumps and chains in it, a firewall asks for the same; and they are seen to stand."""
    firewall = _saved(text)
    assert standing_of(firewall) == Standing()
    accepts = accepts_for([_rule(**fields)], "Both", firewall)
    with_ours = _put_into(firewall, accepts)
    again = accepts_for([_rule(**fields)], "Both", with_ours)
    assert again.standing == accepts.standing == standing_of(with_ours)


def _put_into(firewall: Firewall, accepts: Accepts) -> Firewall:
    chains = []
    for chain in firewall.chains:
        rules = list(chain.rules)
        for jump in sorted(accepts.jumps, key=lambda jump: jump.index, reverse=True):
            if jump.chain == chain.name:
                rules.insert(jump.index, FirewallRule(Match(other=True), "jump", "", jump.target, comment=jump.comment))
        chains.append(replace(chain, rules=tuple(replace(rule, handle=at) for at, rule in enumerate(rules, 1))))
    for chain in accepts.chains:
        rules = tuple(
            FirewallRule(Match(other=True), "accept", line, handle=at, comment=comment)
            for at, (line, comment) in enumerate(chain.rules, 1)
        )
        table = chain.table
        chains.append(FirewallChain(table.tool, table.family, table.name, chain.name, rules))
    return replace(firewall, chains=tuple(chains))


@pytest.mark.parametrize(
    ("fields", "which", "expected"),
    [
        ({}, "output_replies", ["tcp sport { 80 } tcp flags & (syn | ack) != syn fib saddr type local"]),
        ({"protocol": "SCTP"}, "output_replies", ["sctp sport { 80 } @th,96,8 != 1 fib saddr type local"]),
        ({"protocol": "UDP"}, "input_requests", ["udp dport { 80 } fib daddr type local"]),
        ({"addresses": ["192.0.2.1"], "peers": ["10.0.0.0/8"], "interfaces": ["eth0"]}, "input_requests",
         ['tcp dport { 80 } ip daddr { 192.0.2.1 } ip saddr { 10.0.0.0-10.255.255.255 }'  # noqa: ISC004  one line
          ' iifname { "eth0" } fib daddr type local']),
        (CLIENT, "input_replies",
         ["tcp sport { 80 } tcp flags & (syn | ack) != syn ip saddr { 192.0.2.0-192.0.2.255 } fib daddr type local"]),
        (FORWARD | {"protocol": "UDP"}, "forward_replies",
         ["udp sport { 80 } ip saddr { 172.17.0.2 } fib saddr type unicast fib daddr type unicast"]),
    ],
)  # fmt: skip
def test_what_is_accepted_in_nftables(fields: dict[str, object], which: str, expected: list[str]) -> None:
    """Protocol, ports, ends and interfaces of the rule, its direction, and where the node's own end must be."""
    accepts = accepts_for([_rule(**fields)], "Both", _strict())
    assert _lines(accepts, which) == [f"{line} counter accept" for line in expected]
    assert all("ct state untracked" in jump.condition for jump in accepts.jumps)


def _strict() -> Firewall:
    """Return a firewall that accepts by state alone, at every hook."""
    by_state = (_does("accept", states=BY_STATE), _does("accept", states=frozenset({"new"})))
    return _nft("strict", **{hook: (hook, "drop", by_state) for hook in HOOKS.values()})


def test_errors_are_known_by_what_they_quote() -> None:
    """By the quoted protocol, port and destination; nothing that discovers neighbours or routers."""
    lines = _lines(accepts_for([_rule(**CLIENT)], "Replies", _strict()), "input_errors")
    (line,) = lines
    assert line == (
        "icmp type { destination-unreachable, time-exceeded, parameter-problem } @th,64,8 0x45 @th,112,16 & 0x1fff 0"
        " @th,136,8 6 @th,240,16 { 80 } @th,192,32 { 3221225984-3221226239 } fib daddr type local counter accept"
    )


def test_a_scope_of_the_firewall_goes_into_the_jump() -> None:
    """Where `established` is accepted for an interface and a network alone, replies are accepted for no more."""
    by_state = _does(
        "accept", states=BY_STATE, out_interfaces=("eth0",), destinations=("10.0.0.0/8", "fd00::/8"),
        protocols=frozenset({"tcp"}),
    )  # fmt: skip
    accepts = accepts_for(
        [_rule(), _rule("dns", protocol="UDP")], "Replies", _nft("fw", out=("output", "drop", (by_state,)))
    )
    assert {jump.condition for jump in accepts.jumps} == {
        'meta nfproto ipv4 meta l4proto { tcp } oifname { "eth0" } ip daddr { 10.0.0.0/8 } ct state untracked',
        'meta nfproto ipv6 meta l4proto { tcp } oifname { "eth0" } ip6 daddr { fd00::/8 } ct state untracked',
    }


def test_iptables_has_15_ports_in_a_rule() -> None:
    """Ports are split into multiports of 15, a range counting two; addresses into a rule each; quotes into tens."""
    ports = [*range(100, 140, 2), "8000-8100"]
    accepts = accepts_for([_rule(ports=ports, peers=["10.1.0.0/16", "10.3.0.0/16"])], "Both", _saved(ANY_NEW))
    requests = _lines(accepts, "IN-REQUESTS")
    assert len(requests) == 4
    for line in requests:
        ports_text = line.partition("--dports ")[2].split()[0]
        assert sum(2 if ":" in each else 1 for each in ports_text.split(",")) <= 15
    assert requests[0] == (
        "-p tcp -m multiport --dports 100,102,104,106,108,110,112,114,116,118,120,122,124,126,128"
        " -s 10.1.0.0/16 -m addrtype --dst-type LOCAL"
    )
    assert len(_lines(accepts, "OUT-ERRORS")) == 6  # three tens of ports, two peers


def test_names_fit_into_iptables() -> None:
    """28 characters are the longest name of a chain, 256 the longest comment."""
    text = PLAIN.replace(":FORWARD ACCEPT", ":FORWARD DROP") + f"-A FORWARD {STATE} ESTABLISHED,RELATED -j ACCEPT\n"
    text += f"-A FORWARD {STATE} NEW -j ACCEPT\n"
    rules = [_rule("x" * 63, side=side, addresses=["172.17.0.2/32"]) for side in ("Server", "Client", "Forward")]
    accepts = accepts_for(rules, "Both", _saved(text))
    assert len(accepts.chains) == 8
    assert max(len(chain.name) for chain in accepts.chains) <= 28
    assert max(len(comment) for chain in accepts.chains for _, comment in chain.rules) <= 128


UNTRACKED_DROPPED = PLAIN.replace("-A OUTPUT -o lo", f"-A OUTPUT {STATE} UNTRACKED -j DROP\n-A OUTPUT -o lo")
UNCLEAR = PLAIN.replace(
    f"-A OUTPUT {STATE} RELATED,ESTABLISHED", f"-A OUTPUT -m set --match-set x dst {STATE} RELATED,ESTABLISHED"
)
TOO_MANY = {"ports": list(range(1, 2001, 2)), "peers": [f"10.{net}.0.0/16" for net in range(1, 127, 2)]}


@pytest.mark.parametrize(
    ("firewall", "fields", "reason", "words"),
    [
        (_saved(PLAIN, owned=frozenset({("ip", "filter")})), {}, "OwnedTable", "lets nobody else put rules in"),
        (_saved(UNTRACKED_DROPPED), {}, "StatefulDrop", "UNTRACKED -j DROP"),
        (_saved(UNCLEAR), {}, "UnclearAccept", "--match-set"),
        (_saved(PLAIN), TOO_MANY, "TooManyRules", "name fewer ports"),
        (_strict(), {"side": "Forward", "protocol": "UDP"}, "UnboundedReplies", "name the servers in addresses"),
    ],
)
def test_what_cannot_be_placed_is_refused(
    firewall: Firewall, fields: dict[str, object], reason: str, words: str
) -> None:
    """With the reason, the place and a sentence that says what to do; nothing of it is written."""
    accepts = accepts_for([_rule(**fields)], "Both", firewall)
    refused = {each.reason: (each.place, each.sentence) for each in accepts.refused}
    assert set(refused) == {reason}
    place, sentence = refused[reason]
    assert place.split()[0] in {"nftables", "iptables-nft"}
    assert words in sentence
    assert not any(jump.target.endswith("REPLIES") and "OUT" in jump.target for jump in accepts.jumps)
