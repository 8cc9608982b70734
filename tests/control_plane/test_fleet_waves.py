"""Changes that travel over a fleet of simulated nodes, through a real API server and the controller as a process.

The agents note when they touched their kernels and for which revision, so that "exactly one" means just that.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Self

import pytest
from tests.lab.cluster import NAMESPACE, Cluster
from tests.lab.controller import ELSEWHERE, HASTY, Controller
from tests.lab.fleet import NODE_CONNTRACKS, ROLE, Fleet
from tests.lab.fleet_api import APPLY, GROUP, MERGE
from tests.lab.fleet_duty import BAD_ICMP_SECONDS, ICMP
from tests.lab.policies import AT_ONCE, policy
from tests.lab.programs import wait_until

GOOD, FIXED = 20, 21
QUICK = {"canary": 1, "soakSeconds": 1, "maxUnavailable": "20%"}
POLICY = f"{GROUP}/conntrackpolicies/all"


@pytest.fixture(scope="module")
def controller(cluster: Cluster, crds: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Controller]:
    """Give a running controller."""
    del crds
    cluster.clear()
    controller = Controller(cluster, tmp_path_factory.mktemp("controller"))
    controller.start()
    yield controller
    controller.stop()
    cluster.clear()


@pytest.fixture(scope="module")
def agents(controller: Controller) -> str:
    """Give the way in of an agent."""
    return controller.agents_kubeconfig()


@pytest.fixture
def fleet(cluster: Cluster, controller: Controller, agents: str) -> Iterator[Fleet]:
    """Give a fleet without nodes, a controller that runs, and no policy but one that matches nothing."""
    # First: a controller that finds no policy at all takes the agents' account away.
    cluster.apply(ELSEWHERE)
    if not controller.program.running:
        controller.start()
    with Fleet(cluster.kubeconfig, agents) as fleet:
        yield fleet
        controller.kill()
    cluster.delete_all(("controllerrevisions", "-n", NAMESPACE))


def apply(fleet: Fleet, icmp: int, rollout: dict[str, Any], **spec: Any) -> None:
    """Apply the policy for all nodes of the fleet, with this timeout and rollout."""
    document = policy("all", {"role": ROLE}, timeouts={"icmp": icmp}, rollout=rollout, **spec)
    fleet.api.request("PATCH", f"{POLICY}?fieldManager=test&force=true", document, APPLY)


def status(fleet: Fleet) -> dict[str, Any]:
    """Return the policy's status, empty until it is about the policy as it is now."""
    found = fleet.api.request("GET", POLICY)
    said = found.get("status") or {}
    return dict(said) if said.get("observedGeneration") == found["metadata"]["generation"] else {}


def counts(fleet: Fleet) -> dict[str, int]:
    """Return how many nodes the policy counts as what; nothing that is 0."""
    return {kind: number for kind, number in (status(fleet).get("nodes") or {}).items() if number}


def condition(fleet: Fleet, kind: str) -> tuple[str, str]:
    """Return a condition's status and reason."""
    found = (each for each in status(fleet).get("conditions", []) if each["type"] == kind)
    return next(((each["status"], each["reason"]) for each in found), ("", ""))


def until(fleet: Fleet, holds: Callable[[], object], what: str, seconds: float = 90) -> float:
    """Wait for what takes seconds, and longer on a busy machine; a TimeoutError shows the policy's status."""
    try:
        return wait_until(holds, seconds, what, every=0.05)
    except TimeoutError as error:
        found = fleet.api.request("GET", POLICY)
        said = [f"{each['type']}={each['status']} {each['reason']}: {each['message']}" for each in
                found["status"]["conditions"]]  # fmt: skip
        raise TimeoutError("\n".join([str(error), str(found["spec"]), str(found["status"]["nodes"]), *said])) from None


def having(fleet: Fleet, icmp: int) -> list[str]:
    """Return the nodes whose kernel has this timeout."""
    return [node.name for node in fleet if node.kernel.sysctls[ICMP] == icmp]


def all_have(fleet: Fleet, icmp: int) -> Callable[[], bool]:
    """Return whether all nodes have this timeout and the policy says so."""
    number = len(fleet.nodes)
    return lambda: len(having(fleet, icmp)) == number and counts(fleet) == {"matched": number, "current": number}


def touches(fleet: Fleet) -> Counter[str]:
    """Return how often each node's kernel was changed so far."""
    return Counter({node.name: len(node.kernel.touches) for node in fleet})


def with_good_policy(fleet: Fleet, number: int) -> Counter[str]:
    """Add nodes, bring them all to the good policy at once, and wait until that is known to be good."""
    fleet.add(number)
    apply(fleet, GOOD, AT_ONCE)
    until(fleet, all_have(fleet, GOOD), f"{number} nodes are current")
    until(fleet, lambda: condition(fleet, "Ready") == ("True", "AllNodesCurrent"), "the policy is ready")
    return touches(fleet)


def moving(objects: Mapping[str, dict[str, Any]]) -> list[str]:
    """Return the nodes that were told something and have not come to an end of it, all seen at one moment."""
    return [
        name
        for name, item in objects.items()
        if item["spec"]["mode"] != "Hold"
        and (
            item.get("status", {}).get("observedRevision") != item["spec"]["revision"]
            or item.get("status", {}).get("phase") == "Trial"
        )
    ]


class Watched:
    """Looks at the whole fleet all the time, and remembers the most nodes that were on their way at one moment."""

    def __init__(self, fleet: Fleet, icmp: int) -> None:
        self.most: list[str] = []
        self.told: list[str] = []
        """The nodes that were asked for this timeout, in the order it was written; each hears it in its own time."""
        self._fleet, self._icmp, self._end = fleet, icmp, threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join(30)

    def _look(self) -> None:
        while not self._end.wait(0.03):
            objects = self._fleet.objects()
            now = moving(objects)
            if len(now) > len(self.most):
                self.most = now
            self.told += [
                name
                for name, item in sorted(objects.items())
                if name not in self.told
                and item["spec"].get("settings", {}).get("timeouts", {}).get("icmp") == self._icmp
            ]


def first_told(fleet: Fleet, icmp: int) -> dict[str, float]:
    """Return when each node heard first that it should have this timeout, the first one first."""
    told = {}
    for node in fleet:
        for seconds, spec in node.kernel.told:
            if spec is not None and spec.mode == "Apply" and spec.settings.document()["timeouts"]["icmp"] == icmp:
                told.setdefault(node.name, seconds)
    return dict(sorted(told.items(), key=lambda item: item[1]))


def first_current(fleet: Fleet, name: str, after: float) -> float:
    """Return when the node first wrote that it is current, after a moment."""
    return next(each.seconds for each in fleet[name].written if each.seconds > after and each.status.phase == "Current")


def test_a_bad_canary_is_the_only_one(fleet: Fleet) -> None:
    """Of twenty nodes one is touched by a bad edit; when the edit is put right, all follow, the canary first."""
    before = with_good_policy(fleet, 20)
    apply(fleet, BAD_ICMP_SECONDS, QUICK)
    until(fleet, lambda: condition(fleet, "Stalled") == ("True", "CanaryFailed"), "the canary has failed for good")
    changed = touches(fleet) - before
    assert list(changed.values()) == [3], "three tries on one node"
    (canary,) = changed
    assert counts(fleet) == {"matched": 20, "pending": 19, "rolledBack": 1}
    assert canary in str(status(fleet)["failures"])
    time.sleep(2)
    assert touches(fleet) - before == changed
    assert len(having(fleet, GOOD)) == 20, "the canary has back what it had"
    apply(fleet, FIXED, QUICK)
    until(fleet, all_have(fleet, FIXED), "all follow")
    assert next(iter(first_told(fleet, FIXED))) == canary, "who has something of a bad edit is rid of it first"
    assert set((touches(fleet) - before - changed).values()) == {1}
    until(fleet, lambda: condition(fleet, "Ready") == ("True", "AllNodesCurrent"), "the policy is ready")


def test_retry_restarts_a_parked_canary(fleet: Fleet) -> None:
    """It tries again on the same node, alone; when it works now, all others follow."""
    before = with_good_policy(fleet, 20)
    for node in fleet:
        node.orders.rolls_back = True
    apply(fleet, FIXED, QUICK)
    until(fleet, lambda: condition(fleet, "Stalled")[0] == "True", "the canary has failed for good")
    first = touches(fleet) - before
    assert list(first.values()) == [3]
    apply(fleet, FIXED, {**QUICK, "retry": "the resolver is back"})
    (canary,) = first
    until(fleet, lambda: (touches(fleet) - before)[canary] == 6, "it is tried three more times")
    until(fleet, lambda: condition(fleet, "Stalled")[0] == "True", "the canary has failed again")
    assert list(touches(fleet) - before) == [canary]
    for node in fleet:
        node.orders.rolls_back = False
    apply(fleet, FIXED, {**QUICK, "retry": "now it is"})
    until(fleet, all_have(fleet, FIXED), "all follow")


def test_killed_at_every_step(fleet: Fleet, controller: Controller) -> None:
    """A controller that is killed after everything it does leads the same rollout to the same end."""
    number, soak = 12, 3
    before = with_good_policy(fleet, number)
    for node in fleet:
        node.orders.trial_seconds = 1.0
    kills, seen = 0, 0
    with Watched(fleet, FIXED) as watched:
        apply(fleet, FIXED, {"canary": 1, "soakSeconds": soak, "maxUnavailable": 4})
        deadline = time.monotonic() + 240
        while len(having(fleet, FIXED)) < number:
            assert time.monotonic() < deadline, "the rollout does not end"
            told = len(first_told(fleet, FIXED))
            if kills < 6 and (told > seen or (told == 1 and kills == 1 and having(fleet, FIXED))):
                seen = told
                controller.kill()
                kills += 1
                controller.start()
            time.sleep(0.02)
        until(fleet, all_have(fleet, FIXED), "all are current")
    assert kills >= 4, "the canary, its soak, and the waves"
    assert 1 <= len(watched.most) <= 4, watched.most
    assert set((touches(fleet) - before).values()) == {1}, "nobody is told twice"
    order = first_told(fleet, FIXED)
    canary, second = list(order)[:2]
    assert canary == "node-000"
    assert order[second] - first_current(fleet, canary, order[canary]) >= soak - 1, (
        "times in statuses are whole seconds"
    )
    # By name, but for those of one wave; and of a write that was under way when its controller was killed nothing may
    # have come, so that its node is told with the wave after.
    names = watched.told
    assert len(names) == number
    assert all(names.index(name) < place + 2 * 4 for place, name in enumerate(sorted(names))), names


def test_an_edit_in_the_middle_of_a_wave(fleet: Fleet) -> None:
    """The newer edit begins with a canary of its own; who has not been given the older one never gets it."""
    with_good_policy(fleet, 20)
    for node in fleet:
        node.orders.trial_seconds = 1.5
        # The wave after the canary stays under way until the edit is there, however long that takes.
        node.orders.silent = node.name != "node-000"
    with Watched(fleet, 22) as watched:
        apply(fleet, FIXED, QUICK)
        until(fleet, lambda: len(first_told(fleet, FIXED)) >= 5, "a wave is under way")
        apply(fleet, 22, QUICK)
        for node in fleet:
            node.orders.silent = False
        until(fleet, all_have(fleet, 22), "all have the newer edit", 120)
    assert len(first_told(fleet, FIXED)) <= 12
    assert 1 <= len(watched.most) <= 4, watched.most
    newer = first_told(fleet, 22)
    canary, second = list(newer)[:2]
    assert canary in first_told(fleet, FIXED), "the canary is one that was touched already"
    assert newer[second] >= first_current(fleet, canary, newer[canary])


def test_a_node_made_anew(fleet: Fleet) -> None:
    """What its forerunner said is not believed: it is pending until its own agent answers, and gets the policy."""
    with_good_policy(fleet, 6)
    fleet.delete(["node-003"])
    fleet.create(["node-003"], agents=False)
    until(fleet, lambda: counts(fleet) == {"matched": 6, "current": 5, "pending": 1}, "it is pending")
    uid = fleet.api.request("GET", "/api/v1/nodes/node-003")["metadata"]["uid"]
    until(fleet, lambda: fleet.objects().get("node-003", {}).get("spec", {}).get("nodeUID") == uid, "it is told anew")
    time.sleep(1)
    assert counts(fleet)["current"] == 5
    fleet.start(["node-003"])
    until(fleet, all_have(fleet, GOOD), "it is as the policy says")
    assert len(fleet["node-003"].kernel.touches) == 1


def test_an_old_status_under_a_new_name(fleet: Fleet) -> None:
    """Even where the old object outlives its node, with a status that looks fresh, the new node is asked for itself."""
    with_good_policy(fleet, 6)
    old = fleet.objects()["node-003"]
    fleet.delete(["node-003"])
    fleet.create(["node-003"], agents=False)
    until(fleet, lambda: counts(fleet) == {"matched": 6, "current": 5, "pending": 1}, "it is pending")
    fleet.api.request("PATCH", f"{GROUP}/nodeconntracks/node-003/status", {"status": old["status"]}, MERGE)
    time.sleep(HASTY["pace"] + 1)
    assert counts(fleet) == {"matched": 6, "current": 5, "pending": 1}
    apply(fleet, FIXED, AT_ONCE)
    fleet_without = [node for node in fleet if node.name != "node-003"]
    until(fleet, lambda: all(node.kernel.sysctls[ICMP] == FIXED for node in fleet_without), "the others follow")
    fleet.start(["node-003"])
    until(fleet, all_have(fleet, FIXED), "it is as the policy says")


def test_fifty_join_during_a_halt(fleet: Fleet) -> None:
    """They get the last revision that went well, at once, and nobody tries the bad one for it."""
    with_good_policy(fleet, 10)
    before = touches(fleet)
    apply(fleet, BAD_ICMP_SECONDS, QUICK)
    until(fleet, lambda: condition(fleet, "Stalled") == ("True", "CanaryFailed"), "the rollout has halted")
    time.sleep(1.1)  # creation times are whole seconds
    joined = fleet.add(50)
    took = until(fleet, lambda: len(having(fleet, GOOD)) == 60, "the newcomers have the last good revision")
    print(f"50 nodes that joined had it after {took:.1f} s")
    assert all(len(fleet[name].kernel.touches) == 1 for name in joined)
    assert first_told(fleet, BAD_ICMP_SECONDS).keys() == (touches(fleet) - before).keys() - set(joined)
    assert condition(fleet, "Stalled") == ("True", "CanaryFailed")
    until(fleet, lambda: counts(fleet).get("rolledBack") == 1 and counts(fleet)["matched"] == 60, "they are counted")
    apply(fleet, FIXED, AT_ONCE)
    until(fleet, all_have(fleet, FIXED), "all sixty follow the edit that puts it right")


def test_nodes_that_are_away(fleet: Fleet, controller: Controller) -> None:
    """A tenth not Ready and a tenth whose agents are silent hold nobody up; back, they get it."""
    with_good_policy(fleet, 20)
    unready, silent = ["node-004", "node-011"], ["node-007", "node-019"]
    fleet.set_ready(unready, ready=False)
    fleet.stop(silent)
    # A controller believes what it saw itself; one that was not there goes by the heartbeat.
    controller.kill()
    long_ago = (datetime.now(UTC) - timedelta(minutes=20)).strftime("%Y-%m-%dT%H:%M:%SZ")
    for name in silent:
        fleet.api.request("PATCH", f"{NODE_CONNTRACKS}/{name}/status", {"status": {"heartbeatTime": long_ago}}, MERGE)
    controller.start()
    until(fleet, lambda: counts(fleet).get("unknown") == 2, "two are silent")
    apply(fleet, FIXED, QUICK)
    until(fleet, lambda: condition(fleet, "Ready") == ("True", "AllNodesCurrent"), "the rollout has ended")
    assert counts(fleet) == {"matched": 20, "current": 16, "pending": 2, "unknown": 2}
    assert condition(fleet, "Reconciling")[0] == "False"
    assert not set(unready + silent) & set(having(fleet, FIXED))
    fleet.set_ready(unready, ready=True)
    fleet.start(silent)
    until(fleet, all_have(fleet, FIXED), "they follow when they are back")
