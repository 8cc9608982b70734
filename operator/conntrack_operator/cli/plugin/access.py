"""Options by which every command of the plugin finds the cluster, and what several of them read there."""

import argparse
from collections.abc import Callable
from typing import Any, TypeVar

from conntrack_operator.cli.controller import NAMESPACE
from conntrack_operator.cluster.objects import NODE_CONNTRACKS, POLICIES
from conntrack_operator.cluster.person import PODS, Person, Way
from conntrack_operator.controller.daemonset import CONTAINER, SELECTOR
from conntrack_operator.errors import Invalid, Problem, Refused

Document = dict[str, Any]
Answer = TypeVar("Answer")


def add_access(parser: argparse.ArgumentParser) -> None:
    """Declare the options that kubectl has for it too, under its names."""
    parser.add_argument("--kubeconfig", metavar="FILE", help="the cluster (default: $KUBECONFIG, else ~/.kube/config)")
    parser.add_argument("--context", metavar="NAME", help="a context of it (default: its current one)")
    parser.add_argument(
        "--namespace", default=NAMESPACE, metavar="NS", help="where the operator runs (default: %(default)s)"
    )


def person_of(arguments: argparse.Namespace) -> Person:
    """Return whoever the options name."""
    return Person(Way(arguments.kubeconfig, arguments.context))


def policy_named(person: Person, name: str) -> Document:
    """Return a policy. Raises Invalid when there is none of that name."""
    found = person.one(POLICIES, name)
    if found is None:
        raise Invalid(Problem("", f"there is no policy {name}; kubectl get conntrackpolicies shows those there are"))
    return found


def node_named(person: Person, name: str) -> Document:
    """Return a node's NodeConntrack. Raises Invalid when it has none."""
    found = person.one(NODE_CONNTRACKS, name)
    if found is None:
        raise Invalid(
            Problem("", f"node {name} has no NodeConntrack: no policy means it, or there is no such node; kubectl get"
                    " nodeconntracks shows those there are")
        )  # fmt: skip
    return found


def ask_agent(person: Person, namespace: str, node: str, command: list[str]) -> str:
    """Return what a command prints in the agent's pod on `node`. Raises Invalid when no agent runs there."""
    labels = ",".join(f"{key}={value}" for key, value in SELECTOR.items())
    pods = person.all(PODS, namespace=namespace, labels=labels, fields=f"spec.nodeName={node}")
    there = [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]
    running = [pod for pod in there if (pod.get("status") or {}).get("phase") == "Running"]
    if not running:
        phases = ", ".join(str((pod.get("status") or {}).get("phase")) for pod in there)
        if there:
            have = f"the agent's pod on node {node} is {phases}"
        elif pods:  # an upgrade replaces it: first the old one ends
            have = f"the agent's pod on node {node} is ending and the next is not there yet: try again in a moment"
        else:
            have = f"no agent's pod is on node {node}"
        raise Invalid(Problem("", f"{have}; see kubectl -n {namespace} get pods -o wide -l {labels}"))
    return person.run_in_pod(namespace, running[0]["metadata"]["name"], CONTAINER, command)


def unless_forbidden(look: Callable[[], Answer], unseen: list[str], what: str) -> Answer | None:
    """Return what `look` finds; where the person may not see it, None, and `unseen` gets a sentence."""
    try:
        return look()
    except Refused as error:
        if error.reason != "Forbidden":
            raise
        unseen.append(f"{what}: {error}")
        return None
