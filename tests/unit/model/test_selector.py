"""Selectors: an empty one is refused, whatever it looks like."""

import pytest
from pydantic import ValidationError

from conntrack_operator.model.selector import LabelSelector


@pytest.mark.parametrize(
    "written",
    [
        {"matchLabels": {"role": "web"}},
        {"matchExpressions": [{"key": "role", "operator": "Exists"}]},
        {"matchExpressions": [{"key": "role", "operator": "NotIn", "values": ["db"]}]},
        {"matchLabels": {"role": ""}, "matchExpressions": [{"key": "zone", "operator": "In", "values": ["a", "b"]}]},
    ],
)
def test_a_selector_that_says_something_is_taken(written: object) -> None:
    """Labels, expressions and both; an empty value is a value."""
    assert LabelSelector.model_validate(written).document() == written


@pytest.mark.parametrize(
    "written", [{}, {"matchLabels": {}}, {"matchExpressions": []}, {"matchLabels": {}, "matchExpressions": []}]
)
def test_a_selector_that_matches_everything_is_refused(written: object) -> None:
    """No way of writing nothing means every node."""
    with pytest.raises(ValidationError, match="must not be empty"):
        LabelSelector.model_validate(written)


@pytest.mark.parametrize(
    "written",
    [
        {"key": "role", "operator": "In"},
        {"key": "role", "operator": "NotIn", "values": []},
        {"key": "role", "operator": "Exists", "values": ["web"]},
        {"key": "role", "operator": "DoesNotExist", "values": ["web"]},
    ],
)
def test_values_go_with_in_and_not_in_alone(written: object) -> None:
    """An operator with the wrong number of values would match what nobody meant."""
    with pytest.raises(ValidationError, match="need values"):
        LabelSelector.model_validate({"matchExpressions": [written]})
