"""Reading documents: what is no policy at all, what is forgiven, and remedies for typos."""

from typing import Any

import pytest

from conntrack_operator.errors import Invalid
from conntrack_operator.model.node import node_from
from conntrack_operator.model.reading import policy_from


def _policy(**spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "conntrack-operator.io/v1alpha1",
        "kind": "ConntrackPolicy",
        "metadata": {"name": "web"},
        "spec": {"mode": "Enforce", "nodeSelector": {"matchLabels": {"role": "web"}}, **spec},
    }


def _node(**rest: Any) -> dict[str, Any]:
    return {
        "apiVersion": "conntrack-operator.io/v1alpha1",
        "kind": "NodeConntrack",
        "metadata": {"name": "node-1", "resourceVersion": "7", "managedFields": []},
        "spec": {"revision": "1", "mode": "Apply", "nodeUID": "u"},
        **rest,
    }


def _problems(document: Any) -> list[str]:
    with pytest.raises(Invalid) as refused:
        policy_from(document)
    return str(refused.value).splitlines()


@pytest.mark.parametrize(
    ("document", "said"),
    [
        (None, ["the document is empty; it must be a ConntrackPolicy"]),
        ([], ["the document is an array; it must be a ConntrackPolicy"]),
        ("web", ["the document is a string; it must be a ConntrackPolicy"]),
        (5, ["the document is an integer; it must be a ConntrackPolicy"]),
        ({}, ["apiVersion: Required value", "kind: Required value"]),
        (
            {**_policy(), "kind": "Deployment"},
            ['kind: Unsupported value: "Deployment": supported values: "ConntrackPolicy"'],
        ),
        (
            {**_policy(), "apiVersion": "apps/v1"},
            ['apiVersion: Unsupported value: "apps/v1": supported values: "conntrack-operator.io/v1alpha1"'],
        ),
        ({**_policy(), "metadata": {}}, ["metadata.name: Required value"]),
        ({**_policy(), "spec": None}, ["spec: Required value"]),
        ({**_policy(), "metadata": None}, ["metadata: Required value"]),
    ],
)
def test_what_is_no_policy(document: Any, said: list[str]) -> None:
    """The header is judged first: for another kind, other sentences would only confuse."""
    assert _problems(document) == said


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"tabel": {}}, 'unknown field "spec.tabel"; did you mean table?'),
        ({"timeouts": {"tcp": {"timewait": 30}}}, 'unknown field "spec.timeouts.tcp.timewait"; did you mean timeWait?'),
        ({"table": {"size": {"memory": {"percent": 2, "cieling": 5}}}},
         'unknown field "spec.table.size.memory.cieling"; did you mean ceiling?'),
        ({"notrack": {"rules": [{"name": "a", "ports": [80], "sides": "Server"}]}},
         'unknown field "spec.notrack.rules[0].sides"; did you mean side?'),
        ({"tcp": {"xyzzy": 1}}, 'unknown field "spec.tcp.xyzzy"; known here: loose, beLiberal'),
    ],
)  # fmt: skip
def test_a_typo_gets_its_remedy(spec: dict[str, Any], said: str) -> None:
    """An unknown field is named with the one that was meant, or else with those there are."""
    assert _problems(_policy(**spec)) == [said]


def test_all_problems_are_told_at_once() -> None:
    """Nobody should have to correct a file three times."""
    said = _problems(
        _policy(mode="enforce", table={"size": {"memory": {"percent": 150}}}, notrack={"rules": [{"ports": [0]}]})
    )
    assert sorted(line.partition(":")[0] for line in said) == [
        "spec.mode",
        "spec.notrack.rules[0].name",
        "spec.notrack.rules[0].ports[0]",
        "spec.table.size.memory.percent",
    ]


def test_nulls_and_whole_floats_are_forgiven() -> None:
    """As the API server does: an empty key in YAML is absent, and 5.0 is 5."""
    policy = policy_from(_policy(table={"size": {"maxEntries": 5.0, "memory": None}}, tcp=None))
    assert policy.spec.document()["table"] == {"size": {"maxEntries": 5}}
    assert policy.spec.tcp is None


def test_an_object_of_the_cluster_is_read_with_its_status() -> None:
    """`kubectl get -o yaml` of a policy is a policy; a status of another version does not matter."""
    document = _policy() | {"status": {"observedGeneration": 3, "ofAnotherVersion": {}, "conditions": []}}
    policy = policy_from(document)
    assert policy.status
    assert policy.status.observed_generation == 3


def test_node_objects() -> None:
    """A NodeConntrack is read with the metadata the API server adds; durations come as whole seconds."""
    node = node_from(_node(status={"phase": "Current", "ofAnotherVersion": 1}))
    assert node.status
    assert (node.spec.mode, node.status.phase, node.metadata.resource_version) == ("Apply", "Current", "7")


def test_a_node_object_with_an_unknown_setting_is_refused() -> None:
    """What a newer controller asks for and this agent does not know is never ignored in silence."""
    document = _node()
    document["spec"]["settings"] = {"table": {"size": {"maxEntries": 5}}, "ofANewerVersion": True}
    with pytest.raises(Invalid, match=r'unknown field "spec.settings.ofANewerVersion"'):
        node_from(document)
