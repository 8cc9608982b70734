"""What pause, resume and retry share: read the policy, write one field of its rollout, say so."""

import argparse
from collections.abc import Callable
from typing import Any

from conntrack_operator.cluster.objects import POLICIES
from conntrack_operator.errors import Retry

from .access import person_of, policy_named
from .rollouts import Step


def add_policy(parser: argparse.ArgumentParser) -> None:
    """Declare the policy."""
    parser.add_argument("policy", metavar="POLICY", help="name of the policy")


def steer(arguments: argparse.Namespace, step_of: Callable[[dict[str, Any]], Step]) -> int:
    """Do the step and say what it did; return 0."""
    person = person_of(arguments)
    step = step_of(policy_named(person, arguments.policy))
    if (
        step.rollout is not None
        and person.merge(POLICIES, arguments.policy, {"spec": {"rollout": step.rollout}}) is None
    ):
        raise Retry(f"policy {arguments.policy} was deleted meanwhile; kubectl get conntrackpolicies shows the others")
    print(step.said)
    return 0
