"""The store: the newest sight of everything, and what a change touches."""

from typing import Any

from conntrack_operator.cluster.objects import Listing
from conntrack_operator.controller.sights import Unreadable
from conntrack_operator.controller.store import Lists, Store
from conntrack_operator.controller.touched import ROLLOUT, Key
from conntrack_operator.model.policy import ConntrackPolicy


def policy(version: int, name: str = "p", role: str = "web", **changes: Any) -> dict[str, Any]:
    """Return a policy for nodes of one role, as the API server sends it."""
    spec = {"mode": "Enforce", "nodeSelector": {"matchLabels": {"role": role}}}
    meta = {"name": name, "uid": name, "generation": 1, "resourceVersion": str(version)}
    return {"metadata": meta, "spec": {**spec, **changes.pop("spec", {})}, **changes}


def node(version: int, name: str = "n", role: str = "web", uid: str = "u", **status: Any) -> dict[str, Any]:
    """Return a node of one role."""
    meta = {"name": name, "uid": uid, "resourceVersion": str(version), "labels": {"role": role}}
    return {"metadata": meta, "spec": {}, "status": status}


def node_conntrack(version: int, name: str = "n", **changes: Any) -> dict[str, Any]:
    """Return a NodeConntrack."""
    meta = {"name": name, "uid": name, "resourceVersion": str(version)}
    return {"metadata": meta, "spec": {"revision": "r", "mode": "Apply", "nodeUID": "u"}, **changes}


def filled() -> Store:
    """Return a store with one policy, one node it selects, and that node's object."""
    store = Store()
    store.put_policy(policy(1))
    store.put_node(node(2))
    store.put_node_conntrack(node_conntrack(3))
    return store


NODE, POLICY, AGENTS = Key("node", "n"), Key("policy", "p"), Key("agents")


def test_an_older_sight_never_replaces_a_newer_one() -> None:
    """Watch, list and the answers to our writes may overtake each other."""
    store = filled()
    store.put_node(node(9, role="new"))
    assert store.put_node(node(5, role="old")) == set()
    assert store.node("n").labels == {"role": "new"}  # type: ignore[union-attr]


def test_of_one_version_the_list_counts() -> None:
    """A watch may have shown it by the schema before the CRD's change, without the new field."""
    store = filled()
    newer = policy(1, spec={"newer": "thing"})
    assert store.put_policy(newer) == set()
    assert isinstance(store.policy("p"), ConntrackPolicy)
    store.replace(Lists(Listing(1, (newer,)), Listing(2, (node(2),)), Listing(3, (node_conntrack(3),))))
    assert isinstance(store.policy("p"), Unreadable)


def test_a_deletion_outlives_older_sights() -> None:
    """What was deleted is not brought back by an older list or a late answer."""
    store = filled()
    store.put_node(node(9), deleted=True)
    store.put_node(node(8))
    assert store.node("n") is None
    store.replace(Lists(Listing(7, ()), Listing(8, (node(2),)), Listing(7, ())))
    assert store.node("n") is None
    store.put_node(node(10, uid="another"))
    assert store.node("n") is not None


def test_a_list_replaces_all_that_is_older() -> None:
    """What a full list lacks is gone, unless it was seen after the list was made."""
    store = filled()
    store.put_node(node(50, name="newer"))
    store.replace(Lists(Listing(20, (policy(1),)), Listing(20, ()), Listing(20, ())))
    assert [each.name for each in store.nodes()] == ["newer"]
    assert store.node_conntrack("n") is None
    assert store.policy("p") is not None


def test_a_kubelet_s_heartbeat_touches_nothing() -> None:
    """Thousands of nodes change their status all the time; Ready and the addresses in it are ours to look at."""
    ready = {"type": "Ready", "status": "True", "lastHeartbeatTime": "2026-01-31T12:00:00Z"}
    assert filled().put_node(node(9, conditions=[{"type": "DiskPressure", "status": "True"}, ready])) == set()


def test_ready_touches_the_rollouts() -> None:
    """A node that goes away is waited for no longer, and one that comes back is given what it missed."""
    store = filled()
    assert store.put_node(node(9, conditions=[{"type": "Ready", "status": "Unknown"}])) == {NODE, ROLLOUT, POLICY}
    assert store.put_node(node(10, conditions=[{"type": "Ready", "status": "True"}])) == {NODE, ROLLOUT, POLICY}


def test_a_label_touches_the_node_and_the_policies_of_both_sides() -> None:
    """The policy that loses the node and the one that gains it both have something new to say."""
    store = filled()
    store.put_policy(policy(4, "q", "db"))
    store.put_policy(policy(5, "other", "gpu"))
    assert store.put_node(node(9, role="db")) == {NODE, ROLLOUT, POLICY, Key("policy", "q")}


def test_a_policy_touches_its_nodes_of_both_sides() -> None:
    """A changed selector concerns the nodes that come and those that go; other policies may win or lose by it."""
    store = filled()
    store.put_node(node(4, "d", "db"))
    store.put_node(node(5, "g", "gpu"))
    store.put_policy(policy(6, "other", "gpu"))
    touched = {NODE, Key("node", "d"), POLICY, Key("policy", "other"), ROLLOUT, AGENTS}
    assert store.put_policy(policy(9, role="db")) == touched


def test_a_policy_s_status_touches_itself_alone() -> None:
    """Our own write of a status starts no work on nodes."""
    assert filled().put_policy(policy(9, status={"observedGeneration": 1})) == {POLICY}


def test_an_answer_touches_the_node_the_rollouts_and_its_policies() -> None:
    """What a node says is news for it, for whoever waits for it, and for the policies that select it."""
    store, told = filled(), {"phase": "Trial", "nodeUID": "u", "observedRevision": "r"}
    beat = {"heartbeatTime": "2026-01-31T12:00:00Z"}
    assert store.put_node_conntrack(node_conntrack(9, status=told)) == {NODE, ROLLOUT, POLICY}
    assert store.put_node_conntrack(node_conntrack(10, status={**told, **beat})) == {NODE, ROLLOUT, POLICY}
    current = {**told, **beat, "phase": "Current"}
    assert store.put_node_conntrack(node_conntrack(11, status=current)) == {NODE, ROLLOUT, POLICY}


def test_a_heartbeat_touches_the_policies_alone() -> None:
    """There are many, with the usage in them, and none of it changes what the node or the next one must do."""
    store, told = filled(), {"phase": "Current", "nodeUID": "u", "observedRevision": "r"}
    store.put_node_conntrack(node_conntrack(9, status={**told, "heartbeatTime": "2026-01-31T12:00:00Z"}))
    usage = {"entries": 5, "maxEntries": 10, "percent": 50}
    later = {**told, "heartbeatTime": "2026-01-31T12:05:00Z", "usage": usage}
    assert store.put_node_conntrack(node_conntrack(10, status=later)) == {POLICY}


def test_the_last_object_touches_the_agents() -> None:
    """When an object comes or goes, the agents may have to."""
    assert AGENTS in filled().put_node_conntrack(node_conntrack(9), deleted=True)


def test_an_unreadable_policy_is_not_an_absent_one() -> None:
    """It is kept, with its name and the reason, and no node is told that it went."""
    store = filled()
    store.put_policy(policy(9, spec={"fromTheFuture": 1}))
    found = store.policy("p")
    assert isinstance(found, Unreadable)
    assert "fromTheFuture" in found.sentence
    assert store.unreadable_policies() == {"p"}
    assert store.policies() == []
    assert store.has_work()


def test_an_unreadable_status_is_no_status() -> None:
    """The status is written by us or by the agent; what the person wrote still counts."""
    store = filled()
    store.put_policy(policy(9, status={"conditions": "nonsense"}))
    assert [each.metadata.name for each in store.policies()] == ["p"]


def test_work_ends_with_the_last_object() -> None:
    """The agents are needed while a policy is there, or a node has not been let go."""
    store = filled()
    store.put_policy(policy(9), deleted=True)
    assert store.has_work()
    store.put_node_conntrack(node_conntrack(10), deleted=True)
    assert not store.has_work()


def pod(version: int, **changes: Any) -> dict[str, Any]:
    """Return a host-network pod on the node n that declares port 80."""
    meta = {"name": "envoy", "namespace": "ingress", "resourceVersion": str(version), "labels": {"app": "envoy"}}
    spec = {"hostNetwork": True, "nodeName": "n", "containers": [{"ports": [{"containerPort": 80}]}]}
    return {"metadata": {**meta, **changes}, "spec": spec}


def node_port(version: int, number: int = 30080) -> dict[str, Any]:
    """Return a NodePort Service."""
    meta = {"name": "web", "namespace": "shop", "resourceVersion": str(version)}
    ports = [{"port": 81, "nodePort": number}]
    return {"metadata": meta, "spec": {"type": "NodePort", "clusterIPs": ["10.96.0.7"], "ports": ports}}


def endpoints(version: int, *addresses: str, port: int = 80) -> dict[str, Any]:
    """Return an EndpointSlice of that Service."""
    meta = {"name": "web-x", "namespace": "shop", "resourceVersion": str(version)}
    return {
        "metadata": {**meta, "labels": {"kubernetes.io/service-name": "web"}},
        "endpoints": [{"addresses": [address]} for address in addresses],
        "ports": [{"port": port}],
    }


def asking(**rule: Any) -> Store:
    """Return a store with one policy that has one rule, two nodes it selects, n and m, and one it does not."""
    store = Store()
    store.put_policy(policy(1, spec={"notrack": {"rules": [{"name": "web", **rule}]}}))
    for number, (name, role) in enumerate((("n", "web"), ("m", "web"), ("d", "db"))):
        store.put_node(node(2, name, role, addresses=[{"type": "InternalIP", "address": f"192.0.2.{number}"}]))
    return store


FOLLOWING = {"pods": {"namespace": "ingress", "selector": {"matchLabels": {"app": "envoy"}}}}
BOTH = {NODE, Key("node", "m")}


def test_a_pod_touches_its_node_where_pods_are_followed() -> None:
    """A pod in a namespace no policy asks about starts no work, nor does any pod where no rule follows pods."""
    assert asking(**FOLLOWING).put_pod(pod(3)) == {NODE}
    assert asking(**FOLLOWING).put_pod(pod(3, namespace="other")) == set()
    assert asking(ports=[80]).put_pod(pod(3)) == set()


def test_a_service_touches_the_nodes_whose_rules_it_meets() -> None:
    """Ports no rule names start no work, however many nodes there are."""
    assert asking(ports=[30080]).put_service(node_port(3)) == BOTH
    assert asking(ports=[30081, 81]).put_service(node_port(3)) == set()
    assert filled().put_service(node_port(3)) == set()
    store = asking(ports=[30080])
    store.put_service(node_port(3))
    assert store.put_service(node_port(4, 30099)) == BOTH
    assert store.put_service(node_port(5, 30099), deleted=True) == set()


class Revisions:
    """A book with one revision of the policy p."""

    def contents(self) -> list[ConntrackPolicy]:
        """Return the policy as it was."""
        rules = {"rules": [{"name": "web", "ports": [30080]}]}
        return [ConntrackPolicy.model_validate(policy(1, spec={"notrack": rules}))]

    def knows(self, policy: str, revision: str) -> bool:
        """Tell whether it is that one."""
        return (policy, revision) == ("p", "old")


def test_a_service_touches_who_has_the_rules_of_an_older_revision() -> None:
    """Those the older revision meant, and those that have it; and whoever has rules that nobody knows."""
    store = asking(ports=[80])
    store.keep_in_mind(Revisions())
    store.put_policy(policy(2, role="db"))
    assert store.put_service(node_port(3)) == BOTH

    def has(version: int, revision: str, port: int) -> dict[str, Any]:
        uses = [{"name": "p", "revision": revision, "fields": []}]
        settings = {"notrack": {"rules": [{"name": "web", "ports": [port]}]}}
        spec = {"revision": "r", "mode": "Apply", "nodeUID": "u", "policies": uses, "settings": settings}
        return {**node_conntrack(version, "d"), "spec": spec}

    store.put_node_conntrack(has(4, "old", 30080))
    assert store.put_service(node_port(5), deleted=True) == {*BOTH, Key("node", "d")}
    store.put_node_conntrack(has(6, "lost", 30099))
    assert store.put_service(node_port(7, 30099)) == {Key("node", "d")}


def test_a_service_on_a_port_of_a_followed_pod() -> None:
    """Which ports a rule that follows pods has is known from the pods."""
    store = asking(**FOLLOWING)
    assert store.put_service(node_port(3, 80)) == set()
    store.put_pod(pod(4))
    assert store.put_service(node_port(5, 80)) == set()  # it says nothing new
    assert store.put_service(node_port(6, 443)) == BOTH  # it leaves the pod's port


def test_an_endpoint_touches_the_node_that_has_its_address() -> None:
    """Endpoints elsewhere, the most of all changes in a cluster, touch no node; a router is touched by all."""
    store = asking(ports=[80])
    store.put_service(node_port(3))
    assert store.put_slice(endpoints(3, "10.1.2.3")) == set()
    assert store.put_slice(endpoints(4, "10.1.2.3", "192.0.2.1")) == {Key("node", "m")}
    assert store.put_slice(endpoints(5, "192.0.2.1")) == set()
    assert store.put_slice(endpoints(6, "192.0.2.0", "192.0.2.1", port=8080)) == {Key("node", "m")}
    assert asking(ports=[80], side="Forward").put_slice(endpoints(3, "10.1.2.3")) == BOTH


def test_what_may_not_be_listed_is_unknown_and_not_none() -> None:
    """The pods and Services of a node are None then, and what a policy needs is told by kind."""
    store = asking(ports=[80])
    node_n = store.node("n")
    assert node_n
    empty = Listing(1, ())
    store.replace(Lists(empty, empty, empty, refused={"pods": "Forbidden", "services": "Forbidden"}))
    assert (store.local(node_n)[0].pods, store.local(node_n)[0].services) == (None, None)
    assert set(store.refused()) == {"pods", "services"}
    store.replace(Lists(empty, empty, empty, empty, empty, empty))
    local, seconds = store.local(node_n)
    assert (local.pods, seconds, store.refused()) == ([], 0.0, {})
    assert local.services is not None
