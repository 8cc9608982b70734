"""What is confirmed on a node is kept: put in force at a start, and put right whenever somebody else changed it."""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from conntrack_operator.decide.outcome import APPLIED
from conntrack_operator.decide.trial import known_part
from conntrack_operator.errors import FAILURES
from conntrack_operator.kernel.journal import StateDirectory
from conntrack_operator.metrics.tally import Counts
from conntrack_operator.model.journal import Confirmed
from conntrack_operator.model.node import NodeSpec
from conntrack_operator.model.surroundings import Service

from .machine import Machine, Outcome
from .mending import Mended, Mender

log = logging.getLogger(__name__)

MEND_SECONDS = 1.5
"""Between two looks for what somebody else changed; a look costs next to nothing while nobody does."""


@dataclass
class Keeping:
    """Keeps one machine as it was confirmed. `due` is when to look next, in seconds of time.monotonic."""

    machine: Machine
    state: StateDirectory
    repairs: Counts = field(default_factory=Counts)
    """Counts what was put right, by setting and kind of rival."""
    confirmed: Confirmed | None = None
    """What is watched; None until something was put in force by this process, and after a restore."""
    due: float = float("inf")
    mender: Mender = field(init=False)
    _blind: str = ""

    def __post_init__(self) -> None:
        self.mender = Mender(self.machine, self.repairs)

    def put_in_force(self, services: Sequence[Service] = ()) -> Outcome | None:
        """Repair what was confirmed here, if need be; return what came of it, None when nothing is confirmed."""
        confirmed = self.machine.read_confirmed(self.state)
        if confirmed is None:
            return None
        journal = self.machine.journal(self.state)
        sight = self.machine.look(confirmed.settings, confirmed.uses, journal, services)
        sight = replace(sight, plan=known_part(sight.plan, confirmed))
        outcome = self.machine.settle(sight, journal, self.state, confirmed.uses)
        self.watch(outcome)
        return outcome

    def leaves_all_to_others(self, spec: NodeSpec) -> bool:
        """Tell whether all that `spec` would change is left to whoever keeps changing it.

        Then nothing is written but what the journal says of onDelete.
        """
        left = self.mender.left
        if not left:
            return False
        journal = self.machine.journal(self.state)
        sight = self.machine.look(spec.settings, spec.policies, journal, spec.services)
        if sight.accepts_differ or any(change.setting not in left for change in sight.plan.changes):
            return False
        self.machine.settle(replace(sight, plan=replace(sight.plan, changes=())), journal, self.state, spec.policies)
        return True

    def watch(self, outcome: Outcome) -> None:
        """Take the machine as it is after `outcome` as right, and watch it from now on."""
        self.confirmed = self.machine.read_confirmed(self.state)
        if self.confirmed is None or outcome.phase == "Restored":
            self.due = float("inf")
            return
        if outcome.sight is not None:
            plan = outcome.sight.plan
            good = {result.setting for result in outcome.results if result.reason == APPLIED}
            wanted = {name: value for name, value in plan.wanted.items() if name in good}
            self.mender.settled(replace(outcome.sight, plan=replace(plan, wanted=wanted)))
        self.due = time.monotonic() + MEND_SECONDS

    def mended(self, spec: NodeSpec | None) -> Mended | None:
        """Put right what somebody else changed of what is confirmed; return what was done, None when nothing was.

        `spec` is the newest wish, for the Services in it.
        """
        self.due = time.monotonic() + MEND_SECONDS
        if self.confirmed is None:
            return None
        try:
            mended = self.mender.mend(self.state, self.confirmed, spec, time.monotonic())
            self._blind = ""
        except FAILURES as error:
            # Said once: it is looked at every few seconds.
            if str(error) != self._blind:
                log.warning("%s; it is looked at again", error)
            self._blind = str(error)
            return None
        return mended
