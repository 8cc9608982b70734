"""Flows of a real table: real traffic, injected entries, exact counts, checked against `conntrack`."""

import contextlib
import shutil
import socket
from ipaddress import ip_address

import pytest
from tests.lab.entries import (
    ASSURED,
    ESTABLISHED,
    FIN_WAIT,
    GRE,
    ICMP,
    SCTP,
    SEEN_REPLY,
    SYN_SENT,
    TIME_WAIT,
    UDP,
    Entry,
    inject,
    inject_many,
)
from tests.lab.namespaces import Lab, Namespace, packed

from conntrack_operator.decide.talkers import By, Sample, talkers_in, top_of
from conntrack_operator.errors import Unsupported
from conntrack_operator.kernel.flow_selection import read_entries
from conntrack_operator.kernel.flows import sample

SERVER4, SERVER6 = "192.0.2.1", "2001:db8::1"
ANY_PORT = {protocol: bytes([1]) * 65_536 for protocol in (6, UDP, SCTP)}


def entries_by(counted: Sample, by: By) -> dict[str, int]:
    """Return key -> entries, all keys."""
    return {row.key: row.entries for row in top_of(counted, by, 1000, counted.sampled).rows}


def read(namespace: Namespace, limit: int | None = None) -> Sample:
    """Return the sample of a namespace."""
    with namespace.inside():
        return sample(limit)


def conntrack(namespace: Namespace, *options: str) -> list[str]:
    """Return the lines of `conntrack -L`, or skip where it is not installed."""
    if shutil.which("conntrack") is None:
        pytest.skip("not installed: conntrack")
    return namespace.run("conntrack", "-L", *options).stdout.splitlines()


def test_real_traffic_of_both_families_is_counted_exactly(netns: Lab) -> None:
    """Through a router: 20 + 10 TCP connections, 7 UDP datagrams a family, one ping each; no more and no less."""
    way = netns.routed()
    way.router.track()
    for key in ("udp_timeout", "icmp_timeout", "icmpv6_timeout"):
        way.router.sysctl(f"net.netfilter.nf_conntrack_{key}", 3600)  # none ends before it is counted
    ends = {socket.AF_INET: way.server_end.ipv4, socket.AF_INET6: way.server_end.ipv6}
    with contextlib.ExitStack() as stack:
        for (family, address), connections in zip(ends.items(), (20, 10), strict=True):
            listener = stack.enter_context(way.server.listen(address, 8080))
            udp = stack.enter_context(way.server.make_socket(family, socket.SOCK_DGRAM))
            udp.bind((address, 5353))
            for _ in range(connections):
                client = stack.enter_context(way.client.connect(address, 8080))
                stack.enter_context(listener.accept()[0])
                client.sendall(b"x")
            for _ in range(7):
                sender = stack.enter_context(way.client.make_socket(family, socket.SOCK_DGRAM))
                sender.sendto(b"x", (address, 5353))
                udp.recv(10)
            way.client.run("ping", "-c", "1", "-W", "30", address)
        counted = read(way.router)
    # Neighbour discovery is ICMPv6 that conntrack leaves alone.
    assert entries_by(counted, "port") == {
        "8080/TCP": 30,
        "5353/UDP": 14,
        "type 8/ICMP": 1,
        "type 128/ICMPv6": 1,
    }
    assert entries_by(counted, "destination") == {way.server_end.ipv4: 28, way.server_end.ipv6: 18}
    assert entries_by(counted, "source") == {way.client_end.ipv4: 28, way.client_end.ipv6: 18}
    assert entries_by(counted, "state") == {
        "TCP ESTABLISHED": 30,
        "UDP UNREPLIED": 14,
        "ICMP REPLIED": 1,
        "ICMPv6 REPLIED": 1,
    }
    assert counted.complete


def test_every_field_of_an_entry_is_read(netns: Lab) -> None:
    """What was written comes back: addresses, ports, zone, status, and a reply that was translated."""
    namespace = netns.namespace()
    wanted = [
        Entry("10.0.0.1", SERVER4, state=TIME_WAIT, zone=5, mark=7, reply_source="10.9.9.9"),
        Entry("10.0.0.2", SERVER4, UDP, 1234, 53, status=0),
        Entry("fd00::4", SERVER6, state=SYN_SENT, status=0, zone=6),
        Entry("fd00::6", SERVER6, SCTP, 5000, 3868, state=4),
    ]
    inject(namespace, [*wanted, Entry("10.0.0.3", SERVER4, ICMP, icmp=(8, 0, 77), status=SEEN_REPLY)])
    with namespace.inside():
        found = {entry.original.source: entry for entry in read_entries(ANY_PORT)}
    assert sorted(found) == sorted(packed(entry.source) for entry in wanted)
    for entry in wanted:
        flow = found[packed(entry.source)]
        source = (packed(entry.source), entry.source_port)
        assert flow.original == (entry.protocol, *source, packed(entry.destination), entry.destination_port)
        answers_from = packed(entry.reply_source or entry.destination)
        assert flow.reply == (entry.protocol, answers_from, entry.destination_port, *source)
        assert flow.family == (10 if ":" in entry.source else 2)
        assert flow.zone == entry.zone
        assert flow.status & (SEEN_REPLY | ASSURED) == entry.status


def test_100_000_entries_are_counted_exactly_by_every_question(netns: Lab) -> None:
    """Four kinds of flows, both families: every count is what was put in, and agrees with `conntrack`."""
    namespace = netns.namespace()
    inject_many(namespace, Entry("10.0.0.1", SERVER4), 50_000, sources=100)
    inject_many(namespace, Entry("10.0.0.1", SERVER4, UDP, destination_port=53, status=0), 20_000, sources=50)
    inject_many(namespace, Entry("fd00::1", SERVER6, destination_port=443, state=TIME_WAIT), 20_000, sources=10)
    inject_many(namespace, Entry("fd00::1", SERVER6, UDP, destination_port=443), 10_000, sources=10)
    counted = read(namespace)
    assert (counted.sampled, counted.complete) == (100_000, True)
    assert entries_by(counted, "port") == {"80/TCP": 50_000, "53/UDP": 20_000, "443/TCP": 20_000, "443/UDP": 10_000}
    assert entries_by(counted, "destination") == {SERVER4: 70_000, SERVER6: 30_000}
    assert entries_by(counted, "zone") == {"0": 100_000}
    assert entries_by(counted, "state") == {
        "TCP ESTABLISHED": 50_000,
        "UDP UNREPLIED": 20_000,
        "TCP TIME_WAIT": 20_000,
        "UDP ASSURED": 10_000,
    }
    sources = entries_by(counted, "source")
    assert len(sources) == 110
    assert (sources["10.0.0.1"], sources["10.0.0.100"], sources["fd00::a"]) == (900, 500, 3000)
    assert all(row.error == 0 for row in top_of(counted, "source", 110, 0).rows)
    if shutil.which("conntrack"):
        assert namespace.run("conntrack", "-C").stdout.strip() == "100000"


def test_a_sample_stops_early_and_is_right_within_its_error(netns: Lab) -> None:
    """10,000 of 100,000 entries: exactly so many are read, and every true share lies within twice the stated error."""
    namespace = netns.namespace()
    for number, (count, port) in enumerate(((60_000, 80), (30_000, 443), (10_000, 8080))):
        inject_many(namespace, Entry(f"10.{number}.0.1", SERVER4, destination_port=port), count, sources=2)
    counted = read(namespace, 10_000)
    assert (counted.sampled, counted.complete) == (10_000, False)
    top = top_of(counted, "port", 3, 100_000)
    assert [row.key for row in top.rows] == ["80/TCP", "443/TCP", "8080/TCP"]
    for row, share in zip(top.rows, (0.6, 0.3, 0.1), strict=True):
        assert 0 < row.error < 0.02
        assert abs(row.share - share) <= 2 * row.error
        assert row.entries == round(row.share * 100_000)
    assert {talker.by for talker in talkers_in(counted, 2, 100_000)} == {"source", "destination", "port", "state"}


@pytest.mark.parametrize("limit", [99, 100, 101, None])
def test_complete_is_said_only_when_the_end_was_seen(netns: Lab, limit: int | None) -> None:
    """A table of 100: a limit below stops there, one above or none reads to the end."""
    namespace = netns.namespace()
    inject_many(namespace, Entry("10.0.0.1", SERVER4), 100, sources=5)
    counted = read(namespace, limit)
    assert counted.sampled == min(100, limit or 100)
    assert counted.complete is (limit not in (99, 100))
    assert top_of(counted, "port", 1, 100).rows[0].entries == 100


def test_mixed_layouts_of_a_real_kernel_are_counted_exactly(netns: Lab) -> None:
    """Accounting and timestamps switched on half way, zones, marks, ICMP, SCTP and GRE between: no miscount."""
    namespace = netns.namespace()
    kinds = [
        Entry("10.0.0.1", SERVER4),
        Entry("10.0.0.2", SERVER4, state=FIN_WAIT, zone=9),
        Entry("10.0.0.3", SERVER4, UDP, destination_port=53, status=SEEN_REPLY, zone=9, mark=1),
        Entry("10.0.0.4", SERVER4, ICMP, icmp=(8, 0, 0), status=0),
        Entry("fd00::5", SERVER6, UDP, destination_port=53, status=0),
        Entry("fd00::6", SERVER6, state=ESTABLISHED, zone=10),
        Entry("fd00::7", SERVER6, SCTP, destination_port=3868, state=4),
        Entry("10.0.0.8", SERVER4, GRE, destination_port=12, status=0),
    ]
    for accounting in (0, 1):
        namespace.sysctl("net.netfilter.nf_conntrack_acct", accounting)
        namespace.sysctl("net.netfilter.nf_conntrack_timestamp", accounting)
        for number in range(500):
            changed = []
            for kind in kinds:
                unique = 1000 + number + 500 * accounting
                icmp = (8, 0, unique) if kind.icmp else None
                changed.append(Entry(**{**vars(kind), "source_port": unique, "icmp": icmp}))
            inject(namespace, changed)
    counted = read(namespace)
    assert counted.sampled == 8000
    assert entries_by(counted, "source") == {entry.source: 1000 for entry in kinds}
    assert entries_by(counted, "zone") == {"0": 5000, "9": 2000, "10": 1000}
    assert entries_by(counted, "port") == {
        "80/TCP": 3000,
        "53/UDP": 2000,
        "type 8/ICMP": 1000,
        "3868/SCTP": 1000,
        "GRE": 1000,
    }
    assert entries_by(counted, "state") == {
        "TCP ESTABLISHED": 2000,
        "TCP FIN_WAIT": 1000,
        "UDP REPLIED": 1000,
        "UDP UNREPLIED": 1000,
        "ICMP UNREPLIED": 1000,
        "SCTP ESTABLISHED": 1000,
        "GRE UNREPLIED": 1000,
    }


def test_a_flow_list_says_what_conntrack_says(netns: Lab) -> None:
    """The same entries as `conntrack -L` lists, field by field."""
    namespace = netns.namespace()
    inject_many(namespace, Entry("10.0.0.1", SERVER4), 500, sources=5)
    inject_many(namespace, Entry("fd00::1", SERVER6, state=TIME_WAIT, destination_port=443), 500, sources=5)
    theirs = set()
    for family in ("ipv4", "ipv6"):
        for line in conntrack(namespace, "-f", family):
            pairs = [word.split("=", 1) for word in line.split() if "=" in word]
            original = dict(reversed(pairs[:4]))
            theirs.add((original["src"], original["dst"], int(original["sport"]), int(original["dport"])))
    with namespace.inside():
        ours = {
            (
                str(ip_address(flow.source)),
                str(ip_address(flow.destination)),
                flow.source_port,
                flow.destination_port,
            )
            for flow in (entry.original for entry in read_entries(ANY_PORT))
        }
    assert len(ours) == 1000
    assert ours == {(str(ip_address(near)), str(ip_address(far)), *ports) for near, far, *ports in theirs}


def test_an_empty_table_is_complete(netns: Lab) -> None:
    """Nothing tracked is a value and no error."""
    counted = read(netns.namespace())
    assert (counted.sampled, counted.complete, top_of(counted, "source", 5, 0).rows) == (0, True, ())


def test_memory_does_not_grow_with_the_table(netns: Lab) -> None:
    """Counting 100,000 entries of few keys needs hardly more memory than counting 2,000."""
    import tracemalloc  # noqa: PLC0415 - only here

    namespace = netns.namespace()
    peaks = []
    for _ in range(2):
        inject_many(namespace, Entry(f"10.{len(peaks)}.0.1", SERVER4), [2_000, 98_000][len(peaks)], sources=20)
        tracemalloc.start()
        counted = read(namespace)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        del counted
    assert peaks[1] < peaks[0] + 512 * 1024, peaks


def test_without_the_capability_the_sentence_says_so(netns: Lab) -> None:
    """A process without NET_ADMIN reads nothing and learns why."""
    import os  # noqa: PLC0415 - only here

    netns.namespace()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.setuid(65534)
            sample(10)
        except Unsupported as error:
            code = 0 if "NET_ADMIN" in str(error) else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
