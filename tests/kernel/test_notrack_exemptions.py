"""Connections that go out from a port which Server rules leave untracked: they work, the server stays untracked."""

import contextlib
import re
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from tests.lab.bypass import bypassed, installed, load, tcp, tracked
from tests.lab.namespaces import End, Lab, Namespace

from conntrack_operator.decide.notrack import TABLE, ruleset_for
from conntrack_operator.decide.notrack_exemptions import SHORT_SECONDS, Exemption
from conntrack_operator.kernel import nftables
from conntrack_operator.model.notrack import NotrackRule

FAMILIES = ("ipv4", "ipv6")
PORTS = "8000-16000"
SERVER = NotrackRule(name="web", ports=[PORTS])
HELD = 250
"""Connections that are open at the same time."""


@dataclass(frozen=True)
class Site:
    """pod - node - far: the node masquerades what the pod sends, and lets in nothing that is not known or served."""

    pod: Namespace
    node: Namespace
    far: Namespace
    node_end: End
    far_end: End


@pytest.fixture
def site(netns: Lab) -> Site:
    """Give the three, with rules that leave ports 8000-16000 untracked still missing."""
    way = netns.routed()
    way.router.nft(
        "table inet lab_nat { chain post { type nat hook postrouting priority srcnat;"
        f' oifname "{way.router_far.interface}" masquerade fully-random\n }}\n}}\n'
        "table inet lab_firewall { chain input { type filter hook input priority 1; policy drop;\n"
        '  iifname "lo" accept\n ct state established,related accept\n'
        "  icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept\n"
        f"  tcp dport {PORTS} ct state untracked accept\n }}\n"
        " chain forward { type filter hook forward priority 1; ct state invalid drop; }\n}\n"
    )
    # Every connection of the node's own gets a port that is served.
    way.router.sysctl("net.ipv4.ip_local_port_range", "8000 16000")
    way.router.sysctl("net.ipv4.ip_local_reserved_ports", "8080")
    return Site(way.client, way.router, way.server, way.router_far, way.server_end)


@contextlib.contextmanager
def _talking(source: Namespace, address: str, listener: socket.socket) -> Iterator[Callable[[], None]]:
    """Hold a connection from `source` to the far end; what is yielded says something each way."""
    near = source.connect(address, listener.getsockname()[1])
    far, _ = listener.accept()
    with near, far:
        far.settimeout(5)

        def exchange() -> None:
            near.sendall(b"question")
            assert far.recv(64) == b"question"
            far.sendall(b"answer")
            assert near.recv(64) == b"answer"

        exchange()
        yield exchange


def _learned(site: Site, family: str) -> list[str]:
    name = "exempt4" if family == "ipv4" else "exempt6"
    text = site.node.run("nft", "list", "set", "inet", TABLE, name).stdout
    return re.findall(r"(\S+ \. \d+ \. \d+) (?:timeout \S+ )?expires", text)


@pytest.mark.parametrize("family", FAMILIES)
def test_thousands_of_connections_go_out_from_served_ports(site: Site, family: str) -> None:
    """2,000 of the node's own and 2,000 of a masqueraded pod succeed; meanwhile the served port stays untracked."""
    load(site.node, SERVER)
    mine, address = getattr(site.node_end, family), getattr(site.far_end, family)
    learned: list[set[str]] = [set(), set()]
    with site.far.listen(address, 443) as listener:
        for source, seen in zip((site.node, site.pod), learned, strict=True):
            for _ in range(2000 // HELD):
                with contextlib.ExitStack() as held:
                    exchanges = [held.enter_context(_talking(source, address, listener)) for _ in range(HELD)]
                    with tcp(site.node, site.far, mine, 8080):
                        assert tracked(site.node, "dport=8080", "sport=8080") == []
                    for exchange in exchanges:
                        exchange()
                seen.update(_learned(site, family))  # at once: two minutes after their end they are forgotten
    # The node's own all go out from such ports, of the pod's the eighth part that 8,001 of 64,512 ports come to; some
    # have the same port as one before them.
    assert len(learned[0]) > 1000
    assert len(learned[1] - learned[0]) > 50
    assert set(bypassed(site.node)) == {("tcp/server", "requests"), ("tcp/server", "replies")}
    assert tracked(site.node, "dport=8080", "sport=8080") == []


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("source", ["node", "pod"])
def test_without_learning_they_fail(site: Site, family: str, source: str) -> None:
    """The same site with the chain that learns emptied: connections fail. So the tests here can."""
    load(site.node, SERVER)
    site.node.nft(f"flush chain inet {TABLE} learn")
    address = getattr(site.far_end, family)
    failed = 0
    with site.far.listen(address, 443) as listener:
        for _ in range(150):
            client = getattr(site, source).make_socket(socket.AF_INET6 if family == "ipv6" else socket.AF_INET)
            client.settimeout(0.3)
            with client:
                try:
                    client.connect((address, 443))
                    listener.accept()[0].close()
                except (TimeoutError, ConnectionError):
                    failed += 1
            if failed:
                return
    pytest.fail("every connection succeeded")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("source", ["node", "pod"])
def test_connections_that_were_there_before_go_on(site: Site, family: str, source: str) -> None:
    """Begun before the rules: they survive the trial's beginning, confirmation, a foreign flush, and its repair."""
    site.node.nft("flush chain inet lab_nat post")
    site.node.nft(f"add rule inet lab_nat post meta l4proto tcp masquerade to :{PORTS}")
    address = getattr(site.far_end, family)
    with site.far.listen(address, 443) as listener, contextlib.ExitStack() as held:
        namespace = getattr(site, source)
        exchanges = [held.enter_context(_talking(namespace, address, listener)) for _ in range(40)]
        with site.node.inside():
            nftables.begin_trial([], [SERVER], 600)
        assert len(_learned(site, family)) == 40
        for exchange in exchanges:
            exchange()
        with site.node.inside():
            nftables.confirm_trial([], [SERVER])
        for exchange in exchanges:
            exchange()
        site.node.nft(f"delete table inet {TABLE}")
        with site.node.inside():
            nftables.write_rules([SERVER])
        for exchange in exchanges:
            exchange()
        assert len(_learned(site, family)) == 40
        with site.node.inside():
            assert nftables.learn_existing([SERVER]) == 40
        assert len(_learned(site, family)) == 40
    assert installed(site.node) == ruleset_for([SERVER]).expected


def test_an_end_is_remembered_for_a_short_time_only(site: Site) -> None:
    """Data lengthens an exemption, FIN and RST cut it back; so those that come and go do not fill the set."""
    load(site.node, SERVER)
    with site.far.listen(site.far_end.ipv4, 443) as listener:
        for reset in (False, True):
            with _talking(site.node, site.far_end.ipv4, listener):
                assert _longest_life(site) > SHORT_SECONDS
                if reset:
                    site.node.nft(f"flush set inet {TABLE} exempt4")
        assert _longest_life(site) <= SHORT_SECONDS


def _longest_life(site: Site) -> int:
    text = site.node.run("nft", "list", "set", "inet", TABLE, "exempt4").stdout
    units = {"d": 86400, "h": 3600, "m": 60, "s": 1}
    lives = re.findall(r"expires ((?:\d+[dhm](?!s))*(?:\d+s)?)", text)
    return max((sum(int(n) * units[u] for n, u in re.findall(r"(\d+)([dhms])", life)) for life in lives), default=0)


def test_servers_answers_teach_nothing(site: Site) -> None:
    """A served connection sends SYN-ACK, data, FIN and RST from its port: none of them is taken for a beginning."""
    load(site.node, SERVER)
    for _ in range(3):
        with tcp(site.node, site.far, site.node_end.ipv4, 8080):
            pass
    with contextlib.suppress(ConnectionRefusedError):
        site.far.connect(site.node_end.ipv4, 8081).close()
    assert _learned(site, "ipv4") == []


def test_what_is_exempted_by_hand(site: Site) -> None:
    """Exemptions are written for both versions, again without an error, and never taken for a change of the table."""
    ruleset = load(site.node, SERVER)
    both = [Exemption("192.0.2.1", 443, 8000), Exemption("2001:db8::1", 443, 8000)]
    for _ in range(2):
        with site.node.inside():
            nftables.exempt(both)
    assert _learned(site, "ipv4") == ["192.0.2.1 . 443 . 8000"]
    assert _learned(site, "ipv6") == ["2001:db8::1 . 443 . 8000"]
    assert installed(site.node) == ruleset.expected
