"""The `plan` command: what a policy would change on this machine. Reads, decides, prints; writes nothing."""

import argparse

from conntrack_operator.agent.machine import Machine

from . import reading, terminal
from .arguments import add_output, add_policy_file, add_roots, roots_of
from .render import plan_view

CHANGES = 2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    add_policy_file(parser)
    parser.add_argument(
        "--facts",
        metavar="FACTS.json",
        help="plan for another machine: {memoryBytes, cpus, wordBits, kernel, entries, sysctls: {name: value}}",
    )
    add_output(parser)
    add_roots(parser)
    parser.epilog = (
        "Needs root where the policy has NOTRACK rules. What is refused is no change."
        "\nexit codes: 0 nothing to change, 2 changes, 1 error"
    )


def run(arguments: argparse.Namespace) -> int:
    """Print the plan; return 0 when nothing would change, 2 when something would."""
    merge = reading.merge_in(arguments.file)
    facts = reading.facts_in(arguments.facts) if arguments.facts else None
    plan = Machine(roots_of(arguments)).plan(merge.settings, merge.uses, facts)
    if arguments.output == "json":
        terminal.show_json(plan.document())
    else:
        terminal.show(plan_view(plan, merge.conflicts))
    return CHANGES if plan.changes else 0
