"""The demo's load: many clients ask a name server, more clients come, others open TCP connections. The same twice.

A full table makes room by throwing out entries that are not ASSURED (early_drop in nf_conntrack_core.c), and a UDP
flow is ASSURED only once it was answered and goes on for more than two seconds (nf_conntrack_proto_udp.c). So
the clients ask, wait, and ask again, as resolvers do. What comes after that finds no room.
"""

import contextlib
import errno
import select
import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

from conntrack_operator.errors import Unsupported
from conntrack_operator.kernel.counters import Counters, read_counters
from conntrack_operator.kernel.netlink import Netlink

from . import traffic
from .probes import Regular
from .stage import CLIENT, SERVER, TCP_PORT, Stage, lines_of

NOISY_CLIENT = "198.18.0.7"
"""One client begins a fifth of all flows, so that there is somebody to find."""
OTHER_CLIENTS = 32
LATE_CLIENTS, LATE_FLOWS = 20, 20_000
WARM_UP_FLOWS = 20_000
ATTEMPTS = 200
LISTEN_BACKLOG = 4 * ATTEMPTS
"""Nobody accepts: the kernel completes as many connections."""
CONNECT_SECONDS = 1.5
SILENCE_SECONDS = 1.0
"""So long after the name server has read all that came nothing more comes."""
ANSWER_SECONDS = 1.0
STREAM_SECONDS = 2.2
"""A flow that goes on for longer than 2 s is a stream."""

_CT_DELETE = 2  # IPCTNL_MSG_CT_DELETE, include/uapi/linux/netfilter/nfnetlink_conntrack.h
_PROGRESS = Callable[[int], None]
Clients = tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Measured:
    """What one run of the load came to."""

    asked: int
    """Queries of the clients that came first."""
    answered: int
    """Of these, queries that reached the server and were answered."""
    late_asked: int
    """Queries of the clients that came later."""
    late_answered: int
    tried: int
    """TCP connections tried to another port at the end."""
    connected: int
    entries: int
    """Entries in the server's table at the end."""
    limit: int
    dropped: int
    """Packets the kernel threw away since the table was full."""


def clients_for(flows: int) -> Clients:
    """Return addresses and how many flows each begins; together `flows`, with one that begins a fifth of them."""
    noisy = min(flows // 5, traffic.FLOWS_MAX)
    rest = flows - noisy
    others = max(OTHER_CLIENTS, -(-rest // traffic.FLOWS_MAX))
    each, more = divmod(rest, others)
    quiet = ((f"198.18.{1 + number // 250}.{1 + number % 250}", each + (number < more)) for number in range(others))
    return ((NOISY_CLIENT, noisy), *quiet)


def late_clients() -> Clients:
    """Return the clients that come when the others are there already."""
    return tuple((f"198.18.250.{number}", LATE_FLOWS // LATE_CLIENTS) for number in range(1, LATE_CLIENTS + 1))


class Load:
    """Runs the load on a stage. A context manager: the server answers on both its ports meanwhile."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self.regular = Regular(stage)
        """A client that is there from the beginning."""
        self._macs = stage.mac_of(stage.client), stage.mac_of(stage.server)

    def __enter__(self) -> Self:
        self._server = self._stage.server.start(traffic.answered_by(SERVER))
        if next(lines_of(self._server), "") != "ready\n":
            self._server.wait(5)
            raise Unsupported("the demo's name server did not start; run the demo again")
        self._listener = self._stage.server.socket(socket.SOCK_STREAM)
        self._listener.bind((SERVER, TCP_PORT))
        self._listener.listen(LISTEN_BACKLOG)
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()
        self.regular.close()
        _end(self._server)

    def queries_per_second(self) -> float:
        """Send a few queries for their speed, and forget them."""
        began = time.monotonic()
        self._ask((("198.18.251.1", WARM_UP_FLOWS),), lambda _: None)
        seconds = time.monotonic() - began
        self._settle(WARM_UP_FLOWS)
        with self._stage.server.inside(), Netlink() as netlink:
            list(netlink.messages(_CT_DELETE))  # all of them, as conntrack -F does
        return WARM_UP_FLOWS / seconds

    def settle_in(self) -> None:
        """Let the regular client be a stream while there is room: the kernel kills others from 95 % use upwards."""
        self.regular.ask(ANSWER_SECONDS)
        time.sleep(STREAM_SECONDS)
        self.regular.ask(ANSWER_SECONDS)

    def counters(self) -> Counters:
        """Return the counters of the server's table."""
        with self._stage.server.inside():
            return read_counters()

    def run(self, flows: int, progress: _PROGRESS) -> Measured:
        """Let the clients ask for `flows` flows, twice; then the late ones; then try TCP connections.

        `progress` hears how many queries are sent; `queries_in` tells how many there will be.
        """
        clients, late = clients_for(flows), late_clients()
        before, received = self.counters(), self._received()
        self._ask(clients, progress)
        # A busy machine answers late, and only what was answered and goes on for two seconds is a stream.
        self._settle(received + flows)
        time.sleep(STREAM_SECONDS)
        self._ask(clients, lambda sent: progress(flows + sent))
        answered = self._settle(received + 2 * flows) - received
        self._ask(late, lambda sent: progress(2 * flows + sent))
        late_answered = self._settle(received + answered + LATE_FLOWS) - received - answered
        connected = self._connect()
        after = self.counters()
        return Measured(
            asked=2 * flows,
            answered=answered,
            late_asked=LATE_FLOWS,
            late_answered=late_answered,
            tried=ATTEMPTS,
            connected=connected,
            entries=after.entries,
            limit=after.max_entries,
            dropped=after.drop - before.drop,
        )

    def _ask(self, clients: Clients, progress: _PROGRESS) -> None:
        from_mac, to_mac = self._macs
        asking = traffic.Asking("wire", from_mac, to_mac, SERVER, clients)
        process = self._stage.client.start(traffic.asked_by(asking))
        try:
            for line in lines_of(process):
                progress(int(line))
            if process.wait() != 0:
                raise Unsupported("the demo's clients ended early; run the demo again")
        finally:
            _end(process)

    def _received(self) -> int:
        """Return how many datagrams the name server has read since it began."""
        lines = self._stage.server.read("/proc/thread-self/net/snmp").splitlines()
        names, values = (line.split() for line in lines if line.startswith("Udp: "))
        return int(dict(zip(names, values, strict=True))["InDatagrams"])

    def _settle(self, expected: int) -> int:
        """Wait until the name server has read `expected` datagrams, or no more for a while; return how many."""
        now, moved = self._received(), time.monotonic()
        while now < expected and time.monotonic() - moved < SILENCE_SECONDS:
            time.sleep(0.05)
            before, now = now, self._received()
            if now != before or self._has_more():
                moved = time.monotonic()
        return now

    def _has_more(self) -> bool:
        """Tell whether anything waits for the name server to read it: a busy machine may hold it up for a while."""
        # Number, local address, remote one, state, queues to send and received, ... in hexadecimal (udp4_format_sock).
        rows = map(str.split, self._stage.server.read("/proc/thread-self/net/udp").splitlines()[1:])
        return any(row[1].endswith(f":{traffic.PORT:04X}") and int(row[4].split(":")[1], 16) for row in rows)

    def _connect(self) -> int:
        """Try to open TCP connections to another port of the server, all at once; return how many came about."""
        with contextlib.ExitStack() as stack:
            waiting = select.poll()
            trying = {}
            for _ in range(ATTEMPTS):
                attempt = stack.enter_context(self._stage.client.socket(socket.SOCK_STREAM))
                attempt.bind((CLIENT, 0))
                attempt.settimeout(0)
                if attempt.connect_ex((SERVER, TCP_PORT)) in (0, errno.EINPROGRESS):
                    trying[attempt.fileno()] = attempt
                    waiting.register(attempt, select.POLLOUT)
            return _count_connected(trying, waiting)


def queries_in(flows: int) -> int:
    """Return how many queries `Load.run(flows)` sends."""
    return 2 * flows + LATE_FLOWS


def _count_connected(trying: dict[int, socket.socket], waiting: select.poll) -> int:
    connected, deadline = 0, time.monotonic() + CONNECT_SECONDS
    # Also what came about by then, and was not looked at in time, counts.
    while trying and (ready := waiting.poll(max(0.0, deadline - time.monotonic()) * 1000)):
        for number, _ in ready:
            waiting.unregister(number)
            connected += trying.pop(number).getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
    return connected


def _end(process: "subprocess.Popen[str]") -> None:
    process.kill()
    process.wait()
    if process.stdout is not None:
        process.stdout.close()
