"""`kubectl conntrack plan`: what a policy would do to the fleet. Creates, changes and applies nothing.

A file is judged by the API server itself (server-side dry run) and merged with the cluster's policies by the
controller's own functions. Only nodes know their kernels: their numbers and refusals come from a policy that observes.
"""

import argparse
from typing import Any

from conntrack_operator.cli import terminal
from conntrack_operator.cli.arguments import add_output
from conntrack_operator.cli.reading import policies_in
from conntrack_operator.cluster.objects import NODES, POLICIES
from conntrack_operator.cluster.person import Person
from conntrack_operator.controller.sights import node_in
from conntrack_operator.errors import Invalid, Problem, Refused
from conntrack_operator.model.policy import ConntrackPolicy
from conntrack_operator.model.reading import policy_from

from .access import person_of, policy_named, unless_forbidden
from .forecast import forecast
from .render_forecast import forecast_view, preview_view

NOTHING, CHANGES = 0, 2
AS_IF = "policies that say Observe are shown as if they said Enforce; as they stand they change nothing"
ASK_NODES = (
    "What each node's kernel would change or refuse only its agent knows: apply the policy with mode: Observe, which"
    " changes nothing, then kubectl conntrack plan POLICY."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("policy", nargs="?", metavar="POLICY", help="a policy of mode Observe that is in the cluster")
    parser.add_argument(
        "-f", "--file", metavar="FILE", help="policies in YAML or JSON, - for standard input; not applied"
    )
    add_output(parser)
    parser.epilog = "exit codes: 0 nothing would change, 2 something would, 1 error"


def run(arguments: argparse.Namespace) -> int:
    """Print the preview; return 0 when nothing would change, else 2."""
    if bool(arguments.file) == bool(arguments.policy):
        raise Invalid(Problem("", "name either a policy in the cluster or a file (-f FILE), and not both"))
    return _of_file(arguments) if arguments.file else _of_policy(arguments)


def _of_policy(arguments: argparse.Namespace) -> int:
    name = arguments.policy
    found = policy_named(person_of(arguments), name)
    status = found.get("status") or {}
    if found["spec"]["mode"] != "Observe":
        raise Invalid(
            Problem("", f"{name} is no preview but in force (mode Enforce); kubectl conntrack status shows where it"
                    " stands, and plan -f FILE what an edit would change")
        )  # fmt: skip
    preview = status.get("preview")
    judged = status.get("observedGeneration", -1) >= found["metadata"]["generation"]
    if preview is None or not judged:
        raise Invalid(
            Problem(
                "", f"no node's preview of {name} is known yet; see kubectl conntrack status, and try again in a moment"
            )
        )
    if arguments.output == "json":
        terminal.show_json(
            {"policy": name, "matched": (status.get("nodes") or {}).get("matched", 0), "preview": preview}
        )
    else:
        terminal.show(preview_view(name, preview, (status.get("nodes") or {}).get("matched", 0)))
    return CHANGES if preview.get("changing") else NOTHING


def _of_file(arguments: argparse.Namespace) -> int:
    wanted = policies_in(arguments.file)
    person = person_of(arguments)
    notes: list[str] = []
    verdicts = [_verdict(person, policy) for policy in wanted]
    live = _live(person.all(POLICIES), notes)
    nodes = person.all(NODES, slim=_slim)
    plan = forecast(live, wanted, map(node_in, nodes))
    if any(policy.spec.mode == "Observe" for policy in wanted):
        notes.append(f"Note: {AS_IF}.")
    notes.append(ASK_NODES)
    if arguments.output == "json":
        terminal.show_json(plan.document(verdicts, notes))
    else:
        terminal.show(forecast_view(plan, verdicts, notes))
    return CHANGES if plan.changes else NOTHING


def _verdict(person: Person, policy: ConntrackPolicy) -> str:
    """Return what the API server says of a policy. Raises Invalid with its words where it would not take it."""
    name = policy.metadata.name
    document = {"apiVersion": policy.api_version, "kind": policy.kind, "metadata": {"name": name}}
    unseen: list[str] = []
    try:
        stored = unless_forbidden(
            lambda: person.judged(POLICIES, {**document, "spec": policy.spec.document()}), unseen, "asking"
        )
    except Refused as error:
        raise Invalid(Problem(name, f"{error}; nothing was changed, correct the file")) from error
    if stored is None and not unseen:
        raise Invalid(
            Problem(
                "",
                "the API server has no conntrackpolicies; install them: conntrack-operator crds | kubectl apply -f -",
            )
        )
    if unseen:
        return (
            f"{name}: not put to the API server, {unseen[0].removeprefix('asking: ')}; judged by the same rules here."
        )
    return f"{name}: the API server would take it (dry run, nothing was stored)."


def _live(documents: list[dict[str, Any]], notes: list[str]) -> list[ConntrackPolicy]:
    live = []
    for document in documents:
        try:
            live.append(policy_from(document))
        except Invalid:
            notes.append(f"Not reckoned with: policy {document['metadata']['name']}, which this version cannot read.")
    return live


def _slim(document: dict[str, Any]) -> dict[str, Any]:
    metadata = document["metadata"]
    return {"metadata": {key: metadata.get(key) for key in ("name", "uid", "labels", "creationTimestamp")}}
