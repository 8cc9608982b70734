"""A stranger's first hour: README's lines, a policy, a busy port, a Service, and the way out, on a real kubelet.

In both modes of kube-proxy, as the only other writer on the node.
"""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.lab import helm as lab
from tests.lab.helm import ROOT
from tests.lab.installed import CONTROLLERS, NAMESPACE, RELEASE, Installed
from tests.lab.node import Proxy
from tests.lab.place import Place
from tests.lab.programs import wait_until
from tests.lab.workload import Workload

from conntrack_operator import __version__

pytestmark = pytest.mark.tunes_this_machine

IMAGE = f"conntrack-operator:{__version__}"

ONE_MODE = pytest.mark.parametrize("proxy", ["nftables"], indirect=True)
"""For what kube-proxy has no part in."""


@pytest.fixture(scope="module", params=["nftables", "iptables"])
def proxy(request: pytest.FixtureRequest) -> Proxy:
    """Give both modes of kube-proxy, one after the other."""
    return request.param


@pytest.fixture(scope="module")
def workload(place: Place) -> Workload:
    """Give servers and a client of theirs, at work."""
    workload = Workload(place, IMAGE)
    workload.start()
    return workload


def lines_of_the_readme() -> str:
    """Return README's commands for a cluster but the one that builds the image, with the image that is on the node."""
    (block,) = re.findall(
        r"^In a cluster [^\n]*:\n\n```\n(.*?)```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL
    )
    assert "helm install" in block
    assert "kubectl apply" in block
    lines = re.sub(r"^docker .*$", "", block, flags=re.MULTILINE)
    return lines.replace("REGISTRY/", "")


@pytest.fixture(scope="module")
def followed(place: Place, helm: lab.Helm, workload: Workload) -> Iterator[Installed]:  # noqa: ARG001 - is there before
    """Give the operator as README's lines install it, word by word, and its first policy applied."""
    programs = place.folder / "bin"
    programs.mkdir()
    (programs / "helm").symlink_to(helm.program)
    (programs / "kubectl").symlink_to(Path(lab.kube.kubectl()))
    _, env = helm.command()
    path = f"{programs}:{env['PATH']}"
    done = subprocess.run(
        ["bash", "-euxc", lines_of_the_readme()],
        env=env | {"PATH": path, "KUBECONFIG": str(place.kubeconfig)},
        cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return Installed(place, helm)


def test_readmes_lines_tune_the_node(place: Place, followed: Installed, workload: Workload) -> None:
    """The kernel is tuned and the policy Ready (10 s after the apply on a quiet machine), and no client noticed."""
    followed.wait_ready("web", 90)
    if place.can_size:
        assert followed.sysctl("nf_conntrack_max") > 262_144
        assert followed.sysctl("nf_conntrack_buckets") >= followed.sysctl("nf_conntrack_max")
    table = followed.table()
    assert table
    assert "80" in table
    assert workload.failures() == []
    columns = place.kubectl("get", "ctp", "web", "--no-headers").stdout.split()
    assert columns[:4] == ["web", "Enforce", "1", "1"]


def test_the_busy_port_leaves_the_table(place: Place, followed: Installed, workload: Workload) -> None:
    """Connections of a pod to port 80 of the node have no entry any more; those to the Service do."""
    followed.wait_ready("web")
    assert workload.failures() == []
    client = place.get("pod", "client", "-n", "shop")
    assert client
    source = client["status"]["podIP"]
    listed = place.on_node("conntrack", "-L", "-p", "tcp", "--orig-src", source).stdout.splitlines()
    assert [line for line in listed if f"dst={place.node_address} " in line and "dport=80 " in line] == []
    assert [line for line in listed if "dport=30080 " in line]
    assert [line for line in listed if "dport=80 " in line]  # the ClusterIP


@ONE_MODE
def test_helm_test_passes(followed: Installed) -> None:
    """`helm test` judges a policy that means no node."""
    said = followed.helm("test", RELEASE, "-n", NAMESPACE).stdout
    assert re.findall(r"^Phase: +(\w+)$", said, re.MULTILINE)[-1] == "Succeeded"


def test_it_is_calm(followed: Installed) -> None:
    """No pod has restarted, and neither the controller nor the agent has anything to complain of."""
    followed.wait_ready("web")
    for pod in (*followed.pods(CONTROLLERS), followed.agent()):
        name = pod["metadata"]["name"]
        assert followed.complaints(name) == [], name
        assert [each["restartCount"] for each in pod["status"]["containerStatuses"]] == [0], name


def test_deleting_the_policy_puts_everything_back(place: Place, followed: Installed, workload: Workload) -> None:
    """`kubectl delete` is the way out; the clients notice nothing of that either."""
    followed.wait_ready("web")
    before = followed.sysctl("nf_conntrack_max")
    followed.withdraw()
    assert followed.table() is None
    if place.can_size:
        assert followed.sysctl("nf_conntrack_max") < before
    assert workload.failures() == []
    wait_until(lambda: place.get("daemonset", "conntrack-operator-agent", "-n", NAMESPACE) is None, 60, "agents end")


@ONE_MODE
def test_uninstall_leaves_nothing(place: Place, followed: Installed, workload: Workload) -> None:
    """`helm uninstall` with a policy in force: the node is given back, and only what the docs name stays."""
    followed.apply(followed.example("web"))
    followed.wait_ready("web")
    followed.helm("uninstall", RELEASE, "-n", NAMESPACE, "--wait", "--timeout=300s")
    assert followed.table() is None
    if place.can_size:
        assert followed.sysctl("nf_conntrack_max") == 131_072
    assert place.items("conntrackpolicies") == []
    assert place.items("nodeconntracks") == []
    kinds = "clusterroles,clusterrolebindings,validatingadmissionpolicies,validatingadmissionpolicybindings"
    names = [each["metadata"]["name"] for each in place.items(kinds)]
    assert [name for name in names if "conntrack" in name] == []
    # What belongs to an object that is gone, such as a ReplicaSet, is collected a moment later.
    wait_until(lambda: left_of_ours(place) == [], 60, "nothing is left")
    assert workload.failures() == []


def left_of_ours(place: Place) -> list[str]:
    """Return our objects in the operator's namespace but its pods."""
    kinds = "all,leases,controllerrevisions,configmaps,serviceaccounts,roles,rolebindings"
    left = place.kubectl("get", kinds, "-n", NAMESPACE, "-o", "name").stdout.split()
    return [each for each in left if "conntrack-operator" in each and not each.startswith("pod/")]
