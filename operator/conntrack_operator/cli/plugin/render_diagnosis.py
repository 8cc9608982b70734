"""What a node's diagnosis, as `conntrack-operator doctor -o json` prints it, looks like to a person. Pure."""

from collections.abc import Iterator
from typing import Any

import yaml
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from conntrack_operator.cli.render_doctor import STYLES
from conntrack_operator.cli.render_use import bar

from .names import Names
from .talkers import ADDRESSES

Document = dict[str, Any]

SHOWN = 3
SHOWN_BY = ("state", "port", *ADDRESSES)
INDENT = 10


def addresses_in(document: Document) -> list[str]:
    """Return the addresses that are shown and can have names."""
    top = (document.get("usage") or {}).get("top") or {}
    return list(dict.fromkeys(row["key"] for by in ADDRESSES for row in (top.get(by) or ())[:SHOWN]))


def diagnosis_view(document: Document, names: Names, node: str) -> RenderableType:
    """Return the page: verdict, the table's use, who fills it, findings, a policy, what could not be seen."""
    findings = document.get("findings") or ()
    gravest = findings[0]["severity"] if findings else "info"
    calm = gravest == "info"
    head = "OK" if calm else gravest.upper()
    parts: list[RenderableType] = [
        Text(f"{node}: {head}: {document['verdict']}", "bold green" if calm else STYLES.get(gravest, "bold")),
        "",
        _facts(document.get("usage") or {}, names),
    ]
    for finding in findings:
        parts.extend(["", _finding(finding)])
    if document.get("policy"):
        parts.extend(["", Text("To mend it (kubectl apply -f FILE):", "bold"), ""])
        text = yaml.safe_dump(document["policy"], sort_keys=False, width=1000).rstrip()
        parts.append(Padding(Text(text, no_wrap=True, overflow="ignore"), (0, 0, 0, 2)))
    unseen = [*(document.get("unseen") or ()), *names.unseen]
    if unseen:
        parts.extend(["", *(Text(f"not seen: {sentence}", "dim") for sentence in unseen)])
    return Group(*parts)


def _facts(usage: Document, names: Names) -> Table:
    grid = _grid()
    used = usage.get("usedPercent") or 0.0
    style = "red" if used >= 95 else "yellow" if used >= 80 else "green"
    words = f"{usage.get('entries', 0):,} of {usage.get('maxEntries', 0):,}  {used:.1f}%  "
    grid.add_row("table", Text.assemble(words, bar(used / 100, style)))
    grid.add_row("lost", f"{usage.get('lostToFull', 0):,} to a full table, {usage.get('droppedNow', 0):,} just now")
    for number, line in enumerate(_filled_by(usage.get("top") or {}, names)):
        grid.add_row("" if number else "filled by", line)
    return grid


def _filled_by(top: Document, names: Names) -> Iterator[Text]:
    for by in SHOWN_BY:
        for row in (top.get(by) or ())[:SHOWN]:
            name = names.of(row["key"]) if by in ADDRESSES else ""
            tail = f"  {name}" if name else ""
            yield Text.assemble((f"{by:12}", "dim"), f"{row['key']} {row['share']:.0%}", (tail, "cyan"))


def _finding(finding: Document) -> RenderableType:
    grid = _grid()
    lines: list[RenderableType] = [Text(finding.get("summary", ""), "bold")]
    if finding.get("detail"):
        lines.append(Text(finding["detail"]))
    if finding.get("remedy"):
        lines.append(Text.assemble(("Do: ", "bold"), finding["remedy"]))
    severity = finding.get("severity", "info")
    grid.add_row(Text("note" if severity == "info" else severity, STYLES.get(severity, "")), Group(*lines))
    return grid


def _grid() -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True, min_width=INDENT - 2)
    grid.add_column()
    return grid
