"""Selectors: which nodes a policy means."""

import pytest

from conntrack_operator.decide.targeting import policies_for, requirement_holds, selector_text, selects
from conntrack_operator.model.policy import ConntrackPolicy
from conntrack_operator.model.selector import LabelRequirement, LabelSelector

LABELS = {"role": "ingress", "zone": "", "kubernetes.io/os": "linux"}


@pytest.mark.parametrize(
    ("requirement", "holds"),
    [
        ({"key": "role", "operator": "In", "values": ["ingress", "edge"]}, True),
        ({"key": "role", "operator": "In", "values": ["edge"]}, False),
        ({"key": "absent", "operator": "In", "values": ["x"]}, False),
        ({"key": "absent", "operator": "In", "values": [""]}, False),
        ({"key": "zone", "operator": "In", "values": [""]}, True),
        ({"key": "role", "operator": "NotIn", "values": ["edge"]}, True),
        ({"key": "role", "operator": "NotIn", "values": ["ingress", "edge"]}, False),
        ({"key": "absent", "operator": "NotIn", "values": ["x"]}, True),
        ({"key": "absent", "operator": "NotIn", "values": [""]}, True),
        ({"key": "zone", "operator": "Exists"}, True),
        ({"key": "absent", "operator": "Exists"}, False),
        ({"key": "absent", "operator": "DoesNotExist"}, True),
        ({"key": "zone", "operator": "DoesNotExist"}, False),
    ],
)
def test_operators(requirement: dict[str, object], holds: bool) -> None:
    """Every operator says what labels.Requirement.Matches of apimachinery says, absent and empty labels included."""
    assert requirement_holds(LabelRequirement.model_validate(requirement), LABELS) is holds


@pytest.mark.parametrize(
    ("selector", "labels", "holds"),
    [
        ({"matchLabels": {"role": "ingress"}}, LABELS, True),
        ({"matchLabels": {"role": "Ingress"}}, LABELS, False),
        ({"matchLabels": {"role": "ingress", "absent": ""}}, LABELS, False),
        ({"matchLabels": {"zone": ""}}, LABELS, True),
        (
            {"matchLabels": {"role": "ingress"}, "matchExpressions": [{"key": "zone", "operator": "Exists"}]},
            LABELS,
            True,
        ),
        (
            {"matchLabels": {"role": "ingress"}, "matchExpressions": [{"key": "gpu", "operator": "Exists"}]},
            LABELS,
            False,
        ),
        ({"matchExpressions": [{"key": "gpu", "operator": "DoesNotExist"}]}, {}, True),
    ],
)
def test_all_conditions_must_hold(selector: dict[str, object], labels: dict[str, str], holds: bool) -> None:
    """matchLabels and matchExpressions are joined by "and"."""
    assert selects(LabelSelector.model_validate(selector), labels) is holds


def test_an_empty_selector_selects_nothing() -> None:
    """A selector that got past every check without a condition must not mean every node."""
    assert not selects(LabelSelector.model_construct(match_labels={}, match_expressions=[]), LABELS)
    assert not selects(LabelSelector.model_construct(), {})


def test_a_policy_being_deleted_is_gone() -> None:
    """A policy that waits for its deletion asks for nothing any more."""
    spec = {"mode": "Enforce", "nodeSelector": {"matchLabels": {"role": "ingress"}}}
    stays = ConntrackPolicy.model_validate({"metadata": {"name": "stays"}, "spec": spec})
    goes = ConntrackPolicy.model_validate(
        {"metadata": {"name": "goes", "deletionTimestamp": "2026-01-01T00:00:00Z"}, "spec": spec}
    )
    assert policies_for(LABELS, [goes, stays]) == [stays]


def test_selector_text_is_what_kubectl_takes() -> None:
    """The text can be pasted after `kubectl get nodes -l`."""
    selector = LabelSelector.model_validate(
        {
            "matchLabels": {"b": "2", "a": "1"},
            "matchExpressions": [
                {"key": "c", "operator": "In", "values": ["x", "y"]},
                {"key": "d", "operator": "NotIn", "values": ["z"]},
                {"key": "e", "operator": "Exists"},
                {"key": "f", "operator": "DoesNotExist"},
            ],
        }
    )
    assert selector_text(selector) == "a=1,b=2,c in (x,y),d notin (z),e,!f"
