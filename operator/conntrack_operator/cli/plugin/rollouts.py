"""What pause, resume and retry write into a policy, and the sentence that says what came of it. Pure."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

Document = dict[str, Any]

GITOPS = "If the policy comes from a Git repository, write it there too, or it is undone with the next sync."


@dataclass(frozen=True)
class Step:
    """A change of spec.rollout, None when nothing is to be written, and what to say."""

    rollout: Document | None
    said: str


def pausing(policy: Document) -> Step:
    """Stop the rollout where it is."""
    name = policy["metadata"]["name"]
    if _rollout(policy).get("paused") is True:
        return Step(None, f"{name} is paused already; {_numbers(policy)}.")
    said = f"{name} is paused: no further node is released, what is under way ends; {_numbers(policy)}."
    return Step({"paused": True}, f"{said} kubectl conntrack resume {name} lets it go on. {GITOPS}")


def resuming(policy: Document) -> Step:
    """Let it go on."""
    name = policy["metadata"]["name"]
    if _rollout(policy).get("paused") is not True:
        return Step(None, f"{name} is not paused; {_numbers(policy)}.")
    said = f"{name} goes on with the next nodes; {_numbers(policy)}. See kubectl conntrack status. {GITOPS}"
    return Step({"paused": None}, said)


def retrying(policy: Document, now: datetime) -> Step:
    """Have the nodes try again that have given up: any new text does."""
    name = policy["metadata"]["name"]
    text = now.strftime("%Y-%m-%dT%H-%M-%SZ")
    paused = (
        f" It is paused, though: kubectl conntrack resume {name}." if _rollout(policy).get("paused") is True else ""
    )
    said = (
        f"{name}: nodes that rolled back and gave up, or are Contended, are asked to try again (rollout.retry {text});"
        f" {_numbers(policy)}.{paused} See kubectl conntrack history {name}. {GITOPS}"
    )
    return Step({"retry": text}, said)


def _rollout(policy: Document) -> Document:
    return (policy.get("spec") or {}).get("rollout") or {}


def _numbers(policy: Document) -> str:
    counts = (policy.get("status") or {}).get("nodes")
    if not counts:
        return "no controller has counted its nodes yet"
    words = {
        "updating": "updating",
        "pending": "waiting",
        "refused": "refusing",
        "rolledBack": "rolled back",
        "unknown": "silent",
    }
    rest = [f"{counts[key]} {word}" for key, word in words.items() if counts.get(key)]
    matched = counts.get("matched", 0)
    nodes = "node is" if matched == 1 else "nodes are"
    return ", ".join([f"{counts.get('current', 0)} of {matched} {nodes} current", *rest])
