"""What packets feel while the hash table is resized: 262,144 to 1,048,576 buckets under 500,000 entries and traffic.

The kernel moves every entry with all locks of the table held, and whoever looks something up waits for it
(nf_conntrack_hash_resize in nf_conntrack_core.c). The table is one for all network namespaces, so traffic between two
of them meets what the initial one does. One thread opens connections and asks on old ones at a steady rate; another
writes the sysctl. The worst pause is the longest time between two answers, so that it counts too when the resize takes
the processor from who would have asked. Runs with and without a resize take turns.
Goal: nothing is lost. Run as root: python -m tests.bench.bench_resize
"""

import contextlib
import socket
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle, islice

from tests.lab.entries import Entry, inject_many
from tests.lab.host import SYSCTLS, Host, missing
from tests.lab.namespaces import End, Lab, Namespace

ENTRIES = 500_000
SMALL, LARGE = 262_144, 1_048_576
"""Buckets. The limit is the larger of them all the time."""

ROUNDS = 5
SECONDS = 2.0
"""Of one run; the resize begins after a quarter of it."""
TICK_SECONDS = 0.002
OLD = 64
"""Connections of TCP and flows of UDP that were there before, so many of each."""
ASKED_A_TICK = 4
PORTS = (8001, 8002, 8003)


@dataclass
class Run:
    """What one run came to."""

    opened: int = 0
    asked: int = 0
    lost: list[str] = field(default_factory=list)
    write_seconds: float = 0.0
    pause_seconds: float = 0.0
    """The longest time between two answers; the pause between two ticks is in it."""
    _last: float = field(default_factory=time.perf_counter)

    def note(self, work: Callable[[], None]) -> None:
        """Do `work`, and note whether it came about and how long nothing had before."""
        try:
            work()
        except OSError as error:
            self.lost.append(repr(error))
        now = time.perf_counter()
        self.pause_seconds = max(self.pause_seconds, now - self._last)
        self._last = now


@dataclass(frozen=True)
class Road:
    """Two namespaces with listeners on one of them and old connections between them."""

    other: Namespace
    end: End
    listeners: tuple[socket.socket, ...]
    old: tuple[tuple[socket.socket, socket.socket], ...]

    def open_one(self, number: int) -> None:
        """Open a connection, use and close it; the node closes first, so that the client's port is free at once."""
        listener = self.listeners[number % len(PORTS)]
        with self.other.make_socket() as near:
            near.connect((self.end.ipv4, PORTS[number % len(PORTS)]))
            far, _ = listener.accept()
            with far:
                far.settimeout(5)
                _ask(near, far)


def _ask(near: socket.socket, far: socket.socket) -> None:
    near.send(b"question")
    far.recv(64)
    far.send(b"answer")
    near.recv(64)


@contextlib.contextmanager
def _road(lab: Lab) -> Iterator[Road]:
    node, other = lab.namespace(), lab.namespace()
    end, far_end = lab.link(node, other)
    node.track()
    node.sysctl("net.ipv4.tcp_max_tw_buckets", 1000)
    inject_many(node, Entry("10.1.0.1", "192.0.2.1"), ENTRIES, sources=2_000)
    with contextlib.ExitStack() as stack:
        listeners = tuple(stack.enter_context(node.listen(end.ipv4, port)) for port in PORTS)
        old = []
        for number in range(OLD):
            near = stack.enter_context(other.connect(end.ipv4, PORTS[number % len(PORTS)]))
            far = stack.enter_context(listeners[number % len(PORTS)].accept()[0])
            far.settimeout(5)
            old.append((near, far))
            old.append(_flow(stack, node, other, end, far_end, 20_000 + number))
        yield Road(other, end, listeners, tuple(old))


def _flow(
    stack: contextlib.ExitStack, node: Namespace, other: Namespace, end: End, far_end: End, port: int
) -> tuple[socket.socket, socket.socket]:
    """Return both ends of a flow of UDP, where a packet that is lost stays lost."""
    near, far = (stack.enter_context(each.make_socket(kind=socket.SOCK_DGRAM)) for each in (other, node))
    near.bind((far_end.ipv4, port))
    far.bind((end.ipv4, port))
    near.connect((end.ipv4, port))
    far.connect((far_end.ipv4, port))
    return near, far


def _drive(road: Road, resize: Callable[[], None] | None) -> Run:
    """Let traffic flow for a while, and resize in the middle of it."""
    run = Run()

    def write() -> None:
        began = time.perf_counter()
        if resize:
            resize()
        run.write_seconds = time.perf_counter() - began

    writer = threading.Timer(SECONDS / 4, write)
    writer.start()
    pairs = cycle(road.old)
    began = due = time.perf_counter()
    while time.perf_counter() - began < SECONDS or writer.is_alive():
        run.note(partial(road.open_one, run.opened))
        run.opened += 1
        for near, far in islice(pairs, ASKED_A_TICK):
            run.note(partial(_ask, near, far))
            run.asked += 1
        due = max(due + TICK_SECONDS, time.perf_counter())
        time.sleep(max(0.0, due - time.perf_counter()))
    writer.join()
    return run


def _set_buckets(buckets: int) -> None:
    (SYSCTLS / "nf_conntrack_buckets").write_text(f"{buckets}\n")


def main() -> None:
    """Print the worst pause with and without a resize, and what was lost."""
    if reason := missing():
        print(f"bench_resize: skipped: {reason}")
        return
    with Host() as host:
        _set_buckets(SMALL)
        (SYSCTLS / "nf_conntrack_max").write_text(f"{LARGE}\n")
        with Lab() as lab, _road(lab) as road:
            still, resized = [], []
            for _ in range(ROUNDS):
                still.append(_drive(road, None))
                resized.append(_drive(road, lambda: _set_buckets(LARGE)))
                assert host.value("nf_conntrack_buckets") == LARGE
                _set_buckets(SMALL)
    _report(still, resized)


def _report(still: list[Run], resized: list[Run]) -> None:
    writes = statistics.median(run.write_seconds * 1000 for run in resized)
    print(f"resize {SMALL:,} -> {LARGE:,} buckets, {ENTRIES:,} entries: median {writes:.0f} ms for the write")
    for name, runs in (("with the resize", resized), ("without", still)):
        rate = statistics.median(run.opened for run in runs) / SECONDS
        pauses = [run.pause_seconds * 1000 for run in runs]
        print(
            f"worst pause {name:15}: median {statistics.median(pauses):.0f} ms, at most {max(pauses):.0f} ms"
            f" ({len(runs)} runs, {rate:.0f} new connections, {rate * ASKED_A_TICK:.0f} exchanges on old ones a second)"
        )
    opened, asked = (sum(getattr(run, name) for run in resized) for name in ("opened", "asked"))
    lost = [each for run in resized for each in run.lost]
    verdict = "met" if not lost else f"MISSED: {lost[0]}"
    print(f"lost during resizes: {len(lost)} of {opened:,} new connections and {asked:,} exchanges (goal 0: {verdict})")


if __name__ == "__main__":
    main()
