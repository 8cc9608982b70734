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
    parser.add_argument(
        "--agent-config",
        metavar="FILE",
        help="how the agents' pods are made: an AgentConfig in YAML or JSON, read at the start (default: as built)",
    )
    add_metrics_address(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run the controller; it ends the process itself."""
    listening = listening_at(arguments.metrics_address)
    # pydantic and kopf take a second to import: after the arguments are judged.
    from conntrack_operator.model.agent_config import AgentConfig  # noqa: PLC0415

    from .reading import agent_config_in  # noqa: PLC0415

    config = agent_config_in(arguments.agent_config) if arguments.agent_config else AgentConfig()
    from conntrack_operator.controller import run as controller  # noqa: PLC0415

    place = controller.Place(arguments.kubeconfig, arguments.namespace, arguments.agent_image, config)
    return controller.run(place, listening)
