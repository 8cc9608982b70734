"""Two hundred agents report to a real API server in simulated time: who idles says little, and a storm stays calm."""

import itertools
import math
import resource
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from tests.lab.cluster import Cluster
from tests.lab.controller import started
from tests.lab.fleet import ROLE, Fleet
from tests.lab.fleet_api import GROUP
from tests.lab.fleet_clock import StillClock
from tests.lab.policies import policy
from tests.lab.programs import Program, wait_until

from conntrack_operator.agent.loop import SAMPLE_SECONDS
from conntrack_operator.controller.pace import BURST, REFILL_SECONDS
from conntrack_operator.decide.news import HEARTBEAT_SECONDS, USAGE_SECONDS

NODES = 200
TOGETHER = 25
"""Nodes that are added at once. Of 200 connections at once a busy machine gives some up, and their reports would wait
for a moment of the nodes' time, which stands still."""
MINUTES = 60
# Observe: every node is told at once, and nothing has to be tried first.
POLICY = policy("all", {"role": ROLE}, mode="Observe", timeouts={"icmp": "20s"})


@pytest.fixture(scope="module")
def controller(cluster: Cluster, crds: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """Give a running controller."""
    del crds
    cluster.clear()
    program = started(cluster, tmp_path_factory.mktemp("controller"), pace=REFILL_SECONDS)
    yield program
    program.stop()
    cluster.clear()


@pytest.fixture(scope="module")
def fleet(cluster: Cluster, controller: Program) -> Iterator[Fleet]:
    """Give 200 nodes that one policy means and that have answered; their time stands still but for `advance`.

    It begins ten minutes ago, so that the controller, whose time is ours, takes the heartbeats for recent ones.
    """
    del controller
    began = datetime.now(UTC).replace(microsecond=0) - timedelta(minutes=11)
    with Fleet(cluster.kubeconfig, clock=StillClock(began)) as fleet:
        fleet.taken_before = requests(fleet, "nodeconntracks", "status")  # by the tests before this one
        cluster.apply(POLICY)
        for _ in range(NODES // TOGETHER):
            fleet.add(TOGETHER)
            wait_until(lambda: all(node.written for node in fleet), 120, "every node has answered")
        wait_until(lambda: counts(fleet).get("current") == NODES, 120, "the policy counts them")
        fleet.advance(0)
        yield fleet


def counts(fleet: Fleet) -> dict[str, int]:
    """Return how many nodes the policy counts as what."""
    return dict((stored(fleet).get("status") or {}).get("nodes") or {})


def stored(fleet: Fleet) -> dict[str, dict[str, dict[str, int]]]:
    """Return the policy as it is stored."""
    return fleet.api.request("GET", f"{GROUP}/conntrackpolicies/all")


def requests(fleet: Fleet, resource: str, subresource: str = "") -> int:
    """Return how many writes of a kind the API server has taken, by its own metrics."""
    return sum(
        fleet.api.counted("apiserver_request_total", verb=verb, resource=resource, subresource=subresource)
        for verb in ("POST", "PUT", "PATCH", "APPLY")
    )


class Counted:
    """What was written while simulated seconds went by: at the agents, and by the API server's own count."""

    def __init__(self, fleet: Fleet, seconds: float) -> None:
        before = {node.name: len(node.written) for node in fleet}
        began = time.monotonic()
        taken, specs, policies = self._requests(fleet)
        fleet.advance(seconds)
        self.of = {node.name: node.written[before[node.name] :] for node in fleet}
        self.sent = sum(map(len, self.of.values()))
        now = self._requests(fleet)
        self.took = time.monotonic() - began
        self.taken, self.specs, self.policies = now[0] - taken, now[1] - specs, now[2] - policies

    @staticmethod
    def _requests(fleet: Fleet) -> tuple[int, int, int]:
        return (
            requests(fleet, "nodeconntracks", "status"), requests(fleet, "nodeconntracks"),
            requests(fleet, "conntrackpolicies", "status"),
        )  # fmt: skip

    def most_policy_writes(self) -> float:
        """Return how often the controller may have written the policy's status meanwhile."""
        return BURST + 1 + self.took / REFILL_SECONDS


def test_an_answer_is_one_write(fleet: Fleet) -> None:
    """A node that was told something and has nothing to try has written once."""
    assert fleet.writes() == NODES == requests(fleet, "nodeconntracks", "status") - fleet.taken_before


def test_ten_idle_minutes(fleet: Fleet) -> None:
    """Every node writes its heartbeats, each 5 minutes give or take a fifth, and nobody writes anything else."""
    before = fleet.objects()
    quiet = Counted(fleet, 10 * MINUTES)
    for node in fleet:
        every = math.ceil(HEARTBEAT_SECONDS * node.jitter / SAMPLE_SECONDS) * SAMPLE_SECONDS
        times = [written.seconds for written in node.written]
        assert times == [every * number for number in range(int(600 // every) + 1)], node.name
    assert quiet.sent == quiet.taken
    assert NODES <= quiet.sent <= 2 * NODES + NODES // 10, "about two in ten minutes"
    assert quiet.specs == 0
    assert quiet.policies <= quiet.most_policy_writes()
    after = fleet.objects()
    assert {name: item["spec"] for name, item in after.items()} == {name: item["spec"] for name, item in before.items()}
    assert all(len(item["status"]["history"]) == 1 for item in after.values())
    print(f"10 minutes of {NODES} nodes in {quiet.took:.0f} s, {quiet.sent} writes,"
          f" {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024} MB at most in this process")  # fmt: skip


def test_a_storm_of_usage(fleet: Fleet) -> None:
    """Every node crosses bands at every look: each writes once a minute, and the policy keeps its pace."""
    for node in fleet:
        node.meter.at = lambda seconds: (200_000 if int(seconds) // 5 % 2 else 50_000, 0)
    storm = Counted(fleet, 3 * MINUTES)
    assert storm.sent == storm.taken
    for name, writes in storm.of.items():
        times = [written.seconds for written in writes]
        assert 2 <= len(times) <= 3, name
        gaps = [after - before for before, after in itertools.pairwise(times)]
        assert min(gaps) >= USAGE_SECONDS, name
    assert storm.specs == 0
    assert storm.policies <= storm.most_policy_writes()


def test_drops_that_start_and_stop(fleet: Fleet) -> None:
    """They are told within a look after a quiet minute, once a minute while they come and go, and that they ended."""
    for node in fleet:
        node.meter.at = lambda _seconds: (50_000, 0)
    fleet.advance(2 * MINUTES)
    start = fleet.clock.monotonic()

    def flapping(seconds: float) -> tuple[int, int]:
        """Return drops that come for 10 s and stay away for 10 s, for two minutes."""
        whole, rest = divmod(min(seconds - start, 130), 20)
        return 50_000, int(whole * 100 + min(rest, 10) * 10)

    for node in fleet:
        node.meter.at = flapping
    first = Counted(fleet, 10)
    assert all([written.status.usage.drops_per_second for written in each] == [10] for each in first.of.values())
    flaps = Counted(fleet, 2 * MINUTES)
    after = Counted(fleet, MINUTES + 10)
    for name in flaps.of:
        assert 1 <= len(flaps.of[name]) <= 2, name
        assert len(after.of[name]) <= 2, name
        assert fleet[name].written[-1].status.usage.drops_per_second == 0, name
    assert (first.sent + flaps.sent + after.sent) == (first.taken + flaps.taken + after.taken)
