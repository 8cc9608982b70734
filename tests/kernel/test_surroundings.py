"""What is around on a node, read from real sockets, entries and files."""

import sys
from pathlib import Path

import pytest
from tests.lab.namespaces import Lab, Namespace
from tests.lab.programs import wait_until

from conntrack_operator.kernel.failsafe import read_failsafe
from conntrack_operator.kernel.roots import Roots
from conntrack_operator.kernel.surroundings import read_surroundings
from conntrack_operator.model.surroundings import FailsafePort, Service

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
        wait_until(lambda: read_surroundings(Roots()).other_entries >= 1, 5, "the pod's entry")
