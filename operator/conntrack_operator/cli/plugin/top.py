"""`kubectl conntrack top`: who holds the entries, as the nodes last reported it, or as one node sees it now."""

import argparse
import json
from typing import Any

from conntrack_operator.cli import terminal
from conntrack_operator.cli.arguments import add_output, whole_number
from conntrack_operator.cluster.objects import NODE_CONNTRACKS
from conntrack_operator.decide.talkers import STATUS_BY
from conntrack_operator.errors import Invalid, Problem, Unsupported

from .access import ask_agent, node_named, person_of
from .naming import names_for
from .render_talkers import talkers_notes, talkers_view
from .talkers import Talkers, live_talkers, talkers_document, talkers_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("node", nargs="?", metavar="NODE", help="one node (default: all of them together)")
    parser.add_argument(
        "--live",
        action="store_true",
        help="ask the agent on NODE to look now (needs get pods, create pods/exec)",
    )
    parser.add_argument("--by", choices=STATUS_BY, default="source", help="what to count by (default: source)")
    parser.add_argument(
        "-n", type=whole_number(1, 1000), default=10, metavar="N", dest="count", help="rows to show (default: 10)"
    )
    add_output(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print the talkers; return 0."""
    if arguments.live and not arguments.node:
        raise Invalid(Problem("--live", "it looks at one node: kubectl conntrack top NODE --live"))
    person = person_of(arguments)
    if arguments.live:
        command = ["conntrack-operator", "top", "-o", "json", "--by", arguments.by, "-n", str(arguments.count)]
        said = ask_agent(person, arguments.namespace, arguments.node, command)
        talkers, whose = live_talkers(json_said(said, arguments.node), arguments.by), f"on node {arguments.node} now"
    elif arguments.node:
        talkers = talkers_of([node_named(person, arguments.node)], arguments.by, arguments.count)
        whose = f"on node {arguments.node}"
    else:
        talkers = talkers_of(person.all(NODE_CONNTRACKS, slim=_slim), arguments.by, arguments.count)
        whose = f"on {talkers.told:,} {'node' if talkers.told == 1 else 'nodes'}"
    _show(person_names(person, talkers), talkers, whose, arguments)
    return 0


def person_names(person: Any, talkers: Talkers) -> tuple[list[str], tuple[str, ...]]:
    """Return the talkers' names and what could not be seen of them."""
    names = names_for(person, talkers.addresses())
    return [names.of(row.key) if talkers.addresses() else "" for row in talkers.rows], names.unseen


def _show(
    named: tuple[list[str], tuple[str, ...]], talkers: Talkers, whose: str, arguments: argparse.Namespace
) -> None:
    names, unseen = named
    notes = [*talkers_notes(talkers, live=arguments.live), *(f"not seen: {each}" for each in unseen)]
    if arguments.output == "json":
        terminal.show_json(talkers_document(talkers, names, notes))
    else:
        terminal.show(talkers_view(talkers, names, notes, whose))


def json_said(text: str, node: str) -> Any:
    """Return the JSON an agent's pod printed. Raises Unsupported when it is none."""
    try:
        return json.loads(text)
    except ValueError as error:
        raise Unsupported(
            f"what the agent on node {node} printed is no JSON; it may be another version: compare kubectl conntrack"
            " --version with the image of its pod"
        ) from error


def _slim(document: dict[str, Any]) -> dict[str, Any]:
    status = document.get("status") or {}
    return {
        "metadata": {"name": document["metadata"]["name"]},
        "status": {key: status.get(key) for key in ("topTalkers", "usage")},
    }
