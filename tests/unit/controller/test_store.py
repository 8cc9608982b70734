"""The store: the newest sight of everything, and what a change touches."""

from typing import Any

from conntrack_operator.cluster.objects import Listing
from conntrack_operator.controller.sights import Unreadable
from conntrack_operator.controller.store import Key, Lists, Store


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


def test_a_node_s_heartbeat_touches_nothing() -> None:
    """Thousands of nodes change their status all the time; only labels and uid are ours to look at."""
    assert filled().put_node(node(9, conditions=[{"type": "Ready"}])) == set()


def test_a_label_touches_the_node_and_the_policies_of_both_sides() -> None:
    """The policy that loses the node and the one that gains it both have something new to say."""
    store = filled()
    store.put_policy(policy(4, "q", "db"))
    store.put_policy(policy(5, "other", "gpu"))
    assert store.put_node(node(9, role="db")) == {NODE, POLICY, Key("policy", "q")}


def test_a_policy_touches_its_nodes_of_both_sides() -> None:
    """A changed selector concerns the nodes that come and those that go; other policies may win or lose by it."""
    store = filled()
    store.put_node(node(4, "d", "db"))
    store.put_node(node(5, "g", "gpu"))
    store.put_policy(policy(6, "other", "gpu"))
    assert store.put_policy(policy(9, role="db")) == {NODE, Key("node", "d"), POLICY, Key("policy", "other"), AGENTS}


def test_a_policy_s_status_touches_itself_alone() -> None:
    """Our own write of a status starts no work on nodes."""
    assert filled().put_policy(policy(9, status={"observedGeneration": 1})) == {POLICY}


def test_a_report_touches_the_node_and_its_policies() -> None:
    """What a node says is news for it and for the policies that select it."""
    status = {"phase": "Current"}
    assert filled().put_node_conntrack(node_conntrack(9, status=status)) == {NODE, POLICY}


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
