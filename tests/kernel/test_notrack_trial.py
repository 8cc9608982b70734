"""A trial in the real kernel ends by itself, is confirmed or not at all, and never touches what is confirmed."""

import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from tests.lab.bypass import bypassed, installed, load, tcp, tracked, udp
from tests.lab.namespaces import End, Lab, Namespace

from conntrack_operator.decide.notrack import TABLE, ruleset_for
from conntrack_operator.errors import Refused
from conntrack_operator.kernel import nftables
from conntrack_operator.model.notrack import NotrackRule

FAMILIES = ("ipv4", "ipv6")
LONG_SECONDS = 600
SHORT_SECONDS = (1.5, 6.0, 24.0, 96.0)
"""How long a trial is whose end is waited for: the first one that what must happen in it fits into on this machine."""


def _rule(name: str = "web", **fields: object) -> NotrackRule:
    return NotrackRule.model_validate({"name": name, "ports": ["8000-8100"], **fields})


@dataclass(frozen=True)
class Pair:
    """A node that tracks, and somebody else on a link to it."""

    node: Namespace
    other: Namespace
    node_end: End
    other_end: End


@pytest.fixture
def pair(netns: Lab) -> Pair:
    """Give two linked namespaces; the node has tracking switched on by a `ct state` rule."""
    node, other = netns.namespace(), netns.namespace()
    ends = netns.link(node, other)
    node.track()
    return Pair(node, other, *ends)


@pytest.fixture
def node(netns: Lab) -> Namespace:
    """Give a namespace of its own."""
    return netns.namespace()


def _begin(
    node: Namespace, confirmed: list[NotrackRule], wanted: list[NotrackRule], seconds: float = LONG_SECONDS
) -> None:
    with node.inside():
        nftables.begin_trial(confirmed, wanted, seconds)


def _confirm(node: Namespace, confirmed: list[NotrackRule], wanted: list[NotrackRule]) -> None:
    with node.inside():
        nftables.confirm_trial(confirmed, wanted)


def _write(node: Namespace, rules: list[NotrackRule]) -> None:
    with node.inside():
        nftables.write_rules(rules)


def _generation(node: Namespace) -> int:
    with node.inside():
        return nftables.generation()


def _listing(node: Namespace) -> str:
    return node.run("nft", "-a", "list", "table", "inet", TABLE).stdout


RULES = {
    "nothing": [],
    "web": [_rule()],
    "wider": [_rule(ports=["7990-8200"])],
    "narrower": [_rule(ports=["8010-8020", 8090])],
    "web and dns": [_rule(), _rule("dns", protocol="UDP", ports=[53])],
    "web by address": [_rule(addresses=["192.0.2.0/24", "2001:db8::/32"])],
    "web by peer and interface": [_rule(peers=["10.0.0.0/8"], interfaces=["eth0", "lo"])],
    "every side": [
        _rule("server", ports=[8000, 9000]),
        _rule("client", side="Client", addresses=["192.0.2.1", "2001:db8::1"]),
        _rule("router", side="Forward", interfaces=["eth0", "eth1"]),
        _rule("sctp", protocol="SCTP", side="Forward"),
    ],
}


@pytest.mark.parametrize(("before", "after"), list(itertools.permutations(RULES, 2)))
def test_from_any_rules_to_any_other(node: Namespace, before: str, after: str) -> None:
    """Written, tried, undone, tried again and confirmed: the kernel shows what was asked for at every step."""
    confirmed, wanted = RULES[before], RULES[after]
    _write(node, confirmed)
    lasting = ruleset_for(confirmed).expected
    assert installed(node) == lasting
    during = ruleset_for(confirmed, wanted)
    _begin(node, confirmed, wanted)
    assert installed(node) == during.expected
    assert during.missing_from(installed(node)) == ()
    _write(node, confirmed)
    assert installed(node) == lasting
    for _ in range(2):  # the second takes the place of the first
        _begin(node, confirmed, wanted)
        assert installed(node) == during.expected
    _confirm(node, confirmed, wanted)
    assert installed(node) == ruleset_for(wanted).expected
    assert ruleset_for(wanted).missing_from(installed(node)) == ()


def test_the_largest_policy_is_tried_and_changed(node: Namespace, record_property: Callable[..., None]) -> None:
    """16 rules of 1,024 ports, none of which touch: tried, confirmed and exchanged for their neighbours in time."""
    rules = [
        [
            _rule(f"rule-{at}", ports=list(range(1 + shift + at * 2048, 1 + shift + (at + 1) * 2048, 2)))
            for at in range(16)
        ]
        for shift in (0, 1)
    ]
    seconds = []
    for confirmed, wanted in (([], rules[0]), rules):
        for call in (_begin, _confirm):
            started = time.monotonic()
            call(node, confirmed, wanted)
            seconds.append(round(time.monotonic() - started, 1))
        assert installed(node) == ruleset_for(wanted).expected
    record_property("seconds", seconds)
    assert max(seconds) < nftables.TIMEOUT_SECONDS


def test_nothing_differs_nothing_is_written(node: Namespace) -> None:
    """The kernel's generation stands still, for lasting rules, for a trial of nothing new, and for no rules at all."""
    _write(node, [])
    for rules in (RULES["every side"], []):
        _write(node, rules)
        before = _generation(node)
        _write(node, rules)
        _begin(node, rules, list(reversed(rules)))
        _confirm(node, rules, list(reversed(rules)))
        assert _generation(node) == before
    node.nft("table inet somebody_elses { }")
    assert _generation(node) > before


@pytest.mark.parametrize("family", FAMILIES)
def test_a_trial_ends_by_itself(pair: Pair, family: str) -> None:
    """With nobody alive to end it, the port is tracked again and errors about it are RELATED again; confirmed stays."""
    address = getattr(pair.node_end, family)
    confirmed = [_rule("dns", protocol="UDP", ports=[53])]
    wanted = [*confirmed, _rule("udp", protocol="UDP"), _rule(), _rule("own", ports=[9000], interfaces=["veth1a"])]
    pair.node.nft(
        "table inet lab_related { chain out { type filter hook output priority 1; ct state related counter; }\n}"
    )
    for kind in ("net.ipv4.icmp_ratelimit", "net.ipv6.icmp.ratelimit"):
        pair.node.sysctl(kind, 0)
    _write(pair.node, confirmed)
    for seconds in SHORT_SECONDS:
        errors, related = _errors(pair.node), _related(pair.node)
        pair.node.run("conntrack", "-F")
        began = time.monotonic()
        _begin(pair.node, confirmed, wanted, seconds)
        begun = time.monotonic()
        entries = []
        for port in (8050, 9000):
            with tcp(pair.node, pair.other, address, port):
                entries += tracked(pair.node, f"dport={port}")
        _ask_a_closed_port(pair, address, 8060)
        counted = _errors(pair.node) - errors, _related(pair.node) - related
        if time.monotonic() - began < seconds:
            break
    else:
        pytest.fail("this machine is too slow for any trial")
    assert (entries, counted) == ([], (1, 0))

    time.sleep(max(0.0, begun + seconds + 0.5 - time.monotonic()))
    errors, related = _errors(pair.node), _related(pair.node)
    for port in (8050, 9000):
        with tcp(pair.node, pair.other, address, port):
            assert len(tracked(pair.node, f"dport={port}")) == 1
    _ask_a_closed_port(pair, address, 8060)
    assert (_errors(pair.node), _related(pair.node)) == (errors, related + 1)
    with udp(pair.node, pair.other, address, 53):
        assert tracked(pair.node, "dport=53") == []
    _write(pair.node, confirmed)
    assert installed(pair.node) == ruleset_for(confirmed).expected


def _ask_a_closed_port(pair: Pair, address: str, port: int) -> None:
    with pair.other.connect_udp(address, port) as near, contextlib.suppress(ConnectionRefusedError, TimeoutError):
        near.settimeout(1)
        near.send(b"question")
        near.recv(64)


def _errors(node: Namespace) -> int:
    return bypassed(node).get(("udp/server", "errors"), 0)


def _related(node: Namespace) -> int:
    words = node.run("nft", "list", "table", "inet", "lab_related").stdout.split()
    return int(words[words.index("packets") + 1])


@pytest.mark.parametrize(("before", "after"), [("web", "wider"), ("web", "narrower"), ("nothing", "web")])
def test_too_late_to_confirm(node: Namespace, before: str, after: str) -> None:
    """The kernel let the trial go: confirmation is refused by reason, and not a handle of the table differs."""
    confirmed, wanted = RULES[before], RULES[after]
    _write(node, confirmed)
    _begin(node, confirmed, wanted, 0.2)
    time.sleep(0.7)
    listing = _listing(node)
    with pytest.raises(Refused, match="ended before it was confirmed") as caught:
        _confirm(node, confirmed, wanted)
    assert caught.value.reason == "TrialExpired"
    assert _listing(node) == listing
    _write(node, [])
    with pytest.raises(Refused) as caught:
        _confirm(node, confirmed, wanted)
    assert caught.value.reason == "TrialExpired"


def test_confirmed_after_its_time_was_short_it_lasts(pair: Pair) -> None:
    """What was confirmed in time has no timeout any more."""
    wanted = [_rule()]
    for seconds in SHORT_SECONDS:
        _begin(pair.node, [], wanted, seconds)
        begun = time.monotonic()
        with contextlib.suppress(Refused):  # this machine was busy: the trial is over
            _confirm(pair.node, [], wanted)
            break
    else:
        pytest.fail("this machine is too slow for any trial")
    time.sleep(max(0.0, begun + seconds + 0.5 - time.monotonic()))
    assert installed(pair.node) == ruleset_for(wanted).expected
    with tcp(pair.node, pair.other, pair.node_end.ipv4, 8050):
        assert tracked(pair.node, "dport=8050") == []


@contextlib.contextmanager
def _hammering(pair: Pair, ports: range) -> Iterator[list[int]]:
    """Send to every port in turn, without pause; yield where the number of packets stands at the end of each round."""
    stop = threading.Event()
    sent = [0]
    with pair.other.connect_udp(pair.node_end.ipv4, 9) as sender:
        targets = [(pair.node_end.ipv4, port) for port in ports]

        def hammer() -> None:
            while not stop.is_set():
                for target in targets:
                    with contextlib.suppress(OSError):  # the node refuses: nobody listens
                        sender.sendto(b"x", target)
                sent[0] += len(targets)

        thread = threading.Thread(target=hammer)
        thread.start()
        try:
            yield sent
        finally:
            stop.set()
            thread.join()


WATCH = """table inet lab_watch {
  chain in { type filter hook input priority 0; udp dport 8000-8099 jump seen; }
  chain seen { ct state untracked counter accept
    counter
  }
}
"""


def _watched(node: Namespace) -> tuple[int, int]:
    """Return how many packets to the confirmed ports came in untracked and tracked."""
    words = node.run("nft", "list", "chain", "inet", "lab_watch", "seen").stdout.split()
    untracked, other = (int(words[at + 1]) for at, word in enumerate(words) if word == "packets")
    return untracked, other


CHANGES = {
    "wider": ["7000-9000"],
    "wider by one": ["7999-8100"],
    "wider in the midst": ["8000-8099", 8200],
    "other": ["8000-8099", "8101-9000"],
    "very many": ["8000-8099", *range(9001, 9201, 2)],  # so many that they are not deleted one by one
}


@pytest.mark.parametrize("end", ["undone", "expired", "confirmed"])
def test_a_confirmed_range_never_flickers(pair: Pair, end: str) -> None:
    """While trials widen and narrow the range and fail, or succeed, not one packet to it is tracked."""
    rules = {what: [_rule(protocol="UDP", ports=ports)] for what, ports in CHANGES.items()}
    confirmed = [_rule(protocol="UDP", ports=["8000-8150"])]
    narrow = [_rule(protocol="UDP", ports=["8000-8099"])]
    pair.node.nft(WATCH)
    _write(pair.node, confirmed)
    rounds = 1 if end == "expired" else 12
    with _hammering(pair, range(8000, 8100)) as sent:
        for wanted in [*rules.values(), narrow] * rounds:
            _begin(pair.node, confirmed, wanted, 0.5 if end == "expired" else LONG_SECONDS)
            if end == "confirmed":
                _confirm(pair.node, confirmed, wanted)
                confirmed = wanted
            elif end == "undone":
                _write(pair.node, confirmed)
            else:
                time.sleep(0.8)
        deadline = time.monotonic() + 60
        while sent[0] < 1000 and time.monotonic() < deadline:
            time.sleep(0.05)
        untracked, other = _watched(pair.node)
        assert untracked >= 500
        assert other == 0
        _write(pair.node, [])
        before, deadline = sent[0], time.monotonic() + 60
        while sent[0] <= before + 200 and time.monotonic() < deadline:
            time.sleep(0.05)
    assert _watched(pair.node)[1] > 0, "the counter cannot see a gap"


def test_an_edit_keeps_counters_and_what_was_learned(pair: Pair) -> None:
    """Ports come and go beside a rule that goes on counting, and exemptions outlive it."""
    _write(pair.node, [_rule()])
    with tcp(pair.node, pair.other, pair.node_end.ipv4, 8050):
        pass
    pair.node.nft(f"add element inet {TABLE} exempt4 {{ 192.0.2.1 . 443 . 8000 timeout 1h }}")
    counted = bypassed(pair.node)
    assert counted
    wanted = [_rule(ports=["8000-8300"]), _rule("dns", protocol="UDP", ports=[53]), _rule("own", interfaces=["eth0"])]
    _begin(pair.node, [_rule()], wanted)
    _confirm(pair.node, [_rule()], wanted)
    _write(pair.node, [_rule(ports=[8050])])
    assert bypassed(pair.node) == counted
    assert "192.0.2.1 . 443 . 8000" in _listing(pair.node)


FOREIGN = (
    "delete element inet {t} confirmed_tcp_server {{ 8000-8100 }}",
    "add element inet {t} confirmed_tcp_server {{ 81 }}",
    "add element inet {t} confirmed_tcp_server {{ 9000-9010 timeout 1h }}",
    (
        "delete element inet {t} confirmed_tcp_server {{ 8000-8100 }};"
        "add element inet {t} confirmed_tcp_server {{ 8000-8100 timeout 1h }}"
    ),
    "add element inet {t} rule_db_{d}_addresses4 {{ 192.0.2.7 }}",
    "insert rule inet {t} prerouting accept",
    "add rule inet {t} output counter",
    "flush chain inet {t} output",
    "flush table inet {t}",
    "add chain inet {t} extra; add rule inet {t} prerouting jump extra; add rule inet {t} extra accept",
    "add chain inet {t} extra {{ type filter hook input priority 0; policy drop; }}",
    "add set inet {t} extra {{ type mark; }}; add rule inet {t} learn meta mark @extra accept",
    "add map inet {t} extra {{ type mark : mark; }}",
    "add counter inet {t} extra",
    "add table inet {t} {{ flags dormant; }}",
    "delete table inet {t}",
    (
        "delete table inet {t}; add table inet {t}; add set inet {t} exempt4 {{ type mark; }};"
        "add chain inet {t} prerouting {{ type filter hook input priority 0; }}"
    ),
)


@pytest.mark.parametrize("script", FOREIGN)
def test_whatever_somebody_did_is_put_right(node: Namespace, script: str) -> None:
    """One call brings our table back, whatever was done to it; also when it was done during a trial."""
    rules = [_rule(), _rule("db", side="Client", ports=[5432], addresses=["192.0.2.1"])]
    ruleset = load(node, *rules)
    own = next(name for name in ruleset.expected.sets if name.startswith("rule_db_"))
    script = script.format(t=TABLE, d=own.split("_")[2])
    node.nft(script)
    assert installed(node) != ruleset.expected
    _write(node, rules)
    assert installed(node) == ruleset.expected
    _begin(node, rules, [*rules, _rule("more", ports=[1, 2])])
    node.nft(script)
    _begin(node, rules, [*rules, _rule("more", ports=[1, 2])])
    node.nft(script)
    _write(node, rules)
    assert installed(node) == ruleset.expected


def test_confirmation_repairs_too(node: Namespace) -> None:
    """Somebody's hands in the table during a trial do not keep it from being confirmed."""
    confirmed, wanted = RULES["web"], RULES["every side"]
    for script in (
        "insert rule inet {t} prerouting accept",
        "add counter inet {t} extra",
        "flush chain inet {t} learn",
    ):
        _write(node, confirmed)
        _begin(node, confirmed, wanted)
        node.nft(script.format(t=TABLE))
        _confirm(node, confirmed, wanted)
        assert installed(node) == ruleset_for(wanted).expected


def test_the_kernel_can_end_trials_and_the_proof_leaves_nothing(node: Namespace) -> None:
    """The self-test passes here, twice, also over what a killed one left, and no table is left."""
    node.nft(f"table inet {nftables.SCRATCH_TABLE} {{ chain x {{ }}\n }}")
    with node.inside():
        nftables.self_test()
        nftables.self_test()
    assert node.run("nft", "list", "tables").stdout == ""
