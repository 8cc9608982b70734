"""What a preview does not know, since finding out would load a kernel module or write something. Pure."""

from collections.abc import Collection, Iterator

from conntrack_operator.model.journal import Journal
from conntrack_operator.model.policy import Settings

from .plan import Change, Plan
from .refusal import Refusal
from .tracking import SETTING as TRACKING

NOT_LOADED, NOT_TESTED = "NotLoaded", "NotTested"
_RULES = "notrack.rules"


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


def plan_to_load() -> Plan:
    """Return what is known of settings on a node whose nf_conntrack an enforced `tracking: Disabled` has unloaded."""
    return Plan(
        changes=(Change(TRACKING, "nf_conntrack is unloaded", "loaded", "tracking: Enabled"),),
        refused=(),
        wanted={},
        rules=(),
        warnings=(Refusal(TRACKING, NOT_LOADED, "what else would change is known once nf_conntrack is loaded again"),),
    )
