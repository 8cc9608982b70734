"""metav1.LabelSelector, never empty here: an empty one matches everything, and a typo must never mean that."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from .base import Model
from .rules import Rule

LabelText = Annotated[str, Field(max_length=317)]


class LabelRequirement(Model):
    """One condition on a label."""

    key: Annotated[str, Field(min_length=1, max_length=317)]
    """The label."""
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"]
    """In, NotIn (with values), Exists or DoesNotExist (without)."""
    values: Annotated[list[LabelText], Field(max_length=64)] | None = None
    """Values for In and NotIn."""

    api_rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="(self.operator in ['In', 'NotIn']) == (has(self.values) && self.values.size() > 0)",
            holds=lambda item: (item.operator in ("In", "NotIn")) == bool(item.values),
            sentence="In and NotIn need values; Exists and DoesNotExist must have none",
            field=".values",
        ),
    )


class LabelSelector(Model):
    """Labels an object must have: all of matchLabels, and every one of matchExpressions."""

    match_labels: Annotated[dict[str, LabelText], Field(max_length=64)] | None = None
    """Labels with exactly these values."""
    match_expressions: Annotated[list[LabelRequirement], Field(max_length=64)] | None = None
    """Further conditions, all of which must hold."""

    api_rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel=(
                "(has(self.matchLabels) && self.matchLabels.size() > 0) || "
                "(has(self.matchExpressions) && self.matchExpressions.size() > 0)"
            ),
            holds=lambda selector: bool(selector.match_labels or selector.match_expressions),
            sentence="must not be empty; write at least one label; every node has kubernetes.io/os: linux",
        ),
    )
