"""What each node must do, and what the controller has to write for it to be told so.

A node's object is never simply deleted when its last policy goes: first the node is asked to put its originals
back (mode Restore), and only when it has answered that very request does the object go. A node with only
Observe policies keeps its object, with nothing to apply and a preview.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from conntrack_operator.model.node import NodeConntrack, NodeSpec
from conntrack_operator.model.policy import ConntrackPolicy, NotrackRule, Settings
from conntrack_operator.model.surroundings import Service

from .later import later_fields_of
from .merge import Merge, merged, revision_of
from .pods import HostPod, resolved
from .standing import Share
from .targeting import Node, policies_for

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


def node_spec_for(
    node: Node,
    policies: Sequence[ConntrackPolicy],
    merging: Merging = merged,
    local: Local = NOTHING_LOCAL,
    existing: NodeSpec | None = None,
) -> NodeSpec | None:
    """Return what `policies` ask of `node`, or None when none of them selects it.

    `existing` is what was asked before: what cannot be seen stays as it is there. The Services are no part of the
    revision: they change nothing that the node is asked for.
    """
    mine = policies_for(node.labels, policies)
    if not mine:
        return None
    enforced = merging([policy for policy in mine if policy.spec.mode == "Enforce"])
    observed = merging(mine) if any(policy.spec.mode == "Observe" for policy in mine) else None
    settings = resolved(enforced.settings, local.pods, existing.settings if existing else None)
    preview = resolved(observed.settings, local.pods, existing.preview if existing else None) if observed else None
    rules = [rule for each in (settings, preview) if each and each.notrack for rule in each.notrack.rules or ()]
    services = list(existing.services) if existing and local.services is None else []
    if rules and local.services is not None:
        services = local.services(rules)
    return NodeSpec(
        revision=_revision("Apply", settings),
        attempt=attempt_of(mine),
        mode="Apply",
        node_uid=node.uid,
        policies=list(enforced.uses),
        settings=settings,
        preview=preview,
        services=services,
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


def step_for(  # noqa: PLR0913 - all that a node's object depends on, by name
    node: Node,
    policies: Sequence[ConntrackPolicy],
    existing: NodeConntrack | None,
    unreadable: Collection[str] = (),
    *,
    merging: Merging = merged,
    local: Local = NOTHING_LOCAL,
) -> Step:
    """Return what to do so that `node` has the right object; None when it has it, or must be left as it is.

    `unreadable` names policies that cannot be judged: a node they have a share in is left alone, since what
    cannot be read has not been withdrawn.
    """
    if existing is not None and any(use.name in unreadable for use in existing.spec.policies):
        return None
    spec = node_spec_for(node, policies, merging, local, existing.spec if existing else None)
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


def attempt_of(policies: Sequence[ConntrackPolicy]) -> str:
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
        has_later_rollout=bool(later_fields_of(use.rollout)),
        conflicts=tuple(conflict for conflict in merge.conflicts if conflict.loser == use.name),
    )
