"""The demo's policy is an example people can find, word for word."""

from pathlib import Path

import yaml

from conntrack_operator.cli.demo import policy
from conntrack_operator.model.reading import policy_from

ROOT = Path(__file__).parents[4]


def test_the_embedded_policy_is_the_example() -> None:
    """A wheel has no manifests/, so the text is kept twice, and must be the same."""
    assert (ROOT / policy.EXAMPLE).read_text() == policy.TEXT


def test_the_harmful_policies_differ_in_force_alone() -> None:
    """The one that is refused is the one that is forced."""
    refused, forced = (policy_from(yaml.safe_load(text)).spec.document() for text in (policy.HARMFUL, policy.FORCED))
    assert forced["notrack"].pop("onConflict") == "Force"
    assert refused == forced
