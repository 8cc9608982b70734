"""The `demo` command: the story in one minute, on the real kernel, in network namespaces of its own, no cluster.

Nothing is made up: real packets fill a real table, and the agent's own code applies the policy. `stage` makes the
namespaces, `traffic` the packets, `load` runs them and measures, `host` lowers and puts back the machine's limit
where it is too high to be filled in time, `display` and `views` show it, `story` tells it.
"""

import argparse

from conntrack_operator.cli.arguments import add_roots, roots_of, whole_number

MOST_ENTRIES = 600_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument(
        "--entries",
        type=whole_number(5_000, 10_000_000),
        default=MOST_ENTRIES,
        metavar="N",
        help="fill at most this many entries; where this machine's limit is higher, it is lowered to N for some seconds"
        " and put back, but only if all entries of the machine are far below N (default: %(default)s)",
    )
    add_roots(parser)


def run(arguments: argparse.Namespace) -> int:
    """Tell the story; return 0 when it came out as told."""
    from .story import tell  # noqa: PLC0415 - options are judged first

    return tell(roots_of(arguments), arguments.entries)
