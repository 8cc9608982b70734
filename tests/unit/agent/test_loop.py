"""The loop's reports: it asks seldom while nobody can be told, forgets nothing of it, and is calm when much flaps."""

import threading
import time
from types import SimpleNamespace

import pytest
from tests.lab.fleet_clock import StillClock

from conntrack_operator.agent.loop import Agent
from conntrack_operator.agent.mailbox import Delivery, Mailbox
from conntrack_operator.decide.report import Deed
from conntrack_operator.errors import Retry, Unsupported
from conntrack_operator.kernel.roots import Roots
from conntrack_operator.model.node import NodeSpec
from conntrack_operator.model.policy import Settings

SPEC = NodeSpec(revision="r", mode="Apply", node_uid="", settings=Settings())


class Blind:
    """A meter that sees nothing."""

    def read(self):
        """Refuse."""
        raise Unsupported("nothing to see")


@pytest.fixture
def running():
    """Give an agent at work with a duty that does nothing, the API server's answer, and the reports that came."""
    world = SimpleNamespace(away=True, tries=0, came=[])

    def write(status):
        world.tries += 1
        if world.away:
            raise Retry("the API server does not answer")
        world.came.append(status)

    world.duty = SimpleNamespace(
        machine=SimpleNamespace(roots=Roots()), spec=SPEC, deed=Deed("Trial", ()), seconds_to_step=float("inf"),
        start=lambda: None, resume=lambda: None, wish=lambda _spec: None, step=lambda: False, end=lambda: None,
    )  # fmt: skip
    world.mailbox = Mailbox()
    world.agent = agent = Agent(world.duty, world.mailbox, Blind(), write, lambda _entries: [])
    world.mailbox.put(Delivery(SPEC))
    thread = threading.Thread(target=agent.run)
    thread.start()
    yield world
    world.mailbox.stop()
    thread.join(10)


def until(holds):
    """Wait until something holds, a minute at most."""
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_report_that_cannot_be_delivered(running):
    """It is tried again with growing pauses, and at once when an object comes: then all that happened is in it."""
    until(lambda: running.tries)
    running.duty.deed = Deed("RolledBack", ())
    running.mailbox.wake()
    until(lambda: running.agent._composed.phase == "RolledBack")
    time.sleep(2)
    assert running.tries <= 6  # so many in 12 s, should this machine have slept meanwhile
    running.duty.deed = Deed("Trial", ())
    running.mailbox.wake()
    until(lambda: running.agent._composed.phase == "Trial")
    running.away = False
    running.mailbox.put(Delivery(SPEC))
    # A report that was on its way already may be of the moment before.
    until(lambda: running.came and len(running.came[-1].history) == 3)
    assert [entry.phase for entry in running.came[-1].history] == ["Trial", "RolledBack", "Trial"]


def test_a_node_that_flaps_for_an_hour():
    """It tells a burst, then once a minute, and a new spec is answered at once all the same."""
    clock, told = StillClock(), []
    mailbox = Mailbox(clock)

    class Flapping:
        """A duty whose wish turns out otherwise at every look."""

        machine = SimpleNamespace(roots=Roots())
        spec, deed, seconds_to_step = SPEC, None, 5.0

        def step(self):
            """Come to the other of two ends."""
            reason = "Refused" if int(clock.monotonic()) // 5 % 2 else "Current"
            self.deed = Deed(reason, ())

        def wish(self, spec):
            """Take note of it."""
            self.spec = spec
            self.step()

        def start(self):
            """Begin."""

        def end(self, error=None):
            """End."""

    agent = Agent(
        Flapping(), mailbox, Blind(), lambda status: told.append((clock.monotonic(), status)), lambda _entries: [],
        clock,
    )  # fmt: skip

    def is_quiet():
        return not (agent._writing and agent._writing.is_alive()) and clock.is_quiet(mailbox._changed)

    mailbox.put(Delivery(SPEC, uid="u"))
    thread = threading.Thread(target=agent.run)
    thread.start()
    try:
        clock.advance(3600, is_quiet)
        times = [seconds for seconds, _ in told]
        assert times[:6] == [0, 5, 10, 15, 20, 25]
        assert 50 <= len(times) <= 66
        mailbox.put(Delivery(SPEC.model_copy(update={"revision": "new"}), uid="u"))
        until(lambda: told[-1][1].observed_revision == "new")
        assert told[-1][0] == 3600
    finally:
        mailbox.stop()
        thread.join(10)
