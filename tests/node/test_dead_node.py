"""`helm uninstall` while one of two nodes is dead: it ends in time, says so, and leaves that node's kernel alone."""

import json
import re
import time
from datetime import UTC, datetime

import pytest
from tests.lab.answering import answer_to
from tests.lab.helm import Helm
from tests.lab.installed import NAMESPACE, RELEASE, Installed
from tests.lab.place import Place
from tests.lab.programs import wait_until
from tests.lab.workload import Workload

from conntrack_operator import __version__

LIMIT_SECONDS = 40
DEAD = "dead"


def add_dead(place: Place) -> None:
    """Add a Node that nobody stands behind, Ready for a while; no pod but an agent's goes there."""
    labels = {"kubernetes.io/os": "linux", "kubernetes.io/hostname": DEAD}
    node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": DEAD, "labels": labels}}
    place.kubectl("create", "-f", "-", input=node | {"spec": {"unschedulable": True}})
    set_ready(place, ready=True)
    patch = {"status": {"allocatable": {"cpu": "4", "memory": "8Gi", "pods": "20"}}}
    place.kubectl("patch", "node", DEAD, "--subresource=status", "--type=merge", "-p", json.dumps(patch))


def set_ready(place: Place, *, ready: bool) -> None:
    """Write the dead Node's Ready condition, as its kubelet or, later, the node controller would."""
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")  # the node controller takes it for a sign of life
    condition = {"type": "Ready", "status": "True" if ready else "Unknown", "lastHeartbeatTime": now}
    patch = json.dumps({"status": {"conditions": [condition | {"reason": "Test", "message": "test"}]}})
    place.kubectl("patch", "node", DEAD, "--subresource=status", "--type=strategic", "-p", patch)


def answer(place: Place) -> bool:
    """Answer for the dead node, once, as kubelet and agent would; return whether it was given what the policy asks."""
    set_ready(place, ready=True)
    found = place.get("nodeconntrack", DEAD)
    agents = place.items("pods", "-n", NAMESPACE, f"--field-selector=spec.nodeName={DEAD}")
    if not found or not agents:
        return False
    ready = {"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}}
    for kind, name, patch in (
        ("pod", agents[0]["metadata"]["name"], ready),
        ("nodeconntrack", DEAD, {"status": answer_to(found["spec"])}),
    ):
        where = ("-n", NAMESPACE, "--subresource=status", "--type=merge")
        place.kubectl("patch", kind, name, *where, "-p", json.dumps(patch))
    return bool(found["spec"]["mode"] == "Apply")


@pytest.fixture(scope="module")
def operator(place: Place, helm: Helm) -> Installed:
    """Give the operator, whose uninstallation waits for a short time, with a policy in force on both nodes."""
    operator = Installed(place, helm)
    operator.install(f"--set=uninstall.timeoutSeconds={LIMIT_SECONDS}")
    operator.apply(operator.example("web"))
    operator.wait_ready("web")
    add_dead(place)
    wait_until(lambda: answer(place), 120, "the second node is given the policy", every=0.5)
    operator.wait_ready("web")
    return operator


def test_uninstall_with_a_dead_node(place: Place, operator: Installed) -> None:
    """It ends within its limit, names the node where it is looked for, and gives the live node back wholly."""
    workload = Workload(place, f"conntrack-operator:{__version__}")
    workload.start()
    set_ready(place, ready=False)
    began = time.monotonic()
    done = operator.helm("uninstall", RELEASE, "-n", NAMESPACE, "--timeout=200s")
    assert LIMIT_SECONDS <= time.monotonic() - began < LIMIT_SECONDS + 60
    said = done.stdout + done.stderr
    assert f"skipped {DEAD}: not restored within {LIMIT_SECONDS} s" in said
    assert "removed; 1 node was skipped" in said
    assert f"skipped {place.node_name}" not in said
    described = place.kubectl("describe", "node", DEAD).stdout
    assert re.search(r"Warning +NotRestored .*conntrack-operator restore", described), described
    assert operator.table() is None
    if place.can_size:
        assert operator.sysctl("nf_conntrack_max") == 131_072
    assert workload.failures() == []
    for kind in ("conntrackpolicies", "nodeconntracks"):
        assert place.items(kind) == []
        assert place.get("crd", f"{kind}.conntrack-operator.io"), "a CRD is kept"
    wait_until(lambda: not operator.pods() and operator.left() == [], 60, "nothing is left")
    # Its agent's pod waits for a kubelet to say that it has ended, and would go with the Node. Others take a moment.
    wait_until(lambda: nodes_of_pods(place) == [DEAD], 60, "a pod of the dead node is all that stays")


def nodes_of_pods(place: Place) -> list[str]:
    """Return where the pods in the operator's namespace are, also those being deleted."""
    return [pod["spec"].get("nodeName", "") for pod in place.items("pods", "-n", NAMESPACE)]
