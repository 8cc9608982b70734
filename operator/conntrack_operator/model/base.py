"""The ground every API object stands on: camelCase outside, snake_case inside, nothing unknown let in."""

from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic.alias_generators import to_camel

from .rules import Rule

GROUP = "conntrack-operator.io"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"


class Model(BaseModel):
    """A frozen object of the API. Unknown fields are refused; `document()` is what goes on the wire."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        validate_by_name=True,
        validate_by_alias=True,
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
    )

    api_rules: ClassVar[tuple[Rule, ...]] = ()
    """Rules between the fields of this object; they go into the CRD and are checked here too."""

    @model_validator(mode="after")
    def _keep_rules(self) -> Self:
        for rule in type(self).api_rules:
            rule.check(self)
        return self

    def document(self) -> dict[str, Any]:
        """Return the object as JSON-ready camelCase data without absent fields."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)
