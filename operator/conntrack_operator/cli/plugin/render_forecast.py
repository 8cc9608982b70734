"""What a plan for the fleet looks like to a person. Pure."""

from collections.abc import Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from conntrack_operator.decide.finding import counted

from .forecast import Forecast
from .render_fleet import YELLOW, table_of


def forecast_view(plan: Forecast, verdicts: Sequence[str], notes: Sequence[str]) -> RenderableType:
    """Return the policies, what would be asked otherwise of whom, who loses a field, and what is not known."""
    table = table_of("POLICY", "MODE", "REVISION NOW", "REVISION THEN", "MATCHES", "SUCH AS", right=("MATCHES",))
    for each in plan.policies:
        table.add_row(
            *map(
                Text,
                (each.policy, each.mode, each.before or "new", each.revision, str(each.matched), each.example or "-"),
            )
        )
    parts: list[RenderableType] = [table, ""]
    if plan.changes:
        fields = table_of(
            "FIELD", "NOW", "THEN", "BY", "NODES", "SUCH AS", right=("NODES",), fold=("FIELD", "NOW", "THEN")
        )
        for change in plan.changes:
            cells = (change.field, change.before, change.after, change.winner or "-", str(change.nodes), change.example)
            fields.add_row(*map(Text, cells))
        parts.extend([fields, ""])
    parts.append(Text(f"{plan.changing:,} of {counted(plan.nodes, 'node')} would be asked for something else."))
    parts.extend(Text(verdict) for verdict in verdicts)
    for conflict, nodes in plan.conflicts:
        why = conflict.why or f"policy {conflict.winner} comes first"
        parts.append(Text(f"policy {conflict.loser}: {conflict.field}: {why} ({counted(nodes, 'node')})", YELLOW))
    parts.extend(Text(note, "dim") for note in notes)
    return Group(*parts)


def preview_view(name: str, preview: dict[str, Any], matched: int) -> RenderableType:
    """Return what an Observe policy's nodes have said they would do."""
    head = (
        f"{name}: {preview.get('nodes', 0)} of {counted(matched, 'node')} have answered:"
        f" {preview.get('changing', 0)} would change, {preview.get('refusing', 0)} would refuse something,"
        f" {preview.get('unchanged', 0)} neither."
    )
    parts: list[RenderableType] = [Text(head)]
    for key, heading in (("changes", "WOULD CHANGE"), ("refused", "WOULD BE REFUSED")):
        rows = preview.get(key) or ()
        if rows:
            table = table_of(heading, "NODES", "SUCH AS", "WHAT", right=("NODES",), fold=("WHAT",))
            for row in rows:
                table.add_row(*map(Text, (row["setting"], str(row["nodes"]), row["example"], row["what"])))
            parts.extend(["", table])
    return Group(*parts)
