"""What policies from a file would do to a fleet, by the very functions the controller merges with. Pure.

What is compared is what the policies ask of each node, before and after. Sizes are still rules then, and ports that
follow pods are still selectors: numbers are known on the node alone, which an Observe policy asks.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from conntrack_operator.decide.merge import Conflict, Merge, leaves_of, merged
from conntrack_operator.decide.revisions import revision_name
from conntrack_operator.decide.targeting import Node, policies_for
from conntrack_operator.model.policy import ConntrackPolicy, Settings

ABSENT = "-"


@dataclass(frozen=True)
class FieldChange:
    """One field that would be asked for otherwise."""

    field: str
    before: str
    after: str
    winner: str
    """The policy that decides it then; empty when nobody does."""
    nodes: int
    example: str


@dataclass(frozen=True)
class PolicyForecast:
    """One policy of the file."""

    policy: str
    revision: str
    before: str
    """The revision it is at now; empty for a new policy."""
    matched: int
    example: str
    mode: str


@dataclass(frozen=True)
class Forecast:
    """What would come of it."""

    policies: tuple[PolicyForecast, ...]
    changes: tuple[FieldChange, ...]
    conflicts: tuple[tuple[Conflict, int], ...]
    """Each with how many nodes it is about."""
    changing: int
    """Nodes that would be asked for something else."""
    nodes: int

    def document(self, verdicts: Sequence[str], notes: Sequence[str]) -> dict[str, Any]:
        """Return it as `plan -o json` prints it."""
        return {
            "nodes": self.nodes,
            "changing": self.changing,
            "policies": [
                {
                    "policy": each.policy, "mode": each.mode, "revision": each.revision,
                    "revisionNow": each.before or None, "matched": each.matched, "example": each.example or None,
                }
                for each in self.policies
            ],
            "changes": [
                {
                    "field": each.field, "from": each.before, "to": each.after, "policy": each.winner or None,
                    "nodes": each.nodes, "example": each.example,
                }
                for each in self.changes
            ],
            "conflicts": [
                {
                    "policy": each.loser, "field": each.field, "winner": each.winner, "why": each.why or None,
                    "nodes": count,
                }
                for each, count in self.conflicts
            ],
            "apiServer": list(verdicts),
            "notes": list(notes),
        }  # fmt: skip


def forecast(live: Sequence[ConntrackPolicy], wanted: Sequence[ConntrackPolicy], nodes: Iterable[Node]) -> Forecast:
    """Return what would change if `wanted` were applied, as if each of them said Enforce."""
    now = {policy.metadata.name: policy for policy in live}
    wanted = [_aged(policy, now.get(policy.metadata.name)) for policy in wanted]
    before = [policy for policy in live if policy.spec.mode == "Enforce"]
    names = {policy.metadata.name for policy in wanted}
    after = [*(policy for policy in before if policy.metadata.name not in names), *wanted]
    merges: dict[frozenset[str], Merge] = {}

    def merge_of(kind: str, policies: Sequence[ConntrackPolicy]) -> Merge:
        key = frozenset({kind, *(policy.metadata.name for policy in policies)})
        if key not in merges:
            merges[key] = merged(policies)
        return merges[key]

    matched: dict[str, list[str]] = {name: [] for name in names}
    changes: dict[tuple[str, str, str, str], list[str]] = {}
    conflicts: Counter[Conflict] = Counter()
    changing, fleet = 0, sorted(nodes, key=lambda node: node.name)
    for node in fleet:
        theirs = policies_for(node.labels, after)
        old, new = merge_of("/before", policies_for(node.labels, before)), merge_of("/after", theirs)
        for policy in theirs:
            if policy.metadata.name in names:
                matched[policy.metadata.name].append(node.name)
        conflicts.update(each for each in new.conflicts if names & {each.loser, each.winner})
        differing = list(_differences(old, new))
        changing += bool(differing)
        for change in differing:
            changes.setdefault(change, []).append(node.name)
    return Forecast(
        tuple(_policy(policy, now.get(policy.metadata.name), matched[policy.metadata.name]) for policy in wanted),
        tuple(FieldChange(*change, len(where), where[0]) for change, where in sorted(changes.items())),
        tuple(sorted(conflicts.items())),
        changing,
        len(fleet),
    )


def _aged(policy: ConntrackPolicy, live: ConntrackPolicy | None) -> ConntrackPolicy:
    """Return the policy of a file with the age of the one it replaces: age decides between equal priorities."""
    created = live.metadata.creation_timestamp if live is not None else None
    metadata = policy.metadata.model_copy(update={"creation_timestamp": created, "deletion_timestamp": None})
    return policy.model_copy(update={"metadata": metadata})


def _policy(policy: ConntrackPolicy, live: ConntrackPolicy | None, matched: Sequence[str]) -> PolicyForecast:
    before = revision_name(live) if live is not None else ""
    example = matched[0] if matched else ""
    return PolicyForecast(policy.metadata.name, revision_name(policy), before, len(matched), example, policy.spec.mode)


def _differences(old: Merge, new: Merge) -> Iterable[tuple[str, str, str, str]]:
    before, after = _fields(old.settings), _fields(new.settings)
    if before == after:
        return
    winners = {field: use.name for use in new.uses for field in use.fields}
    for path in sorted(before.keys() | after.keys()):
        if before.get(path) != after.get(path):
            yield path, words_of(before.get(path)), words_of(after.get(path)), winners.get(path, "")


def _fields(settings: Settings) -> dict[str, Any]:
    document = settings.document()
    rules = (document.get("notrack") or {}).get("rules") or ()
    return {**dict(leaves_of(document)), **{f"notrack.rules[{rule['name']}]": rule for rule in rules}}


def words_of(value: Any) -> str:
    """Return a field's value in a line, as YAML's flow style has it; a dash for none."""
    if value is None:
        return ABSENT
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {words_of(item)}" for key, item in value.items() if key != "name") + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(words_of, value)) + "]"
    return str(value).lower() if isinstance(value, bool) else str(value)
