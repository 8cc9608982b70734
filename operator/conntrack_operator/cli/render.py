"""What plans, outcomes, uses and talkers look like to a person. Pure: data in, rich renderables out.

Made for 80 columns: the part all sysctls share, `net.netfilter.`, stands once in the heading, and sentences go
below tables, not into cells.
"""

from collections.abc import Callable, Iterable, Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from conntrack_operator.decide.merge import Conflict
from conntrack_operator.decide.outcome import APPLIED
from conntrack_operator.decide.plan import Change, Plan
from conntrack_operator.decide.refusal import Refusal
from conntrack_operator.decide.tracking import SETTING as TRACKING
from conntrack_operator.model.catalogue import PREFIX
from conntrack_operator.model.facts import Facts
from conntrack_operator.model.node import Result

RULE_PREFIX = "notrack/"
ABSENT = "absent"
RIGHT = "Nothing to change: the machine is as it should be."


def plan_view(plan: Plan, conflicts: Sequence[Conflict] = ()) -> RenderableType:
    """Return what a plan would do: changes, refusals with their remedies, warnings, who lost what to whom."""
    parts: list[RenderableType] = [*_plan_tables(plan.changes)]
    right = "Nothing to change, but not everything is accepted." if plan.refused else RIGHT
    parts.append(_count_line(len(plan.changes), "change", right))
    parts.extend(_sayings("refused", "red", plan.refused))
    parts.extend(_sayings("warning", "yellow", plan.warnings))
    parts.extend(_conflicts(conflicts))
    return _spaced(parts)


def outcome_view(
    changes: Sequence[Change],
    results: Sequence[Result],
    facts: Facts,
    conflicts: Sequence[Conflict] = (),
    warnings: Sequence[Refusal] = (),
) -> RenderableType:
    """Return what an apply or a restore has done, as read back from the kernel."""
    failed = {result.setting: result for result in results if result.reason != APPLIED}
    changed = {change.setting for change in changes}

    def verdict(change: Change) -> str:
        if change.setting in failed:
            return "failed, see below"
        if change.setting.startswith(PREFIX) and facts.sysctls.get(change.setting) != change.to:
            return f"not so: it reads {facts.sysctls.get(change.setting, ABSENT)}"
        return "done"

    parts: list[RenderableType] = [*_outcome_tables(changes, verdict)]
    parts.append(_count_line(len(changes), "change", "Nothing was changed."))
    parts.extend(Text(f"tracking: {each.observed}.") for each in results if each.setting == TRACKING and each.observed)
    right = len({result.setting for result in results} - changed - failed.keys())
    if right:
        parts.append(Text(f"{_counted(right, 'setting')} {'was' if right == 1 else 'were'} right already."))
    # One setting can be refused for several reasons: tracking is, once for each that needs it.
    refused = [Refusal(each.setting, each.reason, each.message) for each in results if each.reason != APPLIED]
    parts.extend(_sayings("refused", "red", refused))
    parts.extend(_sayings("warning", "yellow", warnings))
    parts.extend(_conflicts(conflicts))
    return _spaced(parts)


def rolled_back_view(results: Sequence[Result]) -> RenderableType:
    """Return what became of a change that was tried and taken back: why first, then what had been refused anyway."""
    head, *rest = results
    parts: list[RenderableType] = [Text.assemble(("rolled back  ", "bold red"), (head.reason, "red"))]
    parts = [Group(*parts, Padding(Text(head.message), (0, 0, 0, 2)))]
    parts.extend(
        _sayings("refused", "red", (Refusal(result.setting, result.reason, result.message) for result in rest))
    )
    return _spaced(parts)


def _plan_tables(changes: Sequence[Change]) -> list[Table]:
    sysctls, rules = _kinds(changes)
    tables = []
    if sysctls:
        table = _sysctl_table("NOW", "WANTED", "WHY")
        for change in sysctls:
            table.add_row(*_cells(change), change.reason)
        tables.append(table)
    if rules:
        table = _rule_table("NOW", "WANTED")
        for change in rules:
            table.add_row(*_cells(change))
        tables.append(table)
    return tables


def _outcome_tables(changes: Sequence[Change], verdict: Callable[[Change], str]) -> list[Table]:
    tables = []
    empty = (_sysctl_table("BEFORE", "NOW", "RESULT"), _rule_table("BEFORE", "NOW", "RESULT"))
    for kind, table in zip(_kinds(changes), empty, strict=True):
        for change in kind:
            table.add_row(*_cells(change), verdict(change))
        if kind:
            tables.append(table)
    return tables


def _kinds(changes: Sequence[Change]) -> tuple[list[Change], list[Change]]:
    """Return the sysctls and the NOTRACK rules among the changes."""
    rules = [change for change in changes if change.setting.startswith(RULE_PREFIX)]
    return [change for change in changes if change not in rules], rules


def _sysctl_table(before: str, after: str, last: str) -> Table:
    table = _table()
    table.add_column(f"SYSCTL {PREFIX}*", no_wrap=True)
    table.add_column(before, justify="right", no_wrap=True)
    table.add_column(after, justify="right", no_wrap=True, style="bold")
    table.add_column(last, overflow="fold")
    return table


def _cells(change: Change) -> tuple[str, str, str]:
    name = change.setting.removeprefix(PREFIX).removeprefix(RULE_PREFIX)
    return name, _value(change.from_), _value(change.to)


def _rule_table(before: str, after: str, *last: str) -> Table:
    table = _table()
    for name in ("NOTRACK RULE", before, after, *last):
        table.add_column(name, overflow="fold", style="bold" if name == after else "")
    return table


def _value(value: int | str | None) -> str:
    return ABSENT if value is None else str(value)


def _table() -> Table:
    return Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True, header_style="bold")


def _sayings(word: str, colour: str, sayings: Iterable[Refusal]) -> list[RenderableType]:
    parts: list[RenderableType] = []
    for saying in sayings:
        head = Text.assemble((f"{word}  ", f"bold {colour}"), saying.setting, "  ", (saying.reason, colour))
        parts.append(Group(head, Padding(Text(saying.message), (0, 0, 0, 2))))
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
