"""What the controller may not see, and which policies hear of it."""

from typing import Any

import pytest

from conntrack_operator.decide.blindness import blindness_of
from conntrack_operator.model.policy import Settings

OWN = {"name": "own", "ports": [80]}
FOLLOWING = {"name": "following", "pods": {"namespace": "a", "selector": {"matchLabels": {"app": "b"}}}}
NODES_ALONE = "rules are checked against the NAT seen on each node alone"
KEEP = "rules that follow pods keep the ports they had"


@pytest.mark.parametrize(
    ("rules", "refused", "words"),
    [
        pytest.param([], ["pods", "services"], "", id="no rules"),
        pytest.param([OWN, FOLLOWING], [], "", id="all can be seen"),
        pytest.param([OWN], ["pods"], "", id="no rule follows pods"),
        pytest.param([FOLLOWING], ["pods"], f"may not list pods: {KEEP};", id="pods"),
        pytest.param([OWN], ["services", "pods"], f"may not list services: {NODES_ALONE};", id="services"),
        pytest.param(
            [OWN, FOLLOWING],
            ["services", "pods"],
            f"may not list pods and services: {KEEP}, and {NODES_ALONE};",
            id="both",
        ),
    ],
)
def test_it_is_said_where_it_matters(rules: list[dict[str, Any]], refused: list[str], words: str) -> None:
    """A policy hears of what it needs, with the consequence, and of nothing else."""
    settings = Settings.model_validate({"notrack": {"rules": rules}} if rules else {})
    sentence = blindness_of(settings, dict.fromkeys(refused, "Forbidden"))
    assert words in sentence
    assert bool(sentence) == bool(words)
