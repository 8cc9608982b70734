"""Rules go when they must, whatever else fails, and what could not be taken away is said and remembered."""

import pytest
from tests.kernel.test_machine import apply, restore, table
from tests.lab.namespaces import Namespace

from conntrack_operator.agent import machine as machine_module
from conntrack_operator.agent.machine import Machine
from conntrack_operator.errors import Retry, Unsupported
from conntrack_operator.kernel import flow_editing, nftables
from conntrack_operator.kernel.accepts import read_accepts
from conntrack_operator.kernel.journal import StateDirectory
from conntrack_operator.kernel.roots import Roots
from conntrack_operator.model.node import PolicyUse

WEB = {"notrack": {"rules": [{"name": "web", "ports": [80]}]}, "timeouts": {"icmp": 10}}
ROUTED = {"notrack": {"rules": [{"name": "routed", "side": "Forward", "ports": [80]}]}}
STATEFUL = (
    "table inet host { chain input { type filter hook input priority 0; policy drop;"
    " ct state established,related accept; tcp dport 80 accept; }; chain output { type filter hook output priority 0;"
    " policy drop; ct state established,related accept; ct state new accept; }; }"
)
ICMP = "net.netfilter.nf_conntrack_icmp_timeout"
LOOSE = "net.netfilter.nf_conntrack_tcp_loose"


@pytest.fixture
def node(netns):
    """Return a fresh namespace."""
    return netns.namespace()


@pytest.fixture
def roots(tmp_path):
    """Return the real /proc and a state directory of our own."""
    return Roots(state=tmp_path)


def journal(node: Namespace, roots: Roots):
    """Return what the journal says."""
    with node.inside(), StateDirectory(roots) as state:
        return Machine(roots).journal(state)


def accepts_stand(node: Namespace) -> bool:
    """Tell whether accept rules of ours stand in somebody's table."""
    with node.inside():
        return bool(read_accepts().tables)


def fails(error):
    """Return a function that raises `error` whatever it is called with."""

    def raising(*_arguments, **_options):
        raise error

    return raising


def test_restore_without_nft(node, roots, monkeypatch):
    """The rules are there still: it says so, keeps them in the journal, and takes them away when nft is back."""
    node.nft(STATEFUL)
    assert apply(node, roots, WEB).phase == "Current"
    assert accepts_stand(node)
    with monkeypatch.context() as without:
        without.setattr(nftables, "_nft", fails(Unsupported("nft is not installed")))
        outcome = restore(node, roots, kept_too=True)
    assert outcome.phase == "Refused"
    assert next((result.setting, result.reason) for result in outcome.results) == ("notrack/web", "Unsupported")
    assert node.sysctl(ICMP) == "30"
    assert table(node) is not None
    assert "web" in journal(node, roots).applied_rules
    assert restore(node, roots, kept_too=True).phase == "Restored"
    assert table(node) is None
    assert not accepts_stand(node)


def test_apply_without_nft(node, roots, monkeypatch):
    """Rules that nft cannot touch for a while are still the confirmed ones afterwards."""
    assert apply(node, roots, WEB).phase == "Current"
    with monkeypatch.context() as without:
        without.setattr(nftables, "_nft", fails(Unsupported("nft is not installed")))
        assert apply(node, roots, WEB).phase == "Refused"
    assert "web" in journal(node, roots).applied_rules


@pytest.mark.parametrize("error", [Unsupported("no sock_diag"), Retry("table full")])
def test_what_flows_cannot_hold_up(node, roots, monkeypatch, error):
    """Where entries cannot be made for live connections, rules go all the same."""
    assert apply(node, roots, WEB).phase == "Current"
    monkeypatch.setattr(flow_editing, "seed", fails(error))
    assert restore(node, roots).phase == "Restored"
    assert table(node) is None


def test_restore_with_a_firewall_that_cannot_be_read(node, roots, monkeypatch):
    """Sysctls and rules go; accepts that may be left are said, and go at the next try."""
    node.nft(STATEFUL)
    assert apply(node, roots, WEB).phase == "Current"
    with monkeypatch.context() as blind:
        blind.setattr("conntrack_operator.kernel.firewall_nft.read_table", fails(Retry("too long")))
        outcome = restore(node, roots)
    assert table(node) is None
    assert node.sysctl(ICMP) == "30"
    assert outcome.phase == "Refused"
    assert [result.setting for result in outcome.results] == ["notrack.acceptUntracked"]
    assert accepts_stand(node)
    assert restore(node, roots).phase == "Restored"
    assert not accepts_stand(node)


def test_a_firewall_that_cannot_be_read_once(node, roots, monkeypatch):
    """Rules in force and their accepts stay as they are; new rules are kept out."""
    node.nft(STATEFUL)
    assert apply(node, roots, WEB).phase == "Current"
    more = {"notrack": {"rules": [{"name": "more", "ports": [90]}, *WEB["notrack"]["rules"]]}}
    with monkeypatch.context() as blind:
        blind.setattr("conntrack_operator.kernel.firewall_nft.read_table", fails(Retry("too long")))
        assert apply(node, roots, WEB).phase == "Current"
        outcome = apply(node, roots, WEB | more)
    assert {result.setting: result.reason for result in outcome.results if result.reason != "Applied"} == {
        "notrack/more": "FirewallUnread"
    }
    assert table(node) is not None
    assert accepts_stand(node)
    assert list(journal(node, roots).applied_rules) == ["web"]


def test_accepts_that_cannot_be_written(node, roots, monkeypatch):
    """No rule goes in without its accepts, and nothing of the trial stays."""
    node.nft(STATEFUL)
    with monkeypatch.context() as stuck:
        stuck.setattr(machine_module.accepts, "write_accepts", fails(Retry("changed since it was read")))
        outcome = apply(node, roots, WEB)
    assert outcome.phase == "Refused"
    assert table(node) is None
    assert journal(node, roots).applied_rules == {}
    assert apply(node, roots, WEB).phase == "Current"


def test_rules_that_fail_half_way(node, roots, monkeypatch):
    """Trial rules that could not be finished are gone with the confirmation of the rest, before they expire."""
    with monkeypatch.context() as stuck:
        real = nftables.begin_trial

        def begun(*arguments):
            real(*arguments)
            raise Retry("nft did not finish")

        stuck.setattr(nftables, "begin_trial", begun)
        outcome = apply(node, roots, WEB)
    assert (outcome.phase, node.sysctl(ICMP)) == ("Refused", "10")
    assert table(node) is None


def test_forward_rules_wait_for_loose(node, roots):
    """Without tcp_loose a routed connection would break: the rule stays and says so, until loose or Force."""
    use = PolicyUse(name="p", revision="r", fields=["tcp.loose"])
    assert apply(node, roots, ROUTED | {"tcp": {"loose": False}}, use).phase == "Current"
    outcome = apply(node, roots, {"tcp": {"loose": False}}, use)
    assert outcome.phase == "Refused"
    assert ("notrack/routed", "WithdrawalBreaks") in [(result.setting, result.reason) for result in outcome.results]
    assert table(node) is not None
    assert list(journal(node, roots).applied_rules) == ["routed"]
    again = apply(node, roots, {"tcp": {"loose": False}}, use)
    assert (again.phase, again.changes) == ("Refused", ())
    assert apply(node, roots, {"tcp": {"loose": True}}, use).phase == "Current"
    assert table(node) is None


def test_forward_rules_go_by_force_and_by_restore(node, roots):
    """Both take the rule away at once; Force says what breaks."""
    use = PolicyUse(name="p", revision="r", fields=["tcp.loose"])
    for end in ("force", "restore"):
        assert apply(node, roots, ROUTED | {"tcp": {"loose": False}}, use).phase == "Current"
        node.sysctl(LOOSE, 0)
        if end == "force":
            outcome = apply(node, roots, {"tcp": {"loose": False}, "notrack": {"onConflict": "Force"}}, use)
            assert outcome.phase == "Current"
            assert [warning.reason for warning in outcome.warnings] == ["WithdrawalBreaks"]
        else:
            assert restore(node, roots).phase == "Restored"
        assert table(node) is None


def test_wider_forward_rules_need_not_wait(node, roots):
    """A rule that covers what was there before breaks nothing."""
    use = PolicyUse(name="p", revision="r", fields=["tcp.loose"])
    assert apply(node, roots, ROUTED | {"tcp": {"loose": False}}, use).phase == "Current"
    wider = {"notrack": {"rules": [{"name": "all", "side": "Forward", "ports": ["79-81"]}]}}
    assert apply(node, roots, wider | {"tcp": {"loose": False}}, use).phase == "Current"
    assert list(journal(node, roots).applied_rules) == ["all"]


def test_a_kept_rule_keeps_its_accepts(node, roots):
    """onDelete: Keep leaves the rule as it worked: with the accepts of its mode, however often it is restored."""
    node.nft(STATEFUL.replace("tcp dport 80 accept;", "ct state new tcp dport 80 accept;"))
    use = PolicyUse(name="p", revision="r", fields=["notrack.rules[web]"], on_delete="Keep")
    both = {"notrack": {"acceptUntracked": "Both", "rules": [{"name": "web", "ports": [80]}]}}
    assert apply(node, roots, both, use).phase == "Current"
    with node.inside():
        before = read_accepts()
    for _ in range(2):
        assert restore(node, roots).phase == "Restored"
        with node.inside():
            assert read_accepts() == before
