"""The policies that people are told to copy, applied to a real kernel: nothing refused, no warning, nothing left."""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.lab.command import conntrack_operator
from tests.lab.examples import CLOSED, EXAMPLES, example
from tests.lab.host import SHARED
from tests.lab.namespaces import Lab, Namespace


def _for_a_namespace(path: Path) -> dict[str, Any]:
    """Return the example as far as a namespace can have it: sizes are the whole machine's, pods a cluster's."""
    document = example(path)
    document["spec"].pop("table", None)
    return document


def _node(lab: Lab, document: dict[str, Any]) -> Namespace:
    node = lab.namespace()
    if document["metadata"]["name"] == "firewall":
        node.nft(CLOSED)
    return node


def _ruleset_and_sysctls(node: Namespace) -> tuple[str, list[str]]:
    """Return all rules, and every conntrack sysctl that is this namespace's own."""
    lines = node.run("sysctl", "net.netfilter").stdout.splitlines()
    own = [line for line in lines if line.split()[0] not in SHARED]
    assert len(own) > 30
    return node.run("nft", "list", "ruleset").stdout, own


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_each_example(netns: Lab, tmp_path: Path, path: Path) -> None:
    """Applied as it stands, right already when asked again, and gone without trace by restore."""
    document, state = _for_a_namespace(path), ("--state-dir", tmp_path / "state")
    node = _node(netns, document)
    before = _ruleset_and_sysctls(node)
    document["spec"]["mode"] = "Enforce"
    text = json.dumps(document)
    done = conntrack_operator("apply", "-f", "-", *state, namespace=node, text=text)
    assert done.returncode == 0, done
    assert "refused" not in done.stdout
    assert "warning" not in done.stdout
    again = conntrack_operator("plan", "-f", "-", "-o", "json", *state, namespace=node, text=text)
    assert json.loads(again.stdout) == {"changes": [], "refused": []}
    assert conntrack_operator("restore", *state, namespace=node).returncode == 0
    assert _ruleset_and_sysctls(node) == before


def test_the_firewall_example_needs_what_it_says(netns: Lab, tmp_path: Path) -> None:
    """Without acceptUntracked: Both that firewall keeps its rule from being installed."""
    path = next(path for path in EXAMPLES if path.stem == "firewall")
    document = _for_a_namespace(path)
    node = _node(netns, document)
    del document["spec"]["notrack"]["acceptUntracked"]
    options = ("-f", "-", "-o", "json", "--state-dir", tmp_path / "state")
    plan = json.loads(conntrack_operator("plan", *options, namespace=node, text=json.dumps(document)).stdout)
    assert [(each["setting"], each["reason"]) for each in plan["refused"]] == [("notrack/https", "StatefulAccept")]
    assert plan["changes"] == []
