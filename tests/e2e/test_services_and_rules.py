"""Services on ports of NOTRACK rules, before and after: through a real API server, controller and agent."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.lab import kube_proxy
from tests.lab.cluster import Cluster
from tests.lab.namespaces import missing
from tests.lab.operator import FAR, NEAR, Operator, in_namespace, start_in_namespace
from tests.lab.programs import wait_until

WITHDRAWN_SECONDS = 10 + 10
"""10 are promised; the others are for a machine that stands still meanwhile."""
PATIENCE = 60
POLICY: dict[str, Any] = {
    "notrack": {"rules": [{"name": "ingress", "ports": [30080, 8080]}, {"name": "other", "ports": [9000]}]},
    "trial": {"timeoutSeconds": 20, "soakSeconds": 0},
}
EDIT: dict[str, Any] = {**POLICY, "notrack": {"rules": [{"name": "other", "ports": [9000]}]}}
SERVICES = {
    "NodePort": {"port": 80, "backend": (FAR, 9090), "node_port": 30080},
    "a ClusterIP that ends on this node": {"port": 80, "backend": (NEAR, 8080)},
}


@pytest.fixture(scope="module")
def _started(cluster: Cluster, crds: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operator]:
    del crds
    if reason := missing():
        pytest.skip(reason)
    with in_namespace(cluster, tmp_path_factory.mktemp("operator"), "serving") as operator:
        start_in_namespace(operator)
        yield operator


@pytest.fixture
def operator(_started: Operator) -> Iterator[Operator]:
    """Give an operator with no policy and no Service of ours, whose agent has not had much to say yet."""
    yield _started
    kube_proxy.remove_service(_started.cluster, "shop")
    _started.withdraw()
    # News is paced after a few writes in a row (decide.news), which are more than one test makes.
    _started.agent.stop()
    _started.agent.start()


def ports(operator: Operator) -> set[str]:
    """Return the ports that are untracked for good in the node's kernel."""
    found = operator.host.run(
        "nft", "list", "set", "inet", "conntrack_operator", "confirmed_tcp_server", check=False
    ).stdout
    return {port for port in ("30080", "8080", "9000") if port in found}


def refusal(operator: Operator) -> dict[str, Any]:
    """Return the node's refusal of the rule `ingress`, empty when there is none."""
    results = operator.status().get("results", [])
    return next((each for each in results if each["setting"] == "notrack/ingress" and each["reason"] != "Applied"), {})


@pytest.mark.parametrize("service", SERVICES.values(), ids=SERVICES)
def test_a_service_comes_and_goes(operator: Operator, service: dict[str, Any]) -> None:
    """Created later it takes the rule away within seconds, both statuses name it; once it is gone the rule is back."""
    operator.apply("ports", **POLICY)
    operator.wait_ready("ports", PATIENCE)
    assert ports(operator) == {"30080", "8080", "9000"}

    kube_proxy.add_service(operator.cluster, "shop", **service)
    wait_until(lambda: ports(operator) == {"9000"}, WITHDRAWN_SECONDS, "the rule is withdrawn", 0.05)
    wait_until(lambda: refusal(operator), PATIENCE, "the node says so")
    result = refusal(operator)
    port = service.get("node_port", 8080)
    assert result["reason"] == "NATConflict"
    for words in ("default/shop", f"{port}/TCP", "take the port out of the rule"):
        assert words in result["message"]
    wait_until(
        lambda: (operator.policy("ports") or {}).get("status", {}).get("failures"), PATIENCE, "the policy says so"
    )
    (failure,) = (operator.policy("ports") or {})["status"]["failures"]
    assert (failure["node"], failure["reason"]) == ("serving", "NATConflict")
    assert "default/shop" in failure["message"]
    assert "take the port out of the rule" in failure["message"]

    kube_proxy.remove_service(operator.cluster, "shop")
    wait_until(lambda: ports(operator) == {"30080", "8080", "9000"}, PATIENCE, "the rule is back", 0.05)
    operator.wait_ready("ports", PATIENCE)


def test_a_service_that_was_there_before(operator: Operator) -> None:
    """The rule is never installed, the other one is, and both statuses name Service, port and remedy."""
    kube_proxy.add_service(operator.cluster, "shop", **SERVICES["NodePort"])
    operator.apply("ports", **POLICY)
    wait_until(lambda: refusal(operator).get("reason") == "NATConflict", PATIENCE, "the node refuses the rule")
    assert "30080/TCP is NodePort of Service default/shop" in refusal(operator)["message"]
    wait_until(lambda: ports(operator) == {"9000"}, PATIENCE, "the other rule is there")
    wait_until(
        lambda: (operator.policy("ports") or {}).get("status", {}).get("failures"), PATIENCE, "the policy says so"
    )
    assert operator.condition("ports", "Ready")["status"] == "False"


def test_a_paused_policy_and_its_edit(operator: Operator) -> None:
    """A Service takes the rule away although an edit that has not got the port any more is held back: in the kernel."""
    operator.apply("ports", **POLICY)
    operator.wait_ready("ports", PATIENCE)
    revision = operator.status()["observedRevision"]
    operator.apply("ports", **EDIT, rollout={"paused": True})
    wait_until(
        lambda: operator.condition("ports", "Ready").get("reason") == "Paused", PATIENCE, "the edit is held back"
    )
    assert ports(operator) == {"30080", "8080", "9000"}
    kube_proxy.add_service(operator.cluster, "shop", **SERVICES["NodePort"])
    took = wait_until(lambda: ports(operator) == {"9000"}, WITHDRAWN_SECONDS, "the rule is withdrawn", 0.05)
    print(f"withdrawn after {took:.1f} s")
    wait_until(lambda: refusal(operator).get("reason") == "NATConflict", PATIENCE, "the node says so")
    assert operator.status()["observedRevision"] == revision
    kube_proxy.remove_service(operator.cluster, "shop")
    wait_until(lambda: ports(operator) == {"30080", "8080", "9000"}, PATIENCE, "the rule is back", 0.05)
    operator.apply("ports", **EDIT)
    operator.wait_ready("ports", 60)
    assert ports(operator) == {"9000"}
