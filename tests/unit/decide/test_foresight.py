"""What a preview says beside the plan: accept rules, and what is not known since nothing may be loaded or written."""

from collections.abc import Collection

import pytest

from conntrack_operator.decide.accept_standing import Standing, Table
from conntrack_operator.decide.foresight import accepts_change, plan_to_load, unseen_of
from conntrack_operator.decide.plan import Plan
from conntrack_operator.model.journal import Journal
from conntrack_operator.model.notrack import NotrackRule
from conntrack_operator.model.policy import Settings

WEB = NotrackRule.model_validate({"name": "web", "ports": [80]})
PLAN = Plan((), (), {}, (WEB,))
RULES, SIZES = {"notrack": {"rules": [{"name": "web", "ports": [80]}]}}, {"table": {"size": {"maxEntries": 1_000_000}}}
FILTER, MANGLE = Table("nftables", "inet", "filter"), Table("iptables-nft", "ip", "mangle")


def said(
    unloaded: Collection[str], settings: object = RULES, *, tested: bool | None = True, plan: Plan = PLAN
) -> list[str]:
    """Return reason and sentence of all that is not known."""
    journal = Journal(boot_id="b", timed_elements=tested)
    found = unseen_of(Settings.model_validate(settings), journal, plan, unloaded)
    return [f"{each.reason}: {each.message}" for each in found]


def test_nothing_is_unknown_where_all_is_loaded() -> None:
    """A kernel that was tested and has its modules: there is nothing to say."""
    assert said([]) == []


def test_without_rules_nothing_is_asked_of_firewalls() -> None:
    """Sizes and timeouts need no look at what is not loaded."""
    assert said(["nf_tables", "nf_conntrack_netlink"], SIZES, tested=None, plan=Plan((), (), {}, ())) == []


@pytest.mark.parametrize(
    ("unloaded", "settings", "words"),
    [
        (["nf_tables"], RULES, ["nf_tables is not loaded, so there is no nftables firewall to meet"]),
        (["nfnetlink"], RULES, ["nf_tables is not loaded"]),
        (["nf_conntrack_netlink"], RULES, ["entries that are translated right now were not looked at"]),
        (
            ["nf_conntrack_netlink", "tcp_diag"],
            RULES | SIZES,
            ["translated right now and those of other network namespaces were not looked at"],
        ),
    ],
)
def test_what_is_not_loaded(unloaded: list[str], settings: object, words: list[str]) -> None:
    """Each module is named with what could not be looked at; listening sockets are in /proc as well."""
    found = said(unloaded, settings)
    assert len(found) == len(words)
    assert all(each.startswith("NotLoaded: ") and word in each for each, word in zip(found, words, strict=True))


def test_what_was_not_tested() -> None:
    """The self-test loads and writes, so that it waits for the first rule; its answer is for one boot."""
    (found,) = said([], tested=None)
    assert found.startswith("NotTested: whether timed elements")
    assert said([], tested=False) == [], "then the rules are refused"


def test_accept_rules_in_firewalls() -> None:
    """How many there are and where; when only what they say changes, that is said."""
    one = Standing({(FILTER, "ours"): ("a",)})
    more = Standing({(FILTER, "ours"): ("a", "b"), (MANGLE, "ours"): ("c",)})
    other = Standing({(FILTER, "ours"): ("z",)})
    assert accepts_change(Standing(), one).to == "1 accept rule in nftables inet filter"
    assert accepts_change(one, Standing()).to == "absent"
    change = accepts_change(one, more)
    assert (change.setting, change.from_) == ("notrack.acceptUntracked", "1 accept rule in nftables inet filter")
    assert change.to == "1 accept rule in iptables-nft ip mangle; 2 accept rules in nftables inet filter"
    assert accepts_change(one, other).to == "1 accept rule in nftables inet filter, others than now"


def test_a_node_whose_module_was_unloaded() -> None:
    """Loading it again is the one thing that is known of such a node."""
    plan = plan_to_load()
    assert [(change.setting, change.to) for change in plan.changes] == [("tracking", "loaded")]
    assert [warning.reason for warning in plan.warnings] == ["NotLoaded"]
