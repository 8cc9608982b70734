"""The control plane the other tests stand on: if it were not real, they would prove nothing."""

from tests.lab.cluster import Cluster
from tests.lab.programs import wait_until


def test_it_is_kubernetes_1_37(cluster: Cluster) -> None:
    """The client and the API server agree on the release the project is tested against."""
    version = cluster.kubectl("version", "-o", "json").stdout
    assert '"gitVersion": "v1.37' in version
    assert cluster.get("namespace", "default")


def test_tokens_are_issued_and_rbac_refuses_them_what_nobody_granted(cluster: Cluster) -> None:
    """A ServiceAccount's token is a real one: who it is gets known, and it may not list Nodes."""
    token = cluster.token("default", namespace="default")
    mine = cluster.kubeconfig_for(token)
    assert "system:serviceaccount:default:default" in cluster.kubectl("auth", "whoami", kubeconfig=mine).stdout
    refused = cluster.kubectl("get", "nodes", kubeconfig=mine, check=False)
    assert "Forbidden" in refused.stderr


def test_dependents_go_with_their_owner(cluster: Cluster) -> None:
    """Garbage collection runs: an object owned by a Node goes when the Node goes."""
    uid = cluster.add_node("owner")
    owner = {"apiVersion": "v1", "kind": "Node", "name": "owner", "uid": uid}
    cluster.kubectl(
        "create", "-f", "-",
        input={
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
            "metadata": {"name": "owned", "ownerReferences": [owner]},
        },
    )  # fmt: skip
    cluster.kubectl("delete", "node", "owner")
    wait_until(lambda: cluster.get("clusterrole", "owned") is None, 60, "the owned object is collected")


def test_the_api_server_comes_back_on_the_same_address(cluster: Cluster) -> None:
    """A stopped API server answers nobody; started again it is the same cluster."""
    before = cluster.get("namespace", "kube-system")
    cluster.stop_apiserver()
    assert cluster.kubectl("get", "ns", check=False).returncode != 0
    cluster.start_apiserver()
    after = cluster.get("namespace", "kube-system")
    assert before
    assert after
    assert after["metadata"]["uid"] == before["metadata"]["uid"]
