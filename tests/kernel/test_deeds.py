"""What an agent says of a change that fails again and again: its deeds from the first try until it is parked."""

import time
from datetime import UTC, datetime
from itertools import groupby

from conntrack_operator.agent.duty import Duty
from conntrack_operator.agent.machine import Machine
from conntrack_operator.agent.probes import Probe
from conntrack_operator.decide import trial
from conntrack_operator.decide.report import Moment, status_for
from conntrack_operator.kernel.journal import StateDirectory
from conntrack_operator.kernel.roots import Roots
from conntrack_operator.model.node import NodeSpec
from conntrack_operator.model.policy import Settings

ICMP = "net.netfilter.nf_conntrack_icmp_timeout"
WISH = NodeSpec(
    revision="r",
    mode="Apply",
    node_uid="uid",
    settings=Settings.model_validate({"timeouts": {"icmp": 11}, "trial": {"timeoutSeconds": 10, "soakSeconds": 0}}),
    preview=Settings.model_validate({"timeouts": {"icmp": 12}}),
)


def test_three_tries_and_parked(netns, tmp_path, monkeypatch):
    """Each new try says what failed before; the preview of an Observe policy stays; only at the end is it parked."""
    monkeypatch.setattr(trial, "RETRY_PAUSES", (0.2, 0.2))
    # Less than a policy may ask for: each try is given up after 3 s of its clock in place of 6.
    monkeypatch.setattr("conntrack_operator.agent.trial.budget_for", lambda _: trial.Budget(6.0, 0.0))
    node = netns.namespace()
    now = [time.monotonic()]  # a clock of trials that no busy machine moves: a pause is not over before it is noted
    roots = Roots(state=tmp_path, etc=tmp_path, usr=tmp_path, run=tmp_path)
    with node.inside(), StateDirectory(roots) as state:
        # Answers as long as the change is not made.
        probe = Probe("DNS 192.0.2.53", lambda _: node.sysctl(ICMP) == "30")
        duty = Duty(Machine(roots, lambda: now[0]), state, lambda: [probe])
        duty.wish(WISH)
        deeds = [duty.deed]
        for _ in range(1000):
            if deeds[-1].parked:
                break
            time.sleep(min(0.05, duty.seconds_to_step))
            now[0] += 0.2
            duty.step()
            if duty.deed is not deeds[-1]:
                deeds.append(duty.deed)
        assert node.sysctl(ICMP) == "30"
    assert [phase for phase, _ in groupby(deed.phase for deed in deeds)] == ["Trial", "RolledBack"] * 3
    assert [deed.parked for deed in deeds] == [False] * (len(deeds) - 1) + [True]
    first, *others = [deed for deed in deeds if deed.phase == "Trial"]
    assert [result for result in first.results if result.setting == "node"] == []
    for number, deed in enumerate(others, 2):
        (result,) = [result for result in deed.results if result.setting == "node"]
        assert result.reason == "ProbeFailed"
        assert "DNS 192.0.2.53" in result.message
        assert f"{number} of 3 times" in result.message
    rolled_back = [deed for deed in deeds if deed.phase == "RolledBack"]
    assert all(deed.preview and deed.preview.changes for deed in rolled_back)
    status = status_for(WISH, None, deeds[-1], Moment(datetime.now(UTC), "boot"))
    assert {each.type: each.reason for each in status.conditions} == {
        "Ready": "ProbeFailed", "Stalled": "Parked", "Saturated": "RoomLeft",
    }  # fmt: skip
