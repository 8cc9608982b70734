"""The agent's loop: hand wishes to the duty, look at the table every few seconds, and report what is worth it.

One thread acts; whoever brings wishes only fills the mailbox. The loop never dies of what the world does to it: what
fails is a result, and is tried again.
"""

import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from conntrack_operator.decide.news import Allowance, is_due
from conntrack_operator.decide.report import Moment, status_for
from conntrack_operator.decide.usage import Reading, usage_from
from conntrack_operator.errors import FAILURES
from conntrack_operator.kernel.facts import read_boot_id
from conntrack_operator.kernel.heap import give_back
from conntrack_operator.model.node import NodeStatus, Talker

from .clock import Clock
from .duty import Duty
from .figures import REPORTED, UNREPORTED, Figures
from .mailbox import Delivery, Mailbox
from .meter import Meter

log = logging.getLogger(__name__)

SAMPLE_SECONDS = 5.0
FIRST_PAUSE_SECONDS = 0.5
REPORT_PAUSE_SECONDS = 30.0
"""The longest time between two tries to write a status; an object that arrives ends the pause, since the API server is
back then."""
START_SECONDS = 3.0
"""How long to wait for the API server at the start before the settings kept on the node are used."""


@dataclass
class Agent:
    """One node's agent. `write_status` sends a status on its way and raises when it could not."""

    duty: Duty
    mailbox: Mailbox
    meter: Meter
    write_status: Callable[[NodeStatus], None]
    top_talkers: Callable[[int], list[Talker]]
    """Names who holds most entries of a table with that many."""
    clock: Clock = field(default_factory=Clock)
    """The same as the mailbox's."""
    figures: Figures = field(default_factory=Figures)
    """What is counted for /metrics; the duty's, too."""
    _uid: str = ""
    _reported: NodeStatus | None = None
    _composed: NodeStatus | None = None
    """What would be reported now: its history has what happened while nobody could be told."""
    _readings: deque[Reading] = field(default_factory=lambda: deque(maxlen=12))
    _blind: str = ""
    _writing: threading.Thread | None = None
    _allowance: Allowance = field(default_factory=Allowance)
    _unheard: str = ""
    _write_at: float = float("-inf")
    _write_pause: float = FIRST_PAUSE_SECONDS

    def run(self) -> None:
        """Work until the mailbox is stopped. What was put in force stays in force."""
        self._boot_id = read_boot_id(self.duty.machine.roots)
        self._jitter = random.uniform(0.8, 1.2)  # noqa: S311 - spreading, not secrecy
        self.duty.start()
        delivery = self.mailbox.take(START_SECONDS)
        self._look()
        if delivery is None or delivery.spec is None:
            self.duty.resume()
        next_look = self.clock.monotonic() + SAMPLE_SECONDS
        try:
            while not self.mailbox.stopped:
                before = self.duty.deed
                self.figures.beat = time.monotonic()
                if delivery is not None:
                    self._obey(delivery)
                    if self.duty.deed is not before:
                        self._look()  # a size that was restored at once is in the report already
                    self._report()
                self.duty.step()
                if self.duty.deed is not before or self.clock.monotonic() >= next_look:
                    if self.duty.deed is not before:
                        give_back()  # what a look at firewalls and the settings took
                    self._look()
                    next_look = self.clock.monotonic() + SAMPLE_SECONDS
                self._report()
                delivery = self.mailbox.take(min(next_look - self.clock.monotonic(), self.duty.seconds_to_step))
        except BaseException as error:
            self.duty.end(error)
            raise
        self.duty.end()

    def _obey(self, delivery: Delivery) -> None:
        if delivery.uid != self._uid or self.duty.spec is None:
            # Another object, or our first sight of it: what it says of us is what was reported. Later only we know.
            self._uid, self._reported, self._composed = delivery.uid, delivery.status, delivery.status
        self._write_at = float("-inf")
        self.duty.wish(delivery.spec)

    def _look(self) -> None:
        try:
            self._readings.append(self.meter.read())
            self._blind = ""
            self.figures.looked(self._readings[-1], usage_from(self._readings).seconds_to_full)
        except FAILURES as error:
            # Said once: it is looked at every few seconds.
            if str(error) != self._blind:
                log.warning("%s", error)
            self._blind = str(error)
            self.figures.looked(None)

    def _report(self) -> None:
        deed, spec = self.duty.deed, self.duty.spec
        if deed is None or spec is None:
            return
        now = self.clock.utc()
        usage = usage_from(self._readings) if self._readings else None
        moment = Moment(now, self._boot_id, usage)
        fresh = self._composed = status_for(spec, self._composed, deed, moment)
        if self.clock.monotonic() < self._write_at or (self._writing is not None and self._writing.is_alive()):
            return
        has_room = self._allowance.has_room(self.clock.monotonic())
        if not is_due(self._reported, fresh, now, self._jitter, has_room=has_room):
            return
        moment = replace(moment, talkers=self._talkers())
        fresh = status_for(spec, self._composed, deed, moment)
        # An API server that hangs must not hold up a trial, whose deadline does not wait.
        self._writing = threading.Thread(target=self._write, args=(fresh,), name="report", daemon=True)
        self._writing.start()

    def _write(self, status: NodeStatus) -> None:
        try:
            self.write_status(status)
        except Exception as error:  # noqa: BLE001 - whatever it is, it must neither end the thread nor come in a storm
            if str(error) != self._unheard:
                log.warning("%s; the report waits", error)
            self.figures.reports.add(UNREPORTED)
            self._unheard = str(error)
            # Spread over half the pause, so that a fleet does not return in step.
            self._write_at = self.clock.monotonic() + self._write_pause * random.uniform(0.5, 1.0)  # noqa: S311 - spreading
            self._write_pause = min(2 * self._write_pause, REPORT_PAUSE_SECONDS)
        else:
            self._reported, self._unheard, self._write_pause = status, "", FIRST_PAUSE_SECONDS
            self._allowance = self._allowance.spent(self.clock.monotonic())
            self.figures.reports.add(REPORTED)
            self.figures.reported_at = time.time()
        finally:
            self.mailbox.wake()

    def _talkers(self) -> list[Talker]:
        try:
            return self.top_talkers(self._readings[-1].entries) if self._readings else []
        except FAILURES as error:
            log.warning("%s", error)
            return []
