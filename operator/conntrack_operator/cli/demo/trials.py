"""The demo's changes on trial, by the agent's own code, in the server's namespace: tried, watched, kept or undone."""

import time
from dataclasses import dataclass
from pathlib import Path

import yaml

from conntrack_operator.agent import way_back
from conntrack_operator.agent.machine import Machine, Outcome
from conntrack_operator.agent.probes import Probe, passing
from conntrack_operator.agent.trial import Trial, begin
from conntrack_operator.decide.merge import merged
from conntrack_operator.kernel.journal import StateDirectory
from conntrack_operator.kernel.nftables import read_bypassed, read_table
from conntrack_operator.kernel.roots import Roots
from conntrack_operator.model.node import NodeSpec
from conntrack_operator.model.policy import Trial as TrialTerms
from conntrack_operator.model.reading import policy_from

from .display import Display
from .probes import Regular, probes_of
from .stage import Stage

ANSWER_SECONDS = 1.0
"""Who has not answered a probe by then does not."""
TICK_SECONDS = 0.1
SOAK = TrialTerms(soak_seconds=1)
"""Where a policy says nothing: the default of 5 s is long for a story."""


@dataclass(frozen=True)
class Tried:
    """How a change ended, and the names of the probes by their part in it."""

    outcome: Outcome
    seconds: float
    """From the first write to the end of the trial; 0 when there was nothing to try."""
    soaked: float = 0.0
    """To the end of the last round of probes."""
    watched: tuple[str, ...] = ()
    """Answered before, and had to go on answering."""
    unwatched: tuple[str, ...] = ()
    """Did not answer before."""


class Trials:
    """The server as a machine whose settings are changed. `probes` are what its clients need."""

    def __init__(self, display: Display, stage: Stage, regular: Regular, roots: Roots) -> None:
        self._display, self._stage, self._roots = display, stage, roots
        self._machine = Machine(roots)
        self.probes: list[Probe] = probes_of(stage, regular, Path(roots.state))

    def attempt(self, *policies: str) -> Tried:
        """Try these policies together, and wait how it ends."""
        spec = _wish(policies)
        with self._stage.server.inside(), StateDirectory(self._roots) as state:
            begun = begin(self._machine, state, spec, lambda: self.probes)
            return Tried(begun, 0.0) if isinstance(begun, Outcome) else self._ended(begun)

    def answering(self) -> tuple[str, ...]:
        """Ask all probes, and return the names of those that pass."""
        passed = passing(self.probes, ANSWER_SECONDS)
        return tuple(probe.name for probe in self.probes if probe.name in passed)

    def stands(self, *policies: str) -> bool:
        """Tell whether the server is as these policies want it."""
        spec = _wish(policies)
        with self._stage.server.inside():
            plan = self._machine.plan(spec.settings, spec.policies)
        return not plan.changes and not plan.refused

    def restore(self) -> tuple[Outcome, bool]:
        """Put everything back; return what came of it, and whether no rule of ours is left."""
        with self._stage.server.inside():
            with StateDirectory(self._roots) as state:
                outcome = way_back.restore(self._machine, state)
            return outcome, read_table() is None

    def bypassed(self) -> tuple[int, int]:
        """Return how many packets the rules let by, and the bytes that an entry takes."""
        with self._stage.server.inside():
            return sum(each.packets for each in read_bypassed()), self._machine.facts().entry_bytes

    def _ended(self, trial: Trial) -> Tried:
        limit = round(trial.budget.timeout_seconds)
        with self._display.bar("on trial", limit) as move:
            while (outcome := trial.tick()) is None:
                failed = sorted(trial.rounds[-1].failed) if trial.rounds else []
                move(int(trial.elapsed), f"no answer from {' and '.join(failed)}" if failed else "all probes pass")
                time.sleep(min(trial.seconds_to_tick, TICK_SECONDS))
        seconds, soaked = trial.elapsed, trial.rounds[-1].ended if trial.rounds else 0.0
        return Tried(outcome, seconds, soaked, tuple(probe.name for probe in trial.probes), trial.unwatched)


def _wish(policies: tuple[str, ...]) -> NodeSpec:
    merge = merged(policy_from(yaml.safe_load(text)) for text in policies)
    revision = f"demo-{len(policies)}"
    settings = merge.settings if merge.settings.trial else merge.settings.model_copy(update={"trial": SOAK})
    return NodeSpec(revision=revision, mode="Apply", node_uid="", policies=list(merge.uses), settings=settings)
