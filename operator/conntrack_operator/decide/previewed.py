"""What an Observe policy would do to all its nodes, from what each of them has previewed: for the policy's status.

One preview speaks of all the policies of its node at once: `part_of` leaves what concerns one of them.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from conntrack_operator.model.node import NodeSpec, NodeStatus, Preview
from conntrack_operator.model.policy import Settings
from conntrack_operator.model.status import PREVIEWED_MAX, PolicyPreview, PreviewedSetting

from .hashing import hash_of
from .outcome import NODE

REFUSALS_NAMED = 2
"""Refusals named in a sentence; the preview lists more."""


def preview_revision(settings: Settings) -> str:
    """Return the hash by which a node says which settings its preview was made for."""
    return hash_of(settings.document())


def answers(spec: NodeSpec, status: NodeStatus) -> bool:
    """Tell whether the node has previewed what `spec` asks it to now, and not what an Observe policy said before.

    The spec's own revision does not tell: it is about what is applied, and an Observe policy is no part of that.
    """
    if spec.preview is None or status.preview is None:
        return False
    # An older agent names no revision.
    return status.preview.revision in {"", preview_revision(spec.preview)}


def part_of(preview: Preview, concerns: Callable[[str], bool]) -> Preview:
    """Return what `preview` says of the settings that concern one policy, and of the node as a whole."""
    return preview.model_copy(
        update={
            "changes": [change for change in preview.changes if concerns(change.setting)],
            "refused": [each for each in preview.refused if each.setting == NODE or concerns(each.setting)],
            "warnings": [each for each in preview.warnings if each.setting == NODE or concerns(each.setting)],
        }
    )


@dataclass
class _Seen:
    """One thing said by some nodes: by how many, and what the first of them by name said."""

    nodes: int = 0
    example: str = ""
    what: str = ""

    def add(self, node: str, what: str) -> None:
        self.nodes += 1
        if not self.example or node < self.example:
            self.example, self.what = node, what


@dataclass
class _Count:
    changes: dict[tuple[str, str], _Seen] = field(default_factory=lambda: defaultdict(_Seen))
    refused: dict[tuple[str, str], _Seen] = field(default_factory=lambda: defaultdict(_Seen))


def preview_of(previews: Iterable[tuple[str, Preview]]) -> PolicyPreview:
    """Return what all `previews`, each with its node's name, come to. A node that has not answered is not among them.

    The same whatever the order they come in; most nodes first, then by name.
    """
    nodes = changing = refusing = unchanged = 0
    count = _Count()
    for node, preview in previews:
        nodes += 1
        changing += bool(preview.changes)
        refusing += bool(preview.refused)
        unchanged += not (preview.changes or preview.refused)
        for change in preview.changes:
            count.changes[change.setting, ""].add(node, f"{change.from_} -> {change.to}")
        # A rule may be refused twice for one reason, and that is one node.
        first = {(each.setting, each.reason): each for each in reversed(preview.refused)}
        for key, refusal in first.items():
            count.refused[key].add(node, f"{refusal.reason}: {refusal.message}")
    return PolicyPreview(
        nodes=nodes,
        changing=changing,
        refusing=refusing,
        unchanged=unchanged,
        changes=_most(count.changes),
        refused=_most(count.refused),
    )


def _most(seen: Mapping[tuple[str, str], _Seen]) -> list[PreviewedSetting]:
    ordered = sorted(seen.items(), key=lambda item: (-item[1].nodes, item[0]))
    return [
        PreviewedSetting(setting=setting, nodes=each.nodes, example=each.example, what=each.what)
        for (setting, _), each in ordered[:PREVIEWED_MAX]
    ]


def words_of(preview: PolicyPreview, matched: int) -> str:
    """Return what the policy would do to its `matched` nodes as a sentence without a full stop.

    For example: 12 of 40 nodes would change 3 settings; 1 would refuse notrack/web (NATConflict).
    """
    parts = []
    if not preview.nodes:
        return f"none of {_nodes(matched)} has said yet what would change; nothing is changed"
    if preview.changing:
        parts.append(f"{preview.changing} of {_nodes(matched)} would change {_settings(preview)}")
    elif preview.nodes == matched:
        parts.append(f"nothing would change on {_all(matched)}")
    else:
        parts.append(f"nothing would change on {preview.nodes} of {_nodes(matched)}")
    if preview.refusing:
        parts.append(f"{preview.refusing} would refuse {_refusals(preview)}")
    if silent := matched - preview.nodes:
        parts.append(f"{silent} {'has' if silent == 1 else 'have'} not answered")
    return "; ".join(parts)


def _nodes(number: int) -> str:
    return "1 node" if number == 1 else f"{number} nodes"


def _all(matched: int) -> str:
    return "the one node" if matched == 1 else f"any of {_nodes(matched)}"


def _settings(preview: PolicyPreview) -> str:
    number = len(preview.changes)
    if number == 1:
        only = preview.changes[0]
        return f"{only.setting} ({only.what} on {only.example})"
    return f"{number} settings" if number < PREVIEWED_MAX else f"{number} settings or more"


def _refusals(preview: PolicyPreview) -> str:
    named = [f"{_named(each)} ({each.what.partition(':')[0]})" for each in preview.refused[:REFUSALS_NAMED]]
    more = len(preview.refused) - len(named)
    return ", ".join(named) + (f" and {more} more" if more else "")


def _named(refusal: PreviewedSetting) -> str:
    return "everything" if refusal.setting == NODE else refusal.setting
