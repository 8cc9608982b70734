"""What a preview says beside the plan: accept rules in firewalls, and what it does not know. Pure.

It does not know what could be found out only by loading a kernel module or writing something.
"""

from collections.abc import Collection, Iterator

from conntrack_operator.model.journal import Journal
from conntrack_operator.model.policy import Settings

from .accept_standing import Standing
from .plan import ABSENT, Change, Plan
from .refusal import Refusal
from .tracking import SETTING as TRACKING

NOT_LOADED, NOT_TESTED = "NotLoaded", "NotTested"
_RULES, _ACCEPTS = "notrack.rules", "notrack.acceptUntracked"


def unseen_of(settings: Settings, journal: Journal, plan: Plan, unloaded: Collection[str]) -> Iterator[Refusal]:
    """Yield what must be said beside a `plan` that was made without asking the modules `unloaded`.

    What is not loaded has no rules, tables or entries of its own: of those there is nothing to say.
    """
    if not plan.rules:
        return
    # Without nfnetlink neither of the two can be asked, and it is asked for first.
    if {"nfnetlink", "nf_tables"} & {*unloaded}:
        yield Refusal(
            _RULES,
            NOT_LOADED,
            "nf_tables is not loaded, so there is no nftables firewall to meet; that this kernel has it is seen when"
            " the first rule is installed, which loads it",
        )
    if "nf_conntrack_netlink" in unloaded:
        size = settings.table is not None and settings.table.size is not None
        yield Refusal(
            _RULES,
            NOT_LOADED,
            "nf_conntrack_netlink is not loaded, so entries that are translated right now"
            + (" and those of other network namespaces" if size else "")
            + " were not looked at; they are when the rules are installed, which loads it",
        )
    if journal.timed_elements is None:
        yield Refusal(
            _RULES,
            NOT_TESTED,
            "whether timed elements of nftables sets expire on this kernel is tested before the first rule is"
            " installed; where they do not, rules are refused (Unsupported)",
        )


def accepts_change(standing: Standing, wanted: Standing) -> Change:
    """Return the change of our accept rules in other people's firewalls: how many there are, and in which tables."""
    now, then = _accepts(standing), _accepts(wanted)
    return Change(_ACCEPTS, now, then if then != now else f"{then}, others than now", "notrack.rules")


def _accepts(standing: Standing) -> str:
    parts = []
    for table in standing.tables:
        number = sum(len(rules) for rules in standing.within(table).chains.values())
        parts.append(f"{number} accept {'rule' if number == 1 else 'rules'} in {table.place}")
    return "; ".join(parts) or ABSENT


def plan_to_load() -> Plan:
    """Return what is known of settings on a node whose nf_conntrack an enforced `tracking: Disabled` has unloaded."""
    return Plan(
        changes=(Change(TRACKING, "nf_conntrack is unloaded", "loaded", "tracking: Enabled"),),
        refused=(),
        wanted={},
        rules=(),
        warnings=(Refusal(TRACKING, NOT_LOADED, "what else would change is known once nf_conntrack is loaded again"),),
    )
