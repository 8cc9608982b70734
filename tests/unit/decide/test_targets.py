"""Node specs: what a node is asked to do, and what has to be written for that."""

from typing import Any

import pytest

from conntrack_operator.decide.merge import Conflict
from conntrack_operator.decide.pods import HostPod, PodPort
from conntrack_operator.decide.targeting import Node
from conntrack_operator.decide.targets import (
    Local,
    Remove,
    Write,
    node_spec_for,
    owner_of,
    restore_spec_for,
    share_of,
    step_for,
)
from conntrack_operator.model.node import NodeConntrack, NodeSpec
from conntrack_operator.model.policy import ConntrackPolicy, Settings
from conntrack_operator.model.surroundings import Service

NODE = Node("n1", "uid-1", {"role": "web"})
LONER = Node("n2", "uid-2", {})


def policy(name: str = "p", entries: int = 1000, **spec: Any) -> ConntrackPolicy:
    """Return a policy for nodes with the label role=web."""
    fields = {
        "mode": "Enforce",
        "nodeSelector": {"matchLabels": {"role": "web"}},
        "table": {"size": {"maxEntries": entries}},
        **spec,
    }
    return ConntrackPolicy.model_validate({"metadata": {"name": name, "uid": name}, "spec": fields})


def stored(spec: NodeSpec, node: Node = NODE, status: dict[str, Any] | None = None, **meta: Any) -> NodeConntrack:
    """Return a NodeConntrack as the API server has it."""
    return NodeConntrack.model_validate(
        {
            "metadata": {"name": node.name, "generation": 3, "ownerReferences": [owner_of(node)], **meta},
            "spec": spec.document(),
            "status": status,
        }
    )


def spec_of(*policies: ConntrackPolicy, node: Node = NODE) -> NodeSpec:
    """Return the spec that must be there."""
    spec = node_spec_for(node, policies)
    assert spec is not None
    return spec


def restored(spec: NodeSpec, **changes: str) -> dict[str, Any]:
    """Return the status of a node that has done what a Restore spec asks."""
    return {
        "phase": "Restored",
        "observedRevision": spec.revision,
        "observedAttempt": spec.attempt,
        "nodeUID": spec.node_uid,
        **changes,
    }


def test_a_node_nobody_selects_gets_nothing() -> None:
    """No policy, no object: a cluster of thousands with one policy for three nodes has three objects."""
    assert node_spec_for(LONER, [policy()]) is None
    assert step_for(LONER, [policy()], None) is None


def test_an_observe_policy_is_previewed_only() -> None:
    """What an Observe policy wants never comes into the settings, but all together come into the preview."""
    spec = spec_of(policy("now", 1000), policy("later", 2000, mode="Observe", priority=9))
    assert spec.settings == Settings.model_validate({"table": {"size": {"maxEntries": 1000}}})
    assert spec.preview == Settings.model_validate({"table": {"size": {"maxEntries": 2000}}})
    assert [use.name for use in spec.policies] == ["now"]


def test_observe_alone_applies_nothing() -> None:
    """A node with Observe policies alone keeps an object whose settings are empty."""
    spec = spec_of(policy(mode="Observe"))
    assert (spec.mode, spec.settings, spec.policies) == ("Apply", Settings(), [])


def test_the_revision_is_of_mode_and_settings() -> None:
    """Who asked plays no part in the revision: the node has nothing to do when only that changes."""
    first = spec_of(policy("a")).revision
    assert spec_of(policy("b")).revision == first
    assert spec_of(policy("a", onDelete="Keep")).revision == first
    assert spec_of(policy("a", mode="Observe")).revision != first
    assert spec_of(policy("a", 1001)).revision != first


def test_another_try_changes_the_attempt_alone() -> None:
    """A new `rollout.retry` makes a new attempt of the same revision."""
    first, second = spec_of(policy(rollout={"retry": "1"})), spec_of(policy(rollout={"retry": "2"}))
    assert first.revision == second.revision
    assert first.attempt != second.attempt
    assert spec_of(policy()).attempt == ""


def test_a_retry_does_not_make_a_policy_answer_for_another_rollout() -> None:
    """Nodes refuse rollouts; whose policy has nothing but a retry has no part in that."""
    alone = policy(rollout={"retry": "1"})
    assert not share_of(alone, NODE, [alone]).has_later_rollout
    paced = policy(rollout={"retry": "1", "canary": 1})
    assert share_of(paced, NODE, [paced]).has_later_rollout


@pytest.mark.parametrize(
    ("existing", "writes"),
    [
        pytest.param(None, True, id="new"),
        pytest.param(stored(spec_of(policy())), False, id="as it should be"),
        pytest.param(stored(spec_of(policy(entries=5))), True, id="edited by hand or outdated"),
        pytest.param(stored(spec_of(policy()), ownerReferences=[]), True, id="owner lost"),
        pytest.param(stored(spec_of(policy()), ownerReferences=[owner_of(LONER)]), True, id="owned by another node"),
        pytest.param(
            stored(spec_of(policy(), node=Node("n1", "uid-0", {"role": "web"}))), True, id="written for a former node"
        ),
        pytest.param(stored(restore_spec_for(NODE, spec_of(policy()), 3)), True, id="selected again while restoring"),
    ],
)
def test_write_only_what_differs(existing: NodeConntrack | None, writes: bool) -> None:
    """Nothing is written when the object is right, and everything that is wrong is put right."""
    step = step_for(NODE, [policy()], existing)
    assert step == (Write(spec_of(policy())) if writes else None)


def test_the_last_policy_going_asks_for_a_restore() -> None:
    """With no policy left the node is asked to restore, and still told whose onDelete to honour."""
    applied = spec_of(policy(onDelete="Keep"))
    step = step_for(NODE, [], stored(applied))
    assert isinstance(step, Write)
    assert (step.spec.mode, step.spec.settings, step.spec.preview) == ("Restore", Settings(), None)
    assert step.spec.policies == applied.policies
    assert step_for(NODE, [], stored(step.spec)) is None, "the wait for the answer writes nothing"


@pytest.mark.parametrize(
    ("changes", "goes"),
    [
        pytest.param({}, True, id="restored"),
        pytest.param({"phase": "Current"}, False, id="not restored"),
        pytest.param({"phase": "Refused"}, False, id="refuses to restore"),
        pytest.param({"observedRevision": "other"}, False, id="answer to another revision"),
        pytest.param({"observedAttempt": "restore-1"}, False, id="answer to an earlier restore"),
        pytest.param({"nodeUID": "uid-0"}, False, id="answer of a former node"),
    ],
)
def test_the_object_goes_when_this_restore_is_answered(changes: dict[str, str], goes: bool) -> None:
    """An object is removed on the node's answer to this very request, and on nothing else."""
    spec = restore_spec_for(NODE, spec_of(policy()), 3)
    step = step_for(NODE, [], stored(spec, status=restored(spec, **changes)))
    assert isinstance(step, Remove) is goes


def test_what_cannot_be_read_is_not_withdrawn() -> None:
    """A node on which an unreadable policy has a share is left alone; others go on."""
    assert step_for(NODE, [], stored(spec_of(policy("bad"))), unreadable=["bad"]) is None
    assert step_for(NODE, [], stored(spec_of(policy("good"))), unreadable=["bad"]) is not None


def test_share_of_an_enforced_policy() -> None:
    """An Enforce policy meets only Enforce policies, and knows what it lost."""
    low, high = policy("low", 1, timeouts={"icmp": 3}), policy("high", 2, priority=1)
    loud = policy("loud", 3, mode="Observe", priority=9)
    share = share_of(low, NODE, [low, high, loud])
    assert share.fields == {"timeouts.icmp"}
    assert share.all_fields == {"timeouts.icmp", "table.size"}
    assert share.conflicts == (Conflict("low", "table.size", "high"),)
    assert not share.observes
    assert share_of(loud, NODE, [low, high, loud]).fields == {"table.size"}


def following(**fields: Any) -> ConntrackPolicy:
    """Return a policy whose rule follows the pods of the app envoy."""
    pods = {"namespace": "ingress", "selector": {"matchLabels": {"app": "envoy"}}}
    return policy(notrack={"rules": [{"name": "web", "pods": pods}]}, **fields)


def service(port: int) -> Service:
    """Return a NodePort Service."""
    return Service(name="shop/web", kind="NodePort", protocol="TCP", port=port)


def local(*ports: int) -> Local:
    """Return a node with a pod that has these ports, where a Service meets each of them."""
    pod = HostPod("ingress", "envoy", "n1", {"app": "envoy"}, tuple(PodPort(port) for port in ports))
    return Local([pod], lambda rules: [service(int(port)) for rule in rules for port in rule.ports or ()])


def test_pods_become_ports_and_a_revision() -> None:
    """The spec names ports where the policy names pods, and other ports are another revision."""
    specs = [node_spec_for(NODE, [following()], local=each) for each in (local(80), local(81), Local())]
    assert all(specs)
    assert [spec.settings.notrack and spec.settings.notrack.rules[0].ports for spec in specs if spec] == [  # type: ignore[index]
        [80],
        [81],
        None,
    ]
    assert len({spec.revision for spec in specs if spec}) == 3


def test_a_preview_has_ports_too() -> None:
    """An Observe policy is shown with the ports its pods have, and with the Services that it would meet."""
    spec = node_spec_for(NODE, [following(mode="Observe")], local=local(80))
    assert spec
    assert spec.preview
    assert spec.preview.notrack
    assert [rule.ports for rule in spec.preview.notrack.rules or ()] == [[80]]
    assert (spec.settings, [each.port for each in spec.services]) == (Settings(), [80])


def test_services_are_written_and_are_no_revision() -> None:
    """A Service that comes is a new spec with the same revision: the node has nothing new to do, only to know."""
    rules = {"rules": [{"name": "web", "ports": [80]}]}
    before = spec_of(policy(notrack=rules))
    step = step_for(NODE, [policy(notrack=rules)], stored(before), local=local())
    assert isinstance(step, Write)
    assert [each.port for each in step.spec.services] == [80]
    assert step.spec.revision == before.revision
    assert step_for(NODE, [policy(notrack=rules)], stored(step.spec), local=local()) is None
    assert step_for(NODE, [policy()], stored(spec_of(policy())), local=local()) is None  # without rules, none is told


def test_what_cannot_be_seen_stays() -> None:
    """Without a look at pods and Services the node is told what it was told before."""
    told = node_spec_for(NODE, [following()], local=local(80))
    assert told
    assert step_for(NODE, [following()], stored(told), local=Local(None, None)) is None
