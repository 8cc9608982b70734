"""The policies that people are told to copy, applied to a real kernel: nothing refused, no warning, nothing left."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.lab.command import conntrack_operator
from tests.lab.namespaces import Lab, Namespace

EXAMPLES = sorted((Path(__file__).parents[2] / "manifests" / "examples").glob("*.yaml"))
SHARED = tuple(f"net.netfilter.nf_conntrack_{name} " for name in ("buckets", "count", "expect_max", "max"))
"""The machine's, which other tests may write meanwhile, and the entries in use."""
CLOSED = """
table inet filter {
  chain input {
    type filter hook input priority filter; policy drop;
    ct state established,related accept
    tcp dport 22 accept
    tcp dport 443 ct state new accept
  }
}
"""
"""A firewall that lets port 443 in by its state."""


def _for_a_namespace(path: Path) -> dict[str, Any]:
    """Return the example as far as a namespace can have it: sizes are the whole machine's, pods a cluster's."""
    document: dict[str, Any] = yaml.safe_load(path.read_text())
    spec = document["spec"]
    spec.pop("table", None)
    for rule in spec.get("notrack", {}).get("rules", ()):
        if rule.pop("pods", None):
            rule["ports"] = [8080]
    return document


def _node(lab: Lab, document: dict[str, Any]) -> Namespace:
    node = lab.namespace()
    if document["metadata"]["name"] == "firewall":
        node.nft(CLOSED)
    return node


def _ruleset_and_sysctls(node: Namespace) -> tuple[str, list[str]]:
    """Return all rules, and every conntrack sysctl that is this namespace's own."""
    lines = node.run("sysctl", "net.netfilter").stdout.splitlines()
    own = [line for line in lines if not line.startswith(SHARED)]
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
