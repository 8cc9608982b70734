"""What plans, outcomes, uses and talkers look like to a person. Pure: data in, rich renderables out.

Made for 80 columns: the part all sysctls share, `net.netfilter.`, stands once in the heading, and sentences go
below tables, not into cells.
"""

from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from conntrack_operator.decide.merge import Conflict
from conntrack_operator.decide.outcome import APPLIED
from conntrack_operator.decide.plan import Change, Plan
from conntrack_operator.decide.refusal import Refusal
from conntrack_operator.model.catalogue import PREFIX
from conntrack_operator.model.facts import Facts
from conntrack_operator.model.node import Result

RULE_PREFIX = "notrack/"
ABSENT = "absent"


def plan_view(plan: Plan, conflicts: Sequence[Conflict] = ()) -> RenderableType:
    """Return what a plan would do: changes, refusals with their remedies, who lost what to whom."""
    parts: list[RenderableType] = [*_change_tables(plan.changes, "NOW", "WANTED", WHY)]
    parts.append(_count_line(len(plan.changes), "change", "Nothing to change: the machine is as it should be."))
    parts.extend(_refusals(plan.refused))
    parts.extend(_conflicts(conflicts))
    return _spaced(parts)


def outcome_view(
    changes: Sequence[Change], results: Sequence[Result], facts: Facts, conflicts: Sequence[Conflict] = ()
) -> RenderableType:
    """Return what an apply or a restore has done, as read back from the kernel."""
    failed = [result for result in results if result.reason != APPLIED]
    trouble = {result.setting for result in failed}

    def verdict(change: Change) -> str:
        if change.setting in trouble:
            return "failed, see below"
        if change.setting.startswith(PREFIX) and facts.sysctls.get(change.setting) != change.to:
            return f"reads {facts.sysctls.get(change.setting, ABSENT)}"
        return "done"

    parts: list[RenderableType] = [*_change_tables(changes, "BEFORE", "NOW", ("RESULT", verdict))]
    parts.append(_count_line(len(changes), "change", "Nothing was changed."))
    kept = sum(result.reason == APPLIED for result in results) - sum(
        result.setting in {change.setting for change in changes} for result in results if result.reason == APPLIED
    )
    if kept:
        parts.append(Text(f"{_counted(kept, 'setting')} {'was' if kept == 1 else 'were'} right already."))
    parts.extend(_refusals(Refusal(result.setting, result.reason, result.message) for result in failed))
    parts.extend(_conflicts(conflicts))
    return _spaced(parts)


WHY = ("WHY", lambda change: change.reason)
"""The last column of a plan's table."""


def _change_tables(changes: Sequence[Change], before: str, after: str, last: tuple[str, object]) -> list[Table]:
    heading, words = last
    assert callable(words)
    tables = []
    sysctls = [change for change in changes if not change.setting.startswith(RULE_PREFIX)]
    rules = [change for change in changes if change.setting.startswith(RULE_PREFIX)]
    if sysctls:
        table = _table()
        table.add_column(f"SYSCTL {PREFIX}*", no_wrap=True)
        table.add_column(before, justify="right", no_wrap=True)
        table.add_column(after, justify="right", no_wrap=True, style="bold")
        table.add_column(heading, overflow="fold")
        for change in sysctls:
            table.add_row(
                change.setting.removeprefix(PREFIX), _value(change.from_), _value(change.to), str(words(change))
            )
        tables.append(table)
    if rules:
        table = _table()
        for name in ("NOTRACK RULE", before, after):
            table.add_column(name, overflow="fold", style="bold" if name == after else "")
        if heading != WHY[0]:
            table.add_column(heading, overflow="fold")
        for change in rules:
            row = [change.setting.removeprefix(RULE_PREFIX), _value(change.from_), _value(change.to)]
            table.add_row(*row, *([str(words(change))] if heading != WHY[0] else []))
        tables.append(table)
    return tables


def _value(value: int | str | None) -> str:
    return ABSENT if value is None else str(value)


def _table() -> Table:
    return Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1), header_style="bold")


def _refusals(refused: Iterable[Refusal]) -> list[RenderableType]:
    parts: list[RenderableType] = []
    for refusal in refused:
        head = Text.assemble(("refused  ", "bold red"), refusal.setting, "  ", (refusal.reason, "red"))
        parts.append(Group(head, Padding(Text(refusal.message), (0, 0, 0, 2))))
    return parts


def _conflicts(conflicts: Iterable[Conflict]) -> list[RenderableType]:
    lines = [
        Text(f"policy {each.loser}: {each.field}: " + (each.why or f"policy {each.winner} comes first"), style="yellow")
        for each in conflicts
    ]
    return [Group(*lines)] if lines else []


def _count_line(number: int, noun: str, none: str) -> Text:
    return Text(f"{_counted(number, noun)}." if number else none)


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _spaced(parts: Sequence[RenderableType]) -> RenderableType:
    """Return the parts below each other with an empty line between."""
    lines: list[RenderableType] = []
    for part in parts:
        lines.extend(["", part] if lines else [part])
    return Group(*lines)
