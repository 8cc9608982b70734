"""The ground every API object stands on: camelCase outside, snake_case inside, nothing unknown let in."""

from typing import Any, ClassVar, Final, Self

from pydantic import BaseModel, ConfigDict, GetJsonSchemaHandler, model_validator
from pydantic.alias_generators import to_camel
from pydantic_core import CoreSchema

from .rules import Rule

GROUP = "conntrack-operator.io"
VERSION = "v1alpha1"
API_VERSION: Final = "conntrack-operator.io/v1alpha1"


class Model(BaseModel):
    """A frozen object of the API. Unknown fields are refused; `document()` is what goes on the wire."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        validate_by_name=True,
        validate_by_alias=True,
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        defer_build=True,  # a process builds the kinds it reads, not all of them: 1.2 MB of the agent
    )

    api_rules: ClassVar[tuple[Rule, ...]] = ()
    """Rules between the fields of this object; they go into the CRD and are checked here too."""

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """Add the rules to the JSON schema, where `model.schema` finds them; nothing else needs them at run time."""
        schema = handler.resolve_ref_schema(handler(core_schema))
        if cls.api_rules:
            schema["x-kubernetes-validations"] = [rule.as_validation() for rule in cls.api_rules]
        return schema

    @model_validator(mode="after")
    def _keep_rules(self) -> Self:
        for rule in type(self).api_rules:
            rule.check(self)
        return self

    def document(self) -> dict[str, Any]:
        """Return the object as JSON-ready camelCase data without absent fields."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


class Reported(Model):
    """Part of a status, read leniently: an older or newer version of this program may have written it."""

    model_config = ConfigDict(extra="ignore")
