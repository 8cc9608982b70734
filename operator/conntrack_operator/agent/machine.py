"""One machine, and the one path by which anything on it changes: facts, plan, journal, writes, read back.

The agent, `apply` and `restore` all go through here. Nothing is decided in this module.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from conntrack_operator.decide import notrack
from conntrack_operator.decide.outcome import phase_of, results_for
from conntrack_operator.decide.plan import Change, Plan, TableState, plan_for
from conntrack_operator.decide.refusal import Refusal
from conntrack_operator.decide.remember import journal_after, journal_before, judged_anew, without_keeps
from conntrack_operator.decide.tracking import SETTING as TRACKING
from conntrack_operator.decide.tracking_off import journal_after_loading, journal_before_unloading
from conntrack_operator.errors import ConntrackOperatorError, Unsupported
from conntrack_operator.kernel import modules, nftables
from conntrack_operator.kernel.facts import read_boot_id, read_facts
from conntrack_operator.kernel.firewall import read_firewall
from conntrack_operator.kernel.journal import StateDirectory
from conntrack_operator.kernel.roots import Roots
from conntrack_operator.kernel.sysctl import write_sysctl
from conntrack_operator.kernel.tracking import kube_proxy_runs, read_tracking
from conntrack_operator.model.facts import Facts
from conntrack_operator.model.journal import Journal
from conntrack_operator.model.node import Phase, PolicyUse, Result
from conntrack_operator.model.policy import Settings
from conntrack_operator.model.surroundings import Surroundings


@dataclass(frozen=True)
class Outcome:
    """What an apply or a restore came to. `changes` were made in this order; none when all was right already."""

    phase: Phase
    results: tuple[Result, ...]
    changes: tuple[Change, ...]
    facts: Facts
    warnings: tuple[Refusal, ...] = ()


class Machine:
    """The machine this process runs on, in the network namespace it runs in."""

    def __init__(self, roots: Roots) -> None:
        self.roots = roots

    def facts(self, *, tracking_needed: bool = True) -> Facts:
        """Return what the machine is now. Raises Unsupported when tracking is needed and nf_conntrack not loaded."""
        return read_facts(self.roots, tracking_needed=tracking_needed)

    def surroundings(self, settings: Settings) -> Surroundings | None:
        """Return what else here looks at packets, as far as `settings` make it matter."""
        if settings.tracking != "Disabled":
            return None
        return Surroundings(
            firewall=read_firewall(),
            kube_proxy=kube_proxy_runs(self.roots),
            tracking=read_tracking(self.roots),
        )

    def journal(self) -> Journal:
        """Return what was written since this boot, without taking the lock."""
        return StateDirectory(self.roots).read_journal(read_boot_id(self.roots))

    def plan(
        self,
        settings: Settings,
        uses: Sequence[PolicyUse] = (),
        facts: Facts | None = None,
        surroundings: Surroundings | None = None,
    ) -> Plan:
        """Return what `settings` would change here; with `facts` of another machine, what they would change there."""
        if facts is not None:
            return plan_for(settings, facts, uses=uses)
        facts = self.facts(tracking_needed=settings.tracking != "Disabled")
        around = surroundings or self.surroundings(settings)
        return plan_for(settings, facts, read_table_state(), self.journal(), uses, around)

    def apply(
        self,
        settings: Settings,
        uses: Sequence[PolicyUse],
        state: StateDirectory,
        mode: Literal["Apply", "Restore"] = "Apply",
        surroundings: Surroundings | None = None,
    ) -> Outcome:
        """Make `settings` true and tell what became of each. `state` must be locked by the caller.

        Nothing is written, neither to the kernel nor to the disk, when nothing differs. Raises Unsupported when the
        originals could not be kept safely; then nothing was written to the kernel either.
        """
        journal = state.read_journal(read_boot_id(self.roots))
        return self._carry_out(settings, uses, state, journal, mode, surroundings)

    def restore(self, state: StateDirectory, uses: Sequence[PolicyUse] = (), *, kept_too: bool = False) -> Outcome:
        """Put every original value back and remove the rules.

        What `uses`, the policies that are gone, say of onDelete counts; with `kept_too` nothing is left behind.
        """
        journal = judged_anew(state.read_journal(read_boot_id(self.roots)), uses)
        if kept_too:
            journal = without_keeps(journal)
        return self._carry_out(Settings(), (), state, journal, "Restore")

    def _carry_out(  # noqa: PLR0913, PLR0917 - as plan_for
        self,
        settings: Settings,
        uses: Sequence[PolicyUse],
        state: StateDirectory,
        journal: Journal,
        mode: Literal["Apply", "Restore"],
        surroundings: Surroundings | None = None,
    ) -> Outcome:
        # Where nf_conntrack is not loaded there is nothing to put back, and nothing to switch off.
        needed = mode == "Apply" and settings.tracking != "Disabled"
        if journal.unloaded and settings.tracking != "Disabled":
            modules.load(self.roots)
            journal = journal_after_loading(journal, self.facts())
        facts, table = self.facts(tracking_needed=needed), read_table_state()
        plan = plan_for(settings, facts, table, journal, uses, surroundings or self.surroundings(settings))
        journal = journal_before(plan, journal, facts, uses)
        if plan.off and plan.off.unload:
            journal = journal_before_unloading(journal, facts, plan.off.unload)
        state.write_journal(journal)
        failed = self._write(plan)
        if plan.changes:
            facts, table = self.facts(tracking_needed=needed), read_table_state()
        state.write_journal(journal_after(plan, journal, failed))
        results = results_for(plan, facts, table, failed)
        return Outcome(phase_of(results, mode), results, plan.changes, facts, plan.warnings)

    def _write(self, plan: Plan) -> dict[str, ConntrackOperatorError]:
        failed: dict[str, ConntrackOperatorError] = {}
        rules = [change for change in plan.changes if change.setting.startswith("notrack/")]
        for change in plan.changes:
            if change not in rules and change.setting != TRACKING:
                try:
                    write_sysctl(self.roots, change.setting, int(change.to))
                except ConntrackOperatorError as error:
                    failed[change.setting] = error
        if rules:
            try:
                nftables.write_rules(plan.rules)
            except ConntrackOperatorError as error:
                failed.update((change.setting, error) for change in rules)
        if plan.off and not failed:
            try:
                for name in plan.off.unload:
                    modules.unload(name)
            except ConntrackOperatorError as error:
                failed[TRACKING] = error
        return failed


def read_table_state() -> TableState:
    """Return our nftables table as it is; why nft cannot be used, where it cannot."""
    try:
        listing = nftables.read_table()
    except Unsupported as error:
        return TableState(problem=str(error))
    return TableState(notrack.installed_from(listing) if listing is not None else None)
