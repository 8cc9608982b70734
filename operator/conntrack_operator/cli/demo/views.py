"""What the demo shows of its numbers and names. Pure."""

from collections.abc import Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from conntrack_operator.cli.render_use import memory_words

from .load import Measured


def listed(names: Sequence[str]) -> str:
    """Return names as they are read out in a sentence."""
    *rest, last = names or ["none"]
    return f"{', '.join(rest)} and {last}" if rest else last


def comparison(before: Measured, after: Measured, bypassed: int, entry_bytes: int) -> Table:
    """Return both runs of the load in one table; `bypassed` are the packets the rules let by in the second."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True, header_style="bold")
    table.add_column("THE SAME LOAD, TWICE")
    table.add_column("WITHOUT POLICY", justify="right", no_wrap=True)
    table.add_column("WITH POLICY", justify="right", no_wrap=True)

    def row(words: str, left: str, right: str) -> None:
        table.add_row(words, Text(left, "bold red"), Text(right, "bold green"))

    row(
        "new TCP connections to port 8080",
        f"{before.connected} of {before.tried}",
        f"{after.connected} of {after.tried}",
    )
    row(
        "queries of new clients answered",
        f"{before.late_answered:,} of {before.late_asked:,}",
        f"{after.late_answered:,} of {after.late_asked:,}",
    )
    row("packets dropped: table full", f"{before.dropped:,}", f"{after.dropped:,}")
    row("entries in the table", f"{before.entries:,}", f"{after.entries:,}")
    row(
        "memory of these entries", memory_words(before.entries * entry_bytes), memory_words(after.entries * entry_bytes)
    )
    row("packets that bypassed the table", "0", f"{bypassed:,}")
    return table
