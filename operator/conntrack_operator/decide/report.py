"""The status an agent writes. Pure; whether it is worth writing is `decide.news`'."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
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

from .drift import CONTENDED
from .outcome import APPLIED, in_words, of_node
from .plan import ABSENT, Plan
from .refusal import Refusal

HISTORY = 10
SATURATED_PERCENT = 90
SATURATED_UNTIL_PERCENT = 85
"""Between the two a saturated node stays so, or the condition would flap around one number."""
SATURATED, STALLED = "Saturated", "Stalled"
ROOM_FOR_FINE = 12
"""Results that are kept beside those that failed when room is short."""
ON_TRIAL = "a change is in force, and is kept if the node's probes pass all through the soak; else it is undone"


def stamp(now: datetime) -> str:
    """Return `now` (UTC) as Kubernetes writes times."""
    return now.strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass(frozen=True)
class Deed:
    """What was done for a spec and how it came out.

    `observed` was read back, `preview` is what an Observe would do, and `previewed` the hash of the settings it was
    made for; `warnings` are the plan's. `parked` says of what was rolled back that it is not tried again by itself.
    """

    phase: Phase
    results: Sequence[Result]
    observed: dict[str, int] = field(default_factory=dict)
    preview: Plan | None = None
    previewed: str = ""
    warnings: Sequence[Refusal] = ()
    parked: bool = False


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
    # What failed before a trial, or is refused beside it, does not say where the node is now.
    reason = failed[0].reason if failed and phase != "Trial" else phase
    message = _clipped("; ".join(in_words(result.setting, result.message) for result in failed), 512)
    history = list(previous.history) if previous else []
    if not previous or (previous.phase, previous.observed_revision) != (phase, spec.revision):
        history.append(
            Transition(time=time, phase=phase, reason=reason, revision=spec.revision, message=_clipped(message, 128))
        )
    status = NodeStatus(
        observed_revision=spec.revision,
        observed_attempt=spec.attempt,
        node_uid=spec.node_uid,
        boot_id=moment.boot_id,
        phase=phase,
        conditions=_conditions(previous, _verdicts(previous, deed, reason, message, moment.usage), time),
        observed=deed.observed,
        results=sorted(deed.results, key=lambda result: result.reason == APPLIED),
        warnings=[Warned(**warning.document()) for warning in deed.warnings],
        preview=_preview(deed.preview, deed.previewed) if deed.preview else None,
        usage=moment.usage,
        top_talkers=list(moment.talkers),
        history=history[-HISTORY:],
        heartbeat_time=time,
    )
    return fitted(status)


def _clipped(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 3] + "..."


def fitted(status: NodeStatus) -> NodeStatus:
    """Return `status` within 4 KB of JSON.

    Talkers go first, then old history, long warnings, the preview's length, all warnings, all but the first of the
    preview, and results that are fine. What failed is said to the last: with shorter sentences first, then with none,
    and only where not even the names have room, in one result for all the others.
    """
    failed = [result for result in status.results if result.reason != APPLIED]
    fine = [result for result in status.results if result.reason == APPLIED]
    updates: tuple[dict[str, Any], ...] = (
        {},
        {"top_talkers": status.top_talkers[:4]},
        {"top_talkers": []},
        {"history": status.history[-2:]},
        {"warnings": [_brief(warning) for warning in status.warnings[:4]]},
        *({"preview": _shorter(status.preview, most)} for most in ((32, 8, 4), (16, 8, 0), (8, 4, 0))),
        {"warnings": []},
        *({"preview": _shorter(status.preview, most)} for most in ((4, 2, 0), (1, 1, 0))),
        {"results": [*failed, *fine[: ROOM_FOR_FINE - len(failed)]] if len(failed) < ROOM_FOR_FINE else failed},
        {"results": failed},
        *({"results": [_short(result, length) for result in failed]} for length in (240, 160, 80)),
        {"history": []},
        {
            "conditions": [
                kind.model_copy(update={"message": _clipped(kind.message, 160)}) for kind in status.conditions
            ]
        },
        *({"results": _some(failed, number)} for number in range(len(failed), -1, -1)),
    )
    for update in updates:
        status = status.model_copy(update=update)
        if size_of(status) <= MAX_STATUS_BYTES:
            break
    return status


def size_of(status: NodeStatus) -> int:
    """Return the bytes of `status` as the API server keeps it: JSON in UTF-8."""
    return len(json.dumps(status.document(), separators=(",", ":"), ensure_ascii=False).encode())


def _brief(warning: Warned) -> Warned:
    return warning.model_copy(update={"message": _clipped(warning.message, 160)})


def _short(result: Result, length: int) -> Result:
    message, wanted = _clipped(result.message, length), _clipped(result.wanted, 64)
    return result.model_copy(update={"message": message, "wanted": wanted, "observed": ""})


def _some(failed: Sequence[Result], number: int) -> list[Result]:
    """Return the first `number` of `failed` by name and reason, and one result that speaks for the others."""
    named = [result.model_copy(update={"message": "", "wanted": "", "observed": ""}) for result in failed[:number]]
    if len(failed) > number:
        others = f"{len(failed) - number} more settings failed; see the agent's log"
        named.append(of_node(failed[number].reason, others))
    return named


def _verdicts(
    previous: NodeStatus | None, deed: Deed, reason: str, message: str, usage: Usage | None
) -> list[tuple[str, bool, str, str]]:
    was_full = previous is not None and holds(previous, SATURATED)
    limit = SATURATED_UNTIL_PERCENT if was_full else SATURATED_PERCENT
    full = usage is not None and (usage.percent >= limit or usage.drops_per_second > 0)
    use = f"{usage.entries} of {usage.max_entries} entries, {usage.drops_per_second} drops/s" if usage else ""
    if deed.phase == "Trial":
        message = f"{ON_TRIAL}; {message}" if message else ON_TRIAL
    # A refusal is looked at again, but what it is about must change first.
    stalled = deed.parked or deed.phase in ("Refused", CONTENDED)
    why = "Parked" if deed.parked else str(deed.phase)
    return [
        ("Ready", deed.phase in ("Current", "Restored"), reason, message),
        (STALLED, stalled, why if stalled else "NotStalled", "somebody must act; see Ready" if stalled else ""),
        (SATURATED, full, "TableFull" if full else "RoomLeft", use if full else ""),
    ]


def holds(status: NodeStatus, kind: str) -> bool | None:
    """Tell whether the condition of type `kind` is True; None when the node, an older agent, does not speak of it."""
    return next((condition.status == "True" for condition in status.conditions if condition.type == kind), None)


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


def _preview(plan: Plan, revision: str) -> Preview:
    return Preview(
        changes=[
            PreviewChange.model_validate({"setting": change.setting, "from": _said(change.from_), "to": str(change.to)})
            for change in plan.changes
        ],
        refused=[PreviewRefusal(**refusal.document()) for refusal in plan.refused],
        warnings=[Warned(**warning.document()) for warning in plan.warnings],
        revision=revision,
    )


def _said(value: int | str | None) -> str:
    return ABSENT if value is None else str(value)


def _shorter(preview: Preview | None, most: tuple[int, int, int]) -> Preview | None:
    """Return `preview` with so many changes, refusals and warnings at most, refusals and warnings in brief.

    One of each stays, so that a node that would change is never taken for one that would not.
    """
    if preview is None:
        return None
    changes, refused, warnings = most
    left = max(0, len(preview.changes) - changes) + max(0, len(preview.refused) - refused)
    return preview.model_copy(
        update={
            "changes": preview.changes[:changes],
            "refused": [
                each.model_copy(update={"message": _clipped(each.message, 160)}) for each in preview.refused[:refused]
            ],
            "warnings": [_brief(warning) for warning in preview.warnings[:warnings]],
            "omitted": preview.omitted + left,
        }
    )
