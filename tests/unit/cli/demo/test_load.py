"""The demo's arithmetic: flows shared out over clients, and frames a kernel takes."""

import ipaddress
import struct

import pytest

from conntrack_operator.cli.demo import load, traffic


@pytest.mark.parametrize("flows", [5_000, 262_144, 262_145, 600_000, 4_194_304])
def test_clients_share_the_flows(flows: int) -> None:
    """Together exactly as many as asked for, each with source ports of its own, all in the network of the clients."""
    clients = load.clients_for(flows)
    assert sum(count for _, count in clients) == flows
    assert len({address for address, _ in clients}) == len(clients)
    assert all(count <= traffic.FLOWS_MAX for _, count in clients)
    assert clients[0] == (load.NOISY_CLIENT, min(flows // 5, traffic.FLOWS_MAX))
    network = ipaddress.ip_network("198.18.0.0/16")
    assert all(ipaddress.ip_address(address) in network for address, _ in clients)


def test_late_clients_are_others() -> None:
    """Who comes late has no entry yet."""
    late = load.late_clients()
    assert sum(count for _, count in late) == load.LATE_FLOWS
    assert not {address for address, _ in late} & {address for address, _ in load.clients_for(4_194_304)}


def test_a_frame_is_a_valid_query() -> None:
    """Lengths are right and the header's checksum adds up: a kernel throws away anything else."""
    asking = traffic.Asking("wire", "02:00:00:00:00:01", "02:00:00:00:00:02", "198.19.0.2", ())
    frame = bytes(traffic._frame(asking, "198.18.0.7"))
    ip, udp = frame[14:34], frame[34:42]
    assert frame[:14].hex() == "020000000002" + "020000000001" + "0800"
    total = sum(struct.unpack(">10H", ip))
    assert total % 0xFFFF == 0
    assert struct.unpack_from(">H", ip, 2)[0] == len(frame) - 14
    assert struct.unpack(">4H", udp)[1:] == (53, len(frame) - 34, 0)
