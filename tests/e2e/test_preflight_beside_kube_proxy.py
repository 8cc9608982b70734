"""Rules for ports of a node on which the real kube-proxy runs: refused where it translates, and only there."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.lab import kube_proxy
from tests.lab.cluster import Cluster
from tests.lab.kube_proxy import KubeProxy
from tests.lab.namespaces import Lab, Namespace, missing
from tests.lab.programs import wait_until

from conntrack_operator.agent.machine import Machine
from conntrack_operator.decide.refusal import Refusal
from conntrack_operator.kernel import firewall_kube_proxy
from conntrack_operator.kernel.roots import Roots
from conntrack_operator.model.policy import Settings

ELSEWHERE, HERE = "10.99.1.2", "10.99.1.1"
NODE_PORT = 30080
OUTSIDE = "192.0.2.77"


@pytest.fixture
def node(cluster: Cluster) -> Iterator[Namespace]:
    """Give a namespace that is the Node `guarded`, at 10.99.1.1, with its Services gone afterwards."""
    reason = missing()
    if reason:
        pytest.skip(reason)
    with Lab() as lab:
        namespace = lab.namespace()
        lab.link(namespace, lab.namespace())
        kube_proxy.add_proxied_node(cluster, "guarded", HERE)
        yield namespace
    for name in ("inner", "outer", "here"):
        kube_proxy.remove_service(cluster, name)
    cluster.clear()


def refusals(node: Namespace, state: Path, port: int, **fields: object) -> tuple[Refusal, ...]:
    """Return what is said of a rule for this port on the node."""
    rule = {"name": "web", "ports": [port], **fields}
    with node.inside():
        return Machine(Roots(state=state)).plan(Settings.model_validate({"notrack": {"rules": [rule]}})).refused


@pytest.mark.parametrize(("mode", "variant"), [("nftables", "nft"), ("iptables", "nft"), ("iptables", "legacy")])
def test_what_kube_proxy_translates_is_refused_and_nothing_else(
    cluster: Cluster, node: Namespace, mode: str, variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ClusterIPs at port 80 are others' business; NodePort, external address and backend on the node are not."""
    kube_proxy.add_service(cluster, "inner", 80, (ELSEWHERE, 8080))
    kube_proxy.add_service(
        cluster, "outer", 81, (ELSEWHERE, 9090), node_port=NODE_PORT, spec={"externalIPs": [OUTSIDE]}
    )
    kube_proxy.add_service(cluster, "here", 82, (HERE, 8443))
    with KubeProxy(cluster, node, "guarded", mode, variant=variant):
        wait_until(lambda: refusals(node, tmp_path, NODE_PORT), 60, "the NodePort is translated")
        wait_until(lambda: refusals(node, tmp_path, 8443), 60, "the ClusterIP is translated")
        for many in (1000, 0) if mode == "nftables" else (1000,):  # 0: read by its maps, as a large one is
            monkeypatch.setattr(firewall_kube_proxy, "MANY", many)
            assert refusals(node, tmp_path, 80) == ()
            (found,) = refusals(node, tmp_path, NODE_PORT)
            assert (found.setting, found.reason) == ("notrack/web", "NATConflict")
            assert "default/outer" in found.message
            (found,) = refusals(node, tmp_path, 81, side="Forward", addresses=[OUTSIDE])
            assert "default/outer" in found.message
            if many:
                (found,) = refusals(node, tmp_path, 8443)
                assert "default/here" in found.message
