"""`kubectl conntrack status`: the whole fleet by pressure, and where every rollout stands."""

import argparse
import shutil
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from conntrack_operator.cli import terminal
from conntrack_operator.cli.arguments import add_output
from conntrack_operator.cluster.objects import LEASES, NODE_CONNTRACKS, POLICIES
from conntrack_operator.cluster.person import Person
from conntrack_operator.controller.leadership import NAME as LEASE
from conntrack_operator.decide.finding import ago_words
from conntrack_operator.decide.standing import time_in

from .access import person_of, unless_forbidden
from .fleet import fleet_document, is_judged, node_rows, policy_rows
from .render_fleet import fleet_view

SHOWN_ROWS = 40
"""On a terminal; a pipe gets all of them."""
WIDE_COLUMNS = 130
"""From so many columns on a terminal the table has room for since when and why."""
QUIET = timedelta(seconds=60)
"""A Lease that nobody has renewed for so long has no controller: four times what a holder may keep it unrenewed."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument(
        "--all", action="store_true", help=f"every node, also on a terminal (default there: the first {SHOWN_ROWS})"
    )
    add_output(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print the fleet; return 0."""
    person, now = person_of(arguments), datetime.now(UTC)
    policies, nodes = person.all(POLICIES), person.all(NODE_CONNTRACKS)
    notes = controller_notes(person, arguments.namespace, policies, now)
    rows = policy_rows(policies), node_rows(nodes, now)
    if arguments.output == "json":
        terminal.show_json(fleet_document(*rows, notes))
    else:
        most = SHOWN_ROWS if sys.stdout.isatty() and not arguments.all else 0
        narrow = sys.stdout.isatty() and shutil.get_terminal_size().columns < WIDE_COLUMNS
        terminal.show(fleet_view(*rows, notes, most=most, narrow=narrow))
    return 0


def controller_notes(person: Person, namespace: str, policies: Sequence[dict[str, Any]], now: datetime) -> list[str]:
    """Return what should be known of the controller: nothing while it is at work."""
    unseen: list[str] = []
    lease = unless_forbidden(lambda: person.one(LEASES, LEASE, namespace), unseen, "whether a controller is at work")
    renewed = time_in(((lease or {}).get("spec") or {}).get("renewTime") or "")
    remedy = f"see kubectl -n {namespace} get pods, or name its namespace with --namespace"
    if lease is None and not unseen:
        return [f"No controller has ever been at work in namespace {namespace}: nothing changes; {remedy}."]
    if renewed is not None and now - renewed > QUIET:
        ago = ago_words((now - renewed).total_seconds())
        return [f"No controller is at work: its Lease was renewed {ago} last; nodes keep what they have; {remedy}."]
    waiting = sorted(policy["metadata"]["name"] for policy in policies if not is_judged(policy))
    if unseen and waiting:
        return [f"Nobody has judged {', '.join(waiting[:5])} yet, and {unseen[0]}."]
    return []
