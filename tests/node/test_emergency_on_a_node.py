"""The controller removed without its hook, on a real node: what stays, and how docs/uninstall.md gets it back.

Those that need a kubelet or a container runtime; the others are in tests/e2e/test_emergency.py.
"""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.lab import kube
from tests.lab.installed import AGENT, NAMESPACE, RELEASE, Installed
from tests.lab.pages import block
from tests.lab.place import Place
from tests.lab.programs import wait_until
from tests.lab.real import Real

from conntrack_operator import __version__

IMAGE = f"conntrack-operator:{__version__}"
GONE = "The agent is gone"
CONFIRMED = "/var/lib/conntrack-operator/confirmed.json"


@pytest.fixture(scope="module")
def left(place: Place, installed: Installed) -> dict[str, Any]:
    """Give the DaemonSet of agents that were tuning the node when the chart was removed without its hook."""
    installed.apply(installed.example("web"))
    installed.wait_ready("web")
    installed.helm("uninstall", RELEASE, "-n", NAMESPACE, "--no-hooks", "--wait", "--timeout=120s")
    found = place.get("daemonset", AGENT, "-n", NAMESPACE)
    assert found
    return {"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": AGENT, "namespace": NAMESPACE},
           "spec": found["spec"]}  # fmt: skip


@pytest.fixture
def tuned(place: Place, installed: Installed, left: dict[str, Any]) -> int:
    """Have the node tuned, and its agent gone; return the size of its table before."""
    if installed.table() is None:
        place.kubectl("apply", "-f", "-", input=left)
        # Confirmed, since an agent that ends before would take it back.
        wait_until(lambda: place.on_node("cat", CONFIRMED, check=False).returncode == 0, 120, "in force again")
    place.kubectl("delete", "daemonset", AGENT, "-n", NAMESPACE, "--ignore-not-found")
    wait_until(lambda: not place.items("pods", "-n", NAMESPACE), 90, "the agent is gone")
    assert installed.table()
    if place.can_size:
        assert installed.sysctl("nf_conntrack_max") > 262_144
    return 131_072


def is_back(place: Place, installed: Installed, size: int) -> bool:
    """Return whether the node is as it was."""
    return installed.table() is None and (not place.can_size or installed.sysctl("nf_conntrack_max") == size)


def phases(place: Place, namespace: str) -> list[str]:
    """Return the phases of the pods in a namespace."""
    return [pod["status"].get("phase", "") for pod in place.items("pods", "-n", namespace)]


def test_without_the_hook_all_stays(place: Place, installed: Installed, left: dict[str, Any]) -> None:
    """The chart is gone, and policies, settings and a working agent are there."""
    assert left["spec"]
    assert place.get("deployment", "conntrack-operator", "-n", NAMESPACE) is None
    assert [each["metadata"]["name"] for each in place.items("conntrackpolicies")] == ["web"]
    assert installed.wait_agent()
    place.on_node("nft", "delete", "table", "inet", "conntrack_operator")
    wait_until(installed.table, 60, "the agent puts the rules back")


def test_by_a_pod(place: Place, installed: Installed, tuned: int) -> None:
    """The page's pod gives the node back with NET_ADMIN alone, and says what it did."""
    pod = yaml.safe_load(block("uninstall.md", GONE).replace("NODE", place.node_name).replace("IMAGE", IMAGE))
    place.kubectl("create", "-f", "-", input=pod)
    name = pod["metadata"]["name"]
    try:
        wait_until(lambda: phases(place, NAMESPACE) in (["Succeeded"], ["Failed"]), 90, "the pod has ended")
        said = place.kubectl("logs", "-n", NAMESPACE, name).stdout
        assert phases(place, NAMESPACE) == ["Succeeded"], said
        assert "absent" in said
        assert is_back(place, installed, tuned)
    finally:
        place.kubectl("delete", "pod", name, "-n", NAMESPACE, "--wait")


def test_by_kubectl_debug(place: Place, installed: Installed, tuned: int) -> None:
    """The page's line gives the node back."""
    line = block("uninstall.md", GONE, 1).replace("NODE", place.node_name).replace("IMAGE", IMAGE)
    path = f"export PATH='{Path(kube.kubectl()).parent}':\"$PATH\" KUBECONFIG='{place.kubeconfig}'\n"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", path + line.replace(" -it ", " --attach=false ")],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    # To its end: the rules go first, and what it keeps of them on the node last.
    wait_until(lambda: phases(place, "default") == ["Succeeded"], 90, "the pod has ended well")
    assert is_back(place, installed, tuned)
    place.kubectl("delete", "pods", "--all", "-n", "default")


def test_by_the_container_runtime(place: Place, installed: Installed, tuned: int) -> None:
    """The page's line for a node whose API server is gone gives the node back."""
    script = block("uninstall.md", "The API server is gone too")
    _, found, rest = script.replace("\\\n", " ").partition("ctr -n k8s.io ")
    assert found
    words = rest.splitlines()[0].replace("IMAGE", f"docker.io/library/{IMAGE}").split()
    if isinstance(place, Real):
        place.node.ctr(*words)
    else:
        place.on_node("ctr", "-n", "k8s.io", *words)
    assert is_back(place, installed, tuned)
    assert json.loads(place.on_node("cat", "/var/lib/conntrack-operator/journal.json").stdout).get("originals") == {}
