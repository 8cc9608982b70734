"""A rule of the API, written once for both judges: the API server (CEL) and these models (Python).

The two halves stand side by side so that a reader can compare them, and they share one sentence, so that
`kubectl apply` and `conntrack-operator plan -f` refuse with the same words. A corpus of good and bad
policies runs through both in the tests; that is what keeps the halves equal.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic_core import PydanticCustomError


@dataclass(frozen=True)
class Rule:
    """`holds(value)` is true for a good value; `cel` says the same to the API server.

    `sentence` is the remedy in words. Where it must name the offender, `sentence_cel` is a CEL expression
    (messageExpression) and `explain(value)` its Python twin; both must give the same text.
    `field` is the CEL fieldPath below the object the rule is on, for example `.size`.
    """

    cel: str
    holds: Callable[[Any], bool]
    sentence: str
    field: str = ""
    sentence_cel: str = ""
    explain: Callable[[Any], str] | None = None

    def as_validation(self) -> dict[str, str]:
        """Return the rule as one entry of `x-kubernetes-validations`."""
        entry = {"rule": self.cel, "message": self.sentence}
        if self.sentence_cel:
            entry["messageExpression"] = self.sentence_cel
        if self.field:
            entry["fieldPath"] = self.field
        return entry

    def check(self, value: Any) -> None:
        """Raise pydantic's error with the rule's own sentence when `value` breaks it."""
        if not self.holds(value):
            sentence = self.explain(value) if self.explain else self.sentence
            raise PydanticCustomError("rule", "{sentence}", {"sentence": sentence, "field": self.field})


def present(value: object, *names: str) -> int:
    """Return how many of these fields of `value` are written."""
    return sum(getattr(value, name) is not None for name in names)
