"""`kubectl conntrack history`: what changed when, and why, of all, of one node or of one policy."""

import argparse
from collections.abc import Iterator
from typing import Any

from conntrack_operator.cli import terminal
from conntrack_operator.cli.arguments import add_output, whole_number
from conntrack_operator.cluster.events import COMPONENT, NAMESPACE
from conntrack_operator.cluster.objects import CONTROLLER_REVISIONS, EVENTS, NODE_CONNTRACKS, POLICIES
from conntrack_operator.cluster.person import Person
from conntrack_operator.controller.book import LABELS, revision_in
from conntrack_operator.decide.standing import time_in
from conntrack_operator.errors import Invalid, Problem

from .access import person_of, unless_forbidden
from .happened import Happened, in_order, of_events, of_node, of_policy, of_revisions
from .render_happened import history_view

Document = dict[str, Any]

KEPT = (
    "Nodes keep their last ten transitions, the operator the last three revisions of a policy, the API server Events"
    " for an hour by default: what is older is not here."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("name", nargs="?", metavar="NODE|POLICY", help="a node or a policy (default: everything)")
    parser.add_argument(
        "-n",
        type=whole_number(0, 100_000),
        default=50,
        metavar="N",
        dest="count",
        help="last lines, 0 for all (default: 50)",
    )
    add_output(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print what happened, the newest last; return 0."""
    person, name = person_of(arguments), arguments.name
    unseen: list[str] = []
    policies, nodes = _subjects(person, name)
    events = unless_forbidden(lambda: _events(person), unseen, "Events")
    books = unless_forbidden(lambda: _revisions(person, arguments.namespace), unseen, "revisions of policies")
    happened = in_order(_all(name, policies, nodes, events or [], books or []), arguments.count)
    notes = [KEPT, *(f"not seen: {each}" for each in unseen)]
    if arguments.output == "json":
        terminal.show_json({"history": [each.document() for each in happened], "notes": notes})
    else:
        terminal.show(history_view(happened, notes))
    return 0


def _subjects(person: Person, name: str | None) -> tuple[list[Document], list[Document]]:
    """Return the policies and nodes it is about: of a policy also the nodes that have it."""
    if name is None:
        return person.all(POLICIES), person.all(NODE_CONNTRACKS)
    policy, node = person.one(POLICIES, name), person.one(NODE_CONNTRACKS, name)
    if policy is None and node is None:
        raise Invalid(
            Problem("", f"there is neither a policy nor a node's NodeConntrack called {name}; see kubectl get"
                    " conntrackpolicies,nodeconntracks")
        )  # fmt: skip
    having = []
    if policy is not None:
        having = [each for each in person.all(NODE_CONNTRACKS) if name in _policies_of(each)]
    nodes = {each["metadata"]["name"]: each for each in (*having, *([node] if node else []))}
    return ([policy] if policy else []), list(nodes.values())


def _policies_of(node: Document) -> set[str]:
    return {use["name"] for use in (node.get("spec") or {}).get("policies") or ()}


def _events(person: Person) -> list[Document]:
    return person.all(EVENTS, namespace=NAMESPACE, fields=f"reportingComponent={COMPONENT}")


def _revisions(person: Person, namespace: str) -> list[Document]:
    labels = ",".join(f"{key}={value}" for key, value in LABELS.items())
    return person.all(CONTROLLER_REVISIONS, namespace=namespace, labels=labels)


def _all(
    name: str | None, policies: list[Document], nodes: list[Document], events: list[Document], books: list[Document]
) -> Iterator[Happened]:
    for policy in policies:
        yield from of_policy(policy)
    for node in nodes:
        yield from of_node(node)
    # Of a node, the revisions of the policies it has; of a policy, its own; the policy itself may be gone.
    wanted = {policy["metadata"]["name"] for policy in policies}
    if not policies:
        wanted |= {each for node in nodes for each in _policies_of(node)}
    kept = [(revision, time_in(each["metadata"].get("creationTimestamp") or "")) for each in books
            if (revision := revision_in(each)) is not None and (name is None or revision.policy in wanted)]  # fmt: skip
    yield from of_revisions(kept)
    for each in of_events(events):
        kind, _, whose = each.subject.partition("/")
        # Without a name, an Event about a node is told once, with its policy.
        if (name is None and kind == "policy") or (name is not None and whose == name):
            yield each
