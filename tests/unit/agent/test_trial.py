"""A trial against a kernel that is not there: for moments that no real one can be made to have on demand."""

import ctypes
import logging

import pytest

from conntrack_operator.agent import machine as machine_module
from conntrack_operator.agent import sight as sight_module
from conntrack_operator.agent import trial as trial_module
from conntrack_operator.agent import way_back
from conntrack_operator.agent import writing as writing_module
from conntrack_operator.agent.duty import Duty
from conntrack_operator.agent.machine import Machine
from conntrack_operator.agent.probes import Probe
from conntrack_operator.agent.trial import Trial, begin, finished
from conntrack_operator.decide.plan import TableState
from conntrack_operator.errors import Refused, Unsupported
from conntrack_operator.kernel.journal import StateDirectory
from conntrack_operator.kernel.roots import Roots
from conntrack_operator.model.facts import Facts
from conntrack_operator.model.node import NodeSpec
from conntrack_operator.model.policy import Settings

ICMP = "net.netfilter.nf_conntrack_icmp_timeout"
ACCT = "net.netfilter.nf_conntrack_acct"
SETTINGS = {"timeouts": {"icmp": 11}, "sysctls": {"nf_conntrack_acct": "1"}, "trial": {"timeoutSeconds": 30}}


class World:
    """Sysctls, a boot clock and a target, all in our hands; `hooks` are called before a sysctl is written."""

    def __init__(self):
        self.values = {ICMP: 30, ACCT: 0}
        self.now = 1000.0
        self.answers = True
        self.broken = {}

    def write(self, _roots, name, value):
        """Stand in for kernel.sysctl.write_sysctl."""
        if name in self.broken:
            raise self.broken[name]
        self.values[name] = value

    def facts(self):
        """Stand in for kernel.facts.read_facts."""
        return Facts(memory_bytes=1 << 30, cpus=1, kernel="6.18", sysctls=dict(self.values))

    def probe(self):
        """Return a probe of the target."""
        return Probe("target", lambda _seconds: self.answers)


@pytest.fixture
def world(monkeypatch):
    """Give a world in place of the kernel."""
    made = World()
    monkeypatch.setattr(writing_module, "write_sysctl", made.write)
    monkeypatch.setattr(machine_module, "read_boot_id", lambda _roots: "boot")
    for limit in ("BEFORE_SECONDS", "PROBE_SECONDS"):  # of real time; no probe here takes any
        monkeypatch.setattr(trial_module, limit, 60.0)
    for module in (machine_module, sight_module, trial_module):
        monkeypatch.setattr(module, "read_table_state", TableState)
    for module in (machine_module, sight_module):
        monkeypatch.setattr(module, "read_facts", lambda _roots, **_: made.facts())
    return made


@pytest.fixture
def state(tmp_path):
    """Give a state directory."""
    with StateDirectory(Roots(state=tmp_path)) as made:
        yield made


def begun(world, state, tmp_path, settings=None):
    """Begin a trial."""
    machine = Machine(Roots(state=tmp_path), lambda: world.now)
    spec = NodeSpec(revision="r", mode="Apply", node_uid="", settings=Settings.model_validate(settings or SETTINGS))
    trial = begin(machine, state, spec, lambda: [world.probe()])
    assert isinstance(trial, Trial)
    return trial


def ticked(world, trial):
    """Tick until the trial has ended, the clock moving on in between."""
    for _ in range(200):
        outcome = trial.tick()
        if outcome is not None:
            return outcome
        world.now += max(0.1, trial.seconds_to_tick)
    raise AssertionError("it never ended")


def test_confirmed(world, state, tmp_path):
    """The soak is waited for; then the journal has nothing on trial, and the settings are the confirmed ones."""
    trial = begun(world, state, tmp_path)
    assert state.read_journal("boot").trial is not None
    outcome = ticked(world, trial)
    assert outcome.phase == "Current"
    assert 5 <= world.now - 1000 < 9
    assert state.read_journal("boot").trial is None
    confirmed = state.read_confirmed()
    assert confirmed is not None
    assert confirmed.sysctls == {ICMP: 11, ACCT: 1}
    again = begin(Machine(Roots(state=tmp_path)), state, trial.spec, lambda: pytest.fail("nothing is tried"))
    assert finished(again).changes == ()


def test_one_bad_key_does_not_block_the_rest(world, state, tmp_path):
    """A write that fails is a result; the rest is tried and confirmed."""
    world.broken[ICMP] = Refused("WriteFailed", "out of memory")
    outcome = ticked(world, begun(world, state, tmp_path))
    assert outcome.phase == "Refused"
    assert {result.setting: result.reason for result in outcome.results} == {ICMP: "WriteFailed", ACCT: "Applied"}
    assert world.values == {ICMP: 30, ACCT: 1}


def test_somebody_else_writes_in_the_trial(world, state, tmp_path):
    """When it goes wrong their value stays, and ours goes back; both are said."""
    trial = begun(world, state, tmp_path)
    world.values[ICMP] = 77
    world.answers = False
    outcome = ticked(world, trial)
    assert outcome.phase == "RolledBack"
    assert world.values == {ICMP: 77, ACCT: 0}
    assert f"{ICMP} is 77 by somebody else and stays so" in outcome.message
    assert "target answered before the change and did not" in outcome.message


def test_frozen_past_the_deadline(world, state, tmp_path):
    """Woken after the deadline, with every probe passing: undone all the same."""
    trial = begun(world, state, tmp_path)
    trial.tick()
    world.now += 3600
    outcome = trial.tick()
    assert outcome is not None
    assert (outcome.phase, outcome.results[0].reason) == ("RolledBack", "TrialExpired")
    assert world.values == {ICMP: 30, ACCT: 0}


def test_frozen_in_the_confirmation(world, state, tmp_path, monkeypatch):
    """Frozen after the last look at the clock but one: the look behind it sees it."""
    trial = begun(world, state, tmp_path)
    real = trial._verdict

    def frozen():
        decision = real()
        if isinstance(decision, trial_module.Confirm):
            world.now += 3600
        return decision

    monkeypatch.setattr(trial, "_verdict", frozen)
    outcome = ticked(world, trial)
    assert (outcome.phase, outcome.results[0].reason) == ("RolledBack", "TrialExpired")
    assert world.values == {ICMP: 30, ACCT: 0}
    failures = state.read_journal("boot").failures
    assert failures is not None
    assert failures.count == 1


def test_an_abort_is_no_failure(world, state, tmp_path):
    """Whoever wants something else has nothing against the change."""
    trial = begun(world, state, tmp_path)
    outcome = trial.abort("something else is wanted now")
    assert (outcome.phase, world.values) == ("RolledBack", {ICMP: 30, ACCT: 0})
    journal = state.read_journal("boot")
    assert (journal.trial, journal.failures, journal.originals) == (None, None, {})
    assert trial.tick() is outcome


def test_what_cannot_be_taken_back_is_remembered(world, state, tmp_path):
    """The journal keeps the trial until it could be undone; the next start tries again."""
    trial = begun(world, state, tmp_path)
    world.broken[ICMP] = Unsupported("read-only")
    outcome = trial.abort("because")
    assert f"{ICMP} could not be put back" in outcome.message
    assert "not all is as it was" in outcome.message
    assert world.values == {ICMP: 11, ACCT: 0}
    assert state.read_journal("boot").trial is not None
    world.broken.clear()
    machine = Machine(Roots(state=tmp_path), lambda: world.now)
    recovered = way_back.recover(machine, state)
    assert recovered is not None
    assert world.values == {ICMP: 30, ACCT: 0}
    assert state.read_journal("boot").trial is None
    assert way_back.recover(machine, state) is None


def test_interrupted_while_it_is_made(world, state, tmp_path):
    """Whatever ends the making of a change, what was made is taken back."""
    world.broken[ICMP] = KeyboardInterrupt()
    machine = Machine(Roots(state=tmp_path), lambda: world.now)
    spec = NodeSpec(revision="r", mode="Apply", node_uid="", settings=Settings.model_validate(SETTINGS))
    with pytest.raises(KeyboardInterrupt):
        begin(machine, state, spec, list)
    assert world.values == {ICMP: 30, ACCT: 0}
    assert state.read_journal("boot").trial is None


def test_the_next_boot(world, state, tmp_path, monkeypatch):
    """A trial of a boot that is over counts, with no time to wait for on this boot's clock."""
    begun(world, state, tmp_path)
    monkeypatch.setattr(machine_module, "read_boot_id", lambda _roots: "next")
    journal = Machine(Roots(state=tmp_path)).journal(state)
    assert journal.trial is None
    assert journal.originals == {}
    assert journal.failures is not None
    assert (journal.failures.count, journal.failures.at, journal.failures.reason) == (1, 0, "NodeRebooted")


def test_what_is_watched_is_logged(world, state, tmp_path, caplog):
    """Who reads the log of a change sees what would have taken it back, and what could not have."""

    def probes():
        return [Probe("API server", lambda _seconds: True), Probe("DNS 192.0.2.53", lambda _seconds: False)]

    duty = Duty(Machine(Roots(state=tmp_path), lambda: world.now), state, probes)
    with caplog.at_level(logging.INFO):
        duty.wish(NodeSpec(revision="r", mode="Apply", node_uid="", settings=Settings.model_validate(SETTINGS)))
    assert "trial: must go on answering: API server; did not answer before it either: DNS 192.0.2.53" in caplog.text


def test_what_failed_once_is_not_tried_unwatched(world, state, tmp_path):
    """While the probe that failed does not answer at all, the change waits: it would be confirmed unseen."""

    def probes():
        return [Probe("API server", lambda _seconds: world.answers, needed_again=True)]

    duty = Duty(Machine(Roots(state=tmp_path), lambda: world.now), state, probes)
    spec = NodeSpec(revision="r", mode="Apply", node_uid="", settings=Settings.model_validate(SETTINGS))
    duty.wish(spec)
    assert duty.deed.phase == "Trial"
    world.answers = False
    while duty._trial is not None:
        duty.step()
        world.now += 1
    assert duty.deed.phase == "RolledBack"
    assert world.values[ICMP] == 30
    world.now += 100
    duty._act()
    assert (duty.deed.phase, world.values[ICMP]) == ("RolledBack", 30)
    (result,) = duty.deed.results
    assert "API server answered before the change and did not" in result.message
    assert result.message.endswith("; it is tried again once API server answers")
    assert state.read_journal("boot").failures.count == 1
    world.answers = True
    duty._act()
    assert (duty.deed.phase, world.values[ICMP]) == ("Trial", 11)


def test_the_first_try_needs_no_answer(world, state, tmp_path):
    """A full table is a reason why nothing answers, and the change may be its cure."""
    world.answers = False
    machine = Machine(Roots(state=tmp_path), lambda: world.now)
    spec = NodeSpec(revision="r", mode="Apply", node_uid="", settings=Settings.model_validate(SETTINGS))
    probe = Probe("API server", lambda _seconds: world.answers, needed_again=True)
    assert finished(begin(machine, state, spec, lambda: [probe])).phase == "Current"


def test_who_was_not_heard_since_we_stopped_is_asked_again(world, state, tmp_path, monkeypatch):
    """The whole process stopped while it asked before the change: what answers is watched all the same."""
    monkeypatch.setattr(trial_module, "BEFORE_SECONDS", 0.2)
    stops = [1]

    def stop(_seconds):
        if stops:
            # With the interpreter's lock held, so that no thread runs meanwhile.
            ctypes.PyDLL(None).usleep(stops.pop() * 1_000_000)
        return True

    machine = Machine(Roots(state=tmp_path), lambda: world.now)
    spec = NodeSpec(revision="r", mode="Apply", node_uid="", settings=Settings.model_validate(SETTINGS))
    trial = begin(machine, state, spec, lambda: [Probe("stops", stop), world.probe()])
    assert isinstance(trial, Trial)
    assert (stops, trial.unwatched) == ([], ())
