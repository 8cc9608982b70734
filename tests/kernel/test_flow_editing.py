"""Entries marked, made and deleted in a real table: exactly those the rules match, and nothing else changes."""

import contextlib
import errno
import select
import socket
import tracemalloc
from collections.abc import Iterator
from ipaddress import ip_address

import pytest
from tests.lab.bypass import load, tcp, tracked, udp
from tests.lab.entries import SYN_SENT, TIME_WAIT, UDP, Entry, inject, inject_many
from tests.lab.namespaces import End, Lab, Namespace
from tests.lab.programs import wait_until

from conntrack_operator.decide.notrack import REMOVE
from conntrack_operator.errors import Retry
from conntrack_operator.kernel import flow_editing
from conntrack_operator.kernel.addresses import local_addresses
from conntrack_operator.kernel.flow_editing import drop_stale, make_liberal, seed
from conntrack_operator.kernel.flow_layout import Layout
from conntrack_operator.kernel.flow_selection import read_entries
from conntrack_operator.kernel.flows import CT_GET
from conntrack_operator.kernel.netlink import BODY, Netlink, attributes
from conntrack_operator.model.notrack import NotrackRule

HERE4, HERE6 = "192.0.2.1", "2001:db8::1"
WEB = NotrackRule(name="web", ports=[80, "8000-8100"])
DNS = NotrackRule(name="dns", protocol="UDP", ports=[53])
OUT = NotrackRule(name="out", side="Client", ports=[443], addresses=["198.51.100.0/24", "fd01::/64"])
ROUTED = NotrackRule(name="routed", side="Forward", ports=[9000])


@pytest.fixture
def node(netns: Lab) -> Namespace:
    """Give a namespace with one address of each family."""
    made = netns.namespace()
    for address in (HERE4, HERE6):
        made.run("ip", "addr", "add", address, "dev", "lo")
    return made


def flags(namespace: Namespace) -> dict[tuple[str, int, int], tuple[int, int]]:
    """Return the TCP flags of both directions of every TCP entry, by (source, its port, zone)."""
    found = {}
    with namespace.inside(), Netlink() as netlink:
        for message in netlink.messages(CT_GET, dump=True):
            layout = Layout(message)
            nest = {kind: (start, end) for kind, start, end in attributes(message, BODY, len(message))}.get(4)
            if layout.protocol == 6 and nest:
                inner = next((start, end) for _, start, end in attributes(message, *nest))
                held = {kind: message[start] for kind, start, _ in attributes(message, *inner)}
                source = str(ip_address(layout.value(message, "original.source")))
                port = layout.number(message, "original.source_port") or 0
                zone = layout.number(message, "zone") or layout.number(message, "original.zone") or 0
                found[source, port, zone] = held[4], held[5]
    return found


def left(namespace: Namespace) -> set[tuple[str, int]]:
    """Return the (source, zone) of every entry with ports."""
    with namespace.inside():
        found = read_entries({protocol: bytes([1]) * 65_536 for protocol in (6, 17)})
        return {(str(ip_address(entry.original.source)), entry.zone) for entry in found}


def test_84_entries_are_made_liberal_and_no_other(node: Namespace) -> None:
    """Both families, zones, any state, both orientations; not translated, UDP, other ports, other places, loopback."""
    inject_many(node, Entry("10.0.0.1", HERE4), 40, sources=8)
    inject_many(node, Entry("fd00::1", HERE6, destination_port=8050), 40, sources=8)
    matched = [
        Entry("10.1.0.1", HERE4, zone=7),
        Entry("10.1.0.2", HERE4, state=SYN_SENT, status=0),
        Entry(HERE4, "10.1.0.3", source_port=8000, destination_port=443),
        Entry(HERE4, "198.51.100.7", source_port=50000, destination_port=443),
    ]
    others = [
        Entry("10.2.0.1", HERE4, destination_port=81),
        Entry("10.2.0.2", "10.3.0.1"),
        Entry("10.2.0.3", HERE4, reply_source="10.3.0.1"),
        Entry("127.0.0.1", "127.0.0.1"),
        Entry(HERE4, "198.51.101.7", source_port=50001, destination_port=443),
    ]
    inject(node, [*matched, *others, Entry("10.2.0.4", HERE4, UDP)])
    with node.inside():
        assert make_liberal([WEB, OUT, DNS]) == 84
    found = flags(node)
    assert len(found) == 89
    assert {key for key, both in found.items() if both == (0, 0)} == {
        (entry.source, entry.source_port, entry.zone) for entry in others
    }
    assert {both for key, both in found.items() if both != (0, 0)} == {(8, 8)}
    with node.inside():
        assert make_liberal([WEB, OUT, DNS]) == 84
        assert make_liberal([]) == 0


def test_marking_changes_nothing_else(node: Namespace) -> None:
    """State, status, timeout and mark stay as they were."""
    inject(node, [Entry("10.0.0.1", HERE4, state=TIME_WAIT, mark=9, timeout_seconds=86_000, zone=3)])
    (before,) = tracked(node)
    with node.inside():
        assert make_liberal([WEB]) == 1
    (after,) = tracked(node)
    assert before.split()[3] == after.split()[3] == "TIME_WAIT"
    assert 85_900 <= int(after.split()[2]) <= 86_000
    assert before.split()[4:] == after.split()[4:]


def test_stale_entries_go_and_others_stay(node: Namespace) -> None:
    """Both families, zones and UDP go. Translated ones, own connections and what is merely possible stay."""
    stale = [
        Entry("10.0.0.1", HERE4),
        Entry("10.0.0.1", HERE4, zone=7),
        Entry("10.0.0.2", HERE4, zone=8, state=TIME_WAIT),
        Entry("fd00::3", HERE6, destination_port=8100, zone=7),
        Entry("10.0.0.4", HERE4, UDP, destination_port=53, status=0),
        Entry("10.0.0.5", "10.9.0.1", destination_port=9000),
    ]
    kept = [
        Entry("10.1.0.1", HERE4, destination_port=81),
        Entry("10.1.0.2", HERE4, reply_source="10.3.0.1"),
        Entry("10.1.0.3", HERE4, zone=7, reply_source="10.3.0.1"),
        Entry("10.1.0.4", HERE4, UDP),
        Entry(HERE4, "10.1.0.5", source_port=8000, destination_port=443),
        Entry("10.1.0.6", "10.9.0.1", source_port=9000, destination_port=50000),
        Entry("10.1.0.7", HERE4, destination_port=8443),
        Entry("127.0.0.1", "127.0.0.1"),
    ]
    inject(node, [*stale, *kept])
    bound = NotrackRule(name="bound", ports=[8443], interfaces=["eth0"])
    with node.inside():
        assert drop_stale([WEB, DNS, ROUTED, bound]) == len(stale)
    assert left(node) == {(entry.source, entry.zone) for entry in kept}


def test_a_redirected_connection_keeps_its_entry(netns: Lab) -> None:
    """Real translation: the client asks for port 9999 and is served on port 80."""
    node, other = netns.namespace(), netns.namespace()
    node_end, _ = netns.link(node, other)
    node.nft(
        "table inet lab_nat {\n"
        " chain pre { type nat hook prerouting priority dstnat; tcp dport 9999 redirect to :80; }\n}"
    )
    with node.listen(node_end.ipv4, 80) as listener, other.connect(node_end.ipv4, 9999), listener.accept()[0]:
        rules = [WEB, NotrackRule(name="before", ports=[9999])]
        with node.inside():
            assert make_liberal(rules) == 0
            assert drop_stale(rules) == 0
            # The socket is seen, and nothing is made beside the entry that is there.
            assert seed(rules) == 0
        assert len(tracked(node)) == len(tracked(node, "dport=9999", f"dst={node_end.ipv4}")) == 1
        assert all(not flag & 8 for both in flags(node).values() for flag in both)


def test_a_new_entry_in_the_old_ones_place_stays(node: Namespace) -> None:
    """What was read is deleted by its id: the same tuple made anew is another entry."""
    entries = [Entry("10.0.0.1", HERE4, zone=zone) for zone in (0, 7)]
    inject(node, entries)
    with node.inside():
        edits = [(found.family, found.identity + found.number) for found in read_entries({6: bytes([1]) * 65_536})]
    assert len(edits) == 2
    now = edits
    while set(now) & set(edits):
        node.run("conntrack", "-F")
        # The kernel makes ids from an entry's place in memory too: others take the freed places first, unless we are
        # moved to another CPU meanwhile, which has free places of its own.
        inject_many(node, Entry("10.7.0.1", HERE4, destination_port=81), 1000)
        inject(node, entries)
        with node.inside():
            now = [(each.family, each.identity + each.number) for each in read_entries({6: bytes([1]) * 65_536})]
    with node.inside():
        assert flow_editing._carry_out(flow_editing._CT_DELETE, edits) == 0
        assert drop_stale([WEB]) == 2


def test_an_entry_that_ended_meanwhile_is_no_error(node: Namespace) -> None:
    """Marked or deleted too late: not counted, nothing raised, the others of the batch done."""
    inject_many(node, Entry("10.0.0.1", HERE4), 100, sources=10)
    with node.inside():
        entries = list(read_entries({6: bytes([1]) * 65_536}))
    node.run("conntrack", "-D", "-s", "10.0.0.1")
    with node.inside():
        mark = flow_editing.liberal()
        assert flow_editing._carry_out(flow_editing._CT_NEW, ((e.family, e.identity + mark) for e in entries)) == 90
        assert len(left(node)) == 9


def test_memory_does_not_grow_with_the_table(node: Namespace) -> None:
    """Marking all of 40,000 entries needs hardly more memory than marking all of 2,000."""
    peaks = []
    for number, count in enumerate((2_000, 38_000)):
        inject_many(node, Entry(f"10.{number}.0.1", HERE4), count, sources=20)
        tracemalloc.start()
        with node.inside():
            assert make_liberal([WEB]) == (2_000, 40_000)[number]
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 256 * 1024, peaks


@contextlib.contextmanager
def _linked(netns: Lab) -> Iterator[tuple[Namespace, Namespace, End, End]]:
    node, other = netns.namespace(), netns.namespace()
    node_end, other_end = netns.link(node, other)
    node.track()
    yield node, other, node_end, other_end


@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
def test_servers_and_clients_are_seeded_from_the_clients_side(netns: Lab, family: str) -> None:
    """One entry each, with the client as its source, the kernel's own timeout, assured and liberal; no other socket."""
    with _linked(netns) as (node, other, node_end, other_end):
        here, there = getattr(node_end, family), getattr(other_end, family)
        node.sysctl("net.netfilter.nf_conntrack_tcp_timeout_established", 7777)
        node.sysctl("net.netfilter.nf_conntrack_udp_timeout_stream", 333)
        rules = [
            NotrackRule(name="web", ports=[8080]),
            NotrackRule(name="out", side="Client", ports=[9090], addresses=[there]),
            NotrackRule(name="dns", side="Client", protocol="UDP", ports=[53], addresses=[there]),
        ]
        load(node, *rules)
        with (
            tcp(node, other, here, 8080, 41001),
            tcp(other, node, there, 9090, 41002),
            udp(other, node, there, 53, 41003),
            tcp(node, other, here, 8081, 41004),
            tcp(node, node, "::1" if ":" in here else "127.0.0.1", 8080, 41005),
        ):
            before = len(tracked(node))
            assert tracked(node, "dport=8080", "sport=41001") == []
            with node.inside():
                assert seed(rules) == 3
            for port, words in {41001: "tcp ESTABLISHED", 41002: "tcp ESTABLISHED", 41003: "udp"}.items():
                (line,) = tracked(node, f"sport={port}", "[ASSURED]", *words.split())
                assert f"src={ip_address(there if port == 41001 else here)}" in line.split()[3:5]
                assert 0 <= (333 if words == "udp" else 7777) - int(line.split()[2]) <= 60  # seconds since
            assert len(tracked(node)) == before + 3
            held = flags(node)
            assert held[there, 41001, 0] == held[here, 41002, 0] == (8, 8)
            with node.inside():
                assert seed(rules) == 3
            assert len(tracked(node)) == before + 3


def test_an_ipv4_client_of_an_ipv6_socket_is_seeded_as_ipv4(netns: Lab) -> None:
    """Dual-stack servers, which most are."""
    with _linked(netns) as (node, other, node_end, other_end):
        load(node, NotrackRule(name="web", ports=[8080]))
        with node.listen("::", 8080) as listener, other.connect(node_end.ipv4, 8080, 41001), listener.accept()[0]:
            with node.inside():
                assert seed([NotrackRule(name="web", ports=[8080])]) == 1
            assert len(tracked(node, "tcp", "sport=41001", f"src={other_end.ipv4}", "[ASSURED]")) == 1


def test_half_closed_connections_are_seeded_as_such(netns: Lab) -> None:
    """One side has said its last word and listens on: an entry that waits for the other's, on either side."""
    with _linked(netns) as (node, other, node_end, _):
        web = NotrackRule(name="web", ports=[8080])
        load(node, web)
        with node.listen(node_end.ipv4, 8080) as listener:
            for number, closer in enumerate(("client", "server")):
                with other.connect(node_end.ipv4, 8080, 41001 + number) as near, listener.accept()[0] as far:
                    (near if closer == "client" else far).shutdown(socket.SHUT_WR)
                    receiver = far if closer == "client" else near
                    receiver.settimeout(5)
                    assert receiver.recv(10) == b""
                    # What acknowledges the last word may still be on its way.
                    states = {"CLOSE_WAIT"} if closer == "client" else {"CLOSE_WAIT", "FIN_WAIT"}
                    with node.inside():
                        assert seed([web]) >= 1
                    assert {line.split()[3] for line in tracked(node, f"sport={41001 + number}")} <= states
                    assert len(tracked(node, f"sport={41001 + number}", "[ASSURED]")) == 1


def test_half_open_connections_are_seeded_unassured(netns: Lab) -> None:
    """The answer to its SYN is still on the way: an entry that lets the handshake end, and that a full table drops."""
    with _linked(netns) as (node, other, node_end, other_end):
        web = NotrackRule(name="web", ports=[8080])
        load(node, web)
        other.nft(
            "table inet lab_loss { chain in { type filter hook prerouting priority raw;"
            " tcp flags & (syn | ack) == syn | ack drop; }\n}"
        )
        with node.listen(node_end.ipv4, 8080), other.make_socket() as near:
            near.bind((other_end.ipv4, 41001))
            near.setblocking(False)
            assert near.connect_ex((node_end.ipv4, 8080)) == errno.EINPROGRESS

            def is_seeded() -> bool:
                with node.inside():
                    return seed([web]) == 1

            wait_until(is_seeded, 30, "the SYN has come, and an entry is made")
            (line,) = tracked(node, "sport=41001", "SYN_RECV")
            assert "[ASSURED]" not in line
            other.nft("delete table inet lab_loss")
            node.nft(REMOVE)
            near.settimeout(30)
            # Each answer to the SYN comes after twice the time of the one before, a minute long.
            assert select.select([], [near], [], 60)[1]
            near.sendall(b"x")
            wait_until(lambda: len(tracked(node, "sport=41001", "ESTABLISHED")) == 1, 30, "the handshake is through")


def test_an_entry_that_is_there_is_brought_up_to_date(netns: Lab) -> None:
    """Left behind in the middle of its handshake, unassured and about to end: now as the socket is, and liberal."""
    with _linked(netns) as (node, other, node_end, other_end):
        web = NotrackRule(name="web", ports=[8080])
        load(node, web)
        old = Entry(other_end.ipv4, node_end.ipv4, 6, 41001, 8080, SYN_SENT, 0, timeout_seconds=30)
        with tcp(node, other, node_end.ipv4, 8080, 41001):
            inject(node, [old])
            with node.inside():
                assert seed([web]) == 1
            (line,) = tracked(node, "sport=41001")
            assert {"ESTABLISHED", "[ASSURED]"} <= set(line.split())
            assert int(line.split()[2]) > 1000
            assert flags(node)[other_end.ipv4, 41001, 0] == (8, 8)


def test_a_bounded_seed_shortens_nothing(netns: Lab) -> None:
    """In a trial: a new entry lives no longer than the bound, one that is there keeps its own time."""
    with _linked(netns) as (node, other, node_end, other_end):
        web = NotrackRule(name="web", ports=[8080])
        load(node, web)
        with (
            node.listen(node_end.ipv4, 8080) as listener,
            other.connect(node_end.ipv4, 8080, 41001),
            other.connect(node_end.ipv4, 8080, 41002),
            listener.accept()[0],
            listener.accept()[0],
        ):
            inject(node, [Entry(other_end.ipv4, node_end.ipv4, 6, 41001, 8080, timeout_seconds=50_000)])
            with node.inside():
                assert seed([web], at_most_seconds=300) == 2
            left_seconds = {}
            for port in (41001, 41002):
                (line,) = tracked(node, f"sport={port}", "ESTABLISHED", "[ASSURED]")
                left_seconds[port] = int(line.split()[2])
                assert flags(node)[other_end.ipv4, port, 0] == (8, 8)
            assert left_seconds[41001] > 40_000
            assert 200 < left_seconds[41002] <= 300


def test_what_the_kernel_refuses_is_said(netns: Lab) -> None:
    """Its refusals are counted and told in one sentence with the cause."""
    with _linked(netns) as (node, other, node_end, _):
        web = NotrackRule(name="web", ports=[8080])
        load(node, web)
        with tcp(node, other, node_end.ipv4, 8080, 41001), pytest.MonkeyPatch.context() as patch, node.inside():
            patch.setattr(flow_editing, "living", lambda *_: b"")  # no timeout: EINVAL
            with pytest.raises(Retry, match=r"refused to make 1 entries .*Invalid argument"):
                seed([web])


def test_local_addresses_are_those_of_every_interface(netns: Lab) -> None:
    """Both families, loopback, second addresses, and our own end of a point-to-point link."""
    node, other = netns.namespace(), netns.namespace()
    node_end, _ = netns.link(node, other)
    node.run("ip", "addr", "add", "198.51.100.1", "peer", "198.51.100.2", "dev", node_end.interface)
    node.run("ip", "addr", "add", "fd02::1", "peer", "fd02::2", "dev", node_end.interface)
    with node.inside():
        found = local_addresses()
    assert {node_end.ipv4, str(ip_address(node_end.ipv6)), "127.0.0.1", "::1", "198.51.100.1", "fd02::1"} <= found
    assert not {"198.51.100.2", "fd02::2"} & found
