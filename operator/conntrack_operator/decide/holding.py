"""What one node has been given: which policies at which revisions, as its spec says and as it will in a moment.

The spec of a node's object is the only record of it. A grant is a release that was decided and is not written yet.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field

from conntrack_operator.model.node import NodeConntrack, NodeSpec, Withdrawal
from conntrack_operator.model.policy import ConntrackPolicy

from .hashing import hash_of
from .revisions import Revision
from .targeting import Node, selects

GONE = ""
"""In place of a revision: the node is to lose the policy, or the policy is no longer there."""

Grants = Mapping[str, str]
"""By policy, the revision one node is to be given; GONE takes the policy from it."""

Lookup = Callable[[str, str], ConntrackPolicy | None]
"""Returns a policy at a revision; None when that is not known, or not understood."""


@dataclass(frozen=True)
class Target:
    """One policy as it is wanted now. `policy` is None when it is gone and nodes still have it."""

    name: str
    policy: ConntrackPolicy | None
    revision: str
    good: Revision | None = None
    """The revision that went well last."""

    def wanted_at(self, node: Node) -> str:
        """Return the revision that `node` should have, GONE when it should not have the policy."""
        policy = self.policy
        if policy is None or policy.metadata.deletion_timestamp is not None or policy.spec.mode != "Enforce":
            return GONE
        return self.revision if selects(policy.spec.node_selector, node.labels) else GONE


@dataclass(frozen=True)
class Holding:
    """What a node has: its policies as they were given, and those it gave up while others still have them."""

    policies: tuple[ConntrackPolicy, ...] = ()
    revisions: Mapping[str, str] = field(default_factory=dict)
    """By policy, the revision it has of each, also of those nobody knows."""
    withdrawn: tuple[Withdrawal, ...] = ()
    gone: frozenset[str] = frozenset()
    """Policies among them that are not there any more."""
    unknown: tuple[str, ...] = ()
    """Policies that it has at a revision nobody knows: what it has of them can only be left as it is."""


def held_by(node: Node, spec: NodeSpec | None) -> dict[str, str]:
    """Return the revisions that `node` itself, and not one that had its name before, has by `spec`."""
    if spec is None or spec.mode != "Apply" or spec.node_uid != node.uid:
        return {}
    return {use.name: use.revision for use in spec.policies}


def given_up_by(node: Node, spec: NodeSpec | None) -> dict[str, str]:
    """Return the policies `node` has given up, with the revision that no longer meant it."""
    if spec is None or spec.node_uid != node.uid:
        return {}
    return {each.name: each.revision for each in spec.withdrawn}


def newcomers_share(node: Node, targets: Iterable[Target], lookup: Lookup) -> dict[str, str]:
    """Return what a node that has just joined gets at once: the last good revisions of the policies that mean it.

    Only where the revision was good before the node was made. A node that was there and has been given a label since
    waits for its turn like any other: a label is as easily put on a thousand nodes as on one.
    """
    share = {}
    for target in targets:
        good = target.good
        if good is None or good.good_since is None or target.wanted_at(node) == GONE:
            continue
        then = lookup(target.name, good.name)
        if then is None or then.spec.mode != "Enforce" or not selects(then.spec.node_selector, node.labels):
            continue
        if node.created is not None and node.created > good.good_since:
            share[target.name] = good.name
    return share


def holding_of(
    node: Node,
    existing: NodeConntrack | None,
    granted: Grants,
    travelling: Collection[tuple[str, str]] | None,
    lookup: Lookup,
) -> Holding:
    """Return what `node` is to have: what it has, with what it was `granted`.

    `travelling` are the withdrawals under way, as policy and revision: only of those is it kept in mind who has given
    the policy up already. None while nobody has judged that: then all that is in mind stays.
    """
    spec = existing.spec if existing is not None else None
    held = {**held_by(node, spec), **{name: revision for name, revision in granted.items() if revision != GONE}}
    leaving = {name for name, revision in granted.items() if revision == GONE}
    up = given_up_by(node, spec)
    for name, revision in travelling or ():
        if name in leaving and name in held:
            up[name] = revision
    policies, unknown = [], []
    for name, revision in sorted(held.items()):
        if name in leaving:
            continue
        policy = lookup(name, revision)
        if policy is None:
            unknown.append(name)
        else:
            policies.append(policy)
    withdrawn = tuple(
        Withdrawal(name=name, revision=revision)
        for name, revision in sorted(up.items())
        if travelling is None or ((name, revision) in travelling and (name in leaving or name not in held))
    )
    has = {name: revision for name, revision in held.items() if name not in leaving}
    # Only a policy that is there has a uid (revisions.policy_at).
    gone = frozenset(policy.metadata.name for policy in policies if policy.metadata.uid is None)
    return Holding(tuple(policies), has, withdrawn, gone, tuple(unknown))


def attempt_of(policies: Iterable[ConntrackPolicy]) -> str:
    """Return text that changes when any policy's `rollout.retry` does; empty when none has one."""
    asked = sorted(
        (policy.metadata.name, policy.spec.rollout.retry)
        for policy in policies
        if policy.spec.rollout is not None and policy.spec.rollout.retry
    )
    return hash_of(asked) if asked else ""
