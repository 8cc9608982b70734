"""Reads what people write: policies in YAML or JSON, and facts. Every mistake is one sentence that names the file.

YAML is read as the API server reads it, as far as that is sane: types of JSON alone, no key twice, no dates, no
base-60 numbers, and nothing that expands without end.
"""

import json
import re
import sys
from collections.abc import Hashable, Iterator
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import ValidationError

from conntrack_operator.decide.hashing import hash_of
from conntrack_operator.decide.holding import attempt_of
from conntrack_operator.decide.merge import Merge, merged
from conntrack_operator.errors import Invalid, Problem
from conntrack_operator.model.agent_config import AgentConfig
from conntrack_operator.model.catalogue import PREFIX
from conntrack_operator.model.facts import Facts
from conntrack_operator.model.node import NodeSpec
from conntrack_operator.model.policy import ConntrackPolicy
from conntrack_operator.model.reading import object_from, policy_from

LARGEST_BYTES = 1 << 20
"""Of a file; an object in a cluster cannot be larger either."""
MOST_VALUES = 100_000
"""Of a file, with every alias written out: a few short lines can stand for billions."""

_INTEGER = re.compile(r"[-+]?(?:0b[01_]+|0o?[0-7_]+|0|[1-9][0-9_]*|0x[0-9a-fA-F_]+)$")
_FLOAT = re.compile(r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?$")
_NUMBERS = {"tag:yaml.org,2002:int": _INTEGER, "tag:yaml.org,2002:float": _FLOAT}


def _resolvers() -> dict[str, list[tuple[str, re.Pattern[str]]]]:
    """Return PyYAML's rules for plain words, without dates and without 1:30 meaning 90."""
    return {
        first: [(tag, _NUMBERS.get(tag, words)) for tag, words in rules if tag != "tag:yaml.org,2002:timestamp"]
        for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


class _Loader(yaml.SafeLoader):
    """A safe loader that refuses a key that stands twice: the second would win, and nobody would know."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:  # noqa: FBT001, FBT002 - the signature is PyYAML's
        seen = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag == "tag:yaml.org,2002:merge":
                continue
            if key_node.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f'the key "{key_node.value}" stands twice; remove one', key_node.start_mark
                )
            seen.add(key_node.value)
        return super().construct_mapping(node, deep=deep)


_Loader.yaml_implicit_resolvers = _resolvers()


def policies_in(file: str) -> list[ConntrackPolicy]:
    """Return the policies in `file` (- is standard input), at least one. Raises errors.Invalid with every problem."""
    name = "standard input" if file == "-" else file
    documents = _documents(_text(file, name), name)
    if not documents:
        raise Invalid(Problem(name, "it is empty; write at least one ConntrackPolicy into it"))
    policies: list[ConntrackPolicy] = []
    problems: list[Problem] = []
    for number, document in enumerate(documents, start=1):
        where = name if len(documents) == 1 else f"{name}, document {number}"
        try:
            policies.append(policy_from(document))
        except Invalid as error:
            problems.extend(Problem(where, str(problem)) for problem in error.problems)
    names = [policy.metadata.name for policy in policies]
    problems.extend(
        Problem(name, f"two policies are called {twice}; rename one")
        for twice in sorted({each for each in names if names.count(each) > 1})
    )
    if problems:
        raise Invalid(*problems)
    return policies


def merge_in(file: str) -> Merge:
    """Return what the policies in `file` come to together on this machine. Raises as `policies_in` does."""
    return merged(policies_in(file))


def node_spec_in(path: Path) -> NodeSpec:
    """Return what the policies in `path` ask of this machine, as a controller would write it. Raises as `policies_in`.

    Those that observe are in the preview alone; where all of them do, what was there before is put back.
    """
    policies = policies_in(str(path))
    enforcing = [policy for policy in policies if policy.spec.mode == "Enforce"]
    enforced = merged(enforcing)
    mode: Literal["Apply", "Restore"] = "Apply" if enforcing else "Restore"
    return NodeSpec(
        revision=hash_of({"mode": mode, "settings": enforced.settings.document()}),
        attempt=attempt_of(policies),
        mode=mode,
        node_uid="",
        policies=list(enforced.uses),
        settings=enforced.settings,
        preview=merged(policies).settings if len(enforcing) < len(policies) else None,
    )


def agent_config_in(file: str) -> AgentConfig:
    """Return how the agents are to be made, from the AgentConfig in `file`. Raises as `policies_in` does."""
    documents = _documents(_text(file, file, "an AgentConfig"), file)
    if len(documents) != 1:
        raise Invalid(Problem(file, f"it holds {len(documents)} documents; write one AgentConfig into it"))
    try:
        return object_from(documents[0], AgentConfig)
    except Invalid as error:
        raise Invalid(*(Problem(file, str(problem)) for problem in error.problems)) from None


def facts_in(file: str) -> Facts:
    """Return the facts of a machine in a JSON file, keys in camelCase. Raises errors.Invalid with every problem.

    Sysctls may have their short names, `nf_conntrack_max`.
    """
    name = "standard input" if file == "-" else file
    try:
        document = json.loads(_text(file, name, "the facts of a machine"))
        if isinstance(document, dict) and isinstance(document.get("sysctls"), dict):
            document["sysctls"] = {
                key if "." in key else PREFIX + key: value for key, value in document["sysctls"].items()
            }
        return Facts.model_validate(document)
    except ValidationError as error:
        raise Invalid(
            *(
                Problem(": ".join(filter(None, (name, ".".join(map(str, detail["loc"]))))), detail["msg"])
                for detail in error.errors()
            )
        ) from error
    except (ValueError, RecursionError) as error:
        raise Invalid(Problem(name, f"it is no JSON ({error}); see --help for what it holds")) from error


def _text(file: str, name: str, what: str = "a policy") -> str:
    try:
        if file == "-":
            data = sys.stdin.buffer.read(LARGEST_BYTES + 1)
        else:
            with Path(file).open("rb") as stream:
                data = stream.read(LARGEST_BYTES + 1)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise Invalid(Problem(name, f"it cannot be read ({why}); name a file with {what} in it")) from error
    if len(data) > LARGEST_BYTES:
        raise Invalid(Problem(name, f"it is larger than {LARGEST_BYTES} bytes; name a file with {what} in it"))
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Invalid(Problem(name, f"it is no text in UTF-8; name a file with {what} in it")) from error


def _documents(text: str, name: str) -> list[Any]:
    """Return the documents of a YAML stream, those of a List each by itself, without the empty ones."""
    try:
        loaded = [document for document in yaml.load_all(text, Loader=_Loader) if document is not None]
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise Invalid(Problem(name, f"{where}{_one_line(error.problem or 'this is no YAML')}")) from error
    except yaml.YAMLError as error:
        raise Invalid(Problem(name, f"it is no YAML: {_one_line(str(error))}")) from error
    except (RecursionError, ValueError) as error:
        raise Invalid(Problem(name, "it is no YAML that makes sense; write a ConntrackPolicy")) from error
    if _is_endless(loaded):
        raise Invalid(Problem(name, f"it expands to more than {MOST_VALUES} values; write it without aliases"))
    return [item for document in loaded for item in _items(document)]


def _items(document: Any) -> Iterator[Any]:
    if isinstance(document, dict) and document.get("kind") == "List" and isinstance(document.get("items"), list):
        yield from document["items"]
    else:
        yield document


def _is_endless(loaded: list[Any]) -> bool:
    waiting, values = list(loaded), 0
    while waiting:
        value = waiting.pop()
        values += 1
        if values > MOST_VALUES:
            return True
        if isinstance(value, dict):
            waiting.extend(value.values())
        elif isinstance(value, list):
            waiting.extend(value)
    return False


def _one_line(text: str) -> str:
    return " ".join(text.split())
