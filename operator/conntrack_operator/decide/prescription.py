"""Prescription: the smallest policy that mends what was found; none when nothing is to be mended. Pure.

Sizes first, since they take nothing from anybody; then timeouts of what fills the table; NOTRACK only where no size
helps, as it alone can break something.
"""

import re
from typing import Any

from conntrack_operator.model.base import API_VERSION

from .diagnosis_elsewhere import fills_elsewhere
from .diagnosis_fillers import Fillers
from .diagnosis_fullness import Fullness
from .diagnosis_settings import entries_for, has_long_chains, lint_of, takes_too_much
from .symptoms import Symptoms
from .timeouts import words

SHARES = (2, 5, 10)
"""Percents of RAM that are tried for a table that is short of room."""
WORTH_IT = 2
"""A size is worth a resize when it has this many times the entries."""
_LABEL = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?", re.ASCII)


def policy_for(symptoms: Symptoms, fullness: Fullness, fillers: Fillers) -> dict[str, Any] | None:
    """Return the document of a ConntrackPolicy for this node, None when there is nothing to mend.

    In another network namespace than the initial one a policy can mend the size alone: the rest is the namespace's.
    """
    table = _table(symptoms, fullness)
    spec: dict[str, Any] = {"table": table} if table else {}
    if symptoms.facts.initial_namespace:
        timeouts = _timeouts(symptoms, fillers)
        if timeouts:
            spec["timeouts"] = timeouts
        if fillers.notrack_port and "size" not in table:
            port = int(fillers.notrack_port.partition("/")[0])
            rule = {"name": f"port-{port}", "protocol": "TCP", "ports": [port], "side": "Server"}
            spec["notrack"] = {"rules": [rule]}
    if not spec:
        return None
    return {
        "apiVersion": API_VERSION,
        "kind": "ConntrackPolicy",
        "metadata": {"name": "doctor"},
        "spec": {"mode": "Enforce", "nodeSelector": {"matchLabels": _labels(symptoms.node)}, **spec},
    }


def _table(symptoms: Symptoms, fullness: Fullness) -> dict[str, Any]:
    limit, entries = symptoms.table.max_entries, symptoms.table.entries
    if takes_too_much(symptoms) and not fullness.pressed:
        # Room for twice what is there, whatever the memory: shrinking must not cost connections.
        floor = max(262_144, 2 * entries)
        if floor < limit and entries_for(symptoms) < limit:
            return {"size": {"memory": {"percent": 2, "floor": floor}}, "allowShrink": True}
    if limit == 0:
        return {"size": {"memory": {"percent": 2, "floor": max(262_144, 2 * entries)}}}
    if fullness.pressed or fills_elsewhere(symptoms):
        share = next((each for each in SHARES if entries_for(symptoms, each) >= WORTH_IT * limit), None)
        if share is not None:
            return {"size": {"memory": {"percent": share}}}
    return {"entriesPerBucket": 1} if has_long_chains(symptoms) else {}


def _timeouts(symptoms: Symptoms, fillers: Fillers) -> dict[str, Any]:
    wanted = dict(fillers.timeouts)
    for warning in lint_of(symptoms):
        if warning.suggested_seconds is not None:
            wanted[warning.field.removeprefix("timeouts.")] = warning.suggested_seconds
    document: dict[str, Any] = {}
    for field, seconds in sorted(wanted.items()):
        group, _, key = field.partition(".")
        if key:
            document.setdefault(group, {})[key] = words(seconds)
        else:
            document[group] = words(seconds)
    return document


def _labels(node: str) -> dict[str, str]:
    """Return what selects this node alone; all of them where its name cannot be a label."""
    return {"kubernetes.io/hostname": node} if _LABEL.fullmatch(node) else {"kubernetes.io/os": "linux"}
