"""What a table's use and its talkers look like to a person. Pure: data in, rich renderables out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from conntrack_operator.decide.notrack import Bypassed
from conntrack_operator.decide.talkers import By, Top
from conntrack_operator.kernel.counters import Counters

BAR_COLUMNS = 20
SHARE_COLUMNS = 12
"""Of a bar beside an address: a whole IPv6 address has 39 columns."""
FULL, HIGH = 95, 80
"""Percent from which a table's bar is red, and yellow."""

MEANINGS = {
    "drop": "packets lost: the table was full, or see insert_failed",
    "early_drop": "entries thrown out to make room in a full table",
    "insert_failed": "entries not made, mostly as an equal one was first",
    "invalid": "packets that fit no connection and can start none",
    "found": "port choices for NAT that met one already taken",
    "search_restart": "lookups begun anew, as the table moved meanwhile",
    "clash_resolve": "two packets of one flow collided, settled",
    "chain_toolong": "entries refused: too many in one bucket",
    "error": "ICMP errors that belong to no connection",
    "insert": "entries put in by programs",
}
"""The counters that `status` shows, and what each means to the person who reads it."""
ALWAYS = ("drop", "early_drop", "insert_failed", "invalid", "found", "search_restart")
"""Shown also when 0; the others only when they are not."""


@dataclass(frozen=True)
class Use:
    """How a table stands now."""

    counters: Counters
    buckets: int
    entry_bytes: int
    bucket_bytes: int
    bypassed: tuple[Bypassed, ...] = ()

    @property
    def used_percent(self) -> float:
        """Share of the limit in use, in percent; 0 where there is no limit."""
        return _percent(self.counters.entries, self.counters.max_entries)

    @property
    def memory_bytes(self) -> int:
        """Memory of the entries in the table now and of its buckets."""
        return self.counters.entries * self.entry_bytes + self.buckets * self.bucket_bytes

    @property
    def full_bytes(self) -> int:
        """Memory the table would take when full; extensions such as NAT and accounting come on top."""
        return self.counters.max_entries * self.entry_bytes + self.buckets * self.bucket_bytes

    def document(self) -> dict[str, Any]:
        """Return it as `status -o json` prints it."""
        return {
            "entries": self.counters.entries,
            "maxEntries": self.counters.max_entries,
            "buckets": self.buckets,
            "usedPercent": round(self.used_percent, 2),
            "counters": {_camel(name): getattr(self.counters, name) for name in MEANINGS},
            "entryBytes": self.entry_bytes,
            "memoryBytes": self.memory_bytes,
            "notrack": [
                {"rule": each.label, "part": each.part, "packets": each.packets, "bytes": each.bytes}
                for each in self.bypassed
            ],
        }


def top_document(top: Top) -> dict[str, Any]:
    """Return the talkers as `top -o json` prints them."""
    return {
        "sampled": top.sampled,
        "entries": top.entries,
        "rows": [
            {"key": row.key, "entries": row.entries, "share": round(row.share, 6), "error": round(row.error, 6)}
            for row in top.rows
        ],
    }


def status_view(use: Use) -> RenderableType:
    """Return how full the table is, what it threw away, and what bypassed it."""
    counters = use.counters
    facts = Table.grid(padding=(0, 2))
    facts.add_row("entries", _entries_words(use))
    facts.add_row("buckets", f"{use.buckets:,}{_chain_words(counters.max_entries, use.buckets)}")
    memory = f"{memory_words(use.memory_bytes)} now"
    if counters.max_entries:
        memory += f", {memory_words(use.full_bytes)} when full ({use.entry_bytes} bytes an entry)"
    facts.add_row("memory", memory)
    table = _table()
    table.add_column("COUNTER", no_wrap=True)
    table.add_column("TOTAL", justify="right", no_wrap=True)
    table.add_column("MEANING")
    for name, meaning in MEANINGS.items():
        value = getattr(counters, name)
        if value or name in ALWAYS:
            style = "bold red" if name == "drop" and value else ""
            table.add_row(Text(name, style), Text(f"{value:,}", style), meaning)
    return Group(facts, "", table, *_bypassed_parts(use.bypassed))


def top_view(top: Top, by: By, limit: int = 0) -> RenderableType:
    """Return who holds the table's entries; `limit` is how many it may hold, 0 when that plays no part."""
    most = f" of at most {limit:,} ({_percent(top.entries, limit):.0f}%)" if limit else ""
    head = Text(f"{_counted(top.entries, 'entry', 'entries')}{most} in this network namespace's table")
    body = top_table(top, by) if top.rows else Text("Nothing to show: the table is empty.")
    return Group(head, "", body, "", *(Text(line, "dim") for line in _top_notes(top)))


def top_table(top: Top, by: By) -> Table:
    """Return the rows alone."""
    table = _table()
    table.add_column(by.upper(), overflow="fold")
    table.add_column("ENTRIES", justify="right", no_wrap=True)
    table.add_column("SHARE", justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    exact = top.sampled >= top.entries and all(row.error == 0 for row in top.rows)
    if not exact:
        table.add_column("+/-", justify="right", no_wrap=True)
    for row in top.rows:
        about = "" if exact else "~"
        cells: list[str | Text] = [
            row.key,
            f"{about}{row.entries:,}",
            f"{row.share:.1%}",
            bar(row.share, "cyan", SHARE_COLUMNS),
        ]
        table.add_row(*cells, *([] if exact else [f"{row.error * 100:.1f}"]))
    return table


def _top_notes(top: Top) -> list[str]:
    notes = []
    if top.rows and top.sampled < top.entries:
        notes.append(f"A sample: {top.sampled:,} of {top.entries:,} entries were read; +/- is in points, at 95%.")
        notes.append("--exact reads all of them.")
    elif top.rows:
        notes.append("All entries were read.")
    notes.append("Entries of other network namespaces (pods' own tables) are not in it.")
    return notes


def _entries_words(use: Use) -> Text:
    counters = use.counters
    if not counters.max_entries:
        return Text(f"{counters.entries:,}, and no limit")
    style = "bold red" if use.used_percent >= FULL else "bold yellow" if use.used_percent >= HIGH else "bold green"
    return Text.assemble(
        f"{counters.entries:,} of {counters.max_entries:,}  ",
        (f"{use.used_percent:.1f}%  ", style),
        bar(use.used_percent / 100, style.split()[1]),
    )


def _chain_words(most: int, buckets: int) -> str:
    if not most or not buckets:
        return ""
    each = f"{most / buckets:.3g}"
    return f", {each} {'entry' if each == '1' else 'entries'} in each when full, on average"


def _bypassed_parts(bypassed: Sequence[Bypassed]) -> list[RenderableType]:
    if not bypassed:
        return []
    table = _table()
    table.add_column("NOTRACK RULES", overflow="fold")
    table.add_column("WHAT", no_wrap=True)
    table.add_column("PACKETS", justify="right", no_wrap=True)
    table.add_column("BYTES", justify="right", no_wrap=True)
    for each in bypassed:
        table.add_row(each.label, each.part, f"{each.packets:,}", f"{each.bytes:,}")
    return ["", table]


def bar(share: float, style: str, columns: int = BAR_COLUMNS) -> Text:
    """Return a bar of so many columns that is filled to `share`, from 0 to 1."""
    filled = round(min(max(share, 0.0), 1.0) * columns)
    return Text.assemble(("█" * filled, style), ("░" * (columns - filled), "dim"))


def _table() -> Table:
    return Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True, header_style="bold")


def _counted(number: int, one: str, more: str) -> str:
    return f"{number:,} {one if number == 1 else more}"


def _percent(part: int, whole: int) -> float:
    return part * 100 / whole if whole else 0.0


def memory_words(number: int) -> str:
    """Return a number of bytes in the unit that suits it."""
    return f"{number / (1 << 10):,.1f} KiB" if number < 1 << 20 else f"{number / (1 << 20):,.1f} MiB"


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(word.capitalize() for word in rest)
