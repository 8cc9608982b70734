"""From what the API server sends to what decisions are made of, for every kind the controller watches.

A document that cannot be read is a value of its own and never the same as none: what cannot be read has not been
withdrawn.
"""

from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from conntrack_operator.decide.targeting import Node
from conntrack_operator.model.node import NodeConntrack
from conntrack_operator.model.policy import ConntrackPolicy

M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True)
class Unreadable:
    """An object that is there and cannot be understood, with the reason as a sentence."""

    name: str
    uid: str
    generation: int
    sentence: str


def policy_in(document: dict[str, Any]) -> ConntrackPolicy | Unreadable:
    """Return the policy in `document`. Its status is ours: one that cannot be read counts as none."""
    return _read(ConntrackPolicy, document)


def node_conntrack_in(document: dict[str, Any]) -> NodeConntrack | Unreadable:
    """Return the NodeConntrack in `document`. A status that cannot be read counts as none: no answer yet."""
    return _read(NodeConntrack, document)


def node_in(document: dict[str, Any]) -> Node:
    """Return what we need of the Node in `document`."""
    metadata = document["metadata"]
    return Node(metadata["name"], metadata["uid"], metadata.get("labels") or {})


def _read(model: type[M], document: dict[str, Any]) -> M | Unreadable:
    try:
        return model.model_validate(document)
    except ValidationError:
        pass
    try:
        return model.model_validate({key: value for key, value in document.items() if key != "status"})
    except ValidationError as error:
        first = error.errors()[0]
        metadata = document["metadata"]
        return Unreadable(
            name=metadata["name"],
            uid=metadata.get("uid", ""),
            generation=metadata.get("generation", 0),
            sentence=f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}",
        )
