"""A fleet of simulated nodes (tests.lab.fleet) in processes of its own, for who needs many agents to answer in time.

`python -m tests.lab.fleet_apart KUBECONFIG AGENTS_KUBECONFIG FIRST NUMBER` makes so many nodes and is their agents
until it is ended.
"""

import contextlib
import gc
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.lab.cluster import Cluster
from tests.lab.fleet import Fleet
from tests.lab.programs import Program

BEGUN = "all nodes are made"


@contextlib.contextmanager
def fleet_apart(cluster: Cluster, agents: str, folder: Path, nodes: int, processes: int) -> Iterator[None]:
    """Have nodes `node-000` and so on, shared by processes; their agents present the kubeconfig `agents`."""
    number = nodes // processes
    programs = []
    for first in range(0, nodes, number):
        command = [sys.executable, "-m", "tests.lab.fleet_apart", str(cluster.kubeconfig), agents]
        programs.append(Program("agents", [*command, str(first), str(number)], folder / f"agents-{first}.log"))
    try:
        for program in programs:
            program.start()
        for program in programs:
            program.wait_until(lambda program=program: BEGUN in program.tail(), 120, BEGUN)
        yield
    finally:
        for program in programs:
            program.stop(seconds=0)


def main(kubeconfig: str, agents: str, first: str, number: str) -> None:
    """Make the nodes and be their agents."""
    with contextlib.suppress(KeyboardInterrupt):
        gc.freeze()  # agents collect their garbage after each deed
        fleet = Fleet(kubeconfig, agents)
        fleet.create([f"node-{int(first) + offset:03}" for offset in range(int(number))])
        print(BEGUN, flush=True)
        signal.pause()


if __name__ == "__main__":
    main(*sys.argv[1:])
