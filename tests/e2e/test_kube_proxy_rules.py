"""What the real kube-proxy writes to a kernel is seen for what it is: translations of Services."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.lab import kube_proxy
from tests.lab.cluster import Cluster
from tests.lab.command import conntrack_operator
from tests.lab.kube_proxy import KubeProxy
from tests.lab.namespaces import Lab, Namespace, missing
from tests.lab.programs import wait_until
from tests.lab.trials import policy

from conntrack_operator.kernel import firewall_kube_proxy
from conntrack_operator.kernel.firewall import read_firewall
from conntrack_operator.kernel.table_rivals import has_kube_proxy_rules
from conntrack_operator.model.surroundings import Firewall, FirewallRule

NODE_PORT = 30080
NODE_ADDRESS = "10.99.1.1"
BACKEND = ("10.99.1.2", 8080)


@pytest.fixture
def lab() -> Iterator[Lab]:
    """Give a lab, or skip where no namespace can be made."""
    reason = missing()
    if reason:
        pytest.skip(reason)
    with Lab() as made:
        yield made


@pytest.fixture
def node(lab: Lab, cluster: Cluster) -> Iterator[Namespace]:
    """Give a namespace that is the Node `proxied`, at 10.99.1.1, with its Services gone afterwards."""
    namespace, pod = lab.namespace(), lab.namespace()
    lab.link(namespace, pod)
    kube_proxy.add_proxied_node(cluster, "proxied", "10.99.1.1")
    yield namespace
    for name in ("web", "api"):
        kube_proxy.remove_service(cluster, name)
    cluster.clear()


def read(node: Namespace, *ports: int) -> Firewall:
    """Read the firewall of the node, about some ports when they are given."""
    with node.inside():
        return read_firewall(tuple((port, port) for port in sorted(ports)) or None)


def leading_to(found: Firewall, port: int, address: str | None = None) -> list[FirewallRule]:
    """Return the DNAT rules that a TCP packet to this port (and address) can come to, going by jumps and gotos."""
    chains = {(each.tool, each.table, each.family, each.name): each for each in found.chains}
    ends: list[FirewallRule] = []
    seen: set[tuple[str, str, str, str]] = set()

    def follow(place: tuple[str, str, str, str], *, narrowed: bool) -> None:
        if place in seen and not narrowed:
            return
        seen.add(place)
        for rule in chains[place].rules:
            ports, there = rule.match.destination_ports, rule.match.destinations
            if ports is not None and not any(first <= port <= last for first, last in ports):
                continue
            if address and there is not None and f"{address}/32" not in there and len(there) == 1:
                continue
            known = narrowed or ports is not None
            if rule.target and (*place[:3], rule.target) in chains:
                follow((*place[:3], rule.target), narrowed=known)
            elif rule.verdict == "dnat" and known:
                ends.append(rule)

    for place, each in chains.items():
        if each.hook == "prerouting" and each.type == "nat":
            follow(place, narrowed=False)
    return ends


MODES = [("nftables", "nft"), ("iptables", "nft"), ("iptables", "legacy")]


@pytest.mark.parametrize(("mode", "variant"), MODES)
def test_services_appear_as_translations(
    cluster: Cluster, node: Namespace, mode: str, variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A NodePort and a ClusterIP lead to their backend's port, read whole and read about these ports alone."""
    cluster_ip = kube_proxy.add_service(cluster, "api", 6000, BACKEND)
    kube_proxy.add_service(cluster, "web", 80, (BACKEND[0], 9090), node_port=NODE_PORT)
    with node.inside():
        assert not has_kube_proxy_rules()
    with KubeProxy(cluster, node, "proxied", mode, variant=variant):
        wait_until(lambda: leading_to(read(node), NODE_PORT), 60, "the NodePort is translated")
        wait_until(lambda: leading_to(read(node), 6000, cluster_ip), 60, "the ClusterIP is translated")
        with node.inside():
            assert has_kube_proxy_rules()
        for found in (read(node), read(node, NODE_PORT, 6000)):
            assert found.problems == ()
            for port, address, target in ((NODE_PORT, None, 9090), (6000, cluster_ip, 8080)):
                ends = leading_to(found, port, address)
                assert {rule.to_ports for rule in ends} == {((target, target),)}
                assert {rule.to_addresses for rule in ends} == {("10.99.1.2/32",)}
                assert all(rule.tracks for rule in ends)
        if mode == "nftables":  # read by its maps, as a large one is
            monkeypatch.setattr(firewall_kube_proxy, "MANY", 0)
            assert leading_to(read(node, NODE_PORT, 6000), NODE_PORT)
            assert leading_to(read(node, NODE_PORT, 6000), 6000, cluster_ip)
        other = read(node, 81)
        assert not leading_to(other, NODE_PORT)
        assert other.problems == ()
    tools = {each.tool for each in read(node).chains if "KUBE" in each.name or each.table == "kube-proxy"}
    assert tools == {"nftables" if mode == "nftables" else f"iptables-{variant}"}


@pytest.mark.parametrize(("mode", "variant"), MODES)
def test_rules_on_ports_of_services_are_refused(
    cluster: Cluster, node: Namespace, tmp_path: Path, mode: str, variant: str
) -> None:
    """With no controller to tell it, the node finds kube-proxy's translation itself, and quotes its rule."""
    cluster_ip = kube_proxy.add_service(cluster, "api", 6000, (NODE_ADDRESS, 8080))
    kube_proxy.add_service(cluster, "web", 80, (BACKEND[0], 9090), node_port=NODE_PORT)
    rules = [{"name": name, "ports": [port]} for name, port in (("ingress", NODE_PORT), ("api", 8080), ("other", 9000))]
    file = policy(tmp_path / "policy.json", notrack={"rules": rules})
    with KubeProxy(cluster, node, "proxied", mode, variant=variant):
        wait_until(lambda: leading_to(read(node), NODE_PORT), 60, "the NodePort is translated")
        wait_until(lambda: leading_to(read(node), 6000, cluster_ip), 60, "the ClusterIP is translated")
        done = conntrack_operator("plan", "-f", file, "-o", "json", "--state-dir", tmp_path / "state", namespace=node)
        assert done.returncode == 2, done.stderr
        plan = json.loads(done.stdout)
        assert [change["setting"] for change in plan["changes"]] == ["notrack/other"]
        refused = {refusal["setting"]: refusal for refusal in plan["refused"]}
        assert {each["reason"] for each in refused.values()} == {"NATConflict"}
        assert f"port {NODE_PORT}/TCP" in refused["notrack/ingress"]["message"]
        assert "port 8080/TCP" in refused["notrack/api"]["message"]
        quoted = (
            r"nftables ip kube-proxy service-.*: .* dnat to 10\.99" if mode == "nftables" else r"KUBE-SEP-.* -j DNAT"
        )
        for refusal in plan["refused"]:
            assert re.search(quoted, refusal["message"]), refusal["message"]
            assert "take the port out of the rule" in refusal["message"]
