"""The fleet as a table: one row for each node, those in trouble first, and one for each policy. Pure.

Objects are read leniently: another version of the operator may have written them.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from conntrack_operator.decide.finding import ago_words
from conntrack_operator.decide.outcome import APPLIED
from conntrack_operator.decide.standing import SILENT_AFTER, time_in

Document = dict[str, Any]

UNKNOWN, PENDING = "Unknown", "Pending"
HELD = "Held"


@dataclass(frozen=True)
class NodeRow:
    """One node. Numbers are None where nothing recent is known."""

    node: str
    phase: str
    """Its agent's, or Pending (told and not answered yet), Held (asked for nothing yet) or Unknown (silent)."""
    policies: tuple[str, ...]
    """policy@revision, highest priority first."""
    used_percent: int | None
    entries: int | None
    max_entries: int | None
    drops_per_second: int | None
    seconds_to_full: int | None
    since: str
    """Since when it has its phase, RFC 3339; empty where that is not known."""
    why: str


@dataclass(frozen=True)
class PolicyRow:
    """One policy and where its rollout stands."""

    policy: str
    mode: str
    revision: str
    nodes: str
    """current/matched."""
    rollout: str
    """Paused, Halted, a reason of Stalled or Reconciling, Done, or NotJudged."""
    message: str


def node_rows(documents: Iterable[Document], now: datetime) -> list[NodeRow]:
    """Return all nodes by pressure: those that drop, then those that fill up soonest, then the fullest."""
    return sorted((node_row(document, now) for document in documents), key=_pressure)


def _pressure(row: NodeRow) -> tuple[int, float, int, str]:
    filling = float("inf") if row.seconds_to_full is None else row.seconds_to_full
    return (-(row.drops_per_second or 0), filling, -(row.used_percent or 0), row.node)


def node_row(document: Document, now: datetime) -> NodeRow:
    """Return the row of one NodeConntrack."""
    spec, status = document.get("spec") or {}, document.get("status") or {}
    phase, since, why = _phase(spec, status, now)
    usage = (status.get("usage") or {}) if phase != UNKNOWN and _speaks(spec, status) else {}
    return NodeRow(
        node=document["metadata"]["name"],
        phase=phase,
        policies=tuple(f"{use['name']}@{use['revision']}" for use in spec.get("policies") or ()),
        used_percent=usage.get("percent"),
        entries=usage.get("entries"),
        max_entries=usage.get("maxEntries"),
        drops_per_second=usage.get("dropsPerSecond", 0) if usage else None,
        seconds_to_full=usage.get("secondsToFull"),
        since=since,
        why=why,
    )


def _speaks(spec: Document, status: Document) -> bool:
    return bool(status.get("heartbeatTime")) and status.get("nodeUID") == spec.get("nodeUID")


def _phase(spec: Document, status: Document, now: datetime) -> tuple[str, str, str]:
    """Return phase, since when, and why."""
    if not _speaks(spec, status):
        return PENDING, "", "its agent has not answered yet"
    heard = time_in(status["heartbeatTime"])
    if heard is not None and now - heard >= SILENT_AFTER:
        silent = ago_words((now - heard).total_seconds())
        return UNKNOWN, status["heartbeatTime"], f"its agent was heard {silent} last"
    history = status.get("history") or ()
    last = history[-1] if history else {}
    answered = (status.get("observedRevision"), status.get("observedAttempt", "")) == (
        spec.get("revision"), spec.get("attempt", ""),
    )  # fmt: skip
    phase = status.get("phase") or PENDING
    if not answered:
        return (phase if phase == "Trial" else PENDING), last.get("time", ""), "it has not answered its last spec yet"
    if spec.get("mode") == "Hold" and phase == "Current":
        observed = spec.get("preview") is not None
        why = _preview_words(status.get("preview")) if observed else "not released yet, or no policy is left"
        return HELD, last.get("time", ""), why
    since = last.get("time", "") if last.get("phase") == phase else ""
    return phase, since, _why(status, last, phase)


def _preview_words(preview: Document | None) -> str:
    if preview is None:
        return "observed; no preview yet"
    changes, refused = len(preview.get("changes") or ()), len(preview.get("refused") or ())
    more = preview.get("omitted") or 0
    least = "at least " if more else ""
    return f"observed: {least}{changes} would change, {refused} refused"


def _why(status: Document, last: Document, phase: str) -> str:
    failed = [result for result in status.get("results") or () if result.get("reason") != APPLIED]
    if failed:
        first = failed[0]
        more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
        return f"{first.get('setting')}: {first.get('reason')}: {first.get('message', '')}{more}".strip()
    if last.get("phase") == phase:
        # A reason that only repeats the phase says nothing.
        reason = last.get("reason") if last.get("reason") != phase else ""
        return ": ".join(filter(None, (reason, last.get("message"))))
    return ""


def policy_rows(documents: Iterable[Document]) -> list[PolicyRow]:
    """Return all policies by name."""
    return sorted((policy_row(document) for document in documents), key=lambda row: row.policy)


def policy_row(document: Document) -> PolicyRow:
    """Return the row of one policy."""
    metadata, spec, status = document["metadata"], document.get("spec") or {}, document.get("status") or {}
    counts = status.get("nodes") or {}
    rollout, message = _rollout(metadata, spec, status)
    return PolicyRow(
        policy=metadata["name"],
        mode=spec.get("mode", ""),
        revision=status.get("revision", ""),
        nodes=f"{counts.get('current', 0)}/{counts.get('matched', 0)}" if counts else "-",
        rollout=rollout,
        message=message,
    )


def is_judged(document: Document) -> bool:
    """Tell whether a controller has judged the policy as it is now."""
    judged = (document.get("status") or {}).get("observedGeneration", -1)
    return bool(judged >= document["metadata"].get("generation", 0))


def _rollout(metadata: Document, spec: Document, status: Document) -> tuple[str, str]:
    if not is_judged({"metadata": metadata, "status": status}):
        return "NotJudged", "no controller has looked at it as it is now"
    conditions = {each["type"]: each for each in status.get("conditions") or ()}
    ready = conditions.get("Ready") or {}
    for kind in ("Stalled", "Reconciling"):
        found = conditions.get(kind) or {}
        if found.get("status") == "True":
            return found.get("reason", kind), found.get("message", "") or ready.get("message", "")
    paused = (spec.get("rollout") or {}).get("paused") is True
    return ("Paused" if paused else ready.get("reason", "Unknown")), ready.get("message", "")


def fleet_document(policies: Sequence[PolicyRow], nodes: Sequence[NodeRow], notes: Sequence[str]) -> Document:
    """Return it as `status -o json` prints it."""
    return {
        "policies": [_camel(asdict(row)) for row in policies],
        "nodes": [_camel(asdict(row)) for row in nodes],
        "notes": list(notes),
    }


def _camel(row: Document) -> Document:
    def name(key: str) -> str:
        first, *rest = key.split("_")
        return first + "".join(word.capitalize() for word in rest)

    return {name(key): list(value) if isinstance(value, tuple) else value for key, value in row.items()}
