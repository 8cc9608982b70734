"""Top talkers of many nodes put together. Pure.

Each node tells of its few largest alone, so what a key has on nodes where it is not among them is missing: sums are "at
least".
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

Document = dict[str, Any]

ADDRESSES = ("source", "destination")


@dataclass(frozen=True)
class TalkerRow:
    """One key with its entries on all nodes that told of it."""

    key: str
    entries: int
    share: float
    """Of all entries of the nodes that told, from 0 to 1."""
    nodes: int
    name: str = ""
    error: float | None = None
    """Half the width of the share's 95 % interval, of a live look alone."""


@dataclass(frozen=True)
class Talkers:
    """Who holds most entries."""

    by: str
    rows: tuple[TalkerRow, ...]
    entries: int
    """Entries of the nodes that told."""
    told: int
    """Nodes that told."""
    silent: int
    """Nodes that told nothing: no report yet, or their agents leave addresses out."""

    def addresses(self) -> list[str]:
        """Return what is to be given names."""
        return [row.key for row in self.rows] if self.by in ADDRESSES else []


def talkers_of(documents: Iterable[Document], by: str, most: int) -> Talkers:
    """Return the largest talkers of these NodeConntracks together."""
    entries: dict[str, int] = {}
    nodes: dict[str, int] = {}
    total = told = silent = 0
    for document in documents:
        status = document.get("status") or {}
        mine = [each for each in status.get("topTalkers") or () if each.get("by") == by]
        if not mine:
            silent += 1
            continue
        told += 1
        total += (status.get("usage") or {}).get("entries", 0)
        for each in mine:
            entries[each["key"]] = entries.get(each["key"], 0) + each["entries"]
            nodes[each["key"]] = nodes.get(each["key"], 0) + 1
    largest = sorted(entries, key=lambda key: (-entries[key], key))[:most]
    rows = tuple(TalkerRow(key, entries[key], entries[key] / total if total else 0.0, nodes[key]) for key in largest)
    return Talkers(by, rows, total, told, silent)


def live_talkers(document: Document, by: str) -> Talkers:
    """Return the talkers in what `conntrack-operator top -o json` printed on one node."""
    rows = tuple(
        TalkerRow(row["key"], row["entries"], row["share"], 1, error=row.get("error")) for row in document["rows"]
    )
    return Talkers(by, rows, document["entries"], 1, 0)


def talkers_document(talkers: Talkers, names: Sequence[str], notes: Sequence[str]) -> Document:
    """Return it as `top -o json` prints it."""
    rows = [
        {
            "key": row.key, "name": name, "entries": row.entries, "share": round(row.share, 6), "nodes": row.nodes,
            **({} if row.error is None else {"error": round(row.error, 6)}),
        }
        for row, name in zip(talkers.rows, names, strict=True)
    ]  # fmt: skip
    return {
        "by": talkers.by, "entries": talkers.entries, "nodesTold": talkers.told, "nodesSilent": talkers.silent,
        "rows": rows,
        "notes": list(notes),
    }  # fmt: skip
