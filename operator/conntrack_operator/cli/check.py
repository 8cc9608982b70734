"""The `check` command: whether the operator in a cluster answers. `helm test` runs it."""

import argparse
import secrets
import signal
import sys

from .arguments import whole_number

LIMIT_SECONDS = 60
TERMINATED = 128 + signal.SIGTERM


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument(
        "--kubeconfig", metavar="FILE", help="the cluster (default: the pod's service account, else $KUBECONFIG)"
    )
    parser.add_argument(
        "--timeout",
        type=whole_number(1, 3600),
        default=LIMIT_SECONDS,
        metavar="SECONDS",
        help="how long the controller may take to judge the policy (default: %(default)s)",
    )
    parser.epilog = (
        "Creates a policy that observes and means no node, waits until the controller has\n"
        "judged it, and deletes it: the API server knows the kinds, a controller leads, sees\n"
        "policies, and may write what it thinks of them. No node's settings are touched."
    )


def run(arguments: argparse.Namespace) -> int:
    """Check once and return 0."""
    from conntrack_operator.cluster.connection import Connection  # noqa: PLC0415 - after the arguments are judged
    from conntrack_operator.cluster.objects import Objects  # noqa: PLC0415
    from conntrack_operator.controller.removal import judged  # noqa: PLC0415

    name = f"conntrack-operator-check-{secrets.token_hex(4)}"
    # Else its policy would stay when the pod is deleted: the first program of a container is not even ended by it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))
    took = judged(Objects(Connection(arguments.kubeconfig)), name, arguments.timeout)
    print(f"the controller judged policy {name} within {took:.1f} s")
    return 0
