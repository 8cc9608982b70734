"""The `uninstall` command: the way out of a cluster, in order. The chart runs it before it removes the controller."""

import argparse

from .arguments import whole_number
from .controller import NAMESPACE

LIMIT_SECONDS = 240


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument(
        "--kubeconfig", metavar="FILE", help="the cluster (default: the pod's service account, else $KUBECONFIG)"
    )
    parser.add_argument(
        "--namespace", default=NAMESPACE, metavar="NS", help="where the operator runs (default: %(default)s)"
    )
    parser.add_argument(
        "--timeout",
        type=whole_number(0, 86400),
        default=LIMIT_SECONDS,
        metavar="SECONDS",
        help="how long nodes may take to be restored; those that have not answered then are named and skipped"
        " (default: %(default)s)",
    )
    parser.epilog = (
        "Deletes every ConntrackPolicy, waits until the running controller has restored every\n"
        "node, and removes the agents. A node that is skipped keeps what it was given; there,\n"
        "conntrack-operator restore puts it back, and kubectl describe node says so for an hour.\n"
        "Deletes nothing where no controller leads, or a policy's canary soaks past the timeout;\n"
        "with --timeout 0 neither is asked. The CRDs stay."
    )


def run(arguments: argparse.Namespace) -> int:
    """Remove it all. Returns 0 also when nodes were skipped: they must not hold up the removal of the rest."""
    from conntrack_operator.cluster.connection import Connection  # noqa: PLC0415 - after the arguments are judged
    from conntrack_operator.cluster.objects import Objects  # noqa: PLC0415
    from conntrack_operator.controller.removal import Removal  # noqa: PLC0415
    from conntrack_operator.decide.finding import counted  # noqa: PLC0415

    def say(sentence: str) -> None:
        print(sentence, flush=True)

    removal = Removal(Objects(Connection(arguments.kubeconfig)), arguments.namespace, say)
    skipped = removal.run(arguments.timeout)
    for each in skipped:
        say(
            f"skipped {each.node}: not restored within {arguments.timeout} s; run conntrack-operator restore on it"
            f" ({each.words()})"
        )
    removal.note(skipped)
    many = counted(len(skipped), "node was", "nodes were")
    say(f"removed; {many} skipped" if skipped else "removed; every node was restored")
    return 0
