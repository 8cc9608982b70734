"""Our table through the real nft: listed as asked for, foreign hands noticed, nothing left by removal."""

import itertools
import time
from collections.abc import Callable

import pytest
from tests.lab.bypass import installed, load
from tests.lab.namespaces import Lab, Namespace

from conntrack_operator.decide import notrack
from conntrack_operator.errors import Unsupported
from conntrack_operator.kernel import nftables
from conntrack_operator.model.notrack import NotrackRule

PORTS = [80, "8000-8100", 8101, 443, "1-3", 65535]
ADDRESSES = (None, ["192.0.2.0/24", "2001:db8::/32", "198.51.100.7"], ["0.0.0.0/0", "::/0"], ["192.0.2.1"])
PEERS = (None, ["10.0.0.0/8", "10.0.0.0/9", "11.0.0.0/8"])
INTERFACES = (None, ["eth0"], ["eth0", "a@b:1.x"])


def _shapes() -> list[NotrackRule]:
    shapes = itertools.product(("TCP", "UDP", "SCTP"), ("Server", "Client", "Forward"), ADDRESSES, PEERS, INTERFACES)
    return [
        NotrackRule(
            name=f"rule-{number}",
            protocol=protocol,
            side=side,
            ports=PORTS,
            addresses=addresses,
            peers=peers,
            interfaces=interfaces,
        )
        for number, (protocol, side, addresses, peers, interfaces) in enumerate(shapes)
        if side != "Client" or addresses is not None
    ]


@pytest.fixture
def node(netns: Lab) -> Namespace:
    """Give a namespace of its own."""
    return netns.namespace()


def _listing(node: Namespace) -> str:
    return node.run("nft", "list", "table", "inet", notrack.TABLE).stdout


def test_every_shape_of_rule_comes_back_as_expected(node: Namespace) -> None:
    """All protocols, sides, addresses, peers and interfaces: alone and all together, read back equal."""
    shapes = _shapes()
    assert len(shapes) == 198
    for rule in shapes:
        ruleset = load(node, rule)
        found = installed(node)
        assert found == ruleset.expected, rule
        assert ruleset.missing_from(found) == ()
    ruleset = load(node, *shapes)
    assert installed(node) == ruleset.expected
    assert ruleset.missing_from(installed(node)) == ()


def test_loading_twice_lists_the_same(node: Namespace) -> None:
    """The table is replaced, not added to."""
    rules = _shapes()[::7]
    load(node, *rules)
    once = _listing(node)
    load(node, *reversed(rules))
    assert _listing(node) == once


def test_loading_fewer_rules_leaves_nothing_of_the_others(node: Namespace) -> None:
    """What no policy asks for any more is gone in the same transaction."""
    load(node, *_shapes()[::7])
    ruleset = load(node, NotrackRule(name="web", ports=[80]))
    assert installed(node) == ruleset.expected


def test_removal_leaves_nothing_and_may_be_repeated(node: Namespace) -> None:
    """No table afterwards, and no error when there was none before."""
    node.nft("table inet somebody_elses { }")
    load(node, NotrackRule(name="web", ports=[80]))
    for _ in range(2):
        with node.inside():
            nftables.run_script(notrack.REMOVE)
        assert installed(node) is None
    assert notrack.ruleset_for([]).expected is None
    assert node.run("nft", "list", "tables").stdout.split() == ["table", "inet", "somebody_elses"]


FOREIGN = {
    "a port taken away": ("delete element inet {t} {s} {{ 80 }}", ("web",)),
    "a port added": ("add element inet {t} {s} {{ 81 }}", ()),
    "a port that expires": (
        "delete element inet {t} {s} {{ 80 }}; add element inet {t} {s} {{ 80 timeout 1h }}",
        ("web",),
    ),
    "a rule in front": ("insert rule inet {t} prerouting accept", ()),
    "a rule behind": ("add rule inet {t} output counter", ()),
    "our rules gone": ("flush chain inet {t} output", ("api", "db", "web")),
    "a chain": ("add chain inet {t} extra", ()),
    "a set": ("add set inet {t} extra {{ type mark; }}", ()),
    "a map": ("add map inet {t} extra {{ type mark : mark; }}", ()),
    "a counter": ("add counter inet {t} extra", ()),
    "switched off": ("add table inet {t} {{ flags dormant; }}", ("api", "db", "web")),
    "no table": ("delete table inet {t}", ("api", "db", "web")),
}


@pytest.mark.parametrize("what", FOREIGN)
def test_foreign_hands_are_noticed(node: Namespace, what: str) -> None:
    """Whatever somebody changes in our table makes it unequal, and names exactly the policy rules it breaks."""
    script, missing = FOREIGN[what]
    ruleset = load(
        node,
        NotrackRule(name="web", ports=[80]),
        NotrackRule(name="api", ports=["8000-8100"]),
        NotrackRule(name="db", ports=[5432], side="Client", addresses=["192.0.2.1"]),
    )
    assert installed(node) == ruleset.expected
    node.nft(script.format(t=notrack.TABLE, s="confirmed_tcp_server"))
    assert installed(node) != ruleset.expected
    assert tuple(sorted(ruleset.missing_from(installed(node)))) == missing
    with node.inside():
        nftables.run_script(ruleset.script())
    assert installed(node) == ruleset.expected


@pytest.mark.parametrize("own", [False, True], ids=["shared sets", "sets of their own"])
def test_the_largest_policy_loads(node: Namespace, own: bool, record_property: Callable[..., None]) -> None:
    """16 rules of 1,024 ports, none of which touch, load in one transaction well within nft's time limit."""
    addresses = ["192.0.2.0/24", "2001:db8::/32"] if own else None
    rules = [
        NotrackRule(name=f"rule-{at}", ports=list(range(1 + at * 2048, 1 + (at + 1) * 2048, 2)), addresses=addresses)
        for at in range(16)
    ]
    fastest = float("inf")
    for _ in range(3):  # the machine may do other things meanwhile: the fastest counts
        started = time.monotonic()
        ruleset = load(node, *rules)
        fastest = min(fastest, time.monotonic() - started)
        if fastest < nftables.TIMEOUT_SECONDS / 3:
            break
    record_property("seconds", round(fastest, 2))
    assert installed(node) == ruleset.expected
    assert ruleset.missing_from(installed(node)) == ()
    assert fastest < nftables.TIMEOUT_SECONDS / 3


def test_a_long_name_is_told_apart_in_the_comment(node: Namespace) -> None:
    """Names longer than a comment are shortened, keep apart, and their counters are found under `label_of`."""
    names = [f"{'p' * 253}.{'r' * 62}{end}" for end in "ab"]
    rules = [
        NotrackRule(name="x", ports=[80], addresses=["192.0.2.1"]).model_copy(update={"name": name}) for name in names
    ]
    ruleset = load(node, *rules)
    assert installed(node) == ruleset.expected
    with node.inside():
        labels = {row.label for row in nftables.read_bypassed()}
    assert labels == {notrack.label_of(name) for name in names}
    assert len(labels) == 2


def test_a_refused_script_changes_nothing(node: Namespace) -> None:
    """One bad line, and the table stays as it was; the error is one sentence."""
    ruleset = load(node, NotrackRule(name="web", ports=[80]))
    with node.inside(), pytest.raises(Unsupported) as caught:
        nftables.run_script(ruleset.script().replace("{ 80 }", "{ 81 }") + "add rule inet nowhere none accept\n")
    assert "\n" not in str(caught.value)
    assert installed(node) == ruleset.expected


def test_no_counters_without_a_table(node: Namespace) -> None:
    """Absence is a value."""
    with node.inside():
        assert nftables.read_table() is None
        assert nftables.read_bypassed() == ()
