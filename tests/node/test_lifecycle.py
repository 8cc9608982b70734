"""Upgrade, rollback, and the controller gone, on a real node with a policy in force that no kernel forgets meanwhile.

The stages are one story and run in this order.
"""

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from tests.lab import helm as lab
from tests.lab import kube
from tests.lab.helm import CHART
from tests.lab.host import SHARED
from tests.lab.installed import CONTROLLERS, NAMESPACE, RELEASE, Installed
from tests.lab.pages import block
from tests.lab.place import Place
from tests.lab.programs import wait_until
from tests.lab.workload import Workload

from conntrack_operator import __version__

(PREVIOUS,) = (Path(__file__).parent / "previous").glob("*.tgz")
PREVIOUS_VERSION = PREVIOUS.name.removeprefix("conntrack-operator-").removesuffix(".tgz")


@pytest.fixture(scope="module")
def previous(place: Place, helm: lab.Helm) -> Installed:
    """Give the operator as the previous chart installs it, and a policy in force; its image is today's renamed."""
    place.name_image(f"conntrack-operator:{__version__}", f"conntrack-operator:{PREVIOUS_VERSION}")
    operator = Installed(place, helm)
    operator.install("--set=uninstall.deletePolicies=false", chart=PREVIOUS)
    operator.apply(operator.example("web"))
    operator.wait_ready("web")
    return operator


@pytest.fixture(scope="module")
def workload(place: Place, previous: Installed) -> Workload:
    """Give servers and a client of theirs, at work."""
    del previous
    workload = Workload(place, f"conntrack-operator:{__version__}")
    workload.start()
    return workload


def in_force(operator: Installed) -> dict[str, Any]:
    """Return what the node's kernel has: every conntrack sysctl, and our rules without their counters.

    Sizes are those of another test at this moment, where the node cannot write them.
    """
    folder = "/proc/sys/net/netfilter"
    names = operator.place.on_node("ls", folder).stdout.split()
    left_out = {"nf_conntrack_count"} if operator.place.can_size else {name.rpartition(".")[2] for name in SHARED}
    wanted = [name for name in names if name.startswith("nf_conntrack_") and name not in left_out]
    values = operator.place.on_node("cat", *(f"{folder}/{name}" for name in wanted)).stdout.split()
    rules = operator.place.on_node("nft", "-s", "list", "table", "inet", "conntrack_operator").stdout
    # A table that was made again has its chains in another order.
    return {"sysctls": dict(zip(wanted, values, strict=True)), "rules": sorted(rules.splitlines())}


def chart_of(place: Place, kind: str, *name: str) -> str:
    """Return the version of the chart that an object is of."""
    found = place.get(kind, *name)
    assert found
    return str(found["metadata"]["labels"]["helm.sh/chart"]).removeprefix("conntrack-operator-")


def change_version(operator: Installed, workload: Workload, version: str, *command: str) -> None:
    """Go to another version by helm: no kernel is written, no client fails, and the policy is Ready again."""
    place = operator.place
    before, pod = in_force(operator), operator.agent()["metadata"]["name"]
    with place.writes() as writes:
        operator.helm(*command, "-n", NAMESPACE, "--wait", "--timeout=180s")
        agent = operator.wait_agent(120, besides=pod)
        assert agent["spec"]["containers"][0]["image"] == f"conntrack-operator:{version}"
        operator.wait_ready("web")
        assert workload.failures() == []
        # Others on the node write rules of theirs, such as those of pods that come and go.
        ours = [line for line in writes.seen() if "conntrack_operator" in line or " " not in line]
        assert ours == []
    assert in_force(operator) == before
    crds = ("conntrackpolicies", "nodeconntracks")
    assert {chart_of(place, "crd", f"{each}.conntrack-operator.io") for each in crds} == {version}


def test_upgrade(previous: Installed, workload: Workload) -> None:
    """`helm upgrade` from the previous chart brings its CRDs along."""
    change_version(previous, workload, __version__, "upgrade", RELEASE, str(CHART), "--reset-then-reuse-values")


def test_rollback(previous: Installed, workload: Workload) -> None:
    """`helm rollback` goes back the same way."""
    change_version(previous, workload, PREVIOUS_VERSION, "rollback", RELEASE, "1")


def test_settings_stay_when_only_the_controller_goes(place: Place, previous: Installed, workload: Workload) -> None:
    """Killed by force, and uninstalled with uninstall.deletePolicies false: agents, settings and policies stay."""
    before, agent = in_force(previous), previous.agent()["metadata"]["name"]
    place.kubectl("delete", "deployment", "conntrack-operator", "-n", NAMESPACE, "--cascade=orphan")
    place.kubectl("delete", "replicasets", "-n", NAMESPACE, "--all", "--cascade=orphan")
    place.kubectl("delete", "pods", "-n", NAMESPACE, "-l", CONTROLLERS, "--grace-period=0", "--force")
    previous.helm("uninstall", RELEASE, "-n", NAMESPACE, "--timeout=120s")
    assert [each["metadata"]["name"] for each in place.items("conntrackpolicies")] == ["web"]
    assert previous.agent()["metadata"]["name"] == agent
    assert in_force(previous) == before
    assert workload.failures() == []


def test_the_agent_goes_on_alone(place: Place, previous: Installed, workload: Workload) -> None:
    """Without a controller it mends what others change, and its report reaches the API server."""
    before, heard = in_force(previous), previous.status()["heartbeatTime"]
    if place.can_size:
        place.on_node("sh", "-c", "echo 300000 >/proc/sys/net/netfilter/nf_conntrack_max")
    place.on_node("nft", "delete", "table", "inet", "conntrack_operator")
    wait_until(lambda: previous.table() and in_force(previous) == before, 90, "the agent has mended it", every=0.3)
    wait_until(lambda: previous.status()["heartbeatTime"] > heard, 90, "it has said so", every=0.5)
    assert workload.failures() == []


def typed(place: Place, number: int) -> None:
    """Run one block of commands of docs/uninstall.md for agents that are alive, word by word."""
    commands = block("uninstall.md", "The agent is alive", number).replace("NODE", place.node_name)
    path = f"{Path(kube.kubectl()).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", commands],
        env={**os.environ, "PATH": path, "KUBECONFIG": str(place.kubeconfig), "NO_PROXY": "*"},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=150,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_agent_is_asked_by_hand(place: Place, previous: Installed, workload: Workload) -> None:
    """The page's commands have the agent give its node back, and remove the rest."""
    typed(place, 0)
    assert previous.table() is None
    if place.can_size:
        assert previous.sysctl("nf_conntrack_max") == 131_072
    assert workload.failures() == []
    typed(place, 2)
    wait_until(lambda: not previous.pods(), 60, "the agent is gone")
    # Revisions of policies are all that stays, and the next installation takes them up.
    wait_until(lambda: all(name.startswith("controllerrevision.apps/") for name in previous.left()), 60, "all is gone")
