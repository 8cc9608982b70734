"""Documents become objects here, and what is wrong with a document becomes sentences.

The API server judges a policy that is applied; these models judge one that is read from a file. Both say the same:
paths as Kubernetes writes them, its own words for types, bounds and enumerations, and the words of our rules. What the
server forgives is forgiven too: a null is as good as absent, and 5.0 is 5.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from types import NoneType
from typing import Any, TypeVar, get_args

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from conntrack_operator.errors import Invalid, Problem

from .base import API_VERSION, Model
from .policy import ConntrackPolicy

Kind = TypeVar("Kind", bound=Model)

_TYPE_NAMES = {
    "int_type": "integer",
    "int_from_float": "integer",
    "int_parsing": "integer",
    "bool_type": "boolean",
    "string_type": "string",
    "list_type": "array",
    "dict_type": "object",
    "model_type": "object",
    "model_attributes_type": "object",
    "literal_error": "string",
    "int_or_string_type": "integer,string",
}
_DNS_NAME = (
    "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and"
    " end with an alphanumeric character (e.g. 'example.com', regex used for validation is"
    r" '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
)


def policy_from(document: Any) -> ConntrackPolicy:
    """Return the policy in `document` (plain data, as from JSON or YAML). Raises errors.Invalid with every problem."""
    return object_from(document, ConntrackPolicy)


def object_from(document: Any, kind: type[Kind]) -> Kind:
    """Return the object of `kind` in `document`. Raises errors.Invalid with every problem found, in its order."""
    _check_header(document, kind.__name__)
    try:
        return kind.model_validate(_forgiven(document))
    except ValidationError as error:
        details = error.errors(include_url=False)
        raise Invalid(*dict.fromkeys(_problem(detail, kind) for detail in details)) from None


def _check_header(document: Any, kind: str) -> None:
    if document is None:
        raise Invalid(Problem("", f"the document is empty; it must be {_article(kind)}"))
    if not isinstance(document, dict):
        raise Invalid(Problem("", f"the document is {_article(_json_type(document))}; it must be {_article(kind)}"))
    wanted = {"apiVersion": API_VERSION, "kind": kind}
    problems = [
        Problem(field, _unsupported(document[field], [value]) if document.get(field) is not None else "Required value")
        for field, value in wanted.items()
        if document.get(field) != value
    ]
    if problems:
        raise Invalid(*problems)


def _forgiven(value: Any) -> Any:
    """Return `value` as the API server would store it: nulls gone from mappings, whole floats as integers."""
    if isinstance(value, dict):
        return {_key(key): _forgiven(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_forgiven(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _key(key: Any) -> str:
    return str(key).lower() if isinstance(key, bool) else str(key)


def _problem(detail: ErrorDetails, kind: type[Model]) -> Problem:
    path = (_path(detail["loc"]) + str(detail.get("ctx", {}).get("field", ""))).removeprefix(".")
    if detail["type"] == "extra_forbidden":
        return Problem("", f'unknown field "{path}"{_remedy(detail["loc"], kind)}')
    return Problem(path, _sentence(detail, path))


_SENTENCES: dict[str, Callable[[Any, dict[str, Any]], str]] = {
    "rule": lambda _, context: str(context["sentence"]),
    "missing": lambda _, __: "Required value",
    "literal_error": lambda value, context: _unsupported(value, re.findall(r"'([^']*)'", str(context["expected"]))),
    "greater_than_equal": lambda _, context: f"should be greater than or equal to {context['ge']}",
    "less_than_equal": lambda _, context: f"should be less than or equal to {context['le']}",
    "string_pattern_mismatch": lambda _, context: f"should match '{context['pattern']}'",
    "string_too_long": lambda _, context: f"Too long: may not be more than {context['max_length']} bytes",
    "string_too_short": lambda _, context: f"should be at least {context['min_length']} chars long",
    "too_long": lambda value, context: f"Too many: {len(value)}: must have at most {context['max_length']} items",
    "too_short": lambda _, context: f"should have at least {context['min_length']} items",
}
"""The API server's words for pydantic's kinds of error, from the value and the error's context."""


def _sentence(detail: ErrorDetails, path: str) -> str:
    value, error = detail["input"], detail["type"]
    if error == "string_pattern_mismatch" and path == "metadata.name":
        return _DNS_NAME
    if error in _TYPE_NAMES and not (error == "literal_error" and isinstance(value, str)):
        return f'must be of type {_TYPE_NAMES[error]}: "{_json_type(value)}"'
    if error in _SENTENCES:
        return _SENTENCES[error](value, detail.get("ctx", {}))
    return detail["msg"]


def _path(loc: tuple[int | str, ...]) -> str:
    path = ""
    for part in loc:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else part
    return path


def _unsupported(value: Any, supported: Iterable[str]) -> str:
    listed = ", ".join(f'"{item}"' for item in supported)
    return f'Unsupported value: "{value}": supported values: {listed}'


def _json_type(value: Any) -> str:
    names = {NoneType: "null", bool: "boolean", int: "integer", float: "number", str: "string", list: "array"}
    return names.get(type(value), "object" if isinstance(value, dict) else type(value).__name__)


def _article(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiouA" else f"a {noun}"


def _remedy(loc: tuple[int | str, ...], kind: type[Model]) -> str:
    import difflib  # noqa: PLC0415 - for a person's typo alone; the agent does without

    known = _fields_at(loc[:-1], kind)
    if close := difflib.get_close_matches(str(loc[-1]), known, n=1):
        return f"; did you mean {close[0]}?"
    return f"; known here: {', '.join(known)}" if known else ""


def _fields_at(loc: tuple[int | str, ...], kind: type[Model]) -> list[str]:
    """List the fields of the model that stands at `loc` below `kind`."""
    model: type[Model] | None = kind
    for part in loc:
        if model is not None and isinstance(part, str):
            fields = {field.alias: field.annotation for field in model.model_fields.values()}
            model = next(_models_in(fields.get(part)), None)
    return [field.alias or name for name, field in model.model_fields.items()] if model else []


def _models_in(annotation: Any) -> Iterator[type[Model]]:
    if isinstance(annotation, type) and issubclass(annotation, Model):
        yield annotation
    for argument in get_args(annotation):
        yield from _models_in(argument)
