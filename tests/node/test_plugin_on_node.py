"""The second way in and out, by kubectl alone, and `kubectl conntrack` against a real agent's pod meanwhile.

The operator is installed from manifests/install.yaml as the docs say, looked at and steered by people who have the
rights that the plugin's page names, and removed as the docs say. The stages are one story and run in this order.
"""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from tests.lab.helm import ROOT, Helm
from tests.lab.installed import CONTROLLERS, NAMESPACE, Installed
from tests.lab.place import Place
from tests.lab.plugin import Plugin
from tests.lab.programs import wait_until
from tests.lab.workload import Workload

from conntrack_operator import __version__

IMAGE = f"conntrack-operator:{__version__}"
OURS = "conntrack-operator.io"
LOOKS = (
    # namespace ("" the whole cluster), API group, resources, verbs: as docs/kubectl-plugin.md names them
    ("", OURS, "conntrackpolicies,nodeconntracks", "get,list"),
    ("", "", "pods,services,nodes", "list"),
    (NAMESPACE, "coordination.k8s.io", "leases", "get"),
    (NAMESPACE, "apps", "controllerrevisions", "list"),
    ("default", "", "events", "list"),
)
ASKS_AGENTS = ((NAMESPACE, "", "pods", "get,list"), (NAMESPACE, "", "pods/exec", "create"))
STEERS = (("", OURS, "conntrackpolicies", "get,patch"),)
PLANS = (("", OURS, "conntrackpolicies", "list,patch"), ("", "", "nodes", "list"))

Rights = tuple[tuple[str, str, str, str], ...]


@pytest.fixture(scope="module")
def workload(place: Place) -> Workload:
    """Give servers and a client of theirs, at work."""
    workload = Workload(place, IMAGE)
    workload.start()
    return workload


@pytest.fixture(scope="module")
def manifest() -> str:
    """Return install.yaml with the image's name put in, which here is the one that the node has."""
    text = (ROOT / "manifests" / "install.yaml").read_text()
    assert text.count(IMAGE) == 2
    return text


@pytest.fixture(scope="module")
def applied(place: Place, helm: Helm, manifest: str, workload: Workload) -> Installed:
    """Give the operator as install.yaml makes it, and a policy in force."""
    del workload
    place.kubectl("apply", "--server-side", "-f", "-", input=manifest)
    place.kubectl("rollout", "status", "deployment", "conntrack-operator", "-n", NAMESPACE, "--timeout=120s")
    operator = Installed(place, helm)
    operator.apply(operator.example("web"))
    return operator


class People:
    """Accounts with some rights, each made when it is first asked for."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._made: dict[str, Plugin] = {}

    def may(self, name: str, *rights: Rights) -> Plugin:
        """Give the plugin of the account called `name`, which has these rights and no other."""
        if name not in self._made:
            self._place.kubectl("create", "serviceaccount", name, "-n", "default")
            for number, right in enumerate(right for each in rights for right in each):
                self._grant(name, f"{name}-{number}", right)
            self._made[name] = Plugin(self._place, self._kubeconfig(name))
        return self._made[name]

    def _grant(self, account: str, name: str, right: tuple[str, str, str, str]) -> None:
        namespace, group, resources, verbs = right
        kind = "Role" if namespace else "ClusterRole"
        metadata = {"name": name, **({"namespace": namespace} if namespace else {})}
        rule = {"apiGroups": [group], "resources": resources.split(","), "verbs": verbs.split(",")}
        common = {"apiVersion": "rbac.authorization.k8s.io/v1", "metadata": metadata}
        reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": name}
        subjects = [{"kind": "ServiceAccount", "name": account, "namespace": "default"}]
        role = common | {"kind": kind, "rules": [rule]}
        binding = common | {"kind": f"{kind}Binding", "roleRef": reference, "subjects": subjects}
        both = {"apiVersion": "v1", "kind": "List", "items": [role, binding]}
        self._place.kubectl("create", "-f", "-", input=both)

    def _kubeconfig(self, account: str) -> Path:
        config = json.loads(self._place.kubectl("config", "view", "--minify", "--raw", "-o", "json").stdout)
        token = self._place.kubectl("create", "token", account, "-n", "default").stdout.strip()
        config["users"][0]["user"] = {"token": token}
        path = self._place.folder / f"{account}.kubeconfig"
        path.write_text(json.dumps(config))
        return path


@pytest.fixture(scope="module")
def people(place: Place) -> People:
    """Give accounts."""
    return People(place)


def row_of(text: str, first: str) -> list[str]:
    """Return the cells of the row that begins with this."""
    (line,) = (line for line in text.splitlines() if line.split()[:1] == [first])
    return line.split()


def test_installed_by_kubectl(place: Place, applied: Installed) -> None:
    """The policy is Ready, and the admission policy, which is in the same file, is in force."""
    applied.wait_ready("web")
    assert applied.table()
    if place.can_size:
        assert applied.sysctl("nf_conntrack_max") > 262_144


def test_status(place: Place, applied: Installed, people: People) -> None:
    """The real agent's figures, and nothing to complain of."""
    applied.wait_ready("web")
    said = people.may("looks", LOOKS).run("status").stdout
    assert "AllNodesCurrent" in row_of(said, "web")
    assert row_of(said, place.node_name)[1] == "Current"
    assert int(row_of(said, place.node_name)[3]) > 0
    assert "1 node (1 Current)" in said
    assert "not seen" not in said


def names(document: dict[str, Any]) -> list[str]:
    """Return the names in the rows of `top -o json`."""
    return [row["name"] for row in document["rows"]]


def test_top_names_pods(place: Place, applied: Installed, people: People) -> None:
    """What the agent reported, with the client's pod by its name; looked at now, with the Service that it asks."""
    applied.wait_ready("web")
    looks = people.may("looks", LOOKS)
    assert "pod shop/client" in names(looks.json("top"))
    assert "pod shop/client" in names(looks.json("top", place.node_name))
    asks = people.may("asks", LOOKS, ASKS_AGENTS)
    said = asks.run("top", place.node_name, "--live").stdout
    assert f"entries on node {place.node_name} now" in said
    assert "pod shop/client" in said
    assert "Service shop/shop" in names(asks.json("top", place.node_name, "--live", "--by", "destination"))
    assert "get pods and create pods/exec" in looks.complaint("top", place.node_name, "--live")


def test_doctor(place: Place, applied: Installed, people: People) -> None:
    """The verdict of the agent's pod, which sees what it may; who cannot ask it is told which right that takes."""
    applied.wait_ready("web")
    said = people.may("asks", LOOKS, ASKS_AGENTS).run("doctor", place.node_name).stdout
    assert said.startswith(f"{place.node_name}: OK: Not full")
    assert "pod shop/client" in said
    assert ("is written by conntrack-operator" in said) == place.can_size


def test_plan(place: Place, applied: Installed, people: People) -> None:
    """A second policy's fields, this node, and the API server's own verdict; nothing is stored."""
    applied.wait_ready("web")
    planned = people.may("plans", PLANS).json("plan", "-f", str(ROOT / "manifests/examples/timeouts.yaml"), code=2)
    assert "timeouts.tcp.established" in json.dumps(planned["changes"])
    assert place.node_name in json.dumps(planned)
    assert [each["metadata"]["name"] for each in place.items("conntrackpolicies")] == ["web"]


def test_pause_resume_and_history(place: Place, applied: Installed, people: People) -> None:
    """One who may write policies steers; one who may look sees when what happened, and cannot steer."""
    applied.wait_ready("web")
    steers, looks = people.may("steers", STEERS), people.may("looks", LOOKS)
    assert "web is paused" in steers.run("pause", "web").stdout
    wait_until(lambda: "Paused" in looks.run("status").stdout or None, 60, "status says that it is paused", every=0.5)
    assert "goes on" in steers.run("resume", "web").stdout
    assert "you may not patch conntrackpolicies" in looks.complaint("pause", "web")
    happened: dict[str, Any] = {}
    seen: list[tuple[str, str]] = []

    def is_told() -> bool:
        # An Event is posted a moment after what it tells of.
        happened.update(looks.json("history"))
        seen[:] = [(each["subject"], each["what"]) for each in happened["history"]]
        return ("policy/web", "AllNodesCurrent") in seen

    wait_until(is_told, 60, "history says that all nodes are current", every=0.5)
    trial, current = (seen.index((f"node/{place.node_name}", what)) for what in ("Trial", "Current"))
    assert ("policy/web", "Created") in seen[: max(trial, current)]
    assert [note for note in happened["notes"] if note.startswith("not seen")] == []
    assert f"node/{place.node_name}" in looks.run("history", place.node_name).stdout


def test_without_dns_nothing_is_wrong(place: Place, applied: Installed) -> None:
    """The cluster has no name server here: nobody complains of it, and what else answers is watched all the same."""
    applied.wait_ready("web")
    agent = applied.agent()["metadata"]["name"]
    said = place.kubectl("logs", "-n", NAMESPACE, agent).stdout
    watched = re.findall(r"trial: must go on answering: ([^;\n]*)", said)[-1]
    assert "API server " in watched
    assert f"kubelet {place.node_address}:10250" in watched
    for pod in (*applied.pods(CONTROLLERS), applied.agent()):
        name = pod["metadata"]["name"]
        assert applied.complaints(name) == [], name


def test_removed_by_kubectl(place: Place, applied: Installed, manifest: str, workload: Workload) -> None:
    """docs/uninstall.md, without Helm: policies first, wait for nodes and agents, then the file. Nothing is left."""
    applied.withdraw()
    account = "serviceaccount/conntrack-operator-agent"
    place.kubectl("wait", account, "-n", NAMESPACE, "--for=delete", "--timeout=60s")
    assert applied.table() is None
    if place.can_size:
        assert applied.sysctl("nf_conntrack_max") == 131_072
    place.kubectl("delete", "-f", "-", input=manifest)
    assert workload.failures() == []
    wait_until(lambda: nothing_is_left(place), 60, "nothing is left", every=0.5)


def nothing_is_left(place: Place) -> bool:
    """Tell whether no object is called after us; kinds that are going, and are refused, are some that are left."""
    kinds = place.kubectl("api-resources", "--verbs=list", "-o", "name", check=False).stdout.split()
    wanted = ",".join(each for each in kinds if not each.startswith("events"))
    found = place.kubectl("get", wanted, "-A", "-o", "name", check=False)
    return found.returncode == 0 and "conntrack" not in found.stdout
