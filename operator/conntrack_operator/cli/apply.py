"""The `apply` command: makes a policy true on this machine, once, by the agent's own code, and says what came of it."""

import argparse

from conntrack_operator.agent.machine import Machine
from conntrack_operator.decide.merge import merged
from conntrack_operator.errors import Invalid, Problem
from conntrack_operator.kernel.journal import StateDirectory

from . import reading, terminal
from .arguments import add_policy_file, add_roots, roots_of
from .render import outcome_view
from .rights import require_root, require_writable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    add_policy_file(parser)
    for option in ("--trial", "--soak", "--probe"):
        parser.add_argument(option, action="append", help=argparse.SUPPRESS)
    add_roots(parser)
    parser.epilog = "exit codes: 0 all is as the policy says, 1 something was refused, or an error"


def run(arguments: argparse.Namespace) -> int:
    """Apply and print the outcome; return 0 when everything is as the policies say, else 1."""
    for option in ("trial", "soak", "probe"):
        if getattr(arguments, option) is not None:
            raise Invalid(Problem(f"--{option}", "trials come with a later version; leave it out"))
    policies = reading.policies_in(arguments.file)
    observers = [policy.metadata.name for policy in policies if policy.spec.mode == "Observe"]
    if observers:
        raise Invalid(
            Problem(
                arguments.file,
                f"policy {observers[0]} only observes; look at it with plan, or write mode: Enforce",
            )
        )
    require_root("apply")
    merge, roots = merged(policies), roots_of(arguments)
    machine = Machine(roots)
    require_writable(roots, (change.setting for change in machine.plan(merge.settings, merge.uses).changes))
    with StateDirectory(roots) as state:
        outcome = machine.apply(merge.settings, merge.uses, state)
    terminal.show(outcome_view(outcome.changes, outcome.results, outcome.facts, merge.conflicts, outcome.warnings))
    return 0 if outcome.phase == "Current" else 1
