"""Where one node stands with one policy: current, updating, pending, refused, rolled back or unknown, and why.

A node's object speaks of all its policies at once. A refusal counts against the policies that asked for what
was refused, so that one policy's bad field does not paint the others red.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from conntrack_operator.model import catalogue
from conntrack_operator.model.node import NodeConntrack, NodeSpec, NodeStatus, Preview, PreviewRefusal, Result, Warned
from conntrack_operator.model.status import NodeFailure

from .merge import Conflict
from .outcome import APPLIED, NODE, in_words
from .previewed import answers, part_of
from .report import STALLED, holds
from .targeting import Node

SILENT_AFTER = timedelta(minutes=15)
"""An agent writes a heartbeat every 5 minutes, give or take a fifth; three missed ones mean that it is gone."""

State = Literal["current", "updating", "pending", "refused", "rolled_back", "unknown"]


@dataclass(frozen=True)
class Share:
    """One policy's part on one node: the fields it decides there, and those that all policies together do."""

    fields: frozenset[str]
    all_fields: frozenset[str]
    has_it: bool = True
    """Whether the node has been given the policy as it is now, or asked to preview it so."""
    observes: bool = False
    conflicts: tuple[Conflict, ...] = ()


@dataclass(frozen=True)
class Standing:
    """The verdict on one node."""

    node: str
    state: State
    failures: tuple[NodeFailure, ...] = ()
    warnings: tuple[NodeFailure, ...] = ()
    """What was done as asked and may surprise somebody."""
    retries: bool = False
    """Whether a node that rolled back tries again by itself."""
    waits: bool = False
    """Whether a pending node waits for its turn, and not for its own answer."""
    absent: bool = False
    """Whether a pending node can be given nothing: it is not Ready, or has no working agent."""


def share_of(policy: str, revision: str, spec: NodeSpec | None, conflicts: Iterable[Conflict] = ()) -> Share:
    """Return the part of an Enforce policy, whose revision of today is `revision`, on a node that was told `spec`."""
    uses = {use.name: use for use in spec.policies} if spec is not None and spec.mode == "Apply" else {}
    use = uses.get(policy)
    return Share(
        fields=frozenset(use.fields) if use else frozenset(),
        all_fields=frozenset(field for each in uses.values() for field in each.fields),
        has_it=use is not None and use.revision == revision,
        conflicts=tuple(conflict for conflict in conflicts if policy in conflict.parties),
    )


def standing_of(
    node: Node,
    share: Share,
    existing: NodeConntrack | None,
    *,
    silent: bool = False,
    away: bool = False,
) -> Standing:
    """Return where `node` stands with the policy whose part is `share`.

    `silent` says that its agent has not been heard for 15 minutes, `away` that the node can be given nothing: it is not
    Ready, or has no working agent.
    """
    status = existing.status if existing else None
    if existing is None or status is None or not speaks_of(node, existing) or not status.heartbeat_time:
        return Standing(node.name, "pending", waits=not share.has_it and not share.observes, absent=away)
    if silent:
        failure = NodeFailure(
            node=node.name,
            reason="AgentSilent",
            message=f"its agent has not reported since {status.heartbeat_time}; see whether its pod runs",
        )
        return Standing(node.name, "unknown", (failure,))
    if not share.has_it:
        return Standing(node.name, "pending", waits=not share.observes, absent=away)
    if (status.observed_revision, status.observed_attempt) != (existing.spec.revision, existing.spec.attempt):
        # The trial of what was asked before: its failures are of no concern any more.
        return Standing(node.name, "updating" if status.phase == "Trial" else "pending", absent=away)
    return _by_preview(node, share, existing, status) if share.observes else _by_phase(node, share, status)


def has_taken(policy: str, spec: NodeSpec, status: NodeStatus) -> bool:
    """Return whether a node that refuses something has applied anything else that `policy` asks for."""
    fields = share_of(policy, "", spec).fields
    applied = (result for result in status.results if result.reason == APPLIED)
    return any(fields_behind(result.setting, fields) for result in applied)


def unknown_revision(node: Node, revision: str) -> NodeFailure:
    """Return what is said of a node that was given a revision of a policy that nobody knows any more."""
    return NodeFailure(
        node=node.name,
        reason="RevisionUnknown",
        message=f"it was given revision {revision} of this policy, which nobody knows any more (its ControllerRevision"
        " is gone, or another version wrote it); the node keeps what it has until its turn comes",
    )


def is_parked(status: NodeStatus) -> bool:
    """Return whether a node that rolled back has given up, until somebody acts."""
    return holds(status, STALLED) is not False


def concerns(policy: str, spec: NodeSpec, status: NodeStatus) -> bool:
    """Return whether anything that a node refuses was asked for by `policy`, or by nobody in particular."""
    share = share_of(policy, "", spec)
    refused = [result for result in status.results if result.reason != APPLIED]
    return not refused or any(_concerns(result.setting, share) for result in refused)


def speaks_of(node: Node, existing: NodeConntrack) -> bool:
    """Return whether both halves of the object are about this very node, and not one that had its name before."""
    return existing.status is not None and existing.spec.node_uid == node.uid and existing.status.node_uid == node.uid


def time_in(text: str) -> datetime | None:
    """Return the RFC 3339 time in `text`, or None when there is none."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return moment if moment.tzinfo else None


def fields_behind(setting: str, fields: Collection[str]) -> set[str]:
    """Return which of `fields` asked for `setting` (a sysctl's dotted name, `notrack/<rule>` or a field's path)."""
    if setting.startswith("notrack/"):
        rule = setting.removeprefix("notrack/")
        return {field for field in fields if field == f"notrack.rules[{rule}]"}
    entry = catalogue.BY_NAME.get(setting.removeprefix(catalogue.PREFIX))
    if entry is not None and entry.field.startswith("table."):
        # The number of buckets follows from the size, and both are refused together.
        return {field for field in fields if field.startswith("table.")}
    path = setting if entry is None else entry.field or f"sysctls.{entry.name}"
    return {field for field in fields if field == path or field.startswith(f"{path}.")}


def _concerns(setting: str, share: Share) -> bool:
    behind = fields_behind(setting, share.all_fields)
    # What nobody seems to have asked for is everybody's concern, rather than nobody's.
    return not behind or bool(behind & share.fields)


def _told(node: Node, share: Share, said: Iterable[Result | Warned | PreviewRefusal]) -> tuple[NodeFailure, ...]:
    """Return what of all that the node said concerns this policy; the node as a whole comes first."""
    return tuple(
        NodeFailure(node=node.name, reason=item.reason, message=in_words(item.setting, item.message))
        for item in sorted(said, key=lambda item: item.setting != NODE)
        if _concerns(item.setting, share)
    )


def _by_preview(node: Node, share: Share, existing: NodeConntrack, status: NodeStatus) -> Standing:
    if existing.spec.preview is None:
        return Standing(node.name, "pending")
    if status.preview is None:
        # A node that cannot do anything makes no preview either.
        hopeless = _told(node, share, (result for result in status.results if result.setting == NODE))
        if status.phase == "Refused" and hopeless:
            return Standing(node.name, "refused", hopeless)
        return Standing(node.name, "pending")
    if not answers(existing.spec, status):
        return Standing(node.name, "pending")
    failures = _told(node, share, status.preview.refused)
    return Standing(node.name, "refused" if failures else "current", failures)


def preview_for(share: Share, existing: NodeConntrack | None) -> Preview | None:
    """Return what the node previews of one policy's settings; None while it has not answered what it is asked now."""
    if existing is None or existing.status is None or existing.status.preview is None:
        return None
    if not answers(existing.spec, existing.status):
        return None
    return part_of(existing.status.preview, lambda setting: _concerns(setting, share))


def _by_phase(node: Node, share: Share, status: NodeStatus) -> Standing:
    refused = [result for result in status.results if result.reason != APPLIED]
    failures = _told(node, share, refused)
    warnings = _told(node, share, status.warnings)
    if status.phase == "RolledBack":
        failures = failures or (_said(node, status, status.phase),)
        return Standing(node.name, "rolled_back", failures, retries=not is_parked(status))
    if status.phase in ("Refused", "Contended"):
        if refused and not failures:
            return Standing(node.name, "current", warnings=warnings)  # what was refused is another policy's
        return Standing(node.name, "refused", failures or (_said(node, status, status.phase),), warnings)
    if status.phase == "Trial":
        # With what failed the last time, so that one that is tried again does not look as good as new.
        return Standing(node.name, "updating", failures)
    return Standing(node.name, "current" if status.phase == "Current" else "pending", warnings=warnings)


def _said(node: Node, status: NodeStatus, fallback: str) -> NodeFailure:
    """Return the failure in the words of the node's last transition, when no single setting is named."""
    if status.history and status.history[-1].phase == status.phase:
        last = status.history[-1]
        return NodeFailure(node=node.name, reason=last.reason, message=last.message)
    return NodeFailure(node=node.name, reason=fallback, message="see its NodeConntrack")
