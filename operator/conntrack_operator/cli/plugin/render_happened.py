"""What history looks like to a person. Pure."""

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from .happened import Happened
from .render_fleet import GREEN, RED, table_of

_STYLES = {
    "Current": GREEN, "GoodEverywhere": GREEN, "AllNodesCurrent": GREEN, "RolledBack": RED, "Refused": RED,
    "Contended": RED,
    "CanaryFailed": RED, "TooManyFailures": RED,
}  # fmt: skip


def history_view(happened: Sequence[Happened], notes: Sequence[str]) -> RenderableType:
    """Return one line for each, the newest last, then what could not be looked at."""
    table = table_of("TIME", "SUBJECT", "WHAT", "WHY", fold=("WHY",))
    for each in happened:
        time = each.document()["time"]
        table.add_row(time, Text(each.subject), Text(each.what, _STYLES.get(each.what, "")), Text(each.why))
    body: RenderableType = table if happened else Text("Nothing is known to have happened.")
    return Group(body, "", *(Text(note, "dim") for note in notes))
