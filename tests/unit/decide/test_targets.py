"""Node specs: what a node is asked to do, and what has to be written for that."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from conntrack_operator.decide.holding import Holding, attempt_of
from conntrack_operator.decide.pods import HostPod, PodPort
from conntrack_operator.decide.revisions import revision_name
from conntrack_operator.decide.targeting import Node
from conntrack_operator.decide.targets import (
    Local,
    Remove,
    Wish,
    Write,
    node_spec_for,
    owner_of,
    step_for,
)
from conntrack_operator.model.node import NodeConntrack, NodeSpec, Withdrawal
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


def holding(*policies: ConntrackPolicy, **more: Any) -> Holding:
    """Return what a node has that was given these policies as they are."""
    return Holding(policies, {each.metadata.name: revision_name(each) for each in policies}, **more)


def spec_of(
    *policies: ConntrackPolicy, node: Node = NODE, observed: Sequence[ConntrackPolicy] = (), **more: Any
) -> NodeSpec:
    """Return the spec of a node that has these policies."""
    existing = more.pop("existing", None)
    return node_spec_for(node, holding(*policies), observed, existing, attempt=more.pop("attempt", ""), **more)


def wish(*policies: ConntrackPolicy, **more: Any) -> Wish:
    """Return the wish that a node has these policies."""
    return Wish(holding(*policies), **more)


UNMEANT = Wish(Holding(), is_meant=False)
"""What is wished of a node that has nothing and that no policy means."""


def restoring(generation: int = 3) -> NodeSpec:
    """Return the spec of a node that had one policy and is to restore."""
    return spec_of(existing=spec_of(policy()), generation=generation)


def restored(spec: NodeSpec, **changes: str) -> dict[str, Any]:
    """Return the status of a node that has done what a Restore spec asks."""
    return {
        "phase": "Restored",
        "observedRevision": spec.revision,
        "observedAttempt": spec.attempt,
        "nodeUID": spec.node_uid,
        **changes,
    }


def test_a_node_nobody_means_gets_nothing() -> None:
    """No policy, no object: a cluster of thousands with one policy for three nodes has three objects."""
    assert step_for(LONER, UNMEANT, None) is None


def test_a_node_that_a_policy_means_is_told_to_hold() -> None:
    """Its object is there before its turn: asked for nothing, it shows that its agent is alive, and its usage."""
    step = step_for(NODE, Wish(Holding()), None)
    assert isinstance(step, Write)
    assert (step.spec.mode, step.spec.policies, step.spec.settings) == ("Hold", [], Settings())
    assert step_for(NODE, Wish(Holding()), stored(step.spec)) is None


def test_an_observe_policy_is_previewed_only() -> None:
    """What an Observe policy wants never comes into the settings, but all together come into the preview."""
    spec = spec_of(policy("now", 1000), observed=[policy("later", 2000, mode="Observe", priority=9)])
    assert spec.settings == Settings.model_validate({"table": {"size": {"maxEntries": 1000}}})
    assert spec.preview == Settings.model_validate({"table": {"size": {"maxEntries": 2000}}})
    assert [use.name for use in spec.policies] == ["now"]


def test_observe_alone_holds() -> None:
    """A node with Observe policies alone is asked for nothing, and previews."""
    spec = spec_of(observed=[policy(mode="Observe")])
    assert (spec.mode, spec.settings, spec.policies) == ("Hold", Settings(), [])
    assert spec.preview == Settings.model_validate({"table": {"size": {"maxEntries": 1000}}})


def test_the_revision_is_of_mode_and_settings() -> None:
    """Who asked plays no part in the revision: the node has nothing to do when only that changes."""
    first = spec_of(policy("a")).revision
    assert spec_of(policy("b")).revision == first
    assert spec_of(policy("a", onDelete="Keep")).revision == first
    assert spec_of(policy("a"), observed=[policy("b", 7, mode="Observe")]).revision == first
    assert spec_of(policy("a", 1001)).revision != first
    assert len({first, spec_of().revision, restoring().revision}) == 3


def test_another_try_changes_the_attempt_alone() -> None:
    """A new `rollout.retry` makes a new attempt of the same revision."""
    attempts = [attempt_of([policy(rollout={"retry": text})]) for text in ("1", "2")]
    first, second = (spec_of(policy(), attempt=attempt) for attempt in attempts)
    assert first.revision == second.revision
    assert first.attempt != second.attempt
    assert attempt_of([policy()]) == ""


def test_a_use_names_the_revision_that_was_given() -> None:
    """A node that is not released keeps the policy as it was given it, and its spec says which that is."""
    old = policy(entries=5)
    spec = node_spec_for(NODE, Holding((old,), {"p": "r-old"}), [], None, attempt="")
    assert [(use.name, use.revision) for use in spec.policies] == [("p", "r-old")]


def test_what_a_policy_that_is_gone_wished_lives_on() -> None:
    """Its onDelete and rollout are in no revision: they are taken from what the node was told."""
    told = spec_of(policy(onDelete="Keep", rollout={"canary": 3}))
    spec = node_spec_for(NODE, holding(policy(), gone=frozenset({"p"})), [], told, attempt="")
    assert spec.policies == told.policies
    there = node_spec_for(NODE, holding(policy()), [], told, attempt="")
    assert [(use.on_delete, use.rollout) for use in there.policies] == [("Restore", None)], "of one that is there"
    lost = node_spec_for(LONER, holding(policy(), gone=frozenset({"p"})), [], told, attempt="")
    assert [(use.on_delete, use.rollout) for use in lost.policies] == [("Restore", None)], "told to another node"


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
        pytest.param(stored(restoring()), True, id="selected again while restoring"),
    ],
)
def test_write_only_what_differs(existing: NodeConntrack | None, writes: bool) -> None:
    """Nothing is written when the object is right, and everything that is wrong is put right."""
    step = step_for(NODE, wish(policy()), existing)
    assert step == (Write(spec_of(policy())) if writes else None)


@pytest.mark.parametrize("is_meant", [True, False])
def test_the_last_policy_going_asks_for_a_restore(is_meant: bool) -> None:
    """With no policy left the node is asked to restore, and still told whose onDelete to honour."""
    applied = spec_of(policy(onDelete="Keep"))
    step = step_for(NODE, Wish(Holding(), is_meant=is_meant), stored(applied))
    assert isinstance(step, Write)
    assert (step.spec.mode, step.spec.settings, step.spec.preview) == ("Restore", Settings(), None)
    assert step.spec.policies == applied.policies
    assert step_for(NODE, Wish(Holding(), is_meant=is_meant), stored(step.spec)) is None, "the wait writes nothing"


def test_every_restore_is_another_attempt() -> None:
    """The answer to an earlier one must not count; while one is waited for, it stays the same."""
    first, second = restoring(3), restoring(4)
    assert first.revision == second.revision
    assert first.attempt != second.attempt
    assert spec_of(existing=first, generation=9).attempt == first.attempt
    assert step_for(NODE, UNMEANT, stored(first, generation=9)) is None


def test_a_restore_may_preview() -> None:
    """Turned from Enforce to Observe, a policy is undone and planned at the same time."""
    spec = spec_of(existing=spec_of(policy()), observed=[policy(mode="Observe")])
    assert (spec.mode, spec.preview) == ("Restore", spec_of(policy()).settings)


def test_a_node_that_holds_is_left_alone_until_that_is_confirmed() -> None:
    """It may have settings that an object before this one asked for, so it is asked to restore when nobody means it."""
    held = stored(spec_of())
    assert step_for(NODE, UNMEANT, held) is None
    step = step_for(NODE, replace(UNMEANT, may_restore=True), held)
    assert isinstance(step, Write)
    assert (step.spec.mode, step.spec.attempt) == ("Restore", "restore-3")


def test_a_former_node_s_object_goes_when_nobody_means_the_new_one() -> None:
    """What it says was never told to this node, so that there is nothing to put back."""
    former = stored(spec_of(policy(), node=Node("n1", "uid-0", {})))
    assert isinstance(step_for(NODE, UNMEANT, former), Remove)


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
    spec = restoring()
    answered = stored(spec, status=restored(spec, **changes))
    assert isinstance(step_for(NODE, UNMEANT, answered), Remove) is goes
    withdrawn = (Withdrawal(name="p", revision=""),)
    travelling = step_for(NODE, Wish(Holding(withdrawn=withdrawn), is_meant=False), answered)
    assert not isinstance(travelling, Remove), "while it counts for the withdrawal from others, it stays"
    assert not isinstance(step_for(NODE, Wish(Holding()), answered), Remove), "a policy means it"


def test_what_nobody_can_put_together_is_left_as_it_is() -> None:
    """Of a policy at a revision nobody knows the node keeps all that it was told; the Services go on."""
    rules = {"rules": [{"name": "web", "ports": [80]}]}
    told = spec_of(policy(notrack=rules))
    unknown = Wish(Holding((policy("q"),), {"p": "lost", "q": "r"}, unknown=("p",)))
    assert step_for(NODE, unknown, stored(told)) is None
    step = step_for(NODE, unknown, stored(told), local=local())
    assert isinstance(step, Write)
    assert step.spec == told.model_copy(update={"services": [service(80)]})
    nobody = replace(unknown, is_meant=False)
    assert step_for(NODE, nobody, stored(told)) is None, "nor is it taken for nothing"


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
    specs = [spec_of(following(), local=each) for each in (local(80), local(81), Local())]
    rules = [rule for spec in specs if spec.settings.notrack for rule in spec.settings.notrack.rules or ()]
    assert [rule.ports for rule in rules] == [[80], [81]], "without a pod there is no rule"
    assert len({spec.revision for spec in specs}) == 3


def test_a_preview_has_ports_too() -> None:
    """An Observe policy is shown with the ports its pods have, and with the Services that it would meet."""
    spec = spec_of(observed=[following(mode="Observe")], local=local(80))
    assert spec.preview
    assert spec.preview.notrack
    assert [rule.ports for rule in spec.preview.notrack.rules or ()] == [[80]]
    assert (spec.settings, [each.port for each in spec.services]) == (Settings(), [80])


def test_services_are_written_and_are_no_revision() -> None:
    """A Service that comes is a new spec with the same revision: the node has nothing new to do, only to know."""
    rules = {"rules": [{"name": "web", "ports": [80]}]}
    before = spec_of(policy(notrack=rules))
    step = step_for(NODE, wish(policy(notrack=rules)), stored(before), local=local())
    assert isinstance(step, Write)
    assert [each.port for each in step.spec.services] == [80]
    assert step.spec.revision == before.revision
    assert step_for(NODE, wish(policy(notrack=rules)), stored(step.spec), local=local()) is None
    assert step_for(NODE, wish(policy()), stored(spec_of(policy())), local=local()) is None, "without rules, none"


@pytest.mark.parametrize(
    ("phase", "changes", "ports"),
    [
        pytest.param("RolledBack", {}, [80, 81], id="its old rules are in force again"),
        pytest.param("Trial", {}, [80, 81], id="it may roll back"),
        pytest.param("Current", {"observedRevision": "older"}, [80, 81], id="not answered yet"),
        pytest.param("Current", {"nodeUID": "another"}, [80, 81], id="another node's answer"),
        pytest.param("Current", {}, [81], id="as asked: nothing else is in force"),
    ],
)
def test_services_on_rules_of_before(phase: str, changes: dict[str, str], ports: list[int]) -> None:
    """What meets a rule that may still be in force is told, although the spec does not ask for it any more."""
    old, new = (policy(notrack={"rules": [{"name": "web", "ports": [port]}]}) for port in (80, 81))
    spec = spec_of(new, local=local())
    status = {"phase": phase, "observedRevision": spec.revision, "observedAttempt": "", "nodeUID": "uid-1", **changes}
    existing = stored(spec.model_copy(update={"services": []}), status=status)
    step = step_for(NODE, wish(new, former=[old, new]), existing, local=local())
    assert isinstance(step, Write)
    assert sorted({each.port for each in step.spec.services}) == ports
    assert step.spec.revision == spec.revision
    told = stored(step.spec, status=status)
    assert step_for(NODE, wish(new, former=[old, new]), told, local=local()) is None


def test_a_node_that_holds_is_told_of_services() -> None:
    """Its object may have been lost: then it has the rules of before, with ports of pods. One to restore has not."""
    step = step_for(NODE, Wish(Holding(), former=[following()]), None, local=local(80))
    assert isinstance(step, Write)
    assert (step.spec.mode, [each.port for each in step.spec.services]) == ("Hold", [80])
    spec = restoring()
    assert step_for(NODE, replace(UNMEANT, former=[following()]), stored(spec), local=local(80)) is None


def test_what_cannot_be_seen_stays() -> None:
    """Without a look at pods and Services the node is told what it was told before."""
    told = spec_of(following(), local=local(80))
    assert step_for(NODE, wish(following()), stored(told), local=Local(None, None)) is None
