"""All changes under way in the fleet, and whom each may reach next.

Every policy is judged by itself (decide.rollout), one after the other, in the order in which they win fields. What one
has just released counts as on its way for those after it.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from conntrack_operator.model.node import NodeSpec
from conntrack_operator.model.policy import TRIAL_SECONDS, Rollout

from .absence import Loss
from .holding import GONE, Target, attempt_of, given_up_by
from .pacing import strictest
from .rollout import ANSWER_SECONDS, Member, State, Verdict, verdict_on
from .seen import Seen
from .standing import concerns, has_taken, is_parked
from .targeting import selects


@dataclass(frozen=True)
class Fleet:
    """What is to happen, and where everything stands."""

    grants: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """By node and policy: the revision the node is to be given, GONE to take the policy from it."""
    verdicts: Mapping[str, Verdict] = field(default_factory=dict)
    """By policy."""
    revisions: Mapping[str, str] = field(default_factory=dict)
    """By policy, the revision that was judged; GONE for one that is gone."""
    travelling: frozenset[tuple[str, str]] = frozenset()
    """The withdrawals under way, as policy and revision."""
    losses: frozenset[Loss] = frozenset()
    """All that nodes would lose. Each is granted only when it has been confirmed."""
    leaving: Mapping[str, int] = field(default_factory=dict)
    """By policy, the nodes that still have it and should not, as far as they can be told so."""


def fleet_at(
    seen: Sequence[Seen],
    targets: Sequence[Target],
    now: datetime,
    *,
    granted: Mapping[str, Mapping[str, str]],
    confirmed: Collection[Loss],
) -> Fleet:
    """Return what is to happen at `now`. `granted` was released before and is not in the specs yet."""
    grants = {each.node.name: _still_wanted(each, targets, granted.get(each.node.name, {}), confirmed) for each in seen}
    verdicts, travelling, losses, leaving = {}, set(), set(), Counter[str]()
    scene = _Scene(grants, {target.name: target for target in targets}, now)
    for target in targets:
        members = []
        for each in seen:
            wanted = target.wanted_at(each.node)
            member = _member(each, target, wanted, scene)
            if member is None:
                continue
            if wanted == GONE and target.name in each.held:
                losses.add(_loss(target.name, each))
                if member.able:
                    leaving[target.name] += 1
                if Loss(target.name, each.node.name) not in confirmed:
                    member = replace(member, able=False)
            members.append(member)
        verdict = verdict_on(members, _rollout_of(target, seen, members), now)
        verdicts[target.name] = verdict
        _grant(target, verdict, seen, grants)
        if any(_stays(each, target, grants, now) for each in seen):
            travelling.add((target.name, target.revision))
    losses |= {_loss("", each) for each in seen if _is_needless(each, targets)}
    return Fleet(
        {node: each for node, each in grants.items() if each},
        verdicts,
        {target.name: target.revision for target in targets},
        frozenset(travelling),
        frozenset(losses),
        leaving,
    )


def _stays(seen: Seen, target: Target, grants: Mapping[str, Mapping[str, str]], now: datetime) -> bool:
    """Tell whether the node still has what it should not, can be told so, and its turn has not come."""
    return (
        target.name in seen.held
        and target.wanted_at(seen.node) == GONE
        and grants[seen.node.name].get(target.name) != GONE
        and seen.is_able(now)
    )


def _grant(target: Target, verdict: Verdict, seen: Iterable[Seen], grants: Mapping[str, dict[str, str]]) -> None:
    """Add what `verdict` releases; of a change that is held, take back what is not written yet: it is not under way."""
    released = set(verdict.release)
    for each in seen:
        if verdict.is_held:
            grants[each.node.name].pop(target.name, None)
        elif each.node.name in released:
            grants[each.node.name][target.name] = target.wanted_at(each.node)


def _still_wanted(
    seen: Seen, targets: Sequence[Target], granted: Mapping[str, str], confirmed: Collection[Loss]
) -> dict[str, str]:
    """Return what was granted and not overtaken: by another edit or node, or because a loss turned out to be none."""
    if not granted or seen.spec is None:
        return {}
    return {
        target.name: granted[target.name]
        for target in targets
        if target.name in granted
        and granted[target.name] == target.wanted_at(seen.node)
        and (granted[target.name] != GONE or Loss(target.name, seen.node.name) in confirmed)
    }


@dataclass(frozen=True)
class _Scene:
    grants: Mapping[str, Mapping[str, str]]
    targets: Mapping[str, Target]
    now: datetime


def _member(seen: Seen, target: Target, wanted: str, scene: _Scene) -> Member | None:
    """Return the node as a member of the change; None when `target` neither is nor was anything to it."""
    name, held, now = target.name, seen.held.get(target.name), scene.now
    granted = scene.grants[seen.node.name]
    if wanted == GONE and held is None and given_up_by(seen.node, seen.spec).get(name) != target.revision:
        return None
    able, patience = seen.is_able(now) and not seen.unknown - {name}, _patience(seen.spec)
    if granted.get(name) == wanted:
        return Member(seen.node.name, "moving", now, able=able, is_granted=True, patience_seconds=patience)
    has_it = held == wanted if wanted != GONE else held is None
    if not has_it or _is_asked_again(seen, scene.targets):
        # What went well here before is not touched by another policy's failure.
        unproven = held is not None and (target.good is None or held != target.good.name)
        return Member(
            seen.node.name,
            "waiting",
            seen.since(now),
            able=able,
            touched=unproven,
            busy=(seen.is_moving and not seen.is_new(now)) or bool(granted),
            patience_seconds=patience,
        )
    is_new = seen.is_new(now) and seen.is_moving
    state = _answer(seen, name)
    if state in ("failed", "retrying") and _is_of_another(seen, target, scene.targets):
        state = "moving" if seen.is_moving else "done"
    return Member(seen.node.name, state, seen.since(now), able=able, is_new=is_new, patience_seconds=patience)


def _is_asked_again(seen: Seen, targets: Mapping[str, Target]) -> bool:
    """Tell whether the node gave up and somebody has asked it since, by `rollout.retry`, to try again."""
    spec, status = seen.spec, seen.status
    if spec is None or status is None or not seen.has_answered or status.phase not in ("RolledBack", "Contended"):
        return False
    policies = [targets[name].policy for name in seen.held if name in targets]
    attempt = attempt_of([policy for policy in policies if policy is not None])
    return bool(attempt) and attempt != spec.attempt


def _is_of_another(seen: Seen, target: Target, targets: Mapping[str, Target]) -> bool:
    """Tell whether what the node took back must be another policy's change: `target` has gone well before as it is."""
    held = dict(seen.held)
    if target.good is None or held.pop(target.name, None) != target.good.name:
        return False
    others = (targets[name] for name in held if name in targets and targets[name].policy is not None)
    return any(other.good is None or held[other.name] != other.good.name for other in others)


def _answer(seen: Seen, policy: str) -> State:
    status, spec = seen.status, seen.spec
    if seen.is_moving or status is None or spec is None:
        # What failed before has not gone well while it is tried again: else a halt would be lifted for each try.
        return "retrying" if seen.is_tried_again else "moving"
    if status.phase == "RolledBack":
        return "failed" if is_parked(status) else "retrying"
    if status.phase in ("Refused", "Contended") and concerns(policy, spec, status):
        # What it took of the change stands its trial like any other.
        return "done" if has_taken(policy, spec, status) else "refused"
    return "done"


def _patience(spec: NodeSpec | None) -> float:
    trial = spec.settings.trial if spec is not None else None
    timeout = trial.timeout_seconds if trial is not None else None
    return ANSWER_SECONDS + (timeout or TRIAL_SECONDS)


def _loss(policy: str, seen: Seen) -> Loss:
    created = seen.existing.metadata.creation_timestamp if seen.existing is not None else None
    return Loss(policy, seen.node.name, told=created or "")


def _rollout_of(target: Target, seen: Sequence[Seen], members: Sequence[Member]) -> Rollout | None:
    if target.policy is not None:
        return target.policy.spec.rollout
    uses = (use for each in seen if each.spec is not None for use in each.spec.policies if use.name == target.name)
    return strictest((use.rollout for use in uses), len(members))


def _is_needless(seen: Seen, targets: Sequence[Target]) -> bool:
    """Tell whether the node has an object, holds nothing, and no policy means it, not even to observe it."""
    if seen.spec is None or seen.spec.mode != "Hold":
        return False
    return not any(
        target.policy is not None
        and target.policy.metadata.deletion_timestamp is None
        and selects(target.policy.spec.node_selector, seen.node.labels)
        for target in targets
    )
