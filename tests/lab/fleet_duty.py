"""The duty of a simulated node: what the real one does for each mode, on a kernel that is a dictionary.

It keeps to the same order: what failed waits, what is known needs no trial, a trial ends as the orders say.
"""

import threading
from dataclasses import dataclass, field, replace
from types import SimpleNamespace

from conntrack_operator.agent.clock import Clock
from conntrack_operator.decide import notrack
from conntrack_operator.decide.outcome import of_node, phase_of, results_for
from conntrack_operator.decide.plan import BUCKETS, MAX, Plan, TableState, plan_for
from conntrack_operator.decide.previewed import preview_revision
from conntrack_operator.decide.remember import journal_after, journal_before, journal_confirmed, judged_anew
from conntrack_operator.decide.report import Deed
from conntrack_operator.decide.trial import (
    PROBE_FAILED,
    Wishing,
    failed_again,
    has_failed,
    needs_trial,
    seconds_to_next_try,
    why_again,
    why_not_now,
)
from conntrack_operator.kernel.roots import Roots
from conntrack_operator.model.catalogue import PREFIX
from conntrack_operator.model.facts import Facts
from conntrack_operator.model.journal import Confirmed, Journal
from conntrack_operator.model.node import NodeSpec
from conntrack_operator.model.notrack import NotrackRule
from conntrack_operator.model.policy import Settings
from conntrack_operator.model.surroundings import Surroundings

ICMP = PREFIX + "nf_conntrack_icmp_timeout"
BAD_ICMP_SECONDS = 13
"""A timeouts.icmp that makes the probes of every simulated node fail, wherever it is tried."""
VALUES = {
    MAX: 262144, BUCKETS: 262144, ICMP: 30, PREFIX + "nf_conntrack_generic_timeout": 600,
    PREFIX + "nf_conntrack_tcp_timeout_established": 432000, PREFIX + "nf_conntrack_tcp_timeout_time_wait": 120,
    PREFIX + "nf_conntrack_tcp_loose": 1, PREFIX + "nf_conntrack_acct": 0,
}  # fmt: skip


@dataclass
class Orders:
    """How a node behaves, from now on."""

    trial_seconds: float = 0.3
    """How long a trial takes; the real one's soak takes 5 s."""
    haste: float = 60.0
    """By what the pauses before another try are shorter than the real 30 and 60 s."""
    rolls_back: bool = False
    """Whatever is tried fails, and not only a timeouts.icmp of 13 s."""
    refuses: str = ""
    """The reason with which everything is refused; empty: nothing is."""
    silent: bool = False
    """Reports do not get through."""
    frozen: threading.Event = field(default_factory=threading.Event)
    """Set: the agent stands still, as a process that was stopped; cleared: it goes on."""


@dataclass(frozen=True)
class Touch:
    """A change of the kernel: which revision it was made for, and when by the fleet's clock."""

    revision: str
    mode: str
    seconds: float


@dataclass
class FakeKernel:
    """The machine: sysctls, rules, and the files in which the agent remembers. Outlives its agents."""

    sysctls: dict[str, int] = field(default_factory=lambda: dict(VALUES))
    rules: tuple[NotrackRule, ...] = ()
    journal: Journal = field(default_factory=lambda: Journal(boot_id="boot"))
    confirmed: Confirmed | None = None
    touches: list[Touch] = field(default_factory=list)
    told: list[tuple[float, NodeSpec | None]] = field(default_factory=list)
    """The wishes its agents heard, oldest first; one that is heard again counts once."""
    before_trial: tuple[dict[str, int], tuple[NotrackRule, ...], Journal] | None = None

    @property
    def max_entries(self) -> int:
        """The size of the table."""
        return self.sysctls[MAX]

    @property
    def facts(self) -> Facts:
        """The machine as it is now."""
        return Facts(memory_bytes=16 << 30, cpus=8, kernel="6.18.0", entries=1000, sysctls=dict(self.sysctls))

    @property
    def table(self) -> TableState:
        """The rules as they stand."""
        return TableState(notrack.ruleset_for(self.rules).expected if self.rules else None)

    def plan(self, spec: NodeSpec, settings: Settings) -> Plan:
        """Return what `settings` would change."""
        surroundings = Surroundings(services=spec.services)
        return plan_for(settings, self.facts, self.table, self.journal, spec.policies, surroundings)

    def carry_out(self, plan: Plan) -> None:
        """Make the changes of a plan."""
        self.sysctls |= {change.setting: int(change.to) for change in plan.changes if change.setting.startswith(PREFIX)}
        self.rules = plan.rules

    def touched(self, revision: str) -> bool:
        """Tell whether anything was changed for `revision`."""
        return any(touch.revision == revision for touch in self.touches)


class FakeDuty:
    """The wish of one node, and what was made of it."""

    def __init__(self, kernel: FakeKernel, orders: Orders, clock: Clock) -> None:
        self.machine = SimpleNamespace(roots=Roots())
        self.spec: NodeSpec | None = None
        self.deed: Deed | None = None
        self._kernel, self._orders, self._clock = kernel, orders, clock
        self._done = ""
        self._trial: tuple[NodeSpec, Plan] | None = None
        self._due = float("inf")

    def start(self) -> None:
        """Take back a trial that another agent left."""
        self._take_back()

    def resume(self) -> None:
        """Leave the kernel alone: what was confirmed is in it."""

    def end(self, error: BaseException | None = None) -> None:
        """Take back a trial under way."""
        del error
        self._take_back()

    def wish(self, spec: NodeSpec | None) -> None:
        """Take note of the newest wish and begin with it."""
        self._stand_still()
        if spec != self.spec or not self._kernel.told:
            self._kernel.told.append((self._clock.monotonic(), spec))
        self.spec = spec
        if self._trial is not None and (spec is None or _tried(spec) != _tried(self._trial[0])):
            self._take_back()
        if spec is not None and self._trial is None and self._done != spec.model_dump_json():
            self._act(spec)

    def step(self) -> bool:
        """Do what is due, and tell whether anything was decided."""
        self._stand_still()
        if self._clock.monotonic() < self._due:
            return False
        self._due = float("inf")
        if self._trial is not None:
            self._end_trial(*self._trial)
        elif self.spec is not None:
            self._act(self.spec)
        return True

    @property
    def seconds_to_step(self) -> float:
        """Seconds until there is something to do; infinity when there is nothing."""
        return max(0.0, self._due - self._clock.monotonic())

    def _stand_still(self) -> None:
        while self._orders.frozen.is_set():
            threading.Event().wait(0.02)

    def _act(self, spec: NodeSpec) -> None:
        if spec.mode == "Hold":
            confirmed = self._kernel.confirmed
            plan = self._kernel.plan(spec, confirmed.settings) if confirmed is not None else None
            results = results_for(plan, self._kernel.facts, self._kernel.table, {}) if plan is not None else ()
            self._finish(spec, Deed("Current", results))
        elif spec.mode == "Restore":
            self._restore(spec)
        elif self._orders.refuses:
            self._finish(spec, Deed("Refused", (of_node(self._orders.refuses, "as the test wishes"),)), 30)
        elif not self._is_waiting(spec):
            self._apply(spec)

    def _apply(self, spec: NodeSpec) -> None:
        kernel = self._kernel
        plan = kernel.plan(spec, spec.settings)
        if plan.changes:
            kernel.touches.append(Touch(spec.revision, spec.mode, self._clock.monotonic()))
        if not needs_trial(plan, kernel.confirmed):
            kernel.journal = journal_before(plan, kernel.journal, kernel.facts, spec.policies)
            self._confirm(spec, plan)
            return
        kernel.before_trial = (dict(kernel.sysctls), kernel.rules, kernel.journal)
        failures = kernel.journal.failures
        kernel.journal = journal_before(plan, kernel.journal, kernel.facts, spec.policies)
        kernel.carry_out(plan)
        results = results_for(plan, kernel.facts, kernel.table, {})
        if failures is not None and has_failed(failures, _wishing(spec)):
            results = (of_node(failures.reason, why_again(failures)), *results)
        self._trial = (spec, plan)
        self._finish(spec, Deed("Trial", results), self._orders.trial_seconds)

    def _end_trial(self, spec: NodeSpec, plan: Plan) -> None:
        kernel, self._trial = self._kernel, None
        if not self._orders.rolls_back and kernel.sysctls[ICMP] != BAD_ICMP_SECONDS:
            self._confirm(spec, plan)
            return
        self._take_back()
        message = "DNS answered before the change and did not after it; everything else is as it was before"
        failures = failed_again(kernel.journal, _wishing(spec), self._hasty(), PROBE_FAILED, message)
        kernel.journal = kernel.journal.model_copy(update={"failures": failures})
        self._is_waiting(spec)

    def _confirm(self, spec: NodeSpec, plan: Plan) -> None:
        kernel = self._kernel
        facts = kernel.facts
        kernel.carry_out(plan)
        kernel.journal = journal_confirmed(plan, kernel.journal, facts, spec.policies, {})
        kernel.before_trial = None
        kernel.confirmed = Confirmed(
            revision=spec.revision, settings=spec.settings, uses=spec.policies, sysctls=dict(plan.wanted),
            rules=list(plan.rules),
        )  # fmt: skip
        results = results_for(plan, kernel.facts, kernel.table, {})
        phase = phase_of(results, "Apply")
        self._finish(spec, Deed(phase, results, warnings=plan.warnings), 30 if phase == "Refused" else float("inf"))

    def _restore(self, spec: NodeSpec) -> None:
        kernel = self._kernel
        kernel.journal = judged_anew(kernel.journal, spec.policies)
        plan = plan_for(Settings(), kernel.facts, kernel.table, kernel.journal)
        if plan.changes:
            kernel.touches.append(Touch(spec.revision, spec.mode, self._clock.monotonic()))
        kernel.carry_out(plan)
        kernel.journal, kernel.confirmed = journal_after(plan, kernel.journal, {}), None
        self._finish(spec, Deed("Restored", results_for(plan, kernel.facts, kernel.table, {})))

    def _is_waiting(self, spec: NodeSpec) -> bool:
        """Tell whether `spec` failed before and must wait; then that is what is reported."""
        failures = self._kernel.journal.failures
        seconds = seconds_to_next_try(failures, _wishing(spec), self._hasty())
        if failures is None or seconds == 0:
            return False
        deed = Deed("RolledBack", (of_node(failures.reason, why_not_now(failures, seconds)),), parked=seconds is None)
        self._finish(spec, deed, float("inf") if seconds is None else seconds / self._orders.haste)
        return True

    def _take_back(self) -> None:
        kernel, self._trial = self._kernel, None
        if kernel.before_trial is not None:
            kernel.sysctls, kernel.rules, journal = kernel.before_trial
            kernel.journal = journal.model_copy(update={"failures": kernel.journal.failures})
            kernel.before_trial, self._done = None, ""

    def _hasty(self) -> float:
        return self._clock.monotonic() * self._orders.haste

    def _finish(self, spec: NodeSpec, deed: Deed, pause: float = float("inf")) -> None:
        kernel = self._kernel
        preview = kernel.plan(spec, spec.preview) if spec.preview is not None and deed.phase != "Trial" else None
        previewed = preview_revision(spec.preview) if spec.preview is not None else ""
        self.deed = replace(deed, observed={"buckets": kernel.sysctls[BUCKETS]}, preview=preview, previewed=previewed)
        self._done, self._due = spec.model_dump_json(), self._clock.monotonic() + pause
        if self.spec is not None and self.spec.model_dump_json() != self._done and self._trial is None:
            self._due = self._clock.monotonic()  # something was changed meanwhile that did not break off the trial


def _wishing(spec: NodeSpec) -> Wishing:
    return Wishing(spec.revision, spec.attempt)


def _tried(spec: NodeSpec) -> object:
    return (spec.revision, spec.attempt, spec.mode, spec.services)
