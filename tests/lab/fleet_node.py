"""One simulated node: the agent's own loop, mailbox, watch, reports and client, over a kernel that is a dictionary.

Plans, journals, failures and their pauses are decided by the product's own pure functions; what is simulated is the
duty that carries them out, the probes' verdict, and the counters.
"""

import contextlib
import functools
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.client import HTTPConnection

from tests.lab.fleet_duty import FakeDuty, FakeKernel, Orders
from tests.lab.programs import wait_until

from conntrack_operator.agent.clock import Clock
from conntrack_operator.agent.loop import Agent
from conntrack_operator.agent.mailbox import Mailbox
from conntrack_operator.agent.sources import watch_object
from conntrack_operator.cluster.access import Access
from conntrack_operator.cluster.own_node import OwnNode
from conntrack_operator.decide.usage import Reading
from conntrack_operator.errors import Retry
from conntrack_operator.model.node import NodeStatus

PATIENCE_SECONDS = 60
"""How long an answer may take. An agent gives up after 10 s and tries again, and a busy machine would change counts."""


class Line(OwnNode):
    """The agent's client, which can be cut off: a process that ends hangs up, a thread that ends does not."""

    _socket: socket.socket | None = None

    def _connection(self) -> HTTPConnection:
        connection = super()._connection()
        connection.timeout = PATIENCE_SECONDS
        connect = connection.connect

        def connected() -> None:
            connect()
            self._socket = connection.sock

        connection.connect = connected  # type: ignore[method-assign]
        return connection

    def hang_up(self) -> None:
        """End the request that is under way."""
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)


@dataclass(frozen=True)
class Written:
    """A status that reached the API server, and when, by the fleet's clock."""

    seconds: float
    status: NodeStatus


@dataclass
class FakeMeter:
    """Counters that are what `at` says: entries, and drops since the start, at a moment of the clock."""

    clock: Clock
    kernel: FakeKernel
    at: Callable[[float], tuple[int, int]] = lambda _seconds: (1000, 0)

    def read(self) -> Reading:
        """Return one reading."""
        now = self.clock.monotonic()
        entries, drops = self.at(now)
        return Reading(now, entries, self.kernel.max_entries, drop=drops)


@dataclass
class SimulatedNode:
    """A node and its agent. `orders` say how it behaves and may be changed at any time."""

    name: str
    access: Access
    clock: Clock = field(default_factory=Clock)
    orders: Orders = field(default_factory=Orders)
    kernel: FakeKernel = field(default_factory=FakeKernel)
    written: list[Written] = field(default_factory=list)
    """What its agents reported, oldest first."""
    agent: Agent | None = None

    def __post_init__(self) -> None:
        self.meter = FakeMeter(self.clock, self.kernel)

    def start(self) -> None:
        """Start an agent, which finds the kernel as another one left it."""
        assert self.agent is None
        self._mailbox, self._pause = Mailbox(self.clock), threading.Event()
        self._watching, writing = Line(self.access, self.name), Line(self.access, self.name)

        def write(status: NodeStatus) -> None:
            if self.orders.silent:
                raise Retry("the API server does not answer: the test cut the way to it")
            # As the agent's own `write` does; noted first, since a test may read it when it sees the status.
            self.written.append(Written(self.clock.monotonic(), status))
            try:
                writing.write_status(status.document())
            except BaseException:
                self.written.pop()
                raise

        self.agent = Agent(
            FakeDuty(self.kernel, self.orders, self.clock),  # type: ignore[arg-type]
            self._mailbox,
            self.meter,  # type: ignore[arg-type]
            write,
            lambda _entries: [],
            self.clock,
        )
        self._threads = [
            threading.Thread(target=self.agent.run, name=f"agent {self.name}", daemon=True),
            threading.Thread(
                target=watch_object, args=(self._watching, self._mailbox, self._pause), name=f"watch {self.name}",
                daemon=True,
            ),
        ]  # fmt: skip
        for thread in self._threads:
            thread.start()

    def hang_up(self) -> None:
        """Tell the agent to end, without waiting for it."""
        if self.agent is not None:
            self.orders.frozen.clear()
            self._pause.set()
            self._mailbox.stop()
            self._watching.hang_up()

    def stop(self) -> None:
        """End the agent; the kernel keeps what is confirmed."""
        if self.agent is not None:
            for thread in self._threads:
                wait_until(functools.partial(self._has_ended, thread), 30, f"{thread.name} ends", every=0)
            # A report that is on its way would otherwise arrive after what the test writes in the agent's place.
            if self.agent._writing is not None:
                self.agent._writing.join(30)
            self.agent = None

    def _has_ended(self, thread: threading.Thread) -> bool:
        # Each time: a watch that was about to begin when its line was cut begins all the same, on a new one.
        self.hang_up()
        thread.join(0.2)
        return not thread.is_alive()

    @property
    def is_quiet(self) -> bool:
        """Whether the agent has done what there is to do at the present moment of a clock that stands still."""
        if self.agent is None:
            return True
        writing = self.agent._writing
        return not (writing and writing.is_alive()) and self.clock.is_quiet(self._mailbox._changed)  # type: ignore[attr-defined]

    @property
    def jitter(self) -> float:
        """The factor by which its heartbeats are apart."""
        assert self.agent
        return self.agent._jitter
