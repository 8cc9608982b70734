"""What each node must do, and what the controller has to write for it to be told so.

A node that a policy means gets its object at once, and is asked for nothing (mode Hold) until it is released; with
only Observe policies it stays so, with a preview. The object is never simply deleted when the last policy goes: first
the node is asked to put its originals back (mode Restore), and only when it has answered that very request does it go.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from conntrack_operator.model.node import NodeConntrack, NodeSpec, PolicyUse
from conntrack_operator.model.notrack import NotrackRule
from conntrack_operator.model.policy import ConntrackPolicy, Settings
from conntrack_operator.model.surroundings import Service

from .hashing import hash_of
from .holding import Grants, Holding
from .merge import Merge, merged
from .pods import HostPod, resolved
from .revisions import revision_name
from .targeting import Node

Merging = Callable[[Sequence[ConntrackPolicy]], Merge]


def _no_services(_: Sequence[NotrackRule]) -> list[Service]:
    return []


@dataclass(frozen=True)
class Local:
    """What is known of one node besides its policies."""

    pods: Sequence[HostPod] | None = ()
    """The pods on the node's own network; None when they cannot be seen."""
    services: Callable[[Sequence[NotrackRule]], list[Service]] | None = _no_services
    """Tells which Services meet these rules on this node; None when they cannot be seen."""


NOTHING_LOCAL = Local()


@dataclass(frozen=True)
class Write:
    """Create the node's object with this spec, or make its spec and owner so."""

    spec: NodeSpec


@dataclass(frozen=True)
class Remove:
    """Delete the node's object: nothing is left to say to the node, or the node is gone."""

    why: str


Step = Write | Remove | None


def node_spec_for(  # noqa: PLR0913 - all that a node's object depends on, by name
    node: Node,
    holding: Holding,
    observed: Sequence[ConntrackPolicy],
    existing: NodeSpec | None,
    *,
    attempt: str,
    merging: Merging = merged,
    local: Local = NOTHING_LOCAL,
    generation: int = 0,
) -> NodeSpec:
    """Return what `node` is to be told, which has `holding` and is previewed with the `observed` policies added.

    `existing` is what it was told before: what cannot be seen stays as it is there, and a node that had something and
    is to have nothing is asked to restore. A node that never had anything is asked for nothing (mode Hold). The
    Services are no part of the revision: they change nothing that the node is asked for.
    """
    mine = existing if existing is not None and existing.node_uid == node.uid else None
    enforced = merging(holding.policies)
    settings = resolved(enforced.settings, local.pods, mine.settings if mine else None)
    preview = None
    if observed:
        merge = merging([*holding.policies, *observed])
        preview = resolved(merge.settings, local.pods, mine.preview if mine else None)
    common = {
        "node_uid": node.uid,
        "withdrawn": list(holding.withdrawn),
        "preview": preview,
        "previewed": {policy.metadata.name: revision_name(policy) for policy in observed},
        "services": _services_for((settings, preview), mine, local),
    }
    if holding.policies:
        revision = _revision("Apply", settings)
        return NodeSpec(
            revision=revision,
            attempt=attempt,
            mode="Apply",
            policies=list(_uses_of(enforced, holding, mine)),
            settings=settings,
            **common,
        )
    if mine is None or mine.mode == "Hold":
        return NodeSpec(revision=_revision("Hold", Settings()), mode="Hold", **common)
    # Every Restore has the same revision: `attempt` tells this one from an earlier one the node may have answered.
    again = mine.attempt if mine.mode == "Restore" else f"restore-{generation}"
    return NodeSpec(
        revision=_revision("Restore", Settings()), attempt=again, mode="Restore", policies=mine.policies, **common
    )


def _uses_of(merge: Merge, holding: Holding, told: NodeSpec | None) -> Iterator[PolicyUse]:
    """Yield each policy's share. What a policy that is gone left behind of its wishes is in what the node was told."""
    before = {use.name: use for use in told.policies} if told is not None else {}
    for use in merge.uses:
        update: dict[str, Any] = {"revision": holding.revisions[use.name]}
        if use.name in holding.gone and use.name in before:
            update |= {"on_delete": before[use.name].on_delete, "rollout": before[use.name].rollout}
        yield use.model_copy(update=update)


def _told_of_former(
    spec: NodeSpec, former: Sequence[ConntrackPolicy], existing: NodeConntrack | None, local: Local
) -> NodeSpec:
    """Return `spec` with the Services that meet what the node may still have in force, besides what it asks for.

    That is until the node says that it is as the spec asks: one that rolled back has its old rules again, and one whose
    object was lost is asked for nothing and keeps what it had.
    """
    if spec.mode == "Restore" or not former or (spec.mode == "Apply" and _is_current(spec, existing)):
        return spec
    told = existing.spec if existing is not None and existing.spec.node_uid == spec.node_uid else None
    rules = [resolved(policy.spec, local.pods) for policy in former]
    return spec.model_copy(update={"services": _services_for((spec.settings, spec.preview, *rules), told, local)})


def _is_current(spec: NodeSpec, existing: NodeConntrack | None) -> bool:
    status = existing.status if existing is not None else None
    return status is not None and (
        (status.node_uid, status.observed_revision, status.observed_attempt, status.phase)
        == (spec.node_uid, spec.revision, spec.attempt, "Current")
    )


def frozen_spec(existing: NodeSpec, local: Local) -> NodeSpec:
    """Return `existing` with the Services of now: of a node that has something nobody can put together any more."""
    services = _services_for((existing.settings, existing.preview), existing, local)
    return existing.model_copy(update={"services": services})


def _services_for(settings: Sequence[Settings | None], existing: NodeSpec | None, local: Local) -> list[Service]:
    if local.services is None:
        return list(existing.services) if existing else []
    rules = [rule for each in settings if each and each.notrack for rule in each.notrack.rules or ()]
    return local.services(rules) if rules else []


@dataclass(frozen=True)
class Wish:
    """All that one node's object depends on, besides what it says already."""

    holding: Holding
    observed: Sequence[ConntrackPolicy] = ()
    """The Observe policies that mean it."""
    attempt: str = ""
    former: Sequence[ConntrackPolicy] = ()
    """Its policies at all revisions that are kept: rules of these may be in force, whatever it is asked for."""
    is_meant: bool = True
    """Whether any policy means it, or may: one that cannot be read."""
    may_restore: bool = False
    """Whether it has been confirmed that no policy means a node that never had anything."""
    granted: Grants = field(default_factory=dict)
    """What of it was granted and is not in its spec yet."""


def step_for(
    node: Node,
    wish: Wish,
    existing: NodeConntrack | None,
    *,
    merging: Merging = merged,
    local: Local = NOTHING_LOCAL,
) -> Step:
    """Return what to do so that `node` has the right object; None when it has it, or must be left as it is."""
    told = existing.spec if existing is not None else None
    if told is not None and told.node_uid != node.uid:
        told = None
    has_nothing = not wish.holding.policies and not wish.holding.unknown
    if has_nothing and not wish.is_meant:
        if existing is None:
            return None
        if told is None:
            return Remove("no policy means the node, which is another one than was told")
        if has_restored(existing) and not wish.holding.withdrawn:
            return Remove("the node has put its original values back")
        if told.mode == "Hold" and not wish.may_restore:
            return None
        if told.mode == "Hold":
            # It may have confirmed settings that an object before this one asked for.
            told = told.model_copy(update={"mode": "Apply"})
    if wish.holding.unknown and told is not None:
        spec = frozen_spec(told, local)
    else:
        spec = node_spec_for(
            node,
            wish.holding,
            wish.observed,
            told,
            attempt=wish.attempt,
            merging=merging,
            local=local,
            generation=existing.metadata.generation or 0 if existing is not None else 0,
        )
    spec = _told_of_former(spec, wish.former, existing, local)
    if existing is not None and existing.spec == spec and is_owned_by(existing, node):
        return None
    return Write(spec)


def has_restored(existing: NodeConntrack) -> bool:
    """Return whether the node says that it has done what a Restore spec asks, this one and no earlier one."""
    spec, status = existing.spec, existing.status
    return (
        spec.mode == "Restore"
        and status is not None
        and status.phase == "Restored"
        and status.observed_revision == spec.revision
        and status.observed_attempt == spec.attempt
        and status.node_uid == spec.node_uid
    )


def owner_of(node: Node) -> dict[str, str]:
    """Return the ownerReference that lets a NodeConntrack go with its node."""
    return {"apiVersion": "v1", "kind": "Node", "name": node.name, "uid": node.uid}


def is_owned_by(existing: NodeConntrack, node: Node) -> bool:
    """Return whether the object belongs to this very node, and to nothing else."""
    owners = existing.metadata.owner_references or []
    return [owner.get("uid") for owner in owners] == [node.uid]


def _revision(mode: str, settings: Settings) -> str:
    return hash_of({"mode": mode, "settings": settings.document()})
