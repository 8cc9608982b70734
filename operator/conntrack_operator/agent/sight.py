"""What a machine is and what a wish would change on it: one look, as a value. Nothing is written here.

Whoever settles, tries or mends begins with a look; firewalls are read only where NOTRACK rules are, were, or where
`tracking: Disabled` asks who needs tracking.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from conntrack_operator.decide import notrack
from conntrack_operator.decide.accepts import Accepts, AcceptUntracked, accept_mode
from conntrack_operator.decide.intervals import Intervals, merged, port_intervals
from conntrack_operator.decide.plan import Plan, TableState, plan_for
from conntrack_operator.decide.refusal import Refusal
from conntrack_operator.errors import ConntrackOperatorError, Unsupported
from conntrack_operator.kernel import accepts, nftables
from conntrack_operator.kernel.facts import read_facts
from conntrack_operator.kernel.roots import Roots
from conntrack_operator.kernel.surroundings import read_surroundings
from conntrack_operator.kernel.tracking import read_tracking
from conntrack_operator.model.facts import Facts
from conntrack_operator.model.journal import Journal
from conntrack_operator.model.node import PolicyUse
from conntrack_operator.model.notrack import NotrackRule
from conntrack_operator.model.policy import Settings
from conntrack_operator.model.surroundings import UNREAD, Service, TrackingState

ACCEPT_UNTRACKED = "notrack.acceptUntracked"
EVERY_PORT: Intervals = ((0, 65535),)
"""Of interest to whoever asks what tracks: with no ports no translation would be told, and unlike with nothing named,
thousands of Services are told as a few (3,000 of kube-proxy's in iptables: 7 MB in place of 13)."""


@dataclass(frozen=True)
class Eyes:
    """Where to look: the machine's files, and the API server's address as host and port, if there is one."""

    roots: Roots
    api_server: tuple[str, int] | None = None


@dataclass(frozen=True)
class Sight:
    """What a machine is, and what must change for a wish."""

    facts: Facts
    table: TableState
    plan: Plan
    accepts: Accepts | None = None
    """What has to stand in other people's firewalls for the rules; None where there are and were none."""
    accepts_differ: bool = False
    """Whether something else stands there."""
    blind: bool = False
    """Whether something of the firewalls could not be read this time."""
    mode: AcceptUntracked | None = None
    """Which untracked packets they accept; None where there are no rules, or nft cannot be used."""

    @property
    def changes_anything(self) -> bool:
        """Whether there is anything to write."""
        return bool(self.plan.changes) or self.accepts_differ


def look_at(
    eyes: Eyes, settings: Settings, uses: Sequence[PolicyUse], journal: Journal, services: Sequence[Service] = ()
) -> Sight:
    """Return what the machine is and what `settings` would change on it.

    Firewalls are looked at only where there are rules, or were: it takes longer than all the rest.
    """
    off = settings.tracking == "Disabled"
    # Without nf_conntrack there is nothing to switch off, and nothing to put back for settings that ask nothing.
    needed = not off and settings != Settings()
    facts, table = read_facts(eyes.roots, tracking_needed=needed), read_table_state()
    asks = settings.notrack is not None and bool(settings.notrack.rules)
    if not off and (table.problem or not (asks or journal.applied_rules)):
        return Sight(facts, table, plan_for(settings, facts, table, journal, uses))
    surroundings = replace(
        read_surroundings(
            eyes.roots,
            services,
            EVERY_PORT if off else _ports_of(settings, journal),
            eyes.api_server,
            entries=not off,
            others=settings.table is not None and settings.table.size is not None,
        ),
        timed_elements=journal.timed_elements is not False,
        tracking=read_tracking(eyes.roots) if off else TrackingState(),
    )
    plan = plan_for(settings, facts, table, journal, uses, surroundings)
    mode = accept_mode(settings.notrack, journal)
    wanted = plan.accepts or Accepts()
    if plan.rules and surroundings.firewall.problems:
        # Half a firewall tells half of the accepts: those of rules in force stay as they are.
        return Sight(facts, table, plan, blind=True, mode=mode)
    try:
        differ = wanted.standing != accepts.read_accepts()
    except ConntrackOperatorError as error:
        # They match nothing but what rules leave untracked; whatever else is to be done must not wait for them.
        unread = Refusal(ACCEPT_UNTRACKED, UNREAD, f"{error}; accept rules of ours stay as they are for now")
        return Sight(facts, table, replace(plan, warnings=(*plan.warnings, unread)), blind=True, mode=mode)
    return Sight(facts, table, plan, wanted, differ, bool(surroundings.firewall.problems), mode)


def confirmed_rules(journal: Journal) -> list[NotrackRule]:
    """Return the rules that are confirmed."""
    return [applied.rule for applied in journal.applied_rules.values()]


def _ports_of(settings: Settings, journal: Journal) -> Intervals:
    rules = [*((settings.notrack and settings.notrack.rules) or ()), *confirmed_rules(journal)]
    return merged(interval for rule in rules for interval in port_intervals(rule.ports or ()))


def with_mode(journal: Journal, sight: Sight) -> Journal:
    """Return `journal` with the acceptUntracked of the rules that `sight` puts, or finds, in force."""
    if sight.mode is None or not sight.plan.rules:
        return journal
    return journal.model_copy(update={"accept_untracked": sight.mode})


def read_table_state() -> TableState:
    """Return our nftables table as it is; why nft cannot be used, where it cannot."""
    try:
        listing = nftables.read_table()
    except Unsupported as error:
        return TableState(problem=str(error))
    return TableState(notrack.installed_from(listing) if listing is not None else None)
