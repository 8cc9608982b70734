"""Probes: what people may name, what the routing tables say, and that a round never takes longer than it may."""

import socket
import struct
import threading

import pytest

from conntrack_operator.agent import probes
from conntrack_operator.agent.probes import Probe, asked_for, cluster_probes, gateway_probes, passing, tcp_probe
from conntrack_operator.kernel.roots import Roots


def test_a_round_takes_no_longer_than_it_may():
    """What hangs has failed; what raises has failed; the others are not held up."""
    over = threading.Event()
    asked = [
        Probe("good", lambda _: True),
        Probe("bad", lambda _: False),
        Probe("refused", lambda _: (_ for _ in ()).throw(ConnectionRefusedError())),
        Probe("hangs", lambda _: over.wait()),  # for longer than anybody would wait
    ]
    # On a machine that does something else for so long the good one is late, too.
    passed = next((found for seconds in (0.5, 2, 8, 32) if (found := passing(asked, seconds))), None)
    over.set()
    assert passed == {"good"}


@pytest.mark.parametrize("text", ["192.0.2.1:443", "[2001:db8::1]:443", "host.example:1", "[fe80::1%eth0]:22"])
def test_what_may_be_named(text):
    """A probe goes by the name it was given."""
    assert asked_for(text).name == text


@pytest.mark.parametrize(
    "text", ["", ":443", "host", "host:", "host:0", "host:65536", "host:x", "2001:x::1:443", "h:٣"]
)
def test_what_is_no_host_and_port(text):
    """Everything else is refused."""
    with pytest.raises(ValueError):  # noqa: PT011 - the caller has the sentence
        asked_for(text)


def test_tcp():
    """A listener passes; a closed port does not."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert passing([tcp_probe("x", "127.0.0.1", listener.getsockname()[1])], 60) == {"x"}
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # so that nobody else listens there
        assert passing([tcp_probe("x", "127.0.0.1", closed.getsockname()[1])], 60) == frozenset()


def test_name_server(tmp_path):
    """Any answer with the query's number passes, a refusal too; silence does not."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        server.settimeout(60)

        def serve():
            query, sender = server.recvfrom(512)
            assert query[2:12] == struct.pack("!5H", 0x0100, 1, 0, 0, 0)
            server.sendto(query[:2] + b"\x81\x05" + query[4:], sender)

        threading.Thread(target=serve, daemon=True).start()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
            asking.connect(server.getsockname())
        real = socket.getaddrinfo
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                probes.socket, "getaddrinfo", lambda host, _port, **o: real(host, server.getsockname()[1], **o)
            )
            assert probes._answers_queries("127.0.0.1", 60)
            assert not probes._answers_queries("127.0.0.1", 0.2)
    (tmp_path / "resolv.conf").write_text("# x\nsearch example\nnameserver 192.0.2.53\nnameserver 192.0.2.54\n")
    assert [probe.name for probe in probes.name_server_probe(Roots(etc=tmp_path))] == ["DNS 192.0.2.53"]
    assert list(probes.name_server_probe(Roots(etc=tmp_path / "nowhere"))) == []


ROUTES4 = """Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
eth0\t0010A8C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0
eth0\t00000000\t0110A8C0\t0003\t0\t0\t0\t00000000\t0\t0\t0
"""
ROUTES6 = (
    f"{'0' * 32} 00 {'0' * 32} 00 fe800000000000000000000000000001 00000400 00000001 00000000 00000003 eth0\n"
    f"{'0' * 32} 00 {'0' * 32} 00 {'0' * 32} ffffffff 00000001 00000000 00200200 lo\n"
)


def test_gateways(tmp_path, monkeypatch):
    """The default route's next hop of either version, link-local ones with their interface."""
    (tmp_path / "route").write_text(ROUTES4)
    (tmp_path / "ipv6_route").write_text(ROUTES6)
    monkeypatch.setattr(probes, "_ROUTES", tmp_path)
    assert [probe.name for probe in gateway_probes()] == [
        "default gateway 192.168.16.1",
        "default gateway fe80::1%eth0",
    ]
    monkeypatch.setattr(probes, "_ROUTES", tmp_path / "nowhere")
    assert list(gateway_probes()) == []


def test_in_a_cluster(tmp_path):
    """The ClusterIP only where the API server is reached at another address."""
    environment = {"KUBERNETES_SERVICE_HOST": "127.0.0.2", "KUBERNETES_SERVICE_PORT": "443"}
    (tmp_path / "resolv.conf").write_text("nameserver 192.0.2.53\n")
    roots = Roots(etc=tmp_path)
    assert [probe.name for probe in cluster_probes(roots, "127.0.0.1", 6443, environment)] == [
        "ClusterIP 127.0.0.2:443",
        "DNS 192.0.2.53",
        "kubelet 127.0.0.1:10250",
    ]
    assert next(cluster_probes(roots, "127.0.0.2", 443, environment)).name == "DNS 192.0.2.53"
    environment["HOST_IP"] = "192.0.2.7"
    assert [probe.name for probe in cluster_probes(roots, "127.0.0.1", 6443, environment)][
        -1
    ] == "kubelet 192.0.2.7:10250"
