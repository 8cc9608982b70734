"""Drift on a real kernel: what somebody changed is what a plan of the confirmed settings says, and it is put right."""

import pytest

from conntrack_operator.agent.sight import read_table_state
from conntrack_operator.decide.drift import Repairs, mending_of
from conntrack_operator.decide.plan import plan_for
from conntrack_operator.decide.rivals import sentence_for
from conntrack_operator.decide.symptoms import Writer
from conntrack_operator.kernel import nftables
from conntrack_operator.kernel.facts import read_facts
from conntrack_operator.kernel.roots import Roots
from conntrack_operator.kernel.sysctl import write_sysctl
from conntrack_operator.model.policy import Settings

STREAM = "net.netfilter.nf_conntrack_udp_timeout_stream"
RULES = ({"name": "web", "ports": [80]}, {"name": "dns", "ports": [53], "protocol": "UDP"})
SETTINGS = Settings.model_validate({"timeouts": {"udp": {"stream": 60}}, "notrack": {"rules": RULES}})
TABLE = "table inet conntrack_operator"


def look(repairs, now):
    """Return what is to be mended in this thread's namespace."""
    return mending_of(plan_for(SETTINGS, read_facts(Roots()), read_table_state()), repairs, now)


def mend(repairs, now):
    """Look, put right what may be, and return what was found."""
    mending = look(repairs, now)
    rules = [change for change in mending.plan.changes if change.setting.startswith("notrack/")]
    for change in mending.plan.changes:
        if change not in rules:
            write_sysctl(Roots(), change.setting, int(change.to))
    if rules:
        nftables.write_rules(mending.plan.rules)
    mending.note((), repairs, now)
    return mending


@pytest.fixture
def node(netns):
    """Return a namespace in which the settings are in force."""
    made = netns.namespace()
    with made.inside():
        mend(Repairs(), 0.0)
        assert look(Repairs(), 0.0).plan.changes == ()
    return made


FOREIGN = {
    "table deleted": (f"delete {TABLE}\n", {"notrack/web", "notrack/dns"}),
    "everything flushed": ("flush ruleset\n", {"notrack/web", "notrack/dns"}),
    "chain emptied": (f"flush chain {TABLE.removeprefix('table ')} prerouting\n", {"notrack/web", "notrack/dns"}),
    "a rule more": (f"add rule {TABLE.removeprefix('table ')} prerouting tcp dport 22 notrack\n", {"notrack/*"}),
}


@pytest.mark.parametrize(("script", "settings"), FOREIGN.values(), ids=FOREIGN)
def test_rules(node, script, settings):
    """Whatever is done to our table is found and put right, as one repair."""
    repairs = Repairs()
    node.nft(script)
    with node.inside():
        mending = mend(repairs, 1.0)
        assert {drift.setting for drift in mending.repairing} == settings
        assert look(repairs, 2.0).plan.changes == ()
    assert dict(repairs.totals) == {"notrack": 1}


def test_a_war_about_a_timeout(node):
    """Three times it is put back, then it is left, and the sentence says who probably writes it."""
    repairs = Repairs()
    with node.inside():
        for number in range(3):
            node.sysctl(STREAM, 180)
            mend(repairs, float(number))
            assert node.sysctl(STREAM) == "60"
        node.sysctl(STREAM, 180)
        mending = mend(repairs, 3.0)
    assert node.sysctl(STREAM) == "180"
    assert repairs.contended(3.0) == (STREAM,)
    (left,) = mending.left
    proxy = Writer("kube-proxy", "kube-proxy (pid 1)", STREAM, 180, "conntrack.udpStreamTimeout")
    assert sentence_for(left, [proxy]) == (
        "nf_conntrack_udp_timeout_stream was changed from 60 to 180, likely by kube-proxy (conntrack.udpStreamTimeout"
        " in its ConfigMap or flags); set conntrack.udpStreamTimeout: 0s in kube-proxy's ConfigMap"
    )
