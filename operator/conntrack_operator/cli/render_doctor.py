"""What a diagnosis looks like at 3 a.m. on 80 columns: verdict, what shows it, what to do, what to apply. Pure."""

from collections.abc import Iterator, Sequence

import yaml
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from conntrack_operator.decide.diagnosis import Diagnosis
from conntrack_operator.decide.diagnosis_fullness import own_lines
from conntrack_operator.decide.finding import Finding, ago_words, counted, percent, time_words
from conntrack_operator.decide.symptoms import Symptoms
from conntrack_operator.decide.talkers import By, Row

from .render_use import bar

STYLES = {"critical": "bold red", "warning": "bold yellow", "info": "dim"}
SHOWN_BY: tuple[By, ...] = ("state", "port", "source", "zone")
SHOWN_ROWS = 2
ABOUT_THIS = ("TableFull", "TableNearlyFull", "TableWasFull", "TableFilling")
SMALL_SHARE = 0.05
"""Rows below this say nothing about who fills the table."""
INDENT = 10


def doctor_view(diagnosis: Diagnosis, symptoms: Symptoms) -> RenderableType:
    """Return the page: verdict, the table's use, findings worst first, the policy, what could not be seen."""
    calm = diagnosis.severity == "info"
    head = "OK" if calm else diagnosis.severity.upper()
    verdict = Text(f"{head}: {diagnosis.verdict}", "bold green" if calm else STYLES[diagnosis.severity])
    parts: list[RenderableType] = [verdict, "", _facts(symptoms)]
    for finding in diagnosis.findings:
        # What the verdict says of this table is what the facts below it show.
        if finding.severity != "info" and not (finding.summary == diagnosis.verdict and finding.reason in ABOUT_THIS):
            parts.extend(["", _finding(finding, headed=finding.summary != diagnosis.verdict)])
    notes = [finding for finding in diagnosis.findings if finding.severity == "info"]
    if notes:
        parts.extend(["", *(_note(finding) for finding in notes)])
    if diagnosis.policy is not None:
        parts.extend(["", *_policy(diagnosis.policy)])
    if symptoms.unseen:
        parts.extend(["", *(Text(f"not seen: {sentence}", "dim") for sentence in symptoms.unseen)])
    return Group(*parts)


def _facts(symptoms: Symptoms) -> Table:
    table = symptoms.table
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True, min_width=INDENT - 2)
    grid.add_column()
    used = percent(table.entries, table.max_entries)
    style = "red" if used >= 95 else "yellow" if used >= 80 else "green"
    limit = f"{table.entries:,} of {table.max_entries:,}  {used:.1f}%  "
    grid.add_row(
        "table", Text.assemble(limit, bar(used / 100, style)) if table.max_entries else f"{table.entries:,}, no limit"
    )
    grid.add_row("lost", _lost_words(symptoms))
    grid.add_row("log", _log_words(symptoms))
    for number, (by, rows) in enumerate(_talkers(symptoms)):
        grid.add_row("filled by" if not number else "", Text.assemble((f"{by:7} ", "dim"), _rows_words(rows)))
    return grid


def _lost_words(symptoms: Symptoms) -> str:
    table = symptoms.table
    began = "since boot" if symptoms.facts.initial_namespace else "since this network namespace began"
    if not table.lost_to_full and not table.early_drop:
        return f"nothing {began}"
    thrown = f"{counted(table.early_drop, 'entry', 'entries')} thrown out"
    now = f", {table.dropped_now:,} just now" if table.dropped_now else ""
    return f"{counted(table.lost_to_full, 'packet')} {began}{now}; {thrown}"


def _log_words(symptoms: Symptoms) -> str:
    if symptoms.log.problem:
        return "not readable, see below"
    lines = own_lines(symptoms)
    if not lines:
        return 'no "table full" about this table'
    last = lines[-1].at_seconds
    return (
        f'"table full" {counted(len(lines), "time")} since {time_words(lines[0].at_seconds)},'
        f" last {ago_words(symptoms.now_seconds - last)}"
    )


def _talkers(symptoms: Symptoms) -> Iterator[tuple[By, Sequence[Row]]]:
    for by in SHOWN_BY:
        top = symptoms.top.get(by)
        rows = [row for row in top.rows if row.share >= SMALL_SHARE][:SHOWN_ROWS] if top else []
        # All in zone 0 is what a machine without zones looks like.
        if rows and not (by == "zone" and rows[0].key == "0"):
            yield by, rows


def _rows_words(rows: Sequence[Row]) -> str:
    return ", ".join(f"{row.key} {row.share:.0%}" for row in rows)


def _finding(finding: Finding, *, headed: bool) -> RenderableType:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True, min_width=INDENT - 2)
    grid.add_column()
    name = Text(finding.severity, STYLES[finding.severity])
    lines: list[RenderableType] = []
    if headed:
        lines.append(Text(finding.summary, "bold"))
    if finding.detail:
        lines.append(Text(finding.detail))
    if finding.remedy:
        lines.append(Text.assemble(("Do: ", "bold"), finding.remedy))
    grid.add_row(name, Group(*lines))
    return grid


def _note(finding: Finding) -> RenderableType:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True, min_width=INDENT - 2)
    grid.add_column()
    words = " ".join(part for part in (finding.summary, finding.detail, finding.remedy) if part)
    grid.add_row(Text("note", "dim"), Text(words, "dim"))
    return grid


def _policy(policy: dict[str, object]) -> Iterator[RenderableType]:
    yield Text("To mend it (kubectl apply -f FILE, or conntrack-operator apply -f FILE):", "bold")
    yield ""
    text = yaml.safe_dump(policy, sort_keys=False, width=1000).rstrip()
    yield Padding(Text(text, no_wrap=True, overflow="ignore"), (0, 0, 0, 2))
