"""The `top` command: who fills the table, from a sample or from all of it."""

import argparse

from rich.console import RenderableType

from conntrack_operator.decide.talkers import BY, SAMPLE_ENTRIES, Top, top_of
from conntrack_operator.kernel import flows
from conntrack_operator.kernel.counters import Counters, read_counters

from . import terminal
from .arguments import add_output, whole_number
from .render_use import top_document, top_view


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument(
        "-n", type=whole_number(1, 1000), default=10, metavar="N", dest="count", help="rows to show (default: 10)"
    )
    parser.add_argument("--by", choices=BY, default="source", help="what to count by (default: source)")
    parser.add_argument(
        "--exact", action="store_true", help=f"read the whole table, not the first {SAMPLE_ENTRIES:,} entries"
    )
    parser.add_argument("--watch", action="store_true", help="look again every 2 s, until Ctrl-C")
    add_output(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print the talkers, once or again and again; return 0."""

    def look() -> tuple[Top, Counters]:
        counters = read_counters()
        sample = flows.sample(None if arguments.exact else SAMPLE_ENTRIES, by=(arguments.by,))
        return top_of(sample, arguments.by, arguments.count, counters.entries), counters

    if arguments.output == "json":
        if arguments.watch:
            return terminal.watch_json(lambda: top_document(look()[0]))
        terminal.show_json(top_document(look()[0]))
        return 0

    def view() -> RenderableType:
        top, counters = look()
        return top_view(top, arguments.by, counters.max_entries)

    if arguments.watch:
        return terminal.watch(view)
    terminal.show(view())
    return 0
