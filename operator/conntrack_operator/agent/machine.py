"""One machine: what is confirmed on it, and the journal that brings it back.

It carries out what needs no trial, restores, and takes an unfinished trial back, with the journal around every write.
How it is looked at is `agent.sight`'s, the writes themselves are `agent.writing`'s; what to try, and when to keep it,
is `agent.trial`'s. Nothing is decided here.
"""

import contextlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from conntrack_operator.decide.foresight import accepts_change, plan_to_load, unseen_of
from conntrack_operator.decide.outcome import NODE, phase_of, results_for
from conntrack_operator.decide.plan import Change, Plan, plan_for
from conntrack_operator.decide.refusal import Refusal
from conntrack_operator.decide.remember import (
    journal_after,
    journal_before,
)
from conntrack_operator.decide.tracking import SETTING as TRACKING
from conntrack_operator.decide.tracking_off import journal_after_loading, journal_before_unloading
from conntrack_operator.decide.trial import (
    new_rules,
    rules_named,
    withdrawn_rules,
)
from conntrack_operator.errors import ConntrackOperatorError
from conntrack_operator.kernel import accepts, modules
from conntrack_operator.kernel.autoload import loading_nothing
from conntrack_operator.kernel.clock import read_boottime
from conntrack_operator.kernel.facts import read_boot_id, read_facts
from conntrack_operator.kernel.journal import StateDirectory
from conntrack_operator.kernel.roots import Roots
from conntrack_operator.model.facts import Facts
from conntrack_operator.model.journal import Confirmed, Journal
from conntrack_operator.model.node import NodeSpec, Phase, PolicyUse, Result
from conntrack_operator.model.policy import Settings
from conntrack_operator.model.surroundings import Service

from .sight import ACCEPT_UNTRACKED, Eyes, Sight, look_at, read_table_state, with_mode
from .writing import Failed, write_rules, write_sysctls

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """What a wish came to. `changes` were made in this order and stayed; none when all was right already."""

    phase: Phase
    results: tuple[Result, ...]
    changes: tuple[Change, ...]
    facts: Facts
    warnings: tuple[Refusal, ...] = ()
    sight: Sight | None = None
    """The look that it was made of; None for what was rolled back."""

    @property
    def message(self) -> str:
        """Why the node as a whole was refused or rolled back, if it was."""
        return next((result.message for result in self.results if result.setting == NODE), "")


class Machine:
    """The machine this process runs on, in the network namespace it runs in."""

    def __init__(
        self,
        roots: Roots,
        clock: Callable[[], float] = read_boottime,
        api_server: tuple[str, int] | None = None,
    ) -> None:
        self.roots = roots
        self.api_server = api_server
        """Host and port of the API server this process is configured with; a rule must not touch it."""
        self.clock = clock
        """Seconds on CLOCK_BOOTTIME."""

    def facts(self, *, tracking_needed: bool = True) -> Facts:
        """Return what the machine is now. Raises Unsupported when tracking is needed and nf_conntrack not loaded."""
        return read_facts(self.roots, tracking_needed=tracking_needed)

    def journal(self, state: StateDirectory | None = None) -> Journal:
        """Return what was written since this boot; without `state` without taking the lock."""
        return (state or StateDirectory(self.roots)).read_journal(read_boot_id(self.roots))

    def plan(
        self,
        settings: Settings,
        uses: Sequence[PolicyUse] = (),
        facts: Facts | None = None,
        services: Sequence[Service] = (),
    ) -> Plan:
        """Return what `settings` would change here; with `facts` of another machine, what they would change there."""
        if facts is not None:
            return plan_for(settings, facts, uses=uses)
        return self.look(settings, uses, self.journal(), services).plan

    def preview(self, settings: Settings, services: Sequence[Service] = ()) -> Plan:
        """Return what `settings` would change here, without loading a kernel module or writing anything for it.

        What is not known for that reason is said in the plan's warnings. Raises as `look` does.
        """
        journal = self.journal()
        if journal.unloaded and settings.tracking != "Disabled":
            return plan_to_load()
        # Rules are these settings' own, as they will be when some policy has them; onDelete is about those of nobody.
        rules = (settings.notrack and settings.notrack.rules) or ()
        use = PolicyUse(name="", revision="", fields=[f"notrack.rules[{rule.name}]" for rule in rules])
        with loading_nothing(self.roots) as unloaded:
            sight = self.look(settings, (use,), journal, services)
            accepts_too = sight.accepts if sight.accepts_differ else None
            changes = [accepts_change(accepts.read_accepts(), accepts_too.standing)] if accepts_too else []
        plan = sight.plan
        return replace(
            plan,
            changes=(*plan.changes, *changes),
            warnings=(*plan.warnings, *unseen_of(settings, journal, plan, unloaded)),
        )

    def look(
        self, settings: Settings, uses: Sequence[PolicyUse], journal: Journal, services: Sequence[Service] = ()
    ) -> Sight:
        """Return what the machine is and what `settings` would change on it."""
        return look_at(Eyes(self.roots, self.api_server), settings, uses, journal, services)

    def load_again(self, settings: Settings, state: StateDirectory) -> None:
        """Load nf_conntrack if `tracking: Disabled` unloaded it and `settings` no longer ask for that.

        Raises Unsupported when it cannot be loaded; then the journal still says that it is to be.
        """
        journal = self.journal(state)
        if journal.unloaded and settings.tracking != "Disabled":
            modules.load(self.roots)
            state.write_journal(journal_after_loading(journal, self.facts()))

    def settle(
        self,
        sight: Sight,
        journal: Journal,
        state: StateDirectory,
        uses: Sequence[PolicyUse] = (),
        mode: Literal["Apply", "Restore"] = "Apply",
    ) -> Outcome:
        """Carry out a plan that needs no trial, and tell what became of each setting.

        Nothing is written, neither to the kernel nor to the disk, when nothing differs. Raises Unsupported when the
        originals could not be kept safely; then nothing was written to the kernel either.
        """
        plan, facts, table = sight.plan, sight.facts, sight.table
        withdrawn, added = withdrawn_rules(journal, plan.rules), new_rules(plan, journal)
        journal = with_mode(journal_before(plan, journal, facts, uses), sight)
        if plan.off and plan.off.unload:
            journal = journal_before_unloading(journal, facts, plan.off.unload)
        state.write_journal(journal)
        failed: Failed = {}
        if sight.changes_anything:
            failed = write_sysctls(self.roots, plan.changes)
            if rules_named(plan) or sight.accepts_differ:
                error = write_rules(self.roots, plan.rules, withdrawn, sight.accepts, added)
                failed |= dict.fromkeys(rules_named(plan) or [ACCEPT_UNTRACKED], error) if error else {}
            if not failed:
                failed = self.unload(plan)
            facts, table = self.facts(tracking_needed=False), read_table_state()
        state.write_journal(journal_after(plan, journal, failed))
        results = results_for(plan, facts, table, failed)
        return Outcome(phase_of(results, mode), results, plan.changes, facts, plan.warnings, sight)

    def unload(self, plan: Plan) -> Failed:
        """Unload the modules that `plan` names, after everything else; return why not."""
        try:
            for name in plan.off.unload if plan.off else ():
                modules.unload(name)
        except ConntrackOperatorError as error:
            return {TRACKING: error}
        return {}

    def asking_for(self, settings: Settings, state: StateDirectory) -> contextlib.AbstractContextManager[object]:
        """Return the context in which to look: one that loads no kernel module where there is nothing to do.

        That is so where `settings` ask for nothing and nothing was changed here. Raises as `journal` does.
        """
        journal = self.journal(state)
        changed = journal.originals or journal.applied_rules or journal.trial or journal.unloaded
        if settings != Settings() or changed or self.read_confirmed(state) is not None:
            return contextlib.nullcontext()
        return loading_nothing(self.roots)

    def read_confirmed(self, state: StateDirectory) -> Confirmed | None:
        """Return what was confirmed last; None too when its file is damaged, which costs a second trial at most."""
        try:
            return state.read_confirmed()
        except ConntrackOperatorError as error:
            log.warning("%s", error)
            return None

    def keep_confirmed(self, spec: NodeSpec, outcome: Outcome, plan: Plan, state: StateDirectory) -> None:
        """Note what is in force now as confirmed. A disk that will not have it costs a second trial, nothing else."""
        good = {result.setting for result in outcome.results if result.reason == "Applied"}
        confirmed = Confirmed(
            revision=spec.revision,
            settings=spec.settings,
            uses=spec.policies,
            sysctls={name: value for name, value in plan.wanted.items() if name in good},
            rules=[rule for rule in plan.rules if f"notrack/{rule.name}" in good],
        )
        try:
            state.write_confirmed(confirmed)
        except ConntrackOperatorError as error:
            log.warning("%s; at the next boot what was confirmed before is put in force", error)
