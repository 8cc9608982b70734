"""The CustomResourceDefinitions, derived from the models, so that the API has one source.

pydantic's JSON schema is not what Kubernetes calls structural: references, titles, null branches, constants and
`additionalProperties` beside properties are refused by the API server. This module rewrites them and adds what only a
CRD has: CEL rules, printer columns, the status subresource. Merged fields get no defaults on the way: a default
that nobody wrote would win a merge.
"""

import inspect
from typing import Any

from .base import GROUP, VERSION, Model
from .node import NodeConntrack
from .policy import ConntrackPolicy

Schema = dict[str, Any]

UNJUDGED_STATUS: Schema = {
    "observedGeneration": -1,
    "conditions": [
        {
            "type": "Ready",
            "status": "Unknown",
            "reason": "Unjudged",
            "message": "the controller has not looked at this policy yet; is it running?",
            "lastTransitionTime": "1970-01-01T00:00:00Z",
        }
    ],
}
"""The status of a policy nobody has read yet, so that no tool takes it for a good one."""

_KEPT = (
    "type", "format", "enum", "pattern", "minimum", "maximum", "minLength", "maxLength", "minItems", "maxItems",
    "minProperties", "maxProperties", "anyOf", "x-kubernetes-int-or-string", "x-kubernetes-list-type",
    "x-kubernetes-list-map-keys",
)  # fmt: skip
"""Keywords that mean the same in a structural schema; rules, properties, items and words have code of their own."""


_WHY: Schema = {
    "name": "WHY",
    "type": "string",
    "jsonPath": '.status.conditions[?(@.type=="Ready")].message',
    "description": "What READY or PHASE means, as a sentence.",
    "priority": 1,  # `kubectl get -o wide` alone shows it
}


def crds() -> dict[str, Schema]:
    """Return every CRD as file name and document, ready to be written below `crds/`."""
    documents = (_policy_crd(), _node_crd())
    return {f"{GROUP}_{document['spec']['names']['plural']}.yaml": document for document in documents}


def _policy_crd() -> Schema:
    return _crd(
        ConntrackPolicy,
        plural="conntrackpolicies",
        short="ctp",
        rules=True,
        status_default=UNJUDGED_STATUS,
        columns=(
            ("MODE", "string", ".spec.mode", "Enforce or Observe."),
            ("NODES", "integer", ".status.nodes.matched", "Nodes that match the selector."),
            ("CURRENT", "integer", ".status.nodes.current", "Nodes that are as the policy says."),
            ("PEAK%", "integer", ".status.usage.peakPercent", "Use of the fullest table."),
            ("HOTTEST", "string", ".status.usage.peakNode", "Node with the fullest table."),
            ("DROPS/S", "integer", ".status.usage.dropsPerSecond", "New connections dropped for want of room."),
            ("READY", "string", '.status.conditions[?(@.type=="Ready")].status', "Whether every node is current."),
            ("AGE", "date", ".metadata.creationTimestamp", "Time since the policy was made."),
        ),
    )


def _node_crd() -> Schema:
    # The controller writes these from policies the API server has judged already: repeating the CEL rules would
    # spend a second budget to say the same. Types and bounds stay.
    return _crd(
        NodeConntrack,
        plural="nodeconntracks",
        short="nct",
        rules=False,
        status_default=None,
        columns=(
            # Without it, a node that is asked for nothing yet would look as current as one that has it all.
            ("MODE", "string", ".spec.mode", "What is asked: Hold (nothing, or not yet), Apply or Restore."),
            ("PHASE", "string", ".status.phase", "Where the node stands with what is asked."),
            ("ENTRIES", "integer", ".status.usage.entries", "Entries in the table."),
            ("MAX", "integer", ".status.usage.maxEntries", "Entries it may hold."),
            ("USED%", "integer", ".status.usage.percent", "Use of the table."),
            ("DROPS/S", "integer", ".status.usage.dropsPerSecond", "New connections dropped for want of room."),
            ("TOFULL", "integer", ".status.usage.secondsToFull", "Seconds until the table is full at this rate."),
            ("AGE", "date", ".metadata.creationTimestamp", "Time since the object was made."),
        ),
    )


def _crd(  # noqa: PLR0913 - what differs between the kinds, by name
    model: type[Model],
    *,
    plural: str,
    short: str,
    rules: bool,
    status_default: Schema | None,
    columns: tuple[tuple[str, str, str, str], ...],
) -> Schema:
    schema = _object_schema(model, rules=rules)
    if status_default is not None:
        schema["properties"]["status"]["default"] = status_default
    kind = model.__name__
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "names": {
                "kind": kind,
                "listKind": f"{kind}List",
                "plural": plural,
                "singular": kind.lower(),
                "shortNames": [short],
                "categories": ["conntrack"],
            },
            "scope": "Cluster",
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": [
                        {"name": name, "type": type_, "jsonPath": path, "description": meaning}
                        for name, type_, path, meaning in columns
                    ]
                    + [_WHY],
                    "schema": {"openAPIV3Schema": schema},
                }
            ],
        },
    }


def _object_schema(model: type[Model], *, rules: bool) -> Schema:
    raw = model.model_json_schema(by_alias=True, mode="validation")
    definitions = raw.pop("$defs", {})
    properties = raw["properties"]
    # The API server owns these three: it knows their schema and refuses one of ours.
    properties["apiVersion"] = {"type": "string", "description": f"{GROUP}/{VERSION}."}
    properties["kind"] = {"type": "string", "description": f"{model.__name__}."}
    properties["metadata"] = {"type": "object"}
    raw["required"] = ["spec"]
    return _structural(raw, definitions, rules=rules)


def _structural(raw: Schema, definitions: dict[str, Schema], *, rules: bool) -> Schema:
    """Return `raw` with references put in place and only what a structural schema may hold."""
    raw = _resolved(raw, definitions)
    schema: Schema = {key: raw[key] for key in _KEPT if key in raw}
    if "description" in raw:
        schema["description"] = _prose(raw["description"])
    if "exclusiveMinimum" in raw:
        schema |= {"minimum": raw["exclusiveMinimum"], "exclusiveMinimum": True}
    if "exclusiveMaximum" in raw:
        schema |= {"maximum": raw["exclusiveMaximum"], "exclusiveMaximum": True}
    if "const" in raw:
        schema["enum"] = [raw["const"]]
    if "properties" in raw:
        schema["properties"] = {
            name: _structural(value, definitions, rules=rules) for name, value in raw["properties"].items()
        }
        if raw.get("required"):
            schema["required"] = raw["required"]
    elif isinstance(raw.get("additionalProperties"), dict):
        schema["additionalProperties"] = _structural(raw["additionalProperties"], definitions, rules=rules)
    if "items" in raw:
        schema["items"] = _structural(raw["items"], definitions, rules=rules)
    if rules and "x-kubernetes-validations" in raw:
        schema["x-kubernetes-validations"] = raw["x-kubernetes-validations"]
    return schema


def _resolved(raw: Schema, definitions: dict[str, Schema]) -> Schema:
    """Follow a reference and drop the null branch of an optional value; words beside them win over those behind."""
    while True:
        branches = [branch for branch in raw.get("anyOf", ()) if branch != {"type": "null"}]
        if "$ref" in raw:
            behind = definitions[raw["$ref"].rpartition("/")[2]]
            raw = behind | {key: value for key, value in raw.items() if key != "$ref"}
        elif len(branches) == 1:
            beside = {key: value for key, value in raw.items() if key != "anyOf"}
            # A value type says how it is written, the field what it is for: people need both.
            words = [words for words in (raw.get("description"), branches[0].get("description")) if words]
            raw = branches[0] | beside | ({"description": " ".join(words)} if words else {})
        else:
            return raw


def _prose(text: str) -> str:
    """Join the lines of a docstring; an empty line still parts paragraphs."""
    paragraphs = inspect.cleandoc(text).split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
