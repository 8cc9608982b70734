"""What changed when, and why, as a list in the order of time: from the objects' own history. Pure.

Sources: a policy's birth and who wrote its spec last (managedFields), its revisions (ControllerRevisions) and when each
was good everywhere, the last ten transitions of each node, and the Events of the last hour.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from conntrack_operator.decide.merge import leaves_of
from conntrack_operator.decide.revisions import Revision
from conntrack_operator.decide.standing import time_in

Document = dict[str, Any]

_RANKS = {"Created": 0, "SpecWritten": 0, "Revision": 0, "GoodEverywhere": 2}

NAMED = 4
"""Fields of a change that are named; the revision has them all."""


@dataclass(frozen=True)
class Happened:
    """One thing that happened."""

    at: datetime
    subject: str
    """policy/NAME or node/NAME."""
    what: str
    """As one or two words for programs."""
    why: str = ""

    def document(self) -> Document:
        """Return it as `history -o json` prints it."""
        return {"time": _rfc3339(self.at), "subject": self.subject, "what": self.what, "why": self.why}


def in_order(happened: Iterable[Happened], most: int) -> list[Happened]:
    """Return the last `most` (0: all), the oldest first; what is said twice of one moment once."""
    # Times are whole seconds: within one, causes come before effects, and what one object tells stays in its own order.
    ordered = sorted(dict.fromkeys(happened), key=lambda each: (each.at, _RANKS.get(each.what, 1)))
    return ordered[-most:] if most else ordered


def of_policy(document: Document) -> Iterator[Happened]:
    """Yield a policy's birth, its deletion, and the last write of each program that wrote its spec."""
    metadata = document["metadata"]
    subject = f"policy/{metadata['name']}"
    for key, what in (("creationTimestamp", "Created"), ("deletionTimestamp", "Deleted")):
        at = time_in(metadata.get(key) or "")
        if at is not None:
            yield Happened(
                at, subject, what, f"generation {metadata.get('generation')} now" if what == "Created" else ""
            )
    for entry in metadata.get("managedFields") or ():
        fields = (entry.get("fieldsV1") or {}).get("f:spec")
        at = time_in(entry.get("time") or "")
        if fields and not entry.get("subresource") and at is not None:
            names = ", ".join(sorted(key.removeprefix("f:") for key in fields if key.startswith("f:")))
            yield Happened(at, subject, "SpecWritten", f"last by {entry.get('manager')}, which holds {names}")


def of_revisions(revisions: Iterable[tuple[Revision, datetime | None]]) -> Iterator[Happened]:
    """Yield when each revision was written down, with what it changed, and since when it is good on all nodes."""
    before: dict[str, Revision] = {}
    for revision, at in sorted(revisions, key=lambda each: (each[0].policy, each[0].number)):
        subject = f"policy/{revision.policy}"
        if at is not None:
            said = _difference(before.get(revision.policy), revision)
            yield Happened(at, subject, "Revision", f"{revision.name} (number {revision.number}): {said}")
        if revision.good_since is not None:
            yield Happened(revision.good_since, subject, "GoodEverywhere", f"{revision.name} is on all its nodes")
        before[revision.policy] = revision


def _difference(before: Revision | None, after: Revision) -> str:
    if before is None:
        return "the oldest that is kept"
    old, new = _fields(before.content), _fields(after.content)
    changes = [
        f"{path} {_short(old.get(path))} -> {_short(new.get(path))}"
        for path in sorted(old.keys() | new.keys())
        if old.get(path) != new.get(path)
    ]
    more = f" and {len(changes) - NAMED} more" if len(changes) > NAMED else ""
    return ", ".join(changes[:NAMED]) + more if changes else "same content as the one before"


def _fields(content: Mapping[str, Any]) -> dict[str, Any]:
    fields = dict(leaves_of(content))
    rules = (content.get("notrack") or {}).get("rules") or ()
    return {**fields, **{f"notrack.rules[{rule.get('name')}]": rule for rule in rules}}


def _short(value: Any) -> str:
    if value is None:
        return "absent"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_short(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_short, value)) + "]"
    return str(value).lower() if isinstance(value, bool) else str(value)


def of_node(document: Document) -> Iterator[Happened]:
    """Yield the transitions a node tells of."""
    subject = f"node/{document['metadata']['name']}"
    for each in (document.get("status") or {}).get("history") or ():
        at = time_in(each.get("time") or "")
        if at is not None:
            reason = each.get("reason") if each.get("reason") != each.get("phase") else ""
            why = ": ".join(filter(None, (reason, each.get("message"))))
            revision = f" (spec {each['revision']})" if each.get("revision") else ""
            yield Happened(at, subject, each.get("phase") or "", f"{why}{revision}".strip())


def of_events(events: Iterable[Document]) -> Iterator[Happened]:
    """Yield Events; one that came several times at its last, with how often and since when."""
    kinds = {"ConntrackPolicy": "policy", "Node": "node"}
    for event in events:
        about = event.get("involvedObject") or {}
        at = time_in(event.get("lastTimestamp") or event.get("eventTime") or "")
        if at is None or about.get("kind") not in kinds:
            continue
        count = event.get("count") or 1
        again = f" ({count} times since {event.get('firstTimestamp')})" if count > 1 else ""
        subject = f"{kinds[about['kind']]}/{about.get('name')}"
        yield Happened(at, subject, event.get("reason") or "", f"{event.get('message') or ''}{again}")


def _rfc3339(at: datetime) -> str:
    return at.strftime("%Y-%m-%dT%H:%M:%SZ")
