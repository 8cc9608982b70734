"""What each node must do, and what the controller has to write for it to be told so.

A node's object is never simply deleted when its last policy goes: first the node is asked to put its originals
back (mode Restore), and only when it has answered that very request does the object go. A node with only
Observe policies keeps its object, with nothing to apply and a preview.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from conntrack_operator.model.node import NodeConntrack, NodeSpec
from conntrack_operator.model.policy import ConntrackPolicy, Settings

from .merge import Merge, merged, revision_of
from .standing import Share
from .targeting import Node, policies_for

Merging = Callable[[Sequence[ConntrackPolicy]], Merge]


@dataclass(frozen=True)
class Write:
    """Create the node's object with this spec, or make its spec and owner so."""

    spec: NodeSpec


@dataclass(frozen=True)
class Remove:
    """Delete the node's object: nothing is left to say to the node, or the node is gone."""

    why: str


Step = Write | Remove | None


def node_spec_for(node: Node, policies: Sequence[ConntrackPolicy], merging: Merging = merged) -> NodeSpec | None:
    """Return what `policies` ask of `node`, or None when none of them selects it."""
    mine = policies_for(node.labels, policies)
    if not mine:
        return None
    enforced = merging([policy for policy in mine if policy.spec.mode == "Enforce"])
    observed = merging(mine) if any(policy.spec.mode == "Observe" for policy in mine) else None
    return NodeSpec(
        revision=_revision("Apply", enforced.settings),
        attempt=_attempt_of(mine),
        mode="Apply",
        node_uid=node.uid,
        policies=list(enforced.uses),
        settings=enforced.settings,
        preview=observed.settings if observed else None,
    )


def restore_spec_for(node: Node, existing: NodeSpec, generation: int) -> NodeSpec:
    """Return the spec that asks `node` to put its originals back.

    It goes on naming the policies of before, since their `onDelete` must still be honoured. Every Restore has the
    same revision, so `attempt` tells this one from an earlier one the node may have answered already.
    """
    if existing.mode == "Restore" and existing.node_uid == node.uid:
        return existing
    return NodeSpec(
        revision=_revision("Restore", Settings()),
        attempt=f"restore-{generation}",
        mode="Restore",
        node_uid=node.uid,
        policies=existing.policies,
    )


def step_for(
    node: Node,
    policies: Sequence[ConntrackPolicy],
    existing: NodeConntrack | None,
    unreadable: Collection[str] = (),
    merging: Merging = merged,
) -> Step:
    """Return what to do so that `node` has the right object; None when it has it, or must be left as it is.

    `unreadable` names policies that cannot be judged: a node they have a share in is left alone, since what
    cannot be read has not been withdrawn.
    """
    if existing is not None and any(use.name in unreadable for use in existing.spec.policies):
        return None
    spec = node_spec_for(node, policies, merging)
    if spec is None:
        if existing is None:
            return None
        if has_restored(existing) and existing.spec.node_uid == node.uid:
            return Remove("the node has put its original values back")
        spec = restore_spec_for(node, existing.spec, existing.metadata.generation or 0)
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
    return revision_of({"mode": mode, "settings": settings.document()})


def _attempt_of(policies: Sequence[ConntrackPolicy]) -> str:
    """Return text that changes when any policy's `rollout.retry` does; empty when none has one."""
    asked = sorted(
        (policy.metadata.name, policy.spec.rollout.retry)
        for policy in policies
        if policy.spec.rollout is not None and policy.spec.rollout.retry
    )
    return revision_of(asked) if asked else ""


def share_of(
    policy: ConntrackPolicy, node: Node, policies: Sequence[ConntrackPolicy], merging: Merging = merged
) -> Share:
    """Return `policy`'s part on `node`, which it selects, beside the others among `policies` that do too.

    An Enforce policy meets only its like; an Observe policy is shown what it would come to among them all.
    """
    observes = policy.spec.mode == "Observe"
    mine = [other for other in policies_for(node.labels, policies) if observes or other.spec.mode == "Enforce"]
    merge = merging(mine)
    use = next(use for use in merge.uses if use.name == policy.metadata.name)
    return Share(
        revision=use.revision,
        fields=frozenset(use.fields),
        all_fields=frozenset(field for each in merge.uses for field in each.fields),
        observes=observes,
        has_rollout=use.rollout is not None,
        conflicts=tuple(conflict for conflict in merge.conflicts if conflict.loser == use.name),
    )
