"""Trials of a real agent against a real API server that goes away in the middle, and comes back or does not."""

import re
import time
from collections.abc import Iterator

import pytest
from tests.lab.host import Host
from tests.lab.operator import Operator
from tests.lab.programs import wait_until

pytestmark = pytest.mark.tunes_this_machine

ICMP = "nf_conntrack_icmp_timeout"
SOAK_SECONDS = 10
"""So long a trial is under way at least: the API server must be gone before it ends, also on a busy machine."""


@pytest.fixture
def _api_server_back(operator: Operator) -> Iterator[None]:
    """Have the API server running again after the test, whatever happened."""
    yield
    if not operator.cluster.apiserver.running:
        operator.cluster.start_apiserver()


@pytest.mark.usefixtures("_api_server_back")
def test_the_api_server_is_away_for_a_while_and_the_change_is_kept(operator: Operator, host: Host) -> None:
    """Gone in the middle of a trial and back inside its time: the trial goes on meanwhile, and is confirmed then."""
    before = host.value(ICMP)
    operator.apply("patient", timeouts={"icmp": 17}, trial={"timeoutSeconds": 60, "soakSeconds": SOAK_SECONDS})
    wait_until(lambda: host.value(ICMP) == 17, 60, "the trial's value is in the kernel", 0.05)
    wait_until(lambda: "Trial" in operator.phases(), 60, "the node says Trial")
    operator.cluster.stop_apiserver()
    time.sleep(SOAK_SECONDS + 2)  # longer than the soak: a trial that did not look would be confirmed by now
    assert host.value(ICMP) == 17
    assert operator.journal()["trial"], "confirmed although the API server was away"
    operator.cluster.start_apiserver()
    operator.wait_ready("patient", 60)
    assert before != host.value(ICMP) == 17
    assert operator.phases()[-2:] == ["Trial", "Current"]


@pytest.mark.usefixtures("_api_server_back")
def test_the_api_server_stays_away_and_the_change_is_undone(operator: Operator, host: Host) -> None:
    """Not back in time: undone with nobody to ask, and said with the probe's name once there is somebody to tell."""
    before = host.value(ICMP)
    operator.apply("lost", timeouts={"icmp": 18}, trial={"timeoutSeconds": 20, "soakSeconds": SOAK_SECONDS})
    wait_until(lambda: host.value(ICMP) == 18, 60, "the trial's value is in the kernel", 0.05)
    operator.cluster.stop_apiserver()
    # By its clock it has 20 s. The others are for a machine that stands still.
    wait_until(lambda: host.value(ICMP) == before, 20 + 10, "the value of before is back", 0.05)
    tries = lambda: operator.agent.log.read_text().count("the report waits")  # noqa: E731
    wait_until(tries, 60, "a report cannot be delivered")
    time.sleep(3)
    assert tries() < 60, f"a report that cannot be delivered was tried {tries()} times"
    operator.cluster.start_apiserver()
    wait_until(lambda: "RolledBack" in operator.phases(), 90, "the node says RolledBack")
    said, *_ = [entry for entry in operator.status()["history"] if entry["phase"] == "RolledBack"]
    assert said["reason"] == "ProbeFailed"
    assert re.search(rf"API server 127\.0\.0\.1:{operator.cluster.port} answered before the change", said["message"])
    assert host.value(ICMP) == before
