"""The versions of a policy. What a node was given is named by one of them, and stays until the node is given another.

A revision is what a policy asks of nodes and of which: mode, nodeSelector, priority and settings. `rollout` and
`onDelete` are no part of it: how a change travels, and what becomes of it at the end, people may change at any time.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pydantic import ValidationError

from conntrack_operator.model.policy import ConntrackPolicy

from .hashing import hash_of

KEPT = 3
"""Revisions of a policy that are kept, besides those that some node has and the last that went well."""

_LIVE = ("rollout", "onDelete")


@dataclass(frozen=True)
class Revision:
    """One version of a policy, as it is kept. New content gets a new number; what comes back has its own."""

    policy: str
    name: str
    """Hash of the content, as in a node's spec.policies."""
    number: int
    content: dict[str, Any]
    created: str = ""
    """When the policy was made (RFC 3339): it decides between equal priorities, also when the policy is gone."""
    good_since: datetime | None = None
    """When its rollout had ended on all nodes; None while it has not."""


def content_of(policy: ConntrackPolicy) -> dict[str, Any]:
    """Return what a revision is made of, as JSON-ready data."""
    return {key: value for key, value in policy.spec.document().items() if key not in _LIVE}


def revision_name(policy: ConntrackPolicy) -> str:
    """Return the name of the revision the policy is at."""
    return hash_of(content_of(policy))


def policy_at(revision: Revision, live: ConntrackPolicy | None) -> ConntrackPolicy | None:
    """Return the policy as it was at `revision`, with the rollout and onDelete it has now, if it is still there.

    None when this version does not understand the content: another version of the operator wrote it.
    """
    spec = dict(revision.content)
    metadata = {"name": revision.policy, "creationTimestamp": revision.created or None}
    if live is not None:
        spec |= {key: value for key, value in live.spec.document().items() if key in _LIVE}
        metadata = live.metadata.document()
    try:
        return ConntrackPolicy.model_validate({"metadata": metadata, "spec": spec})
    except ValidationError:
        return None


def last_good(revisions: Iterable[Revision]) -> Revision | None:
    """Return the revision that went well last; None when none ever did."""
    good = [each for each in revisions if each.good_since is not None]
    return max(good, key=lambda each: (each.good_since, each.number), default=None)


def outdated(revisions: Collection[Revision], present: str | None, used: Collection[str]) -> list[Revision]:
    """Return which revisions of one policy need not be kept any more.

    `present` names the policy's own, None when the policy is gone; `used` names those that some node still has.
    """
    good = last_good(revisions) if present is not None else None
    newest = sorted(revisions, key=lambda each: -each.number)[: KEPT if present is not None else 0]
    kept = {each.name for each in newest} | {present, good.name if good else None, *used}
    return [each for each in revisions if each.name not in kept]
