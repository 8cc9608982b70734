"""The CRDs' shape: what the API server would refuse or a reader would miss is found without one."""

from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from conntrack_operator.cli.crds import HEADER, crd_files, write_crds
from conntrack_operator.model.catalogue import CATALOGUE
from conntrack_operator.model.node import NodeConntrack
from conntrack_operator.model.policy import ConntrackPolicy
from conntrack_operator.model.schema import crds
from conntrack_operator.model.status import PolicyStatus

DOCUMENTS = crds()
ALLOWED = {
    "type", "format", "enum", "pattern", "minimum", "maximum", "minLength", "maxLength", "minItems", "maxItems",
    "maxProperties", "anyOf", "properties", "required", "additionalProperties", "items", "description", "default",
    "x-kubernetes-int-or-string", "x-kubernetes-list-type", "x-kubernetes-list-map-keys", "x-kubernetes-validations",
}  # fmt: skip


def _schema(name: str) -> dict[str, Any]:
    return dict(DOCUMENTS[name]["spec"]["versions"][0]["schema"]["openAPIV3Schema"])


def _nodes(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    yield path, schema
    for name, child in schema.get("properties", {}).items():
        yield from _nodes(child, f"{path}.{name}")
    for key, mark in (("items", "[]"), ("additionalProperties", "{}")):
        if key in schema:
            yield from _nodes(schema[key], path + mark)


ALL = [(name, path, node) for name in DOCUMENTS for path, node in _nodes(_schema(name))]
POLICY, NODE = sorted(DOCUMENTS)


def test_both_kinds_are_there() -> None:
    """One file for each kind, named like the CRD."""
    kinds = {name: document["spec"]["names"]["kind"] for name, document in DOCUMENTS.items()}
    assert kinds == {
        "conntrack-operator.io_conntrackpolicies.yaml": "ConntrackPolicy",
        "conntrack-operator.io_nodeconntracks.yaml": "NodeConntrack",
    }
    assert {document["spec"]["scope"] for document in DOCUMENTS.values()} == {"Cluster"}
    assert [DOCUMENTS[name]["spec"]["names"]["shortNames"] for name in (POLICY, NODE)] == [["ctp"], ["nct"]]


def test_nothing_that_is_not_structural() -> None:
    """No reference, title, constant or null branch is left, and no additionalProperties beside properties."""
    assert {key for _, _, node in ALL for key in node} <= ALLOWED
    assert [path for _, path, node in ALL if "properties" in node and "additionalProperties" in node] == []
    assert [path for _, path, node in ALL if "type" not in node and "x-kubernetes-int-or-string" not in node] == []


def test_every_property_is_described_in_whole_sentences() -> None:
    """`kubectl explain` has something to say everywhere, without line breaks or words of Python inside."""
    bare = [
        path for _, path, node in ALL if not node.get("description") and path[-1:].isalpha() and path != ".metadata"
    ]
    assert bare == []
    for _, path, node in ALL:
        words = node.get("description", "").replace("\n\n", " ")
        assert "\n" not in words, path
        assert "  " not in words, path
        assert not {"None", "Optional", "pydantic", "str"} & set(words.split()), path


def test_defaults_stand_in_the_status_alone() -> None:
    """A default nobody wrote would win a merge; a new policy's status says Unknown, and the model reads it."""
    assert [(name, path) for name, path, node in ALL if "default" in node] == [(POLICY, ".status")]
    status = PolicyStatus.model_validate(_schema(POLICY)["properties"]["status"]["default"])
    assert (status.observed_generation, status.conditions[0].type, status.conditions[0].status) == (
        -1,
        "Ready",
        "Unknown",
    )


def test_required_fields() -> None:
    """Mode and selector must be written; nothing that is merged must."""
    spec = _schema(POLICY)["properties"]["spec"]
    assert spec["required"] == ["mode", "nodeSelector"]
    assert _schema(POLICY)["required"] == ["spec"]


def test_lists_maps_and_strings_of_a_policy_are_bounded() -> None:
    """The API server estimates the cost of rules by these bounds; without them it takes no rule."""
    for path, node in _nodes(_schema(POLICY)["properties"]["spec"], "spec"):
        if node.get("type") == "array":
            assert "maxItems" in node, path
        if "additionalProperties" in node:
            assert "maxProperties" in node, path
        if (node.get("type") == "string" and "enum" not in node) or "x-kubernetes-int-or-string" in node:
            assert "maxLength" in node, path


def test_rules_are_judged_once() -> None:
    """CEL rules stand in the policy; what the controller writes from judged policies carries none."""
    with_rules = {name for name, _, node in ALL if "x-kubernetes-validations" in node}
    assert with_rules == {POLICY}


def test_conditions_merge_by_type() -> None:
    """Two writers of conditions do not lose each other's."""
    found = [path for _, path, node in ALL if node.get("x-kubernetes-list-map-keys") == ["type"]]
    assert found == [".status.conditions", ".status.conditions"]


@pytest.mark.parametrize("entry", [entry for entry in CATALOGUE if entry.field], ids=lambda entry: entry.name)
def test_every_field_of_the_catalogue_exists(entry: Any) -> None:
    """Where the catalogue says a field sets a sysctl, the API has that field."""
    node = _schema(POLICY)["properties"]["spec"]
    for part in entry.field.split("."):
        node = node["properties"][part]
    assert node["description"]


def test_every_timeout_of_the_api_is_in_the_catalogue() -> None:
    """No timeout can be written that no sysctl carries out."""
    timeouts = _schema(POLICY)["properties"]["spec"]["properties"]["timeouts"]
    written = {path for path, node in _nodes(timeouts, "timeouts") if "x-kubernetes-int-or-string" in node}
    assert written == {entry.field for entry in CATALOGUE if entry.field.startswith("timeouts.")}


def test_the_text_is_the_same_each_time_and_reads_back(tmp_path: Any) -> None:
    """Generated files are compared in CI: same text, header first, no YAML aliases, the same document again."""
    assert crd_files() == crd_files()
    for path in write_crds(tmp_path / "new"):
        text = path.read_text()
        assert text.startswith(HEADER)
        assert "&id" not in text
        assert yaml.safe_load(text) == DOCUMENTS[path.name]


def test_kinds_say_what_they_are() -> None:
    """The description of the kind is the first thing `kubectl explain` prints."""
    for name, model in ((POLICY, ConntrackPolicy), (NODE, NodeConntrack)):
        assert _schema(name)["description"] == (model.__doc__ or "").strip()
