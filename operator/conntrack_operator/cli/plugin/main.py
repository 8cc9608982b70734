"""The program `kubectl-conntrack`, which kubectl runs for `kubectl conntrack`."""

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import Any

from conntrack_operator import __version__
from conntrack_operator.cli.arguments import Parser
from conntrack_operator.cli.main import guarded
from conntrack_operator.errors import Invalid, Problem

from .access import add_access

PROGRAM = "kubectl conntrack"

COMMANDS = {
    "status": ("status", "the fleet, fullest tables first, and where each policy's rollout stands"),
    "top": ("top", "who holds the entries, of all nodes or of one, with the names of pods and Services"),
    "doctor": ("doctor", "why a node's table is full, and what to do: asked of the agent on it"),
    "plan": ("plan", "what a policy would do to the fleet; changes nothing"),
    "pause": ("pause", "stop a policy's rollout where it is"),
    "resume": ("resume", "let a paused rollout go on"),
    "retry": ("retry", "have nodes that gave a change up try it again"),
    "history": ("history", "what changed when, and why"),
}
"""Each command is a module of this package, with `add_arguments(parser)` and `run(arguments)`."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (default: this process's) and return the exit code."""
    return guarded(PROGRAM, lambda: _run(list(sys.argv[1:] if argv is None else argv)))


def _run(argv: list[str]) -> int:
    if argv and argv[0] in COMMANDS:
        module, words = COMMANDS[argv[0]]
        command: Any = importlib.import_module(f"{__package__}.{module}")
        parser = Parser(prog=f"{PROGRAM} {argv[0]}", description=words)
        command.add_arguments(parser)
        add_access(parser)
        return int(command.run(parser.parse_args(argv[1:])))
    parser = Parser(
        prog=PROGRAM,
        usage=f"{PROGRAM} COMMAND ...",
        description="Connection tracking of the whole cluster, as far as your own rights reach.",
        epilog="commands:\n"
        + "\n".join(f"  {name:10}{words}" for name, (_, words) in COMMANDS.items())
        + f"\n\n{PROGRAM} COMMAND --help shows a command's options.",
    )
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    parser.add_argument("command", metavar="COMMAND", help=argparse.SUPPRESS)
    unknown = parser.parse_args(argv[:1]).command
    raise Invalid(Problem("", f"there is no command {unknown!r}; there are {', '.join(COMMANDS)}"))


if __name__ == "__main__":
    sys.exit(main())
