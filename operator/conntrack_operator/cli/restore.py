"""The `restore` command: every original value back, our rules gone; what `onDelete: Keep` left behind too."""

import argparse

from conntrack_operator.agent import way_back
from conntrack_operator.agent.machine import Machine
from conntrack_operator.kernel.journal import StateDirectory

from . import terminal
from .arguments import add_roots, roots_of
from .render import outcome_view
from .rights import require_root, require_writable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    add_roots(parser)
    parser.epilog = (
        "Takes back an unfinished trial too, and what onDelete: Keep left behind. What\n"
        "somebody else has changed since is left alone. Refused while an agent is at work\n"
        "on this machine: stop it first.\n"
        "exit codes: 0 everything is as it was, 1 something could not be put back, an error"
    )


def run(arguments: argparse.Namespace) -> int:
    """Restore and print the outcome; return 0 when everything is as it was, else 1."""
    require_root("restore")
    roots = roots_of(arguments)
    machine = Machine(roots)
    machine.facts(tracking_needed=False)
    require_writable(roots, machine.journal().originals)
    with StateDirectory(roots) as state:
        outcome = way_back.restore(machine, state, kept_too=True)
    terminal.show(outcome_view(outcome.changes, outcome.results, outcome.facts, warnings=outcome.warnings))
    return 0 if outcome.phase == "Restored" else 1
