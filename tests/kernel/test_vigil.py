"""Vigil and table handles on a real kernel: what others do to our settings is seen, and costs next to nothing."""

import statistics
import time

import pytest

from conntrack_operator.decide.rivals import likely_flusher
from conntrack_operator.kernel import nftables
from conntrack_operator.kernel.roots import Roots
from conntrack_operator.kernel.table_rivals import read_handles
from conntrack_operator.kernel.vigil import Vigil
from conntrack_operator.model.notrack import NotrackRule

ESTABLISHED = "net.netfilter.nf_conntrack_tcp_timeout_established"
RULE = NotrackRule.model_validate({"name": "web", "ports": [80]})
OURS = ("inet", "conntrack_operator")
OTHER = "table inet other {\n}\n"


@pytest.fixture
def node(netns):
    """Return a namespace with our table and somebody else's."""
    made = netns.namespace()
    made.nft(OTHER)
    with made.inside():
        nftables.write_rules([RULE])
    return made


@pytest.fixture
def vigil(node):
    """Return a vigil for which all is as it should be; surroundings were read at time 0."""
    made = Vigil(Roots())
    with node.inside():
        made.expect({ESTABLISHED: 432000}, table=True, mark=made.mark())
        assert made.moved(0.0).surroundings
    return made


def moved(node, vigil, now):
    """Ask in the namespace."""
    with node.inside():
        return vigil.moved(now)


def test_what_others_do_is_seen(node, vigil):
    """A timeout that is written, our table deleted, everything flushed: each at the first look after it."""
    assert not moved(node, vigil, 1.0)
    node.sysctl(ESTABLISHED, 77)
    assert moved(node, vigil, 2.0).sysctls == {ESTABLISHED}
    node.sysctl(ESTABLISHED, 432000)
    assert not moved(node, vigil, 3.0)
    node.nft("delete table inet conntrack_operator\n")
    assert moved(node, vigil, 4.0).table
    node.nft("flush ruleset\n")
    assert moved(node, vigil, 6.0).table


def test_switched_on_again(node, vigil):
    """While tracking is to be off, a rule that needs it is seen at the next look."""
    with node.inside():
        vigil.expect({}, table=False, mark=vigil.mark(), off=True)
    assert not moved(node, vigil, 3.0)
    node.track()
    assert moved(node, vigil, 6.0).tracking


WHAT_HAPPENED = {
    "an element more": ("add element inet conntrack_operator confirmed_tcp_server { 81 }\n", "rules or sets in it"),
    "deleted": ("delete table inet conntrack_operator\n", "it alone was deleted"),
    "flushed": ("flush ruleset\n", "the whole ruleset was flushed"),
    "reloaded": (f"flush ruleset\n{OTHER}", "the whole ruleset was flushed"),
}


@pytest.mark.parametrize(("script", "words"), WHAT_HAPPENED.values(), ids=WHAT_HAPPENED)
def test_what_happened_to_our_table(node, script, words):
    """Handles tell a table that stayed from one that was made again under its name."""
    with node.inside():
        before = read_handles()
        assert set(before) == {OURS, ("inet", "other")}
    node.nft(script)
    with node.inside():
        assert likely_flusher(before, read_handles(), OURS).startswith(words)


def test_a_look_is_cheap(node, vigil):
    """A look at one sysctl and the generation takes well under a hundredth of a second, on a busy machine too."""
    seconds = []
    for number in range(50):
        started = time.perf_counter()
        moved(node, vigil, 1.0 + number / 100)
        seconds.append(time.perf_counter() - started)
    print(f"\nVigil.moved: {statistics.median(seconds) * 1e6:.0f} us with entering the namespace")
    assert statistics.median(seconds) < 0.01
