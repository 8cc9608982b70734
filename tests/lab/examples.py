"""The policies that people are told to copy."""

from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parents[2] / "manifests" / "examples"
EXAMPLES = sorted(FOLDER.glob("*.yaml"))
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
"""A firewall that lets port 443 in by its state: what the example `firewall` is for."""


def example(path: Path) -> dict[str, Any]:
    """Return the policy in a file with ports that stand for the pods a cluster would find."""
    document: dict[str, Any] = yaml.safe_load(path.read_text())
    for rule in (document["spec"].get("notrack") or {}).get("rules", ()):
        if rule.pop("pods", None):
            rule["ports"] = [8080]
    return document
