"""The agents' pod settings as a file: what is wrong with it is said in one sentence that names the field."""

from pathlib import Path

import pytest

from conntrack_operator.cli.reading import agent_config_in
from conntrack_operator.controller.daemonset import agent_documents
from conntrack_operator.errors import Invalid
from conntrack_operator.model.agent_config import IDENTITY, AgentConfig

HEADER = "apiVersion: conntrack-operator.io/v1alpha1\nkind: AgentConfig\n"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("topTalker: 3", 'unknown field "topTalker"; did you mean topTalkers?'),
        ("topTalkers: 21", "topTalkers: should be less than or equal to 20"),
        ("metricsPort: 1023", "metricsPort: should be greater than or equal to 1024"),
        ("privileged: 'yes'", 'privileged: must be of type boolean: "string"'),
        (
            "updateStrategy: {type: Recreate}",
            'updateStrategy.type: Unsupported value: "Recreate": supported values: "RollingUpdate", "OnDelete"',
        ),
        (
            "updateStrategy: {maxUnavailable: '0%'}",
            "updateStrategy.maxUnavailable: 0 would replace no agent ever; write at least 1",
        ),
        (
            "updateStrategy: {maxUnavailable: 0.5}",
            'updateStrategy.maxUnavailable: must be of type integer,string: "number"',
        ),
        (
            "labels: {app.kubernetes.io/name: x}",
            f"labels: {' and '.join(IDENTITY)} are how the DaemonSet knows its pods; leave them out",
        ),
        ("imagePullSecrets: [{}]", "imagePullSecrets[0].name: Required value"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, sentence: str) -> None:
    """The file, the field, and the remedy."""
    path = tmp_path / "agent.yaml"
    path.write_text(HEADER + text)
    with pytest.raises(Invalid) as caught:
        agent_config_in(str(path))
    assert str(caught.value) == f"{path}: {sentence}"


def test_another_kind_is_refused(tmp_path: Path) -> None:
    """A policy is no AgentConfig, nor are two."""
    path = tmp_path / "agent.yaml"
    for text in ("", HEADER + "---\n" + HEADER, HEADER.replace("AgentConfig", "ConntrackPolicy")):
        path.write_text(text)
        with pytest.raises(Invalid, match="AgentConfig"):
            agent_config_in(str(path))


def test_nobody_can_take_the_agents_identity_or_their_linux() -> None:
    """Labels and node selectors are added to ours and never replace them."""
    config = AgentConfig(labels={"team": "net", "app.kubernetes.io/managed-by": "x"}, node_selector={"a": "b"})
    template = agent_documents("ns", "image", config)[-1]["spec"]["template"]
    assert template["metadata"]["labels"]["app.kubernetes.io/managed-by"] == "conntrack-operator"
    assert template["metadata"]["labels"]["team"] == "net"
    assert template["spec"]["nodeSelector"] == {"a": "b", "kubernetes.io/os": "linux"}


def test_privilege_is_asked_for_in_one_place() -> None:
    """Without the switches it is NET_ADMIN alone; privileged is everything, and the API server takes it so only."""
    container = agent_documents("ns", "image")[-1]["spec"]["template"]["spec"]["containers"][0]
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"], "add": ["NET_ADMIN"]}
    assert not container["securityContext"]["allowPrivilegeEscalation"]
    config = AgentConfig(privileged=True)
    rights = agent_documents("ns", "image", config)[-1]["spec"]["template"]["spec"]["containers"][0]["securityContext"]
    assert rights["privileged"]
    assert rights["allowPrivilegeEscalation"]
    assert "capabilities" not in rights


def test_on_delete_names_no_number() -> None:
    """The API server refuses rollingUpdate beside it."""
    config = AgentConfig.model_validate({"updateStrategy": {"type": "OnDelete"}})
    assert agent_documents("ns", "image", config)[-1]["spec"]["updateStrategy"] == {"type": "OnDelete"}
