"""What to do next for the newest wish: begin, tick or abort a trial, restore, wait, or leave the node as it is.

It owns the one trial that may be under way. Whatever fails becomes a deed that is reported, and is tried again after a
pause; nothing here ends the agent.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from conntrack_operator.decide.drift import CONTENDED
from conntrack_operator.decide.outcome import APPLIED, of_node
from conntrack_operator.decide.plan import BUCKETS
from conntrack_operator.decide.report import Deed
from conntrack_operator.errors import FAILURES, ConntrackOperatorError, Retry
from conntrack_operator.kernel.journal import StateDirectory
from conntrack_operator.model.node import NodeSpec
from conntrack_operator.model.policy import Settings
from conntrack_operator.model.surroundings import Service

from . import way_back
from .figures import Figures
from .foresight import Foresight, reason_of
from .keeping import Keeping
from .machine import Machine, Outcome
from .probes import Probe
from .setbacks import Setbacks, wishing
from .trial import Trial, begin

log = logging.getLogger(__name__)

RETRY_SECONDS = 30.0
"""Until what was refused, or is parked, is looked at again: the reason may have gone."""
AGAIN_SECONDS = 5.0
"""Until a change that failed once is begun again, where what would judge it did not answer."""
RECOVER_SECONDS = 2.0
"""Until a trial that could not be ended is taken back."""
LONGEST_RETRY_SECONDS = 600.0
"""Where the kernel refuses a value each time: every try is a trial, and reported as one."""


@dataclass
class Duty:
    """The wish of one node, and what was made of it. `find_probes` says what the node must reach, anew each time."""

    machine: Machine
    state: StateDirectory
    find_probes: Callable[[], Sequence[Probe]]
    spec: NodeSpec | None = None
    deed: Deed | None = None
    """How the newest wish stands; None until there was one."""
    figures: Figures = field(default_factory=Figures)
    _done: str = ""
    _trial: Trial | None = None
    _due: float = field(default=float("inf"))
    _refusals: int = 0
    _changes: int = 0
    _said: tuple[str, ...] = ()
    _services: list[Service] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._keeping = Keeping(self.machine, self.state, self.figures.repairs)
        self._foresight = Foresight(self.machine)
        self._setbacks = Setbacks(self.machine, self.state)

    def start(self) -> None:
        """Take back what another agent left unfinished. Call it before anything else."""
        try:
            self._recover()
        except FAILURES as error:
            log.warning("%s", error)

    def _recover(self) -> Outcome | None:
        undone = way_back.recover(self.machine, self.state)
        if undone is not None:
            self.figures.trials.add("recovered")
        return undone

    def resume(self) -> None:
        """Put the settings kept on this node in force: without its object the node stays as it was confirmed."""
        try:
            outcome = self._put_confirmed_in_force()
        except FAILURES as error:
            log.warning("%s; it is tried again", error)
            self._due = time.monotonic() + RETRY_SECONDS
            return
        if outcome is not None and self._keeping.confirmed is not None:
            log.warning(
                "no word from the API server; revision %s kept on this node is in force, %d changes",
                self._keeping.confirmed.revision,
                len(outcome.changes),
            )

    def wish(self, spec: NodeSpec | None) -> None:
        """Take note of the newest wish and begin with it. None is no wish: only mode Restore undoes anything."""
        trial, before, self.spec = self._trial, self.spec, spec
        if trial is not None and (spec is None or _tried(spec) != _tried(trial.spec)):
            self._abort("something else is wanted now")
        if spec is not None and self._trial is None and self._done != _key(spec):
            if before is None or wishing(before) != wishing(spec):
                # Services come and go every minute in large clusters: that is no reason to begin a war anew.
                self._refusals = 0
                self._keeping.mender.forget()
            self._act()

    def step(self) -> bool:
        """Do what is due, and tell whether anything was decided. Takes as long as one round of probes at most."""
        try:
            return self._step()
        except FAILURES as error:
            # What is on trial stands in the journal, and is taken back before anything else is done: soon, since
            # nobody watches it now.
            trial, self._trial = self._trial, None
            spec = trial.spec if trial else self.spec
            if trial is not None:
                self.figures.trials.add("failed")
            if spec is not None:
                self._failed(spec, error)
            return True

    def _step(self) -> bool:
        if self._trial is not None:
            outcome = self._trial.tick()
            if outcome is None:
                return False
            trial, self._trial = self._trial, None
            log.info("trial ended after %.0f s: %s", trial.elapsed, outcome.phase)
            self.figures.trials.add("rolled_back" if outcome.phase == "RolledBack" else "confirmed")
            self._ended(trial.spec, outcome)
            return True
        if time.monotonic() >= self._due:
            self._act()
            return True
        if time.monotonic() >= self._keeping.due and self._mended():
            return True
        if time.monotonic() < self._foresight.due:
            return False
        foreseen = self._foresight.again(self.spec, self.deed)
        self.deed = foreseen or self.deed
        return foreseen is not None

    @property
    def seconds_to_step(self) -> float:
        """Seconds until there is something to do; infinity when there is nothing."""
        if self._trial:
            return self._trial.seconds_to_tick
        return max(0.0, min(self._due, self._keeping.due, self._foresight.due) - time.monotonic())

    @property
    def acts(self) -> bool:
        """Whether this node is told to change anything, or has; else not even a kernel module is to be loaded."""
        spec = self.spec
        asked = spec is not None and spec.mode == "Apply" and spec.settings != Settings()
        return asked or self._keeping.confirmed is not None

    @property
    def left(self) -> frozenset[str]:
        """The settings that are left to whoever keeps changing them."""
        return self._keeping.mender.left

    def end(self, error: BaseException | None = None) -> None:
        """Take back a trial under way; what is confirmed stays in force.

        With the `error` that ends the agent it counts as a failure: started anew, the agent may run into it again.
        """
        self._abort("the agent was told to end" if error is None else f"the agent failed: {error!r}", error is not None)

    def _abort(self, why: str, failed: bool = False) -> None:  # noqa: FBT001, FBT002 - of the agent itself
        trial, self._trial = self._trial, None
        if trial is None:
            return
        self._done = ""
        self.figures.trials.add("aborted")
        try:
            trial.abort(why, failed=failed)
        except FAILURES as error:
            log.warning("%s; the trial is taken back when the agent acts again, or starts", error)
            self._due = time.monotonic() + RECOVER_SECONDS

    def _mended(self) -> bool:
        """Put right what somebody else changed of what is confirmed; tell whether there was anything to report."""
        mended = self._keeping.mended(self.spec)
        # A wish that was taken back stays reported as such: what is mended is the one before it.
        if mended is None or self.deed is None or self.deed.phase == "RolledBack":
            return False
        outcome = mended.outcome
        self.deed = replace(
            self.deed,
            phase=outcome.phase,
            results=outcome.results,
            observed=self._observed(outcome.facts.sysctls),
            warnings=(*outcome.warnings, *mended.with_earlier(self.deed.warnings)),
            parked=False,
        )
        return True

    def _act(self) -> None:
        spec = self.spec
        if spec is None:
            self._due = float("inf")
            self.start()  # a trial that could not be taken back when its wish went
            if self._keeping.confirmed is None:
                self.resume()
            return
        began = time.monotonic()
        self._due, self._changes = float("inf"), 0
        try:
            self._begin(spec)
        except FAILURES as error:
            self._failed(spec, error)
        phase = self.deed.phase if self.deed else ""
        took = (time.monotonic() - began) * 1000
        # What is refused or parked for days is looked at twice a minute, and said once.
        said = (spec.revision, spec.attempt, spec.mode, phase)
        level = logging.INFO if self._changes or said != self._said else logging.DEBUG
        self._said = said
        log.log(level, "revision %s, %s: %s, %d changes in %.0f ms", *said[:1], *said[2:], self._changes, took)

    def _failed(self, spec: NodeSpec, error: Exception) -> None:
        result = of_node(reason_of(error), str(error) or repr(error))
        self._finish(spec, Deed("Refused", (result,)), RECOVER_SECONDS if self._is_unfinished() else RETRY_SECONDS)

    def _is_unfinished(self) -> bool:
        try:
            return self.machine.journal(self.state).trial is not None
        except ConntrackOperatorError:
            return False

    def _begin(self, spec: NodeSpec) -> None:
        undone = self._recover()
        if undone is not None and self.machine.journal(self.state).trial is not None:
            self._finish(spec, Deed(undone.phase, undone.results), RETRY_SECONDS)
        elif spec.mode == "Restore":
            self._ended(spec, way_back.restore(self.machine, self.state, spec.policies))
        elif spec.mode == "Hold":
            self._hold(spec)
        elif not self._is_waiting(spec) and not self._is_at_war(spec):
            try:
                begun = begin(self.machine, self.state, spec, self.find_probes)
            except Retry as error:
                # It stays as it is reported, with why it is not tried again yet.
                result = self._setbacks.put_off(spec, error)
                self._finish(spec, Deed("RolledBack", (result,), preview=self._foresight.of(spec)), AGAIN_SECONDS)
                return
            if isinstance(begun, Outcome):
                self._ended(spec, begun)
            else:
                self._trial, self._changes = begun, begun.changes
                results = (*self._setbacks.before(spec), *begun.results)
                self._finish(spec, Deed("Trial", results, self._observed(begun.facts.sysctls)), float("inf"))
                log.info("%s", begun.watched_words())

    def _hold(self, spec: NodeSpec) -> None:
        """Change nothing. What was confirmed here is kept, and put right, as without an API server."""
        if self._keeping.confirmed is not None:
            self._mended()  # first: what is put right now would not be counted
        outcome = None if self._keeping.mender.left else self._put_confirmed_in_force()
        if outcome is not None:
            self._ended(spec, outcome)
            return
        # Without nf_conntrack a node that does nothing is as asked, too.
        observed = self._observed(self.machine.facts(tracking_needed=False).sysctls)
        self._finish(spec, Deed("Current", (), observed, self._foresight.of(spec)), float("inf"))

    def _is_at_war(self, spec: NodeSpec) -> bool:
        """Tell whether nothing is to be done for `spec` but what is left to whoever keeps changing it."""
        if self._done == _key(spec):
            self._mended()  # first: what a mere retry put right would not be counted
        if self.deed is None or not self._keeping.leaves_all_to_others(spec):
            return False
        refused = any(result.reason not in {APPLIED, CONTENDED} for result in self.deed.results)
        deed = replace(self.deed, preview=self._foresight.of(spec))
        self._finish(spec, deed, RETRY_SECONDS if refused else float("inf"))
        return True

    def _is_waiting(self, spec: NodeSpec) -> bool:
        """Tell whether `spec` failed before and must wait; then the node is made, and watched, as it was confirmed."""
        waiting = self._setbacks.waiting(spec)
        if waiting is None:
            return False
        if self._keeping.confirmed is None or (spec.services != self._services and not self._keeping.mender.left):
            # A Service may take a port of what is confirmed: nothing here moves for it, and it must not wait a minute.
            self._put_confirmed_in_force()
            self._services = list(spec.services)
        parked = waiting.seconds is None
        deed = Deed("RolledBack", (waiting.result,), preview=self._foresight.of(spec), parked=parked)
        self._finish(spec, deed, RETRY_SECONDS if waiting.seconds is None else min(waiting.seconds, RETRY_SECONDS))
        return True

    def _ended(self, spec: NodeSpec, outcome: Outcome) -> None:
        if outcome.phase == "RolledBack":
            # What was not counted, since the disk would not have it, waits as long as a refusal.
            if not self._is_waiting(spec):
                self._finish(spec, Deed("RolledBack", outcome.results), RETRY_SECONDS)
            return
        self._changes = len(outcome.changes)
        self._keeping.watch(outcome)
        observed, preview = self._observed(outcome.facts.sysctls), self._foresight.of(spec)
        deed = Deed(outcome.phase, outcome.results, observed, preview, warnings=outcome.warnings)
        self._refusals = self._refusals + 1 if outcome.phase == "Refused" and outcome.changes else 0
        pause = min(RETRY_SECONDS * 2 ** max(0, self._refusals - 1), LONGEST_RETRY_SECONDS)
        self._finish(spec, deed, pause if outcome.phase == "Refused" else float("inf"))

    def _finish(self, spec: NodeSpec, deed: Deed, pause: float) -> None:
        self.deed, self._done = self._foresight.told(spec, deed), _key(spec)
        self._due = time.monotonic() + pause
        if self.spec is not None and _key(self.spec) != self._done and self._trial is None:
            self._due = 0  # something was changed meanwhile that a trial need not be broken off for

    @staticmethod
    def _observed(sysctls: "dict[str, int]") -> dict[str, int]:
        return {"buckets": sysctls[BUCKETS]} if BUCKETS in sysctls else {}

    def _put_confirmed_in_force(self) -> Outcome | None:
        return self._keeping.put_in_force(self.spec.services if self.spec else ())


def _key(spec: NodeSpec) -> str:
    # More than the revision: what happens at a policy's end (onDelete) and what a preview asks are wishes too.
    return spec.model_dump_json()


def _tried(spec: NodeSpec) -> object:
    # What a trial is about: a change of anything else need not break it off.
    return (spec.revision, spec.attempt, spec.mode, spec.services)
