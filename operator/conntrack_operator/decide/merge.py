"""Several policies on one node, merged field by field into what the node must do.

The higher priority wins a field; ties go to the older policy, then to the name. `table.size` is one field
(half of one policy's size and half of another's would be nobody's wish), and so is every timeout, sysctl and
switch. NOTRACK rules add up. The result never depends on the order in which the policies came: two controllers,
or one before and after a restart, must write the same spec.

Nothing is filled in here: what an absent field means is decided where the settings meet the facts, since a
default in a spec would look like somebody's wish.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from conntrack_operator.model.node import PolicyUse
from conntrack_operator.model.notrack import NotrackRule
from conntrack_operator.model.policy import TRIAL_MARGIN_SECONDS, TRIAL_SECONDS, ConntrackPolicy, Rollout, Settings

from .hashing import hash_of
from .revisions import revision_name

RULES_MAX = 16
"""NOTRACK rules one node takes; the same bound as in one policy (model.policy.Notrack.rules)."""

NAME_MAX = 63
"""Length of a rule's name (model.policy.RuleName)."""

_ATOMIC = ("table.size",)
_RULES = "notrack.rules"
_SOAK, _TIMEOUT = "trial.soakSeconds", "trial.timeoutSeconds"
_SETTINGS = frozenset(field.alias or name for name, field in Settings.model_fields.items())


@dataclass(frozen=True, order=True)
class Conflict:
    """`loser` asked for another value of `field` than `winner`, who is ahead of it. `why` when it is not that."""

    loser: str
    field: str
    winner: str
    why: str = ""
    tied: bool = False
    """Whether both have the same priority, so that only their age or name decides."""

    @property
    def parties(self) -> tuple[str, ...]:
        """Return the policies that should know: of a tie the winner too."""
        return (self.loser, self.winner) if self.tied else (self.loser,)


@dataclass(frozen=True)
class Merge:
    """What several policies come to. `uses` has one entry for each policy, highest first."""

    settings: Settings
    uses: tuple[PolicyUse, ...] = ()
    conflicts: tuple[Conflict, ...] = ()


def settings_of(policy: ConntrackPolicy) -> dict[str, Any]:
    """Return the part of a policy's spec that is merged, as JSON-ready data."""
    return {key: value for key, value in policy.spec.document().items() if key in _SETTINGS}


def precedence(policy: ConntrackPolicy) -> tuple[int, str, str]:
    """Return the sort key that puts the policy that wins first. RFC 3339 in UTC sorts as text."""
    return (-(policy.spec.priority or 0), policy.metadata.creation_timestamp or "9999", policy.metadata.name)


def leaves_of(document: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the merged fields of settings with their values, but for the NOTRACK rules."""
    for key, value in document.items():
        here = f"{path}.{key}" if path else key
        if here == _RULES:
            continue
        if isinstance(value, Mapping) and here not in _ATOMIC:
            yield from leaves_of(value, here)
        else:
            yield here, value


def merged(policies: Iterable[ConntrackPolicy]) -> Merge:
    """Return what `policies`, which all match one node, come to together. Their mode plays no part here."""
    ordered = sorted(policies, key=precedence)
    documents = {policy.metadata.name: settings_of(policy) for policy in ordered}
    priorities = {policy.metadata.name: policy.spec.priority or 0 for policy in ordered}
    fields: dict[str, list[str]] = {name: [] for name in documents}
    values: dict[str, tuple[str, Any]] = {}
    conflicts: list[Conflict] = []
    for name, document in documents.items():
        for path, value in leaves_of(document):
            winner, kept = values.setdefault(path, (name, value))
            if winner == name:
                fields[name].append(path)
            elif kept != value:
                conflicts.append(Conflict(name, path, winner, tied=priorities[name] == priorities[winner]))
    rules, crowded = _rules_of(ordered)
    for owner, rule in rules:
        fields[owner].append(f"{_RULES}[{rule.name}]")
    crowded += _with_room_to_soak(values)
    document = _nested((path, value) for path, (_, value) in values.items())
    if rules:
        document.setdefault("notrack", {})["rules"] = [rule.document() for _, rule in rules]
    uses = tuple(
        PolicyUse(
            name=policy.metadata.name,
            revision=revision_name(policy),
            fields=sorted(fields[policy.metadata.name]),
            on_delete=policy.spec.on_delete or "Restore",
            rollout=_lasting(policy.spec.rollout),
        )
        for policy in ordered
    )
    return Merge(Settings.model_validate(document), uses, tuple(sorted([*conflicts, *crowded])))


def _lasting(rollout: Rollout | None) -> Rollout | None:
    """Return what of a policy's rollout still counts when the policy is gone."""
    lasting = rollout.model_copy(update={"paused": None, "retry": None}) if rollout is not None else None
    return lasting if lasting is not None and lasting.document() else None


def _with_room_to_soak(values: dict[str, tuple[str, Any]]) -> list[Conflict]:
    """Cut a soak that does not fit into another policy's timeout, and say so: each was right by itself."""
    soak, timeout = values.get(_SOAK), values.get(_TIMEOUT)
    room = (timeout[1] if timeout else TRIAL_SECONDS) - TRIAL_MARGIN_SECONDS
    if soak is None or soak[1] <= room:
        return []
    values[_SOAK] = (soak[0], room)
    winner = timeout[0] if timeout else soak[0]
    return [Conflict(soak[0], _SOAK, winner, f"cut to {room} s, so that it ends before the trial.timeoutSeconds")]


def _nested(leaves: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    document: dict[str, Any] = {}
    for path, value in leaves:
        *parents, last = path.split(".")
        place = document
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
    return document


def _rules_of(ordered: Sequence[ConntrackPolicy]) -> tuple[list[tuple[str, NotrackRule]], list[Conflict]]:
    """Return every policy's rules, highest policy first, names made unique; and what found no room."""
    pairs = [
        (policy.metadata.name, rule)
        for policy in ordered
        if policy.spec.notrack is not None
        for rule in policy.spec.notrack.rules or ()
    ]
    names = _unique_names([(owner, rule.name) for owner, rule in pairs])
    named = [(owner, rule.model_copy(update={"name": names[owner, rule.name]})) for owner, rule in pairs]
    kept, rest = named[:RULES_MAX], named[RULES_MAX:]
    why = f"a node takes at most {RULES_MAX} notrack rules; join some"
    return kept, [Conflict(owner, f"{_RULES}[{rule.name}]", kept[-1][0], why) for owner, rule in rest]


def _unique_names(pairs: Sequence[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """Return the name each (policy, rule) goes by on the node: its own, or `<policy>-<rule>` when two policies use it.

    Where that is too long for a rule's name, or somebody else's, the end is a hash of the pair. Each name follows
    from the whole set of pairs and not from their order.
    """
    shared = {name for name, times in Counter(name for _, name in pairs).items() if times > 1}
    plain = {(owner, name): f"{owner.replace('.', '-')}-{name}" if name in shared else name for owner, name in pairs}
    times = Counter(plain.values())
    return {
        pair: text if pair[1] not in shared or (times[text] == 1 and len(text) <= NAME_MAX) else _hashed(text, pair)
        for pair, text in plain.items()
    }


def _hashed(text: str, pair: tuple[str, str]) -> str:
    tail = hash_of(pair)
    return f"{text[: NAME_MAX - len(tail) - 1].rstrip('-')}-{tail}"
