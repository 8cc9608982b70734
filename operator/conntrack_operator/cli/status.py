"""The `status` command: how full the table is, what it threw away, what bypassed it."""

import argparse

from conntrack_operator.agent.machine import Machine
from conntrack_operator.decide.draft import BUCKETS
from conntrack_operator.decide.notrack import Bypassed
from conntrack_operator.decide.sizing import bucket_bytes
from conntrack_operator.errors import Unsupported
from conntrack_operator.kernel.counters import read_counters
from conntrack_operator.kernel.nftables import read_bypassed
from conntrack_operator.kernel.roots import Roots

from . import terminal
from .arguments import add_output, add_roots, roots_of
from .render_use import Use, status_view


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    add_output(parser)
    add_roots(parser, state=False)


def run(arguments: argparse.Namespace) -> int:
    """Print the table's use now; return 0."""
    use = read_use(roots_of(arguments))
    if arguments.output == "json":
        terminal.show_json(use.document())
    else:
        terminal.show(status_view(use))
    return 0


def read_use(roots: Roots) -> Use:
    """Read how the table of this network namespace stands. Raises as `Machine.facts` and `read_counters` do."""
    facts = Machine(roots).facts()
    return Use(
        counters=read_counters(),
        buckets=facts.sysctls.get(BUCKETS, 0),
        entry_bytes=facts.entry_bytes,
        bucket_bytes=bucket_bytes(facts),
        bypassed=_bypassed(),
    )


def _bypassed() -> tuple[Bypassed, ...]:
    # Where nft is not installed nobody has NOTRACK rules of ours, and the rest is worth showing.
    try:
        return read_bypassed()
    except Unsupported:
        return ()
