"""Counters of a real namespace, made to rise by real packets, checked against `conntrack -S`."""

import contextlib
import re
import shutil
import socket
import struct
from collections.abc import Iterator
from dataclasses import replace

import pytest
from tests.lab.entries import UDP, Entry, inject, inject_many
from tests.lab.host import Host
from tests.lab.namespaces import Lab, Namespace, packed
from tests.lab.programs import wait_until

from conntrack_operator.kernel.counters import CounterReader, Counters, read_counters

pytestmark = pytest.mark.tunes_this_machine

FILL_MAX = 400_000
"""More entries than this are not written by a test just to fill a table."""


def read(namespace: Namespace) -> Counters:
    """Return a namespace's counters."""
    with namespace.inside():
        return read_counters()


@pytest.fixture
def steady_limit() -> Iterator[int]:
    """Give the table's limit, low enough to reach, while nobody else of this test suite changes it."""
    with Host() as host:
        if read_counters().max_entries > FILL_MAX:
            host.shrink(FILL_MAX)
        yield read_counters().max_entries


def send_datagrams(source: Namespace, address: str, count: int, port: int = 9) -> None:
    """Send UDP to `count` ports from one socket: each is a flow of its own."""
    with source.make_socket(kind=socket.SOCK_DGRAM) as sender:
        for number in range(count):
            with contextlib.suppress(PermissionError, ConnectionRefusedError):  # a local drop is EPERM
                sender.sendto(b"x", (address, port + number))


def test_entries_are_counted_and_the_limit_is_told(netns: Lab) -> None:
    """An empty namespace has no entries; 1,000 injected ones are 1,000; the limit is the sysctl's."""
    namespace = netns.namespace()
    before = read(namespace)
    assert (before.entries, before.drop, before.insert) == (0, 0, 0)
    inject_many(namespace, Entry("10.0.0.1", "192.0.2.1"), 1000, sources=10)
    after = read(namespace)
    assert (after.entries, after.insert) == (1000, 1000)
    assert after.max_entries == int(namespace.sysctl("net.netfilter.nf_conntrack_max"))


def test_a_full_table_of_assured_flows_drops_new_ones(netns: Lab, steady_limit: int) -> None:
    """Table full of what may not be thrown out: each of 50 new flows is dropped and counted, none is early-dropped."""
    namespace = netns.namespace()
    namespace.track()
    inject_many(namespace, Entry("10.0.0.1", "192.0.2.1"), steady_limit, sources=steady_limit // 50_000 + 1)
    full = read(namespace)
    assert full.entries == steady_limit
    # The kernel compares with "more than": the first flow above the limit still gets in.
    send_datagrams(namespace, "127.0.0.1", 51)
    after = read(namespace)
    assert after.drop - full.drop >= 50
    assert after.early_drop == full.early_drop
    assert after.entries <= steady_limit + 1


def test_a_full_table_of_unassured_flows_makes_room(netns: Lab, steady_limit: int) -> None:
    """Table full of unanswered UDP: 50 new flows throw old ones out, which early_drop counts, and none is dropped."""
    namespace = netns.namespace()
    namespace.track()
    like = Entry("10.0.0.1", "192.0.2.1", UDP, destination_port=53, status=0)
    inject_many(namespace, like, steady_limit, sources=steady_limit // 50_000 + 1)
    thrown_out: list[int] = []
    while len(thrown_out) < 3 and max(thrown_out, default=0) < 45:
        # The kernel's collector makes room in such a table, too, now and then: it is filled to the brim again.
        room = steady_limit - read(namespace).entries
        inject_many(namespace, replace(like, source=f"10.{9 + len(thrown_out)}.0.1"), max(0, room), sources=100)
        full = read(namespace)
        send_datagrams(namespace, "127.0.0.1", 51)
        after = read(namespace)
        assert after.early_drop - full.early_drop + after.drop - full.drop <= 110
        thrown_out.append(after.early_drop - full.early_drop)
    assert max(thrown_out) >= 45, thrown_out


def test_packets_that_fit_nothing_are_invalid(netns: Lab) -> None:
    """25 TCP packets with SYN and FIN both set are 25 invalid ones on the router and make no entry."""
    way = netns.routed()
    way.router.track()
    # No resets from the server: those would be invalid too.
    way.server.nft("table inet quiet { chain c { type filter hook input priority 0; tcp dport 80 drop; }; }")
    before = read(way.router)
    with way.client.inside():
        raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP)
    with raw:
        for port in range(25):
            raw.sendto(
                tcp_packet(way.client_end.ipv4, way.server_end.ipv4, 2000 + port, flags=0x03), (way.server_end.ipv4, 0)
            )
    # They are on their way still, maybe.
    wait_until(lambda: read(way.router).invalid - before.invalid >= 25, 30, "the router has seen all")
    after = read(way.router)
    assert after.invalid - before.invalid == 25
    assert after.entries == 0


def tcp_packet(source: str, destination: str, port: int, flags: int) -> bytes:
    """Return a TCP header with a right checksum, so that only the flags are wrong."""
    header = struct.pack(">HHIIBBHHH", port, 80, 1, 0, 5 << 4, flags, 1024, 0, 0)
    pseudo = packed(source) + packed(destination) + struct.pack(">BBH", 0, 6, len(header))
    total = sum(struct.unpack(f">{(len(pseudo) + len(header)) // 2}H", pseudo + header))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return header[:16] + struct.pack(">H", ~total & 0xFFFF) + header[18:]


def test_the_sums_are_those_of_conntrack(netns: Lab) -> None:
    """Every counter equals the sum over the CPUs that `conntrack -S` prints."""
    if shutil.which("conntrack") is None:
        pytest.skip("not installed: conntrack")
    way = netns.routed()
    way.router.track()
    inject_many(way.router, Entry("10.0.0.1", "192.0.2.1"), 321, sources=3)
    send_datagrams(way.client, way.server_end.ipv4, 40)
    printed, ours = "", {}

    def stand_still() -> bool:
        """Tell whether nothing was counted, of what is on its way, while `conntrack` read."""
        nonlocal printed, ours
        before = vars(read(way.router))
        printed, ours = way.router.run("conntrack", "-S").stdout, vars(read(way.router))
        return before == ours

    wait_until(stand_still, 30, "the counters stand still")
    names = {"chaintoolong": "chain_toolong"}
    found = set()
    for name in set(re.findall(r"(\w+)=\d", printed)) - {"cpu"}:
        total = sum(int(value) for value in re.findall(rf"\b{name}=(\d+)", printed))
        assert ours[names.get(name, name)] == total, name
        found.add(names.get(name, name))
    assert {"found", "invalid", "insert_failed", "drop", "early_drop", "search_restart"} <= found
    assert ours["insert"] == 321


def test_one_reader_serves_many_readings_of_its_own_namespace(netns: Lab) -> None:
    """The socket stays in the namespace where it was opened, and each reading is fresh."""
    first, second = netns.namespace(), netns.namespace()
    with first.inside():
        reader = CounterReader()
    with reader:
        for number in range(1, 6):
            inject(first, [Entry(f"10.0.0.{number}", "192.0.2.1")])
            inject(second, [Entry(f"10.0.1.{number}", "192.0.2.1"), Entry(f"10.0.2.{number}", "192.0.2.1")])
            assert reader.read().entries == number
    assert read(second).entries == 10
