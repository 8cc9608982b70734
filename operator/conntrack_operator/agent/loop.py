"""The agent's loop: obey the newest wish, look at the table every few seconds, and report what is worth it.

One thread acts; whoever brings wishes only fills the mailbox. The loop never dies of what the world does to it: what
fails is a result, and is tried again.
"""

import logging
import random
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from conntrack_operator.decide.plan import BUCKETS
from conntrack_operator.decide.report import Deed, Moment, is_due, status_for
from conntrack_operator.decide.usage import Reading, is_another_band, usage_from
from conntrack_operator.errors import ConntrackOperatorError
from conntrack_operator.kernel.facts import read_boot_id
from conntrack_operator.kernel.journal import StateDirectory
from conntrack_operator.model.journal import Confirmed
from conntrack_operator.model.node import NodeSpec, NodeStatus, Result, Talker

from .machine import Machine
from .mailbox import Delivery, Mailbox
from .meter import Meter

log = logging.getLogger(__name__)

SAMPLE_SECONDS = 5.0
RETRY_SECONDS = 30.0
START_SECONDS = 3.0
"""How long to wait for the API server at the start before the settings kept on the node are used."""


@dataclass
class Agent:
    """One node's agent. `write_status` sends a status on its way and raises when it could not."""

    machine: Machine
    state: StateDirectory
    mailbox: Mailbox
    meter: Meter
    write_status: Callable[[NodeStatus], None]
    top_talkers: Callable[[int], list[Talker]]
    """Names who holds most entries of a table with that many."""
    _spec: NodeSpec | None = None
    _uid: str = ""
    _reported: NodeStatus | None = None
    _acted: "_Act | None" = None
    _readings: deque[Reading] = field(default_factory=lambda: deque(maxlen=12))
    _blind: str = ""
    _usage_written: float = float("-inf")

    def run(self) -> None:
        """Work until the mailbox is stopped. What was put in force stays in force."""
        self._boot_id = read_boot_id(self.machine.roots)
        self._jitter = random.uniform(0.8, 1.2)  # noqa: S311 - spreading, not secrecy
        first = self.mailbox.take(START_SECONDS)
        self._look()
        if first is None or first.spec is None:
            self._resume()
        next_look = time.monotonic() + SAMPLE_SECONDS
        delivery = first
        while not self.mailbox.stopped:
            if delivery is not None:
                self._obey(delivery)
            elif self._acted is not None and self._acted.is_stale(time.monotonic()):
                self._act()
            if time.monotonic() >= next_look:
                self._look()
                next_look = time.monotonic() + SAMPLE_SECONDS
            self._report()
            delivery = self.mailbox.take(next_look - time.monotonic())

    def _obey(self, delivery: Delivery) -> None:
        if delivery.uid != self._uid or self._spec is None:
            # Another object, or our first sight of it: what it says of us is what was reported. Later only we know.
            self._uid, self._reported = delivery.uid, delivery.status
        spec, self._spec = delivery.spec, delivery.spec
        # No object is no wish: only mode Restore undoes anything.
        if spec is not None and (self._acted is None or self._acted.key != _key(spec)):
            self._act()

    def _act(self) -> None:
        spec = self._spec
        if spec is None:
            return
        started = time.monotonic()
        self._acted = self._carried_out(spec)
        milliseconds = (time.monotonic() - started) * 1000
        log.info("revision %s, %s: %s in %.0f ms", spec.revision, spec.mode, self._acted.summary, milliseconds)
        self._look()

    def _carried_out(self, spec: NodeSpec) -> "_Act":
        try:
            if spec.mode == "Restore":
                outcome = self.machine.restore(self.state, spec.policies)
                self.state.write_confirmed(None)
            else:
                outcome = self.machine.apply(spec.settings, spec.policies, self.state)
                self.state.write_confirmed(
                    Confirmed(revision=spec.revision, settings=spec.settings, uses=spec.policies)
                )
            preview = self.machine.plan(spec.preview) if spec.preview is not None else None
        except ConntrackOperatorError as error:
            result = Result(setting="node", wanted="", observed="", reason=type(error).__name__, message=str(error))
            return _Act(_key(spec), Deed("Refused", (result,)), time.monotonic())
        sysctls = outcome.facts.sysctls
        observed = {"buckets": sysctls[BUCKETS]} if BUCKETS in sysctls else {}
        deed = Deed(outcome.phase, outcome.results, observed, preview, outcome.warnings)
        return _Act(_key(spec), deed, time.monotonic(), len(outcome.changes))

    def _resume(self) -> None:
        """Put the settings kept on this node in force: without its object the node stays as it was confirmed."""
        try:
            confirmed = self.state.read_confirmed()
            if confirmed is not None:
                outcome = self.machine.apply(confirmed.settings, confirmed.uses, self.state)
                log.warning(
                    "no word from the API server; revision %s kept on this node is in force, %d changes",
                    confirmed.revision,
                    len(outcome.changes),
                )
        except ConntrackOperatorError as error:
            log.warning("%s", error)

    def _look(self) -> None:
        try:
            self._readings.append(self.meter.read())
            self._blind = ""
        except ConntrackOperatorError as error:
            # Said once: it is looked at every few seconds.
            if str(error) != self._blind:
                log.warning("%s", error)
            self._blind = str(error)

    def _report(self) -> None:
        acted, spec = self._acted, self._spec
        if acted is None or spec is None:
            return
        now = datetime.now(UTC)
        usage = usage_from(self._readings) if self._readings else None
        moment = Moment(now, self._boot_id, usage)
        fresh = status_for(spec, self._reported, acted.deed, moment)
        since_usage = time.monotonic() - self._usage_written
        if not is_due(self._reported, fresh, now, since_usage, self._jitter):
            return
        before = self._reported
        if before and before.phase == fresh.phase and usage and is_another_band(before.usage, usage):
            self._usage_written = time.monotonic()
        moment = replace(moment, talkers=self._talkers())
        fresh = status_for(spec, self._reported, acted.deed, moment)
        try:
            self.write_status(fresh)
        except ConntrackOperatorError as error:
            log.warning("%s; the report waits", error)
        else:
            self._reported = fresh

    def _talkers(self) -> list[Talker]:
        try:
            return self.top_talkers(self._readings[-1].entries) if self._readings else []
        except ConntrackOperatorError as error:
            log.warning("%s", error)
            return []


@dataclass(frozen=True)
class _Act:
    """What was done last, for which wish, and how it came out."""

    key: str
    deed: Deed
    at: float
    changes: int = 0

    def is_stale(self, now: float) -> bool:
        """Tell whether it is time to try again what was refused: the reason may have gone."""
        return self.deed.phase == "Refused" and now - self.at >= RETRY_SECONDS

    @property
    def summary(self) -> str:
        return f"{self.deed.phase}, {self.changes} changes"


def _key(spec: NodeSpec) -> str:
    # More than the revision: what happens at a policy's end (onDelete) and what a preview asks are wishes too.
    return spec.model_dump_json()
