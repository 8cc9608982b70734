"""What talkers look like to a person. Pure."""

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from conntrack_operator.cli.render_use import SHARE_COLUMNS, bar
from conntrack_operator.decide.finding import counted

from .render_fleet import table_of
from .talkers import ADDRESSES, Talkers


def talkers_view(talkers: Talkers, names: Sequence[str], notes: Sequence[str], whose: str) -> RenderableType:
    """Return the rows with their names, below a line that says what was looked at."""
    head = Text(f"{counted(talkers.entries, 'entry', 'entries')} {whose}")
    by_address, live = talkers.by in ADDRESSES, any(row.error is not None for row in talkers.rows)
    columns = [talkers.by.upper(), *(["NAME"] if by_address else []), "ENTRIES", "SHARE", ""]
    columns.append("+/-" if live else "NODES")
    table = table_of(*columns, right=("ENTRIES", "SHARE", "NODES", "+/-"), fold=("NAME",))
    for row, name in zip(talkers.rows, names, strict=True):
        last = f"{(row.error or 0) * 100:.1f}" if live else str(row.nodes)
        middle = [Text(name or "-")] if by_address else []
        table.add_row(
            Text(row.key), *middle, f"{row.entries:,}", f"{row.share:.1%}", bar(row.share, "cyan", SHARE_COLUMNS), last
        )
    body: RenderableType = table if talkers.rows else Text("Nothing to show.")
    return Group(head, "", body, "", *(Text(note, "dim") for note in notes))


def talkers_notes(talkers: Talkers, *, live: bool) -> list[str]:
    """Return what these numbers leave out."""
    notes = []
    if live:
        notes.append("Read just now by the agent; +/- is in points, at 95%, 0 where all entries were read.")
    elif talkers.told:
        many = talkers.told > 1
        notes.append(
            "As last reported; each node names its largest few only, so these are "
            + ("sums of what they named: at least that many." if many else "estimates where its table is large.")
        )
    if talkers.silent:
        have = "node has" if talkers.silent == 1 else "nodes have"
        notes.append(
            f"{talkers.silent:,} {have} told nothing of this: no report yet, an empty table, or --top-talkers 0 there."
        )
    if talkers.by == "source":
        notes.append("Entries of pods' own network namespaces are in none of these tables.")
    return notes
