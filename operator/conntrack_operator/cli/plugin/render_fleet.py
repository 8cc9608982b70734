"""What the fleet looks like to a person. Pure: rows in, rich renderables out."""

from collections.abc import Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from conntrack_operator.decide.finding import counted

from .fleet import NodeRow, PolicyRow

RED, YELLOW, GREEN = "bold red", "yellow", "green"
_STYLES = {
    "Current": GREEN, "RolledBack": RED, "Refused": RED, "Contended": RED, "Unknown": RED, "Trial": YELLOW,
    "Pending": YELLOW,
}  # fmt: skip
FULL, HIGH = 95, 80
SOON_SECONDS = 900
LAST = ("POLICY@REVISION", "SINCE", "WHY")
"""The columns after the numbers; only the first where there is little room."""


def fleet_view(
    policies: Sequence[PolicyRow], nodes: Sequence[NodeRow], notes: Sequence[str], *, most: int, narrow: bool = False
) -> RenderableType:
    """Return policies, then the first `most` nodes (0: all of them), then what should be known besides.

    `narrow` is for terminals without room for sentences in cells: they go below the table, of nodes in trouble alone.
    """
    parts: list[RenderableType] = [_policies(policies) if policies else Text("There is no policy.")]
    shown = nodes[:most] if most else nodes
    parts.extend(
        ["", _nodes(shown, narrow=narrow) if shown else Text("No node has a NodeConntrack: no policy means any.")]
    )
    if len(shown) < len(nodes):
        parts.append(Text(f"and {len(nodes) - len(shown):,} more, under less pressure; --all shows them", "dim"))
    if narrow:
        parts.extend(Text(f"{row.node}: {row.why}") for row in shown if row.why and row.phase != "Current")
    parts.append(Text(totals(nodes), "dim"))
    parts.extend(Text(note, YELLOW) for note in notes)
    return Group(*parts)


def totals(nodes: Sequence[NodeRow]) -> str:
    """Return the fleet in one line: nodes by phase, entries, drops."""
    phases: dict[str, int] = {}
    for row in nodes:
        phases[row.phase] = phases.get(row.phase, 0) + 1
    by_phase = ", ".join(f"{number:,} {phase}" for phase, number in sorted(phases.items(), key=lambda each: -each[1]))
    entries, most = sum(row.entries or 0 for row in nodes), sum(row.max_entries or 0 for row in nodes)
    drops = sum(row.drops_per_second or 0 for row in nodes)
    head = counted(len(nodes), "node") + (f" ({by_phase})" if nodes else "")
    return f"{head}; {entries:,} of {most:,} entries; {drops:,} dropped/s"


def table_of(*columns: str, right: Sequence[str] = (), fold: Sequence[str] = ()) -> Table:
    """Return an empty table; numbers to the right, sentences folded, all else on one line."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True, header_style="bold")
    for column in columns:
        table.add_column(
            column, justify="right" if column in right else "left", no_wrap=column not in fold, overflow="fold"
        )
    return table


def _policies(rows: Sequence[PolicyRow]) -> Table:
    table = table_of(
        "POLICY", "MODE", "REVISION", "CURRENT", "ROLLOUT", "MESSAGE", right=("CURRENT",), fold=("MESSAGE",)
    )
    for row in rows:
        cells = (row.policy, row.mode, row.revision or "-", row.nodes, row.rollout, row.message)
        table.add_row(*(Text(cell) for cell in cells))
    return table


def _nodes(rows: Sequence[NodeRow], *, narrow: bool) -> Table:
    numbers = ("USED%", "ENTRIES", "MAX", "DROPS/S", "TOFULL")
    table = table_of(
        "NODE", "PHASE", *numbers, *LAST[: 1 if narrow else None], right=numbers, fold=("POLICY@REVISION", "WHY")
    )
    for row in rows:
        used = row.used_percent
        style = "" if used is None else RED if used >= FULL else YELLOW if used >= HIGH else ""
        dropping = RED if row.drops_per_second else ""
        soon = RED if row.seconds_to_full is not None and row.seconds_to_full < SOON_SECONDS else ""
        table.add_row(
            Text(row.node),
            Text(row.phase, _STYLES.get(row.phase, "")),
            Text(_number(used), style),
            _number(row.entries),
            _number(row.max_entries),
            Text(_number(row.drops_per_second), dropping),
            Text(duration_words(row.seconds_to_full), soon),
            *(
                Text(cell)
                for cell in (",".join(row.policies) or "-", row.since or "-", row.why)[: 1 if narrow else None]
            ),
        )
    return table


def _number(value: int | None) -> str:
    return "-" if value is None else str(value)


def duration_words(seconds: int | None) -> str:
    """Return a time to come in its two largest units, such as 6m50s; a dash for none."""
    if seconds is None:
        return "-"
    days, rest = divmod(seconds, 86400)
    hours, rest = divmod(rest, 3600)
    minutes, rest = divmod(rest, 60)
    parts = [f"{value}{unit}" for value, unit in ((days, "d"), (hours, "h"), (minutes, "m"), (rest, "s")) if value]
    return "".join(parts[:2]) or "0s"
