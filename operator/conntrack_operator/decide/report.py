"""The status an agent writes, and whether it is worth writing. Pure; the API server gets little and only news."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from conntrack_operator.model.node import (
    MAX_STATUS_BYTES,
    NodeSpec,
    NodeStatus,
    Phase,
    Preview,
    PreviewChange,
    PreviewRefusal,
    Result,
    Talker,
    Transition,
    Usage,
    Warned,
)
from conntrack_operator.model.status import Condition

from .outcome import APPLIED, in_words
from .plan import Plan
from .refusal import Refusal
from .usage import is_another_band

HEARTBEAT_SECONDS = 300
USAGE_SECONDS = 60
"""Usage alone makes a node write at most once in this time."""
HISTORY = 10
SATURATED_PERCENT = 90


def stamp(now: datetime) -> str:
    """Return `now` (UTC) as Kubernetes writes times."""
    return now.strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass(frozen=True)
class Deed:
    """What was done for a spec and how it came out.

    `observed` was read back, `preview` is what an Observe would do, `warnings` are the plan's.
    """

    phase: Phase
    results: Sequence[Result]
    observed: dict[str, int] = field(default_factory=dict)
    preview: Plan | None = None
    warnings: Sequence[Refusal] = ()


@dataclass(frozen=True)
class Moment:
    """What the node looked like when the status was made; `now` in UTC."""

    now: datetime
    boot_id: str
    usage: Usage | None = None
    talkers: Sequence[Talker] = ()


def status_for(spec: NodeSpec, previous: NodeStatus | None, deed: Deed, moment: Moment) -> NodeStatus:
    """Return the status of a node that acted on `spec`, at most 4 KB as JSON."""
    failed = [result for result in deed.results if result.reason != APPLIED]
    phase, time = deed.phase, stamp(moment.now)
    reason = failed[0].reason if failed else phase
    message = "; ".join(in_words(result.setting, result.message) for result in failed)[:512]
    history = list(previous.history) if previous else []
    if not previous or (previous.phase, previous.observed_revision) != (phase, spec.revision):
        history.append(Transition(time=time, phase=phase, reason=reason, revision=spec.revision, message=message[:128]))
    status = NodeStatus(
        observed_revision=spec.revision,
        observed_attempt=spec.attempt,
        node_uid=spec.node_uid,
        boot_id=moment.boot_id,
        phase=phase,
        conditions=_conditions(previous, _verdicts(phase, reason, message, moment.usage), time),
        observed=deed.observed,
        results=sorted(deed.results, key=lambda result: result.reason == APPLIED),
        warnings=[Warned(**warning.document()) for warning in deed.warnings],
        preview=_preview(deed.preview) if deed.preview else None,
        usage=moment.usage,
        top_talkers=list(moment.talkers),
        history=history[-HISTORY:],
        heartbeat_time=time,
    )
    return fitted(status)


def is_due(
    reported: NodeStatus | None, fresh: NodeStatus, now: datetime, since_usage_seconds: float, jitter: float
) -> bool:
    """Tell whether `fresh` should be written over `reported`.

    `since_usage_seconds` is the time since usage alone last caused a write, `jitter` a factor near 1 that spreads the
    heartbeats of many nodes.
    """
    if reported is None or _news(reported) != _news(fresh):
        return True
    if (
        fresh.usage is not None
        and is_another_band(reported.usage, fresh.usage)
        and since_usage_seconds >= USAGE_SECONDS
    ):
        return True
    beat = datetime.fromisoformat(reported.heartbeat_time) if reported.heartbeat_time else None
    return beat is None or not timedelta(0) <= now - beat < timedelta(seconds=HEARTBEAT_SECONDS * jitter)


def fitted(status: NodeStatus) -> NodeStatus:
    """Return `status` within 4 KB of JSON.

    Talkers go first, then old history, long warnings, the preview's length, all warnings, the preview, and results that
    are fine.
    """
    results = list(status.results)
    updates: tuple[dict[str, Any], ...] = (
        {},
        {"top_talkers": status.top_talkers[:4]},
        {"top_talkers": []},
        {"history": status.history[-2:]},
        {"warnings": [_brief(warning) for warning in status.warnings[:4]]},
        {"preview": status.preview and Preview(changes=status.preview.changes[:8], refused=status.preview.refused[:4])},
        {"warnings": []},
        {"preview": None},
        {"results": [result for result in results if result.reason != APPLIED]},
        {"results": [_short(result) for result in results if result.reason != APPLIED][:8]},
    )
    for update in updates:
        status = status.model_copy(update=update)
        if len(json.dumps(status.document(), separators=(",", ":"))) <= MAX_STATUS_BYTES:
            break
    return status


def _brief(warning: Warned) -> Warned:
    return warning.model_copy(update={"message": warning.message[:160]})


def _short(result: Result) -> Result:
    return result.model_copy(update={"message": result.message[:160], "wanted": result.wanted[:64], "observed": ""})


def _news(status: NodeStatus) -> tuple[object, ...]:
    """Return what a person would call a change: everything but usage, talkers and times.

    Sentences are not news: they hold numbers and examples (entries in use, a live flow) that are others every time.
    """
    return (
        status.observed_revision,
        status.observed_attempt,
        status.node_uid,
        status.boot_id,
        status.phase,
        [(result.setting, result.wanted, result.observed, result.reason) for result in status.results],
        [(warning.setting, warning.reason) for warning in status.warnings],
        status.preview and status.preview.changes,
        status.preview and [(refusal.setting, refusal.reason) for refusal in status.preview.refused],
    )


def _verdicts(phase: Phase, reason: str, message: str, usage: Usage | None) -> list[tuple[str, bool, str, str]]:
    full = usage is not None and (usage.percent >= SATURATED_PERCENT or usage.drops_per_second > 0)
    use = f"{usage.entries} of {usage.max_entries} entries, {usage.drops_per_second} drops/s" if usage else ""
    return [
        ("Ready", phase in ("Current", "Restored"), reason, message),
        ("Saturated", full, "TableFull" if full else "RoomLeft", use if full else ""),
    ]


def _conditions(
    previous: NodeStatus | None, verdicts: Sequence[tuple[str, bool, str, str]], time: str
) -> list[Condition]:
    before = {condition.type: condition for condition in previous.conditions} if previous else {}
    conditions = []
    for kind, holds, why, words in verdicts:
        status = "True" if holds else "False"
        known = before.get(kind)
        since = known.last_transition_time if known and known.status == status else time
        conditions.append(
            Condition.model_validate(
                {"type": kind, "status": status, "reason": why, "message": words, "lastTransitionTime": since}
            )
        )
    return conditions


def _preview(plan: Plan) -> Preview:
    return Preview(
        changes=[
            PreviewChange.model_validate({"setting": change.setting, "from": str(change.from_), "to": str(change.to)})
            for change in plan.changes
        ],
        refused=[PreviewRefusal(**refusal.document()) for refusal in plan.refused],
    )
