"""Events: what a person must know, where `kubectl get events` and `kubectl describe` show it.

Our subjects are cluster-scoped, and the API server takes events about such in the namespace `default` only. The name
of an event follows from what it says, so saying it again raises a count, also after a restart.
"""

import hashlib
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from conntrack_operator.decide.happenings import Happening

from .objects import EVENTS, Kind, Objects

NAMESPACE = "default"
COMPONENT = "conntrack-operator"
MESSAGE_MAX = 1024
"""The API server refuses longer ones."""


@dataclass(frozen=True)
class Subject:
    """The cluster-scoped object an event is about."""

    kind: Kind
    name: str
    uid: str

    def reference(self) -> dict[str, str]:
        """Return it as an ObjectReference."""
        return {"apiVersion": self.kind.api_version, "kind": self.kind.kind, "name": self.name, "uid": self.uid}


def post_event(objects: Objects, subject: Subject, happening: Happening, now: datetime, more: str = "") -> None:
    """Post the event, or raise the count of the one that says the same. Raises Retry or Refused.

    `more` is added to what it says and makes no other event of it.
    """
    name = event_name(subject, happening)
    moment = now.strftime("%Y-%m-%dT%H:%M:%SZ")
    known = objects.get(EVENTS, name, NAMESPACE)
    if known is not None:
        parts = {"/count": int(known.get("count") or 1) + 1, "/lastTimestamp": moment}
        if more:
            parts["/message"] = _message(happening, more)
        objects.replace_parts(EVENTS, name, parts, namespace=NAMESPACE)
        return
    objects.create(EVENTS, _document(name, subject, happening, moment, more), NAMESPACE)


def event_name(subject: Subject, happening: Happening) -> str:
    """Return the name that the same event always has."""
    text = f"{subject.kind.kind} {subject.uid} {happening.reason} {happening.message}"
    return f"{subject.name[:200].rstrip('.-')}.{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def _message(happening: Happening, more: str) -> str:
    room = MESSAGE_MAX - len(more)
    message = happening.message
    return (message if len(message) <= room else message[: room - 3] + "...") + more


def _document(name: str, subject: Subject, happening: Happening, moment: str, more: str = "") -> dict[str, Any]:
    return {
        "metadata": {"name": name, "namespace": NAMESPACE},
        "involvedObject": subject.reference(),
        "type": happening.type,
        "reason": happening.reason,
        "message": _message(happening, more),
        "source": {"component": COMPONENT},
        "reportingComponent": COMPONENT,
        "firstTimestamp": moment,
        "lastTimestamp": moment,
        "count": 1,
    }
