"""Absence is not deletion: what vanishes with its CRD or namespace is kept, what a person deletes is withdrawn.

The tests answer in the agents' place. A NodeConntrack with the same uid and generation as before was never written.
"""

import contextlib
import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from tests.lab.cluster import NAMESPACE, Cluster
from tests.lab.controller import program as controller
from tests.lab.fleet_by_hand import answer, apply, condition, identity, names, settle, spec_of
from tests.lab.programs import Program, wait_until

from conntrack_operator.cluster.connection import Connection
from conntrack_operator.cluster.objects import Objects
from conntrack_operator.controller.guard import Guard
from conntrack_operator.decide.absence import CONFIRM_SECONDS as CONFIRM_IN_EARNEST
from conntrack_operator.decide.absence import Loss

POLICIES = "conntrackpolicies.conntrack-operator.io"
NODE_CONNTRACKS = "nodeconntracks.conntrack-operator.io"
CONFIRM_SECONDS = 2
"""Between two lists that count, in this file but for the test of the ten seconds."""
TWO_LISTS_SECONDS = 3 * CONFIRM_SECONDS
"""Long enough for two full lists, were they to count."""
HANGING = '{"metadata": {"finalizers": ["example.com/hangs"]}}'
FREE = '{"metadata": {"finalizers": null}}'


@pytest.fixture(scope="module")
def operator(cluster: Cluster, crds: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """Give a running controller, the same for all tests of this file."""
    del crds
    cluster.clear()
    program = controller(
        tmp_path_factory.mktemp("controller"), cluster.kubeconfig, confirm=CONFIRM_SECONDS, look=CONFIRM_SECONDS
    )
    program.start()
    yield program
    program.stop()
    cluster.clear()


@pytest.fixture
def settled(operator: Program, cluster: Cluster, crds: Path) -> Iterator[Program]:
    """Give the controller with a node n1 that has policy web, and put CRDs, namespace and controller right again."""
    if not operator.running:
        operator.start()
    cluster.add_node("n1", role="web")
    apply(cluster, "web")
    settle(cluster, "n1", "web")
    yield operator
    cluster.apply_crds(crds)
    if cluster.get("namespace", NAMESPACE) is None:
        cluster.make_namespace(NAMESPACE)
    cluster.delete_all("conntrackpolicies", "nodes", "nodeconntracks")


def said(program: Program, sentence: str) -> bool:
    """Tell whether the controller has logged this."""
    return sentence in program.log.read_text()


def withdrawn(cluster: Cluster, node: str, seconds: float = 60, revived: Program | None = None) -> float:
    """Wait until the node is asked to put its originals back, its agent being alive; return the seconds it took.

    A controller that ended since it lost its Lease is started again meanwhile, as a kubelet would.
    """

    def is_asked() -> bool:
        if revived is not None and not revived.running:
            revived.start()
        return answer(cluster, node, unless="Restore").get("mode") == "Restore"

    return wait_until(is_asked, seconds, f"{node} is asked to restore")


@contextlib.contextmanager
def hanging(cluster: Cluster, kind: str, name: str, *where: str) -> Iterator[None]:
    """Have an object hang in its deletion, and with it what it lies in, until the block ends."""
    cluster.kubectl("patch", kind, name, *where, "--type=merge", "-p", HANGING)
    try:
        yield
    finally:
        cluster.kubectl("patch", kind, name, *where, "--type=merge", "-p", FREE, check=False)


def test_a_deletion_takes_ten_seconds(settled: Program, cluster: Cluster, tmp_path: Path) -> None:
    """A policy a person deletes is withdrawn when two lists agree, and no sooner; the object goes with the answer."""
    settled.stop()
    program = controller(tmp_path, cluster.kubeconfig)
    program.start()
    try:
        program.wait_until(lambda: said(program, "everything is read"), 60, "the controller has read everything")
        began = time.monotonic()  # before kubectl, which comes back when the policy has been gone for a while
        cluster.kubectl("delete", "ctp", "web")
        withdrawn(cluster, "n1")
        assert time.monotonic() - began > CONFIRM_IN_EARNEST
        answer(cluster, "n1")
        wait_until(lambda: not spec_of(cluster, "n1"), 90, "the object is gone")
    finally:
        program.stop()


def test_deleted_and_made_again(settled: Program, cluster: Cluster) -> None:
    """Back before it is confirmed, again and again: nothing is withdrawn, although many a list has shown it."""

    def is_back_in_time() -> bool:
        """Delete it and make it again, four times; tell whether it never was gone for so long that it is confirmed."""
        for _ in range(4):
            began = time.monotonic()
            cluster.delete_all("ctp")
            time.sleep(CONFIRM_SECONDS / 2)
            apply(cluster, "web")
            if time.monotonic() - began >= CONFIRM_SECONDS:
                return False
            # Until the controller knows: were it gone again before, two lists would agree.
            wait_until(lambda: condition(cluster, "web", "Ready").get("status") == "True", 60, "it is seen again")
        return True

    before = identity(cluster, "n1")
    for _ in range(10):
        if is_back_in_time():
            break
        # The machine has let us wait, and what was withdrawn, rightly, is given back.
        time.sleep(TWO_LISTS_SECONDS)
        settle(cluster, "n1", "web")
        before = identity(cluster, "n1")
    else:
        raise TimeoutError("this machine is too busy for it")
    time.sleep(TWO_LISTS_SECONDS)
    assert identity(cluster, "n1") == before
    assert names(cluster, "n1") == ["web"]
    assert settled.running


def test_the_policies_crd_hangs_goes_and_comes_back(settled: Program, cluster: Cluster, crds: Path) -> None:
    """Settings stay in every state of it, and when it is back without the policies, which nobody deleted.

    Applied again under the new CRD and deleted, the policy is withdrawn.
    """
    before = identity(cluster, "n1")
    with hanging(cluster, "ctp", "web"):
        cluster.kubectl("delete", "crd", POLICIES, "--wait=false")
        wait_until(lambda: said(settled, f"the CRD {POLICIES} is being deleted"), 60, "the controller sees it")
        time.sleep(TWO_LISTS_SECONDS)
        assert identity(cluster, "n1") == before
    wait_until(lambda: cluster.get("crd", POLICIES) is None, 60, "the CRD is gone")
    time.sleep(TWO_LISTS_SECONDS)
    assert identity(cluster, "n1") == before
    cluster.apply_crds(crds)
    wait_until(lambda: said(settled, "nothing is withdrawn for web: gone with the CRD"), 90, "the controller says why")
    time.sleep(TWO_LISTS_SECONDS)
    lists = settled.log.read_text().count("nothing is withdrawn for web")
    assert lists == 1, "it is said once"
    assert identity(cluster, "n1") == before
    apply(cluster, "web")
    wait_until(lambda: said(settled, "nothing stands in the way"), 60, "the controller sees the policy")
    settle(cluster, "n1", "web")
    wait_until(lambda: said(settled, "the watches begin anew"), 60, "the controller watches the new CRD")
    time.sleep(6)

    def missed() -> int:
        return settled.log.read_text().count("have missed a change")

    entries = iter(range(600_000, 700_000))

    def is_watched() -> bool:
        """Edit the policy; tell whether the controller saw that by itself."""
        before, size = missed(), {"size": {"maxEntries": next(entries)}}
        apply(cluster, "web", table=size)
        wait_until(lambda: answer(cluster, "n1")["settings"]["table"] == size, 60, "the edit is out")
        return missed() == before

    wait_until(is_watched, 120, "the policies are watched")
    before_the_end = missed()
    cluster.kubectl("delete", "ctp", "web")
    withdrawn(cluster, "n1")
    assert missed() == before_the_end


def test_a_policy_lost_with_its_crd_while_the_controller_is_down(
    settled: Program, cluster: Cluster, crds: Path
) -> None:
    """A controller that has never seen the policy judges by the age of the CRD and of the node's object."""
    before = identity(cluster, "n1")
    settled.stop()
    cluster.kubectl("delete", "crd", POLICIES)
    cluster.apply_crds(crds)
    said_before = settled.log.read_text().count("gone with the CRD")
    settled.start()
    settled.wait_until(
        lambda: settled.log.read_text().count("gone with the CRD") > said_before, 60, "the controller says why"
    )
    time.sleep(TWO_LISTS_SECONDS)
    assert identity(cluster, "n1") == before


def test_the_node_conntracks_crd_hangs_goes_and_comes_back(settled: Program, cluster: Cluster, crds: Path) -> None:
    """No node is ever asked to restore: not while the objects go, and not when they are made anew."""
    modes: set[str] = set()

    def look(seconds: float) -> set[str]:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            found = cluster.kubectl("get", "nct", "-o", "json", check=False)
            if found.returncode == 0:
                modes.update(each["spec"]["mode"] for each in json.loads(found.stdout)["items"])
            time.sleep(0.2)
        return modes

    with hanging(cluster, "nct", "n1"):
        cluster.kubectl("delete", "crd", NODE_CONNTRACKS, "--wait=false")
        wait_until(lambda: look(TWO_LISTS_SECONDS), 60, "the objects are seen while they hang")
        assert modes == {"Apply"}
    wait_until(lambda: cluster.get("crd", NODE_CONNTRACKS) is None, 60, "the CRD is gone")
    look(3)
    cluster.apply_crds(crds)
    settle(cluster, "n1", "web", seconds=90)
    look(TWO_LISTS_SECONDS)

    def nodes() -> dict[str, int]:
        answer(cluster, "n1")
        return (cluster.get("ctp", "web") or {}).get("status", {}).get("nodes", {})

    wait_until(lambda: nodes().get("current") == 1, 120, "the new objects are watched: the answer is counted")
    assert "Restore" not in modes
    assert names(cluster, "n1") == ["web"]
    assert settled.running


def test_the_namespace_hangs_goes_and_comes_back(settled: Program, cluster: Cluster) -> None:
    """While the operator is being taken away, and its Lease too, even what a person deletes is kept; not afterwards."""
    cluster.kubectl("create", "configmap", "hangs", "-n", NAMESPACE)
    before = identity(cluster, "n1")
    with hanging(cluster, "configmap", "hangs", "-n", NAMESPACE):
        cluster.kubectl("delete", "namespace", NAMESPACE, "--wait=false")
        cluster.kubectl("delete", "ctp", "web")
        patient = Connection(str(cluster.kubeconfig), connect_seconds=30, read_seconds=30)
        guard = Guard(Objects(patient), NAMESPACE)
        guard.saw([Loss("web", "n1")])
        assert guard.trouble == f"nothing is withdrawn from any node: the namespace {NAMESPACE} is being deleted"
        time.sleep(TWO_LISTS_SECONDS)
        assert identity(cluster, "n1") == before
    wait_until(lambda: cluster.get("namespace", NAMESPACE) is None, 120, "the namespace is gone")
    time.sleep(TWO_LISTS_SECONDS)
    assert identity(cluster, "n1") == before
    cluster.make_namespace(NAMESPACE)
    withdrawn(cluster, "n1", 120, revived=settled)


def test_a_policy_deleted_while_controller_and_agent_are_down(settled: Program, cluster: Cluster) -> None:
    """The deletion is found at the start, ten seconds later; a node whose agent is silent waits until it is back.

    What the deletion must honour is in the node's spec: onDelete Keep.
    """
    cluster.add_node("n2", role="web")
    apply(cluster, "web", onDelete="Keep")
    settle(cluster, "n2", "web")

    def keeps(node: str) -> bool:
        answer(cluster, node)
        return spec_of(cluster, node)["policies"][0].get("onDelete") == "Keep"

    wait_until(lambda: keeps("n1") and keeps("n2"), 60, "the nodes know what a deletion must honour")
    settled.stop()
    cluster.kubectl("delete", "ctp", "web")
    long_ago = (datetime.now(UTC) - timedelta(minutes=20)).strftime("%Y-%m-%dT%H:%M:%SZ")
    patch = json.dumps({"status": {"heartbeatTime": long_ago}})
    cluster.kubectl("patch", "nct", "n2", "--subresource=status", "--type=merge", "-p", patch)
    before = identity(cluster, "n2")
    time.sleep(2)
    assert names(cluster, "n1") == ["web"]
    settled.start()
    withdrawn(cluster, "n1")
    assert spec_of(cluster, "n1")["policies"][0]["onDelete"] == "Keep"
    answer(cluster, "n1")
    wait_until(lambda: not spec_of(cluster, "n1"), 60, "the object of n1 is gone")
    assert identity(cluster, "n2") == before
    withdrawn(cluster, "n2", 90)
    assert spec_of(cluster, "n2")["policies"][0]["onDelete"] == "Keep"
