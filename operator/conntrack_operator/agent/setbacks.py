"""What failed before for a wish, as the journal has it: what is said of that, and how long the wish waits for it."""

from dataclasses import dataclass

from conntrack_operator.decide.outcome import of_node
from conntrack_operator.decide.trial import Wishing, has_failed, seconds_to_next_try, why_again, why_not_now
from conntrack_operator.errors import Retry
from conntrack_operator.kernel.journal import StateDirectory
from conntrack_operator.model.journal import Failures
from conntrack_operator.model.node import NodeSpec, Result

from .machine import Machine


@dataclass(frozen=True)
class Waiting:
    """A wish that is not tried now: what is said of it, and for how many seconds; None: parked."""

    result: Result
    seconds: float | None


@dataclass(frozen=True)
class Setbacks:
    """Reads the failures that the journal in `state` keeps."""

    machine: Machine
    state: StateDirectory

    def before(self, spec: NodeSpec) -> tuple[Result, ...]:
        """Return why `spec`, which is tried now, was rolled back the last time; empty when it never was."""
        failures = self._of(spec)
        return (of_node(failures.reason, why_again(failures)),) if failures else ()

    def put_off(self, spec: NodeSpec, error: Retry) -> Result:
        """Return what is said of a wish that `error` keeps from being tried again; raise it when it never failed."""
        failures = self._of(spec)
        if failures is None:
            raise error
        return of_node(failures.reason, f"{failures.message}; {error}")

    def waiting(self, spec: NodeSpec) -> Waiting | None:
        """Return for what and how long `spec` waits after failures; None when it may be tried."""
        failures = self.machine.journal(self.state).failures
        seconds = seconds_to_next_try(failures, wishing(spec), self.machine.clock())
        if failures is None or seconds == 0:
            return None
        return Waiting(of_node(failures.reason, why_not_now(failures, seconds)), seconds)

    def _of(self, spec: NodeSpec) -> Failures | None:
        failures = self.machine.journal(self.state).failures
        return failures if failures is not None and has_failed(failures, wishing(spec)) else None


def wishing(spec: NodeSpec) -> Wishing:
    """Return what failures are counted for."""
    return Wishing(spec.revision, spec.attempt)
