"""The demo's policy is an example people can find, word for word."""

from pathlib import Path

from conntrack_operator.cli.demo import policy

ROOT = Path(__file__).parents[4]


def test_the_embedded_policy_is_the_example() -> None:
    """A wheel has no manifests/, so the text is kept twice, and must be the same."""
    assert (ROOT / policy.EXAMPLE).read_text() == policy.TEXT
