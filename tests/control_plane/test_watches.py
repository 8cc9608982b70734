"""The line between controller and API server, in a test's hand: what it breaks changes no node and is caught up with.

Two nodes, a policy each; one policy is deleted while the controller cannot see it. Its node must be told within a
bounded time, and nothing may be written for the other, at no moment.
"""

import contextlib
import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.lab.cluster import NAMESPACE, Cluster
from tests.lab.controller import HASTY
from tests.lab.controller import program as controller
from tests.lab.fleet_by_hand import answer, apply, identity, names, settle, spec_of
from tests.lab.line import Line
from tests.lab.programs import Program, wait_until

INACTIVITY_SECONDS = 5
LEASE_SECONDS = 15
SURE_SECONDS = 10
"""An API server that is away for no longer never costs the lease, which is renewed every 3 s."""
LEASE = ("lease", "conntrack-operator-controller", "-n", NAMESPACE)
NEVER = 3600


@pytest.fixture(scope="module")
def line(cluster: Cluster, crds: Path) -> Iterator[Line]:
    """Give a line to the API server of a cluster with the operator's namespace."""
    del crds
    cluster.clear()
    line = Line(cluster.port)
    yield line
    line.close()
    cluster.clear()


@pytest.fixture(scope="module")
def shared(cluster: Cluster, line: Line, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """Give a controller behind the line, for the tests that need no other."""
    folder = tmp_path_factory.mktemp("controller")
    program = controller(
        folder, line.kubeconfig(cluster, folder / "line.kubeconfig"), silence=INACTIVITY_SECONDS, **HASTY
    )
    yield program
    program.stop()


@contextlib.contextmanager
def running(program: Program, cluster: Cluster, line: Line) -> Iterator[Program]:
    """Have `program` settle two nodes: n1 with policy `stays`, n2 with policy `goes`. Both go in the end."""
    cluster.add_node("n1", role="stays")
    cluster.add_node("n2", role="goes")
    if not program.running:
        program.start()
    apply(cluster, "stays", "stays")
    apply(cluster, "goes", "goes")
    settle(cluster, "n1", "stays")
    settle(cluster, "n2", "goes")
    try:
        yield program
    finally:
        line.resume()
        cluster.delete_all("conntrackpolicies", "nodes", "nodeconntracks")


@pytest.fixture
def settled(shared: Program, cluster: Cluster, line: Line) -> Iterator[Program]:
    """Give the shared controller with its two nodes settled."""
    with running(shared, cluster, line) as program:
        yield program


def goes_on(program: Program, cluster: Cluster) -> bool:
    """Wait until a leader has renewed its lease, and tell whether it could.

    If not, the way to the API server was away for too long, as it is when an API server starts slowly: it has ended,
    as it must, and is started anew.
    """
    renewed = lambda: (cluster.get(*LEASE) or {}).get("spec", {}).get("renewTime")  # noqa: E731
    before = renewed()
    wait_until(lambda: not program.running or renewed() != before, 60, "the lease is renewed, or its holder has ended")
    if program.running:
        return True
    assert "this controller leads no longer and ends: " in program.tail()
    program.start()
    return False


def restores(cluster: Cluster, node: str, seconds: float) -> float:
    """Wait until the node is asked to put its originals back; return the seconds it took. Its agent is alive."""

    def is_asked() -> bool:
        return answer(cluster, node, unless="Restore").get("mode") == "Restore"

    return wait_until(is_asked, seconds, f"{node} is asked to restore", every=0.5)


@pytest.mark.parametrize(
    ("break_line", "seconds"),
    [
        pytest.param(Line.cut, 3, id="cut"),
        pytest.param(Line.stall, INACTIVITY_SECONDS + 2, id="silent"),
        pytest.param(Line.stall, 20, id="silent-for-longer-than-the-lease"),
    ],
)
def test_a_policy_deleted_while_the_line_is_broken(
    settled: Program, cluster: Cluster, line: Line, break_line: Callable[[Line], None], seconds: float
) -> None:
    """The deletion is noticed when the line is there again, and nothing else happens."""
    before = identity(cluster, "n1")
    break_line(line)
    broken = time.monotonic()
    cluster.kubectl("delete", "ctp", "goes")
    time.sleep(seconds)
    if seconds > LEASE_SECONDS:
        wait_until(lambda: not settled.running, 60, "a leader whose lease has run out ends")
    assert names(cluster, "n2") == ["goes"]
    line.resume()
    silent = time.monotonic() - broken
    assert goes_on(settled, cluster) or silent > SURE_SECONDS
    restores(cluster, "n2", 90)
    assert identity(cluster, "n1") == before
    assert settled.running


def test_a_policy_deleted_while_the_watch_is_stranded(settled: Program, cluster: Cluster, line: Line) -> None:
    """A line that stays silent for good, and nobody is told: a new one is made, and shows what was missed."""
    before = identity(cluster, "n1")
    line.strand()
    cluster.kubectl("delete", "ctp", "goes")
    goes_on(settled, cluster)
    cluster.add_node("n3", role="stays")
    settle(cluster, "n3", "stays", seconds=90)
    restores(cluster, "n2", 90)
    assert identity(cluster, "n1") == before
    assert settled.running


def test_a_policy_deleted_before_the_watch_is_too_old(settled: Program, cluster: Cluster, line: Line) -> None:
    """The API server forgets what happened (410 Gone): the watches begin anew and find what they missed."""
    before = identity(cluster, "n1")
    path = "/apis/conntrack-operator.io/v1alpha1/conntrackpolicies"
    version = json.loads(cluster.kubectl("get", "--raw", path).stdout)["metadata"]["resourceVersion"]
    line.cut()
    cluster.kubectl("delete", "ctp", "goes")
    # Its cache begins at the present, and has nothing older.
    cluster.restart_apiserver()
    said = cluster.kubectl("get", "--raw", f"{path}?watch=true&timeoutSeconds=1&resourceVersion={version}", check=False)
    assert "too old resource version" in said.stdout + said.stderr
    line.resume()
    goes_on(settled, cluster)
    restores(cluster, "n2", 90)
    assert identity(cluster, "n1") == before
    assert settled.running


def test_the_api_server_is_restarted(settled: Program, cluster: Cluster) -> None:
    """It goes and comes back with nothing changed: no spec is written."""
    before = [identity(cluster, node) for node in ("n1", "n2")]
    cluster.stop_apiserver()
    time.sleep(3)
    cluster.start_apiserver()
    goes_on(settled, cluster)
    apply(cluster, "more", "more")
    cluster.add_node("n3", role="more")
    settle(cluster, "n3", "more")
    assert [identity(cluster, node) for node in ("n1", "n2")] == before
    assert settled.running


def test_watches_that_miss_a_deletion_are_found_out(
    shared: Program, cluster: Cluster, line: Line, tmp_path: Path
) -> None:
    """When kopf never notices that a line is dead, the short list of the policies does, within a minute."""
    shared.stop()
    program = controller(tmp_path, line.kubeconfig(cluster, tmp_path / "line.kubeconfig"), silence=NEVER, **HASTY)
    with running(program, cluster, line):
        before = identity(cluster, "n1")
        time.sleep(5)  # the full list that follows a start is through
        line.strand()
        cluster.kubectl("delete", "ctp", "goes")
        try:
            program.wait_until(
                lambda: "the watches have missed a change" in program.log.read_text(), 90, "it is found out"
            )
            restores(cluster, "n2", 90)
            assert identity(cluster, "n1") == before
        finally:
            program.stop()


def test_a_handler_that_raises(shared: Program, cluster: Cluster, line: Line, tmp_path: Path) -> None:
    """What a handler failed to take in is read anew soon, not at the next full list in five minutes."""
    shared.stop()
    program = controller(tmp_path, cluster.kubeconfig, silence=INACTIVITY_SECONDS, stumbles="stumbles", **HASTY)
    with running(program, cluster, line):
        try:
            cluster.add_node("n3", role="stumbles")
            apply(cluster, "stumbles", "stumbles")
            settle(cluster, "n3", "stumbles")
            assert program.log.read_text().count("KeyError: 'stumbled'; everything is read anew") == 1
        finally:
            program.stop()


def role(*, may_create: bool) -> dict[str, object]:
    """Return a role that may do all, or all but create NodeConntracks."""
    verbs = ["get", "list", "watch", "patch", "update", "delete"] + ["create"] * may_create
    groups = ["", "apps", "discovery.k8s.io", "coordination.k8s.io", "apiextensions.k8s.io"]
    groups += ["rbac.authorization.k8s.io", "events.k8s.io"]
    ours = "conntrack-operator.io"
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRole",
        "metadata": {"name": "almost"},
        "rules": [
            {"apiGroups": groups, "resources": ["*"], "verbs": ["*"]},
            {"apiGroups": [ours], "resources": ["conntrackpolicies", "conntrackpolicies/status"], "verbs": ["*"]},
            {"apiGroups": [ours], "resources": ["nodeconntracks/status"], "verbs": ["*"]},
            {"apiGroups": [ours], "resources": ["nodeconntracks"], "verbs": verbs},
        ],
    }


def test_work_that_fails_comes_again_ever_more_rarely(shared: Program, cluster: Cluster, tmp_path: Path) -> None:
    """A right that is missing: each try waits twice as long, half a minute at most; once granted, all goes on."""
    shared.stop()
    cluster.kubectl("create", "serviceaccount", "almost", "-n", "default")
    cluster.kubectl("apply", "-f", "-", input=role(may_create=False))
    cluster.kubectl("create", "clusterrolebinding", "almost", "--clusterrole=almost", "--serviceaccount=default:almost")
    program = controller(tmp_path, cluster.kubeconfig_for(cluster.token("almost", "default")))
    program.start()
    try:
        cluster.add_node("n1", role="web")
        apply(cluster, "web")

        def pauses() -> list[float]:
            log = program.log.read_text()
            return [float(each) for each in re.findall(r"cannot create resource .*again in ([\d.]+) s", log)]

        program.wait_until(lambda: len(pauses()) >= 4, 90, "it was tried four times")
        assert pauses()[:4] == [0.2, 0.5, 1.0, 2.0]
        assert not spec_of(cluster, "n1")
        cluster.kubectl("apply", "-f", "-", input=role(may_create=True))
        settle(cluster, "n1", "web", seconds=90)
    finally:
        program.stop()
        cluster.kubectl("delete", "clusterrolebinding,clusterrole", "almost")
        cluster.kubectl("delete", "serviceaccount", "almost", "-n", "default")
