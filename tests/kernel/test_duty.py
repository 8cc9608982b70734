"""What the agent's duty does between wishes, on a real kernel: repairs without an API server, wars, writes, errors."""

import threading
import time

import pytest

from conntrack_operator.agent import trial as trial_module
from conntrack_operator.agent.duty import Duty
from conntrack_operator.agent.machine import Machine
from conntrack_operator.agent.probes import Probe
from conntrack_operator.decide.trial import Budget
from conntrack_operator.errors import Retry
from conntrack_operator.kernel import accepts, nftables, sysctl
from conntrack_operator.kernel.journal import StateDirectory
from conntrack_operator.kernel.roots import Roots
from conntrack_operator.model.node import NodeSpec
from conntrack_operator.model.policy import Settings
from conntrack_operator.model.surroundings import Service

ICMP = "net.netfilter.nf_conntrack_icmp_timeout"
MAX = "net.netfilter.nf_conntrack_max"
QUICK = {"timeoutSeconds": 20, "soakSeconds": 0}
WISH = {
    "timeouts": {"icmp": 10},
    "notrack": {"rules": [{"name": "web", "ports": [80]}]},
    "trial": QUICK,
}
UNWRITABLE = {"table": {"size": {"maxEntries": 1_000_000}}}
"""Refused in a namespace for good."""

FIREWALL = """
*filter
:INPUT DROP [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT DROP [0:0]
-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A INPUT -p tcp --dport 80 -j ACCEPT
-A OUTPUT -m conntrack --ctstate NEW,RELATED,ESTABLISHED -j ACCEPT
COMMIT
"""


@pytest.fixture
def node(netns):
    """Return a fresh namespace."""
    return netns.namespace()


@pytest.fixture
def roots(tmp_path):
    """Return the real /proc and directories of our own."""
    return Roots(state=tmp_path, etc=tmp_path / "etc", usr=tmp_path / "usr", run=tmp_path / "run")


def wish(document=None, **more):
    """Return a wish."""
    given = {"revision": "r", "mode": "Apply", "node_uid": "", **more}
    return NodeSpec(settings=Settings.model_validate(document or WISH), **given)


def stepped(duty, seconds, until=lambda: False):
    """Step whenever something is due, for so long, or until it holds; tell whether it did.

    What is waited counts, and no pause of the machine: what was due in it is done after it.
    """
    waited = 0.0
    while waited < seconds:
        if until():
            return True
        duty.step()
        wait = min(0.2, max(0.01, duty.seconds_to_step))
        time.sleep(wait)
        waited += wait
    return until()


def confirmed(node, roots, document=None):
    """Confirm a wish in the namespace by a duty that is gone afterwards."""
    with node.inside(), StateDirectory(roots) as state:
        duty = Duty(Machine(roots), state, list)
        duty.wish(wish(document))
        assert stepped(duty, 20, lambda: duty.deed.phase != "Trial")
        return duty.deed.phase


def test_drift_without_an_api_server(node, roots):
    """An agent that was started anew and hears nothing repairs what is confirmed all the same, within 5 s."""
    node.nft(
        "table inet host { chain input { type filter hook input priority 0; policy drop;"
        " ct state established,related accept; tcp dport 80 accept; };"
        " chain output { type filter hook output priority 0; policy drop; ct state established accept; }; }"
    )
    assert confirmed(node, roots) == "Current"
    with node.inside(), StateDirectory(roots) as state:
        before = Machine(roots).look(wish().settings, (), Machine(roots).journal(state))
        assert not before.changes_anything
        duty = Duty(Machine(roots), state, list)
        duty.start()
        duty.resume()
        stepped(duty, 2)
        node.run("nft", "delete", "table", "inet", "conntrack_operator")
        node.sysctl(ICMP, 99)
        assert stepped(duty, 5, lambda: node.sysctl(ICMP) == "10" and nftables.read_table() is not None)


def test_a_start_that_fails_without_an_api_server(node, roots, monkeypatch):
    """What could not be put in force at the start is put in force later."""
    monkeypatch.setattr("conntrack_operator.agent.duty.RETRY_SECONDS", 1.0)
    assert confirmed(node, roots) == "Current"
    node.run("nft", "delete", "table", "inet", "conntrack_operator")
    with node.inside(), StateDirectory(roots) as state:
        duty = Duty(Machine(roots), state, list)
        with monkeypatch.context() as broken:
            broken.setattr(Machine, "look", lambda *_: (_ for _ in ()).throw(Retry("nft did not finish")))
            duty.resume()
        assert stepped(duty, 5, lambda: nftables.read_table() is not None)


def test_a_war_stays_ended(node, roots, monkeypatch):
    """A node that is Refused for one reason and Contended for another fights no more, whatever Services come and go."""
    monkeypatch.setattr("conntrack_operator.agent.duty.RETRY_SECONDS", 0.5)
    monkeypatch.setattr("conntrack_operator.agent.keeping.MEND_SECONDS", 0.2)
    written = []
    real = sysctl.write_sysctl
    monkeypatch.setattr(
        "conntrack_operator.agent.writing.write_sysctl",
        lambda roots, name, value: (written.append(name), real(roots, name, value)),
    )
    with node.inside(), StateDirectory(roots) as state:
        duty = Duty(Machine(roots), state, list)
        duty.wish(wish(WISH | UNWRITABLE))
        assert stepped(duty, 20, lambda: duty.deed.phase == "Refused")
        for _ in range(3):
            node.sysctl(ICMP, 99)
            assert stepped(duty, 10, lambda: node.sysctl(ICMP) == "10")
        node.sysctl(ICMP, 99)
        contended = lambda: any(result.reason == "Contended" for result in duty.deed.results)  # noqa: E731
        if not stepped(duty, 5, contended):
            pytest.fail(str(duty.deed))
        written.clear()
        stepped(duty, 3)
        duty.wish(wish(WISH | UNWRITABLE, services=[Service(name="x/y", kind="NodePort", protocol="TCP", port=30000)]))
        stepped(duty, 2)
        assert (written, node.sysctl(ICMP)) == ([], "99")
        duty.wish(wish(WISH | UNWRITABLE, attempt="again"))
        assert stepped(duty, 10, lambda: node.sysctl(ICMP) == "10")


@pytest.mark.parametrize("document", [WISH | UNWRITABLE, WISH])
def test_nothing_is_written_while_nothing_changes(node, roots, monkeypatch, caplog, document):
    """A node that is Refused, or parked, looks again and again, and writes nothing to disk or kernel."""
    for name, value in (("duty.RETRY_SECONDS", 0.3), ("keeping.MEND_SECONDS", 0.3)):
        monkeypatch.setattr(f"conntrack_operator.agent.{name}", value)
    monkeypatch.setattr("conntrack_operator.decide.trial.RETRY_PAUSES", (0.0, 0.0))
    parked = document is WISH
    answers = [True]
    probe = Probe("target", lambda _seconds: answers[0])
    with node.inside(), StateDirectory(roots) as state:
        duty = Duty(Machine(roots), state, lambda: [probe])
        duty.wish(wish(document))
        assert stepped(duty, 20, lambda: duty.deed.phase in {"Current", "Refused"})
        if parked:
            answers[0] = True
            real = trial_module.passing
            # Less than a policy may ask for: each try is given up after 3 s in place of 6.
            monkeypatch.setattr(trial_module, "budget_for", lambda _: Budget(6.0, 0.0))
            monkeypatch.setattr(trial_module, "passing", lambda probes, s: real(probes, s) if s < 2 else frozenset())
            duty.wish(wish(WISH | {"timeouts": {"icmp": 12}}, revision="bad"))
            assert stepped(duty, 60, lambda: duty.deed.phase == "RolledBack" and "3 times" in str(duty.deed.results))
            assert node.sysctl(ICMP) == "10"
        stepped(duty, 2)
        files = {path: path.stat().st_mtime_ns for path in roots.state.iterdir()}
        scripts = []
        caplog.clear()
        caplog.set_level("INFO")
        real_nft = nftables._nft
        monkeypatch.setattr(
            nftables, "_nft", lambda *words, text="": (scripts.append(text), real_nft(*words, text=text))[1]
        )
        stepped(duty, 4)
        assert {path: path.stat().st_mtime_ns for path in roots.state.iterdir()} == files
        assert not any(scripts)
        assert caplog.messages == []


def test_starting_again_writes_nothing(node, roots, monkeypatch):
    """With rules and accepts in place an agent may start as often as it likes, with and without an API server."""
    monkeypatch.setattr("conntrack_operator.agent.keeping.MEND_SECONDS", 0.2)
    node.run("iptables-restore", text=FIREWALL)
    assert confirmed(node, roots) == "Current"
    assert "CONNTRACK-OP" in node.run("iptables-save").stdout
    written = []
    for module, name in ((nftables, "run_script"), (accepts, "restore"), (accepts, "run_nft")):
        monkeypatch.setattr(module, name, lambda *arguments: written.append(arguments))
    files = {path: path.stat().st_mtime_ns for path in roots.state.iterdir()}
    for number in range(6):
        with node.inside(), StateDirectory(roots) as state:
            duty = Duty(Machine(roots), state, list)
            duty.start()
            if number % 2:
                duty.resume()
            duty.wish(wish())
            assert duty.deed.phase == "Current"
            stepped(duty, 0.7)
    assert written == []
    assert {path: path.stat().st_mtime_ns for path in roots.state.iterdir()} == files


def test_an_error_of_ours_in_a_trial_counts(node, roots):
    """What ends the agent in a trial takes the change back, and is counted: started anew it is not tried for ever."""
    with node.inside(), StateDirectory(roots) as state:
        duty = Duty(Machine(roots), state, lambda: [Probe("target", lambda _seconds: True)])
        duty.wish(wish(WISH | {"trial": {"timeoutSeconds": 30, "soakSeconds": 10}}))
        assert duty.deed.phase == "Trial"
        duty.end(ZeroDivisionError("a bug"))
        assert (node.sysctl(ICMP), nftables.read_table()) == ("30", None)
        failures = Machine(roots).journal(state).failures
        assert failures is not None
        assert (failures.count, failures.reason) == (1, "AgentFailed")
        assert "a bug" in failures.message


def test_a_service_takes_a_port_of_what_is_confirmed(node, roots):
    """On a node that took a change back and waits: the rule of before goes at once, and comes back with the port."""
    shop = Service(name="shop/web", kind="NodePort", protocol="TCP", port=80)
    edit = {"timeouts": {"icmp": 11}, "notrack": {"rules": [{"name": "web", "ports": [81]}]}, "trial": QUICK}
    assert confirmed(node, roots) == "Current"

    def untracked():
        listed = node.run("nft", "list", "set", "inet", "conntrack_operator", "confirmed_tcp_server", check=False)
        return "elements = { 80 }" in listed.stdout

    with node.inside(), StateDirectory(roots) as state:
        duty = Duty(Machine(roots), state, lambda: [Probe("target", lambda _seconds: node.sysctl(ICMP) == "10")])
        duty.wish(wish(edit, revision="r2"))
        assert stepped(duty, 30, lambda: duty.deed.phase == "RolledBack")
        assert untracked()
        duty.wish(wish(edit, revision="r2", services=[shop]))
        assert duty.deed.phase == "RolledBack"
        assert not untracked()
        duty.wish(wish(edit, revision="r2"))
        assert duty.deed.phase == "RolledBack"
        assert untracked()


def test_no_threads_for_probes(node, roots, monkeypatch):
    """Where no probe can be asked nothing is tried: it would be confirmed unseen."""

    def start(_thread):
        raise RuntimeError("can't start new thread")

    with node.inside(), StateDirectory(roots) as state:
        duty = Duty(Machine(roots), state, lambda: [Probe("target", lambda _seconds: True)])
        with monkeypatch.context() as full:
            full.setattr(threading.Thread, "start", start)
            duty.wish(wish())
        assert duty.deed.phase == "Refused"
        assert "thread" in duty.deed.results[0].message
        assert node.sysctl(ICMP) == "30"


def test_nft_ended_by_somebody(node, roots, monkeypatch):
    """nft ended by the kernel's OOM killer is no reason to take rules for impossible."""
    assert confirmed(node, roots) == "Current"
    with node.inside(), StateDirectory(roots) as state:
        duty = Duty(Machine(roots), state, list)
        monkeypatch.setenv("PATH", str(roots.state))
        nft = roots.state / "nft"
        nft.write_text("#!/bin/sh\nkill -9 $$\n")
        nft.chmod(0o755)
        duty.wish(wish())
        assert (duty.deed.phase, duty.deed.results[0].reason) == ("Refused", "Retry")
        assert list(Machine(roots).journal(state).applied_rules) == ["web"]
