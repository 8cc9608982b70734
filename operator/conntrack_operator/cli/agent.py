"""The `agent` command: the half that runs on every node. Imports nothing that a pod's agent does not need."""

import argparse
import logging
import os
from pathlib import Path

from conntrack_operator.errors import Invalid, Problem

from .arguments import add_metrics_address, add_probes, add_roots, listening_at, probes_of, roots_of, whole_number

TOP_TALKERS = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("--node", metavar="NAME", help="this node's name in the cluster (default: $NODE_NAME)")
    parser.add_argument(
        "--kubeconfig", metavar="FILE", help="the cluster (default: the pod's service account, else $KUBECONFIG)"
    )
    parser.add_argument(
        "--policy", type=Path, metavar="FILE", help="work without a cluster: obey this file, and watch it for changes"
    )
    add_probes(parser, " (with --policy alone: in a cluster the agent knows what it must reach)")
    parser.add_argument(
        "--top-talkers",
        type=whole_number(0, 20),
        default=TOP_TALKERS,
        metavar="N",
        help="report this many of the busiest addresses, ports and states; 0 reports none (default: %(default)s)",
    )
    add_metrics_address(parser)
    add_roots(parser)
    parser.epilog = (
        "What was never confirmed on this machine is on trial first: what answered before\n"
        "the change must answer after it, or all is put back. In a cluster that is the API\n"
        "server, its ClusterIP, DNS and the kubelet; with --policy the default gateway and\n"
        "every --probe. SIGTERM takes back what is on trial and keeps what is confirmed."
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the agent until SIGTERM and return its exit code."""
    node = arguments.node or os.environ.get("NODE_NAME", "")
    if arguments.policy and (arguments.node or arguments.kubeconfig):
        raise Invalid(Problem("--policy", "an agent on a file has no cluster; leave out --node and --kubeconfig"))
    if arguments.probe and not arguments.policy:
        raise Invalid(Problem("--probe", "in a cluster the agent knows what it must reach; leave it out"))
    if not arguments.policy and not node:
        raise Invalid(Problem("--node", "which node is this? name it, set NODE_NAME, or use --policy FILE"))
    probes = probes_of(arguments) if arguments.policy else []
    listening = listening_at(arguments.metrics_address)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    # After the arguments are judged, since a wrong option should not wait for pydantic.
    from conntrack_operator.agent import run as agent  # noqa: PLC0415

    if arguments.policy:
        from .reading import node_spec_in  # noqa: PLC0415 - the only reader of YAML

        return agent.run_on_file(
            arguments.policy,
            node_spec_in,
            roots_of(arguments),
            arguments.top_talkers,
            probes=probes,
            listening=listening,
        )
    return agent.run_in_cluster(node, arguments.kubeconfig, roots_of(arguments), arguments.top_talkers, listening)
