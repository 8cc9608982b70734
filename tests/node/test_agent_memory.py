"""The agent's memory in its pod after hours of work, made to pass in a minute: many samples and many changes."""

import re
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
from tests.lab.by_hand import ByHand
from tests.lab.installed import AGENT, NAMESPACE, Installed
from tests.lab.node_process import Process
from tests.lab.place import Place
from tests.lab.programs import wait_until

CHANGES, SAMPLES = 500, 10_000
LIMIT_KB = 45 * 1024
GROWTH_KB = 1024
PORT = 9817
POD = "memory"
# The agent's own command in a hurry: it looks every few milliseconds, and counts. What does not answer on this node, as
# DNS may, is not waited for before each change.
HURRY = """
import sys
from conntrack_operator.agent import loop, trial
from conntrack_operator.agent.meter import Meter
loop.SAMPLE_SECONDS, trial.BEFORE_SECONDS = 0.002, 0.05
read, seen = Meter.read, 0
def counted(self):
    global seen
    seen += 1
    if seen % 200 == 0:
        print("samples", seen, file=sys.stderr, flush=True)
    return read(self)
Meter.read = counted
from conntrack_operator.cli.main import main
sys.exit(main())
"""


@pytest.fixture(scope="module")
def installed(place: Place, helm: Any) -> Installed:
    """Give the operator, whose own agents may run nowhere."""
    operator = Installed(place, helm)
    operator.install("--set=agent.nodeSelector.elsewhere=yes")
    return operator


@pytest.fixture(scope="module")
def hand(installed: Installed) -> Iterator[ByHand]:
    """Give a way to write the agent's wishes."""
    hand = ByHand(installed)
    yield hand
    hand.close()


@pytest.fixture(scope="module")
def agent(place: Place, hand: ByHand) -> Process:
    """Give the process of a pod as the DaemonSet makes it, with another command and no place to keep away from."""
    hand.installed.apply(hand.policy("web", **settings(0)))
    daemon_set: list[dict[str, Any]] = []

    def made() -> bool:
        daemon_set[:] = filter(None, [place.get("daemonset", AGENT, "-n", NAMESPACE)])
        return bool(daemon_set) and bool(hand.node())

    wait_until(made, 60, "the DaemonSet is there, and the node's object")
    spec = daemon_set[0]["spec"]["template"]["spec"]
    del spec["nodeSelector"]["elsewhere"]
    spec["containers"][0]["command"] = ["python3", "-c", HURRY]
    place.kubectl("create", "-f", "-", input={
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": POD, "namespace": NAMESPACE}, "spec": spec,
    })  # fmt: skip
    place.kubectl("wait", "-n", NAMESPACE, "--for=condition=Ready", f"pod/{POD}", "--timeout=100s")
    # The oldest: a copy that it has just made of itself, to be another program in a moment, is called the same.
    (pid,) = place.on_node("pgrep", "-o", "-f", "^python3 -c .import sys.from conntrack_operator").stdout.split()
    return Process(place, int(pid))


def settings(number: int) -> dict[str, Any]:
    """Return what is wished the `number`th time: timeouts each time, and now and then other rules."""
    ports = [80, f"8000-{8000 + number // 10 % 5}"]
    return {
        "timeouts": {"tcp": {"timeWait": 31 + number % 40}, "icmp": 10 + number % 7},
        "notrack": {"rules": [{"name": "web", "ports": ports}]},
        "trial": {"soakSeconds": 0},
    }


def spec(number: int, of: dict[str, Any]) -> dict[str, Any]:
    """Return a spec like `of` with other settings, as the controller would write it."""
    wanted = {**of["settings"], **settings(number)}
    wanted["timeouts"] = settings(number)["timeouts"]
    return {**of, "mode": "Apply", "revision": f"{number:012x}", "settings": wanted}


def samples(place: Place) -> int:
    """Return how often the agent has looked."""
    said = place.kubectl("logs", "-n", NAMESPACE, POD, "--tail=400").stdout
    return max((int(number) for number in re.findall(r"^samples (\d+)$", said, re.MULTILINE)), default=0)


def scrape(place: Place) -> int:
    """Ask for the metrics as Prometheus does; return the size of the answer."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"http://{place.node_address}:{PORT}/metrics", timeout=60) as answer:
        return len(answer.read())


def test_memory_after_hours_of_work(place: Place, hand: ByHand, agent: Process) -> None:
    """At most 45 MB, and nothing more after the first tenth, with metrics asked for all the time."""
    of = hand.node()["spec"]
    resident: list[int] = []
    began = time.monotonic()
    with hand.controller_away():
        for number in range(1, CHANGES + 1):
            hand.write(spec(number, of))

            def answered(revision: str = f"{number:012x}") -> bool:
                status = hand.node().get("status", {})
                return status.get("observedRevision") == revision and status.get("phase") == "Current"

            wait_until(answered, 60, f"change {number} is in force", every=0.02)
            if number % 5 == 0:
                resident.append(int(agent.status("VmRSS").split()[0]))
                assert scrape(place) > 1000
        changed = time.monotonic() - began
        wait_until(lambda: samples(place) >= SAMPLES, 600, f"{SAMPLES} samples", every=1)
        resident.append(int(agent.status("VmRSS").split()[0]))
    tenth = len(resident) // 10
    early, late = max(resident[: tenth + 1]), max(resident[-tenth:])
    told = (
        f"{early} KB after the first tenth, {late} KB in the last, {max(resident)} KB at most; {CHANGES} changes in"
        f" {changed:.0f} s, {samples(place)} samples in {time.monotonic() - began:.0f} s: {resident}"
    )
    print(told)
    assert max(resident) <= LIMIT_KB, told
    assert late <= early + GROWTH_KB, told
