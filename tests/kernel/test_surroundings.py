"""What is around on a node, read from real sockets, entries and files."""

import contextlib
import sys
from pathlib import Path

import pytest
from tests.lab.namespaces import Lab, Namespace
from tests.lab.programs import wait_until

from conntrack_operator.kernel import failsafe
from conntrack_operator.kernel.failsafe import read_failsafe
from conntrack_operator.kernel.firewall import read_firewall
from conntrack_operator.kernel.roots import Roots
from conntrack_operator.kernel.surroundings import read_surroundings
from conntrack_operator.model.surroundings import FailsafePort, PortRanges, Service

LISTEN = """
import socket, sys
made = socket.socket(); made.bind((sys.argv[1], int(sys.argv[2]))); made.listen(); print('ready', flush=True)
made.accept()
"""


@pytest.fixture
def node(netns: Lab) -> Namespace:
    """Give a namespace of its own."""
    return netns.namespace()


def listen_as(node: Namespace, folder: Path, name: str, address: str, port: int) -> None:
    """Have a program of this name listen."""
    program = folder / name
    program.symlink_to(Path(sys.executable).resolve())
    process = node.start(str(program), "-c", LISTEN, address, str(port))
    assert process.stdout
    assert process.stdout.readline() == "ready\n", process.communicate()


def test_ports_a_node_lives_by_are_found_by_program(node: Namespace, tmp_path: Path) -> None:
    """kubelet on a port of its own, sshd on another; what listens on loopback alone or is nobody's is left out."""
    listen_as(node, tmp_path, "kubelet", "0.0.0.0", 12345)
    listen_as(node, tmp_path, "sshd", "0.0.0.0", 2222)
    listen_as(node, tmp_path, "etcd", "127.0.0.1", 2379)
    listen_as(node, tmp_path, "shop", "0.0.0.0", 8080)
    with node.inside():
        found = read_failsafe(Roots(), ("10.0.0.1", 6443))
    assert {(each.port, each.side, each.what) for each in found if each.port not in (53, 443)} == {
        (12345, "Server", "kubelet"), (2222, "Server", "sshd"), (6443, "Client", "the API server"),
    }  # fmt: skip
    assert {(each.port, each.protocol) for each in found if each.port in (53, 443) and each.side == "Client"} == {
        (53, "TCP"), (53, "UDP"), (443, "TCP"),
    }  # fmt: skip


def test_ports_are_known_by_number_where_programs_are_out_of_sight(node: Namespace, tmp_path: Path) -> None:
    """With an empty /proc, as in a pod without the host's processes, a listener on kubelet's port is kubelet's."""
    with node.listen("0.0.0.0", 10250), node.listen("::", 179), node.listen("0.0.0.0", 8080), node.inside():
        found = read_failsafe(Roots(proc=tmp_path))
    assert FailsafePort(10250, "TCP", "Server", "kubelet") in found
    assert FailsafePort(179, "TCP", "Server", "BGP") in found
    assert FailsafePort(179, "TCP", "Client", "BGP") in found
    assert FailsafePort(6443, "TCP", "Client", "the API server") in found
    assert not [each for each in found if each.port == 8080]


@pytest.mark.parametrize("families", [("10.99.1.1", "10.99.1.2"), ("fd99:1::1", "fd99:1::2")])
def test_a_translated_entry_is_told_by_the_ports_of_both_its_ends(netns: Lab, families: tuple[str, str]) -> None:
    """A connection to port 80 redirected to 8080: this node serves both; its client sees none of it as served here."""
    server, client = netns.namespace(), netns.namespace()
    netns.link(server, client)
    server.nft("""table inet fw { chain pre {
        type nat hook prerouting priority -100
        tcp dport 80 redirect to :8080
        }
        chain out { type nat hook output priority -100; tcp dport 80 redirect to :8080; }
        }""")
    client.track()
    with server.listen(families[0], 8080), client.connect(families[0], 80):
        with server.inside():
            found = read_surroundings(Roots(), interest=((80, 80), (8080, 8080)))
            other = read_surroundings(Roots(), interest=((81, 81),))
            unasked = read_surroundings(Roots())
        with client.inside():
            untouched = read_surroundings(Roots(), interest=((80, 80),))
    assert set(found.translated) == {("TCP", 80), ("TCP", 8080)}
    assert "is answered by" in found.translated["TCP", 80]
    assert found.translated_elsewhere == {}
    for each in (other, unasked, untouched):
        assert each.translated == each.translated_elsewhere == {}


def test_what_a_router_masquerades_is_served_elsewhere(netns: Lab) -> None:
    """A forwarded connection to port 80 concerns Forward rules, not a server on this node."""
    lab = netns.routed()
    lab.router.nft("table ip fw { chain post { type nat hook postrouting priority 100; masquerade; }; }")
    with lab.server.listen(lab.server_end.ipv4, 80), lab.client.connect(lab.server_end.ipv4, 80), lab.router.inside():
        found = read_surroundings(Roots(), interest=((80, 80),))
    assert found.translated == {}
    assert set(found.translated_elsewhere) == {("TCP", 80)}


def test_the_rest_is_read_in_the_namespace_of_the_caller(node: Namespace) -> None:
    """Sysctls, kube-proxy's chains, the Services handed through, and a firewall that can be read."""
    node.sysctl("net.ipv4.ip_local_port_range", "20000 30000")
    node.sysctl("net.ipv4.tcp_keepalive_time", 600)
    service = Service(name="shop/web", kind="NodePort", protocol="TCP", port=30080)
    with node.inside():
        before = read_surroundings(Roots(), [service])
        node.nft("table ip kube-proxy { chain services { return; }; }")
        after = read_surroundings(Roots())
    assert before.local_port_range == (20000, 30000)
    assert before.keepalive_seconds == 600
    assert before.services == (service,)
    assert not before.kube_proxy
    assert after.kube_proxy
    assert before.firewall.problems == after.firewall.problems == ()


def test_entries_of_other_namespaces_are_counted(netns: Lab) -> None:
    """They take the same memory."""
    node, pod = netns.namespace(), netns.namespace()
    pod.track()
    with pod.listen("127.0.0.1") as listener, pod.connect("127.0.0.1", listener.getsockname()[1]), node.inside():
        wait_until(lambda: read_surroundings(Roots()).other_entries >= 1, 30, "the pod's entry")


def test_listeners_are_told_as_by_proc(node: Namespace) -> None:
    """What sock_diag tells is what /proc/net/tcp shows: both families, mapped addresses, nothing on loopback alone."""
    ends = [("0.0.0.0", 1000), ("::", 1001), ("127.0.0.1", 1002), ("::1", 1003), ("::ffff:127.0.0.1", 1004)]
    with contextlib.ExitStack() as listening, node.inside():
        for address, port in ends:
            listening.enter_context(node.listen(address, port))
        found = failsafe.read_listeners()
        assert [port for port, _ in sorted(found)] == [1000, 1001]
        assert sorted(found) == sorted(failsafe.listed())


@pytest.mark.parametrize(
    ("interest", "found"),
    [
        (None, {(12345, "Server"), (6443, "Client")}),
        (((12345, 12345),), {(12345, "Server")}),
        (((6000, 7000),), {(12345, "Server"), (6443, "Client")}),
        (((80, 80),), set()),
    ],
)
def test_ports_a_node_lives_by_among_those_of_interest(
    node: Namespace, tmp_path: Path, interest: PortRanges | None, found: set[tuple[int, str]]
) -> None:
    """A listener on another port is left out, but not what it tells of a port that is of interest."""
    listen_as(node, tmp_path, "kubelet", "0.0.0.0", 12345)
    with node.inside():
        told = {(each.port, each.side) for each in read_failsafe(Roots(), None, interest)}
    asked = interest or ((0, 65535),)
    assert {each for each in told if each[0] not in (53, 443) and any(a <= each[0] <= b for a, b in asked)} == {
        each for each in found if any(a <= each[0] <= b for a, b in asked)
    }
    if not found:
        assert {port for port, _ in told} == {53, 443}


def test_a_chain_of_type_nat_is_seen_whatever_it_holds(node: Namespace) -> None:
    """Rules of NAT for other ports, or none: live entries are looked at all the same."""
    with node.inside():
        before = read_firewall(((80, 80),)).nat
        node.nft("table ip fw { chain filters { type filter hook input priority 0; }; }")
        filtered = read_firewall(((80, 80),)).nat
        node.nft("table ip6 fw { chain post { type nat hook postrouting priority 100; }; }")
        after = read_firewall(((80, 80),)).nat
    assert (before, filtered, after) == (False, False, True)


def test_a_chain_of_iptables_legacy_is_seen_too(node: Namespace) -> None:
    """The table nat of iptables-legacy translates as well as any."""
    node.run("iptables-legacy", "-t", "nat", "-A", "PREROUTING", "-p", "tcp", "--dport", "81", "-j", "REDIRECT")
    with node.inside():
        assert read_firewall(((80, 80),)).nat


def test_nothing_is_translated_where_no_chain_is_left(netns: Lab) -> None:
    """With the last chain of type nat the kernel stops to translate entries too, so that they need not be read."""
    server, client = netns.namespace(), netns.namespace()
    netns.link(server, client)
    server.track()
    server.nft("""table inet fw { chain pre {
        type nat hook prerouting priority -100
        tcp dport 80 redirect to :8080
        }
        }""")
    with server.listen("10.99.1.1", 8080), client.connect("10.99.1.1", 80) as connection:
        with server.inside():
            assert set(read_surroundings(Roots(), interest=((80, 80),)).translated) == {("TCP", 80)}
        server.run("nft", "delete", "table", "inet", "fw")
        with server.inside():
            assert read_surroundings(Roots(), interest=((80, 80),)).translated == {}
        connection.settimeout(5)
        # Untranslated it comes to port 80, where nobody listens.
        connection.send(b"x")
        with pytest.raises(ConnectionResetError):
            connection.recv(1)


def test_other_namespaces_are_left_alone_unless_asked_for(netns: Lab) -> None:
    """Going through a node's pods takes long, and only a size needs it."""
    node, pod = netns.namespace(), netns.namespace()
    pod.track()
    with pod.listen("127.0.0.1") as listener, pod.connect("127.0.0.1", listener.getsockname()[1]), node.inside():
        wait_until(lambda: read_surroundings(Roots()).other_entries >= 1, 30, "the pod's entry")
        assert read_surroundings(Roots(), others=False).other_entries == 0
