"""Policies as documents."""

from collections.abc import Mapping
from typing import Any

AT_ONCE = {"canary": 0, "maxUnavailable": "100%"}
"""The rollout of a policy that reaches every node at once."""


def policy(name: str, labels: Mapping[str, str], **spec: Any) -> dict[str, Any]:
    """Return a policy for the nodes with these labels, in mode Enforce when `spec` says nothing else.

    What is None in `spec` is left out.
    """
    fields = {"mode": "Enforce", "nodeSelector": {"matchLabels": dict(labels)}, **spec}
    return {
        "apiVersion": "conntrack-operator.io/v1alpha1",
        "kind": "ConntrackPolicy",
        "metadata": {"name": name},
        "spec": {field: value for field, value in fields.items() if value is not None},
    }
