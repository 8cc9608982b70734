"""Flows outlive NOTRACK rules coming and going, behind a firewall that wants every connection from its first packet."""

import contextlib
import re
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pytest
from tests.lab.bypass import connected, load, tracked
from tests.lab.namespaces import End, Lab, Namespace
from tests.lab.pacing import Paced

from conntrack_operator.decide.flow_matching import forward_withdrawal_problem
from conntrack_operator.decide.notrack import REMOVE, TABLE, ruleset_for
from conntrack_operator.kernel.flow_editing import drop_stale, make_liberal, seed
from conntrack_operator.model.notrack import NotrackRule

WEB = NotrackRule(name="web", ports=[8080])

FIREWALL = """
table inet lab_firewall {
  chain strict {
    meta l4proto != tcp accept
    ct state invalid counter drop
    tcp flags & (fin | syn | rst | ack) != syn ct state new counter drop
    ct state established,related accept
    ct state untracked tcp dport 8080 accept
    ct state untracked tcp sport 8080 accept
    tcp dport 8080 ct state new accept
    counter drop
  }
  chain input { type filter hook input priority filter; policy drop; iifname "lo" accept; jump strict; }
  chain output { type filter hook output priority filter; policy drop; oifname "lo" accept; jump strict; }
  chain forward { type filter hook forward priority filter; policy drop; jump strict; }
}
table inet lab_resets {
  chain in { type filter hook prerouting priority -310; tcp flags & rst == rst counter; }
  chain out { type filter hook postrouting priority 300; tcp flags & rst == rst counter; }
}
"""


def put_on_trial(namespace: Namespace, rules: Sequence[NotrackRule], seconds: float) -> None:
    """Load the rules so that the kernel itself takes them away again, unless `expire` does before."""
    script = ruleset_for(rules).script()
    for rule in rules:
        for port in rule.ports or ():
            assert f"elements = {{ {port} }}" in script
            script = script.replace(
                f"elements = {{ {port} }}", f"elements = {{ {port} timeout {int(seconds * 1000)}ms }}"
            )
    namespace.nft(script)


def expire(namespace: Namespace, rules: Sequence[NotrackRule]) -> None:
    """Take the elements of rules on trial away, as the kernel does at their end: no packet meets them any more."""
    for name, ports in re.findall(r"set (\w+) \{[^{}]*elements = \{ (\d+) \}", ruleset_for(rules).script()):
        namespace.run("nft", "delete", "element", "inet", TABLE, name, "{", ports, "}")


def counters(namespace: Namespace, table: str) -> list[int]:
    """Return the packets of every counter of a table, in order."""
    words = namespace.run("nft", "list", "table", "inet", table).stdout.split()
    return [int(words[at + 1]) for at, word in enumerate(words) if word == "packets"]


@dataclass(frozen=True)
class Pair:
    """A node behind its own firewall, and somebody on a link to it."""

    node: Namespace
    other: Namespace
    node_end: End
    other_end: End


@pytest.fixture
def pair(netns: Lab) -> Pair:
    """Give two linked namespaces; the node has the strict firewall."""
    node, other = netns.namespace(), netns.namespace()
    node_end, other_end = netns.link(node, other)
    node.nft(FIREWALL)
    return Pair(node, other, node_end, other_end)


@contextlib.contextmanager
def downloading(server: Namespace, client: Namespace, address: str) -> Iterator[Paced]:
    """Hold a connection over which 3 MB/s go down from the server."""
    with connected(server, client, address, 8080) as (near, far), Paced(far, near) as transfer:
        yield transfer


@contextlib.contextmanager
def flowing(listener: socket.socket, client: Namespace, *, down: bool) -> Iterator[Paced]:
    """Hold a connection over which 3 MB/s go, down from the server or up to it."""
    address, port = listener.getsockname()[:2]
    with client.connect(address, port) as near, listener.accept()[0] as far:
        ends = (far, near) if down else (near, far)
        with Paced(*ends) as transfer:
            yield transfer


@pytest.mark.parametrize(("tcp_loose", "family"), [(0, "ipv4"), (1, "ipv4"), (0, "ipv6")])
def test_transfers_go_on_through_trial_expiry_confirmation_and_withdrawal(
    pair: Pair, tcp_loose: int, family: str
) -> None:
    """3 MB/s each, born tracked, in the trial, under confirmed rules: no packet dropped, no reset, no stall."""
    node, address = pair.node, getattr(pair.node_end, family)
    node.sysctl("net.netfilter.nf_conntrack_tcp_loose", tcp_loose)
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(node.listen(address, 8080))
        flows: dict[str, Paced] = {}

        def begin(name: str, *, down: bool) -> None:
            flows[name] = stack.enter_context(flowing(listener, pair.other, down=down))

        def check(phase: str, seconds: float = 0.7) -> None:
            time.sleep(seconds)
            assert {name: flow.keeps_up() for name, flow in flows.items()} == dict.fromkeys(flows, True), phase
            assert counters(node, "lab_firewall") == [0, 0, 0], phase
            assert counters(node, "lab_resets") == [0, 0], phase

        begin("born tracked", down=True)
        check("before")
        with node.inside():
            assert make_liberal([WEB]) == 1
        # Longer than any pause before the connections are seeded.
        put_on_trial(node, [WEB], seconds=300)
        begin("born in the trial", down=False)
        check("trial")
        with node.inside():
            assert seed([WEB], at_most_seconds=300) == 2
        expire(node, [WEB])
        check("expiry")
        assert len(tracked(node, "dport=8080", "[ASSURED]")) == 2

        with node.inside():
            assert make_liberal([WEB]) == 2
        load(node, WEB)
        begin("born under confirmed rules", down=True)
        check("confirmation")
        with node.inside():
            assert drop_stale([WEB]) == 2
        check("stale entries gone")
        assert tracked(node, "dport=8080") == []
        with node.inside():
            assert seed([WEB]) == 3
        node.nft(REMOVE)
        check("withdrawal")
        assert len(tracked(node, "dport=8080", "[ASSURED]")) == 3


@pytest.mark.parametrize("left_out", ["make_liberal", "seed"])
def test_without_the_preparation_the_transfer_stops(pair: Pair, left_out: str) -> None:
    """What the test above would see: a stale window after the expiry, and no entry after the withdrawal."""
    node = pair.node
    node.sysctl("net.netfilter.nf_conntrack_tcp_loose", 0)
    born_tracked = left_out == "make_liberal"
    if not born_tracked:
        load(node, WEB)
    with downloading(node, pair.other, pair.node_end.ipv4) as flow:
        assert flow.keeps_up()
        if born_tracked:
            put_on_trial(node, [WEB], seconds=1.5)
            time.sleep(1.5)
        else:
            node.nft(REMOVE)
        assert not flow.keeps_up(1.5)
        assert sum(counters(node, "lab_firewall")) > 0


@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
def test_a_clients_transfers_go_on_too(pair: Pair, family: str) -> None:
    """The node connects out: born tracked and born untracked live through confirmation and withdrawal."""
    node, address = pair.node, getattr(pair.other_end, family)
    node.sysctl("net.netfilter.nf_conntrack_tcp_loose", 0)
    rule = NotrackRule(name="out", side="Client", ports=[8080], addresses=[address])
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(pair.other.listen(address, 8080))
        flows = [stack.enter_context(flowing(listener, node, down=True))]

        def check(phase: str) -> None:
            time.sleep(0.7)
            assert all(flow.keeps_up() for flow in flows), phase
            assert (sum(counters(node, "lab_firewall")), sum(counters(node, "lab_resets"))) == (0, 0), phase

        check("before")
        with node.inside():
            assert make_liberal([rule]) == 1
        load(node, rule)
        flows.append(stack.enter_context(flowing(listener, node, down=False)))
        check("confirmation")
        with node.inside():
            assert drop_stale([rule]) == 1
            assert seed([rule]) == 2
        node.nft(REMOVE)
        check("withdrawal")


FORWARDED = NotrackRule(name="routed", side="Forward", ports=[8080])


def test_a_routed_transfer_goes_on_when_a_trial_expires(netns: Lab) -> None:
    """No socket here, but an entry: liberal, it takes the flow up again where it is."""
    way = netns.routed()
    way.router.nft(FIREWALL)
    way.router.sysctl("net.netfilter.nf_conntrack_tcp_loose", 0)
    with downloading(way.server, way.client, way.server_end.ipv4) as flow:
        assert flow.keeps_up()
        with way.router.inside():
            assert make_liberal([FORWARDED]) == 1
        put_on_trial(way.router, [FORWARDED], seconds=1.5)
        time.sleep(2.5)
        assert flow.keeps_up()
        assert counters(way.router, "lab_firewall") == [0, 0, 0]


@pytest.mark.parametrize("tcp_loose", [0, 1])
def test_a_routed_transfer_born_untracked_needs_loose(netns: Lab, tcp_loose: int) -> None:
    """What `forward_withdrawal_problem` says is what happens: behind `ct state invalid drop` it ends, or goes on."""
    way = netns.routed()
    way.router.nft(
        "table inet lab_firewall { chain forward { type filter hook forward priority filter;"
        " ct state invalid counter drop; }\n}"
    )
    way.router.sysctl("net.netfilter.nf_conntrack_tcp_loose", tcp_loose)
    load(way.router, FORWARDED)
    with downloading(way.server, way.client, way.server_end.ipv4) as flow:
        assert flow.keeps_up()
        way.router.nft(REMOVE)
        time.sleep(0.3)
        breaks = forward_withdrawal_problem([FORWARDED], tcp_loose=bool(tcp_loose)) is not None
        assert flow.keeps_up(1.5 if breaks else 30) is not breaks
