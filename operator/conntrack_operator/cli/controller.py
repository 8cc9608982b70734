"""The `controller` command: the half that runs once in a cluster."""

import argparse

from conntrack_operator import __version__

from .arguments import add_metrics_address, listening_at

NAMESPACE = "conntrack-system"
IMAGE = f"conntrack-operator:{__version__}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument(
        "--kubeconfig", metavar="FILE", help="the cluster (default: the pod's service account, else $KUBECONFIG)"
    )
    parser.add_argument(
        "--namespace",
        default=NAMESPACE,
        metavar="NS",
        help="where the agents run, and where the controller's lease is (default: %(default)s)",
    )
    parser.add_argument(
        "--agent-image", default=IMAGE, metavar="IMAGE", help="the agents' container image (default: %(default)s)"
    )
    add_metrics_address(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run the controller; it ends the process itself."""
    listening = listening_at(arguments.metrics_address)
    from conntrack_operator.controller import run as controller  # noqa: PLC0415 - kopf takes a second to import

    return controller.run(arguments.kubeconfig, arguments.namespace, arguments.agent_image, listening)
