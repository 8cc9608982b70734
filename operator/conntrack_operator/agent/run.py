"""Starts the agent: in a cluster for one node, or on a policy file, and ends it on SIGTERM with everything kept."""

import gc
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from conntrack_operator.errors import Retry
from conntrack_operator.kernel.heap import give_back_early
from conntrack_operator.kernel.journal import StateDirectory
from conntrack_operator.kernel.roots import Roots
from conntrack_operator.model.node import NodeSpec, NodeStatus

from .duty import Duty
from .loop import Agent
from .machine import Machine
from .mailbox import Mailbox
from .meter import Meter
from .metrics import AgentMetrics
from .probes import Probe, address_of, cluster_probes, gateway_probes
from .sources import watch_file, watch_object

log = logging.getLogger(__name__)


def run_in_cluster(
    node: str, kubeconfig: str | None, roots: Roots, top_talkers: int, listening: socket.socket | None = None
) -> int:
    """Obey NodeConntrack `node` until SIGTERM or SIGINT. Returns the exit code.

    Metrics are served on `listening`, where that is given. Raises Unsupported when there is no way to the API server or
    the state directory cannot be written, Retry when another agent is at work here.
    """
    # Imported here so that an agent on a file never loads an HTTP client.
    from conntrack_operator.cluster.access import access_for  # noqa: PLC0415
    from conntrack_operator.cluster.own_node import OwnNode  # noqa: PLC0415
    from conntrack_operator.cluster.reach import answers, host_and_port  # noqa: PLC0415

    access = access_for(kubeconfig)
    watching, writing = OwnNode(access, node), OwnNode(access, node)

    def write(status: NodeStatus) -> None:
        writing.write_status(status.document())

    def find_probes() -> list[Probe]:
        host, port = host_and_port(access)
        api_server = Probe(
            f"API server {address_of(host, port)}", lambda seconds: answers(access, seconds), needed_again=True
        )
        return [api_server, *cluster_probes(roots, host, port, os.environ)]

    machine = Machine(roots, api_server=host_and_port(access))
    return _run(
        machine,
        top_talkers,
        write,
        find_probes,
        lambda mailbox, pause: watch_object(watching, mailbox, pause),
        listening=listening,
    )


def run_on_file(  # noqa: PLR0913 - what the command line says
    path: Path,
    read: Callable[[Path], NodeSpec],
    roots: Roots,
    top_talkers: int,
    *,
    probes: Sequence[Probe] = (),
    listening: socket.socket | None = None,
) -> int:
    """Obey the policy in `path`, watched, with no cluster, until SIGTERM or SIGINT. Returns the exit code.

    `read` turns the file into a wish and raises a ConntrackOperatorError when it is wrong; the first reading may not
    fail, later ones are logged. After a change the default gateway and `probes` must be reachable as before it.
    """
    read(path)

    def write(status: NodeStatus) -> None:
        usage = status.usage
        use = f", {usage.entries} of {usage.max_entries} entries ({usage.percent}%)" if usage else ""
        log.info("%s%s", status.phase, use)
        for result in status.results:
            if result.message:
                log.warning("%s: %s: %s", result.setting, result.reason, result.message)

    return _run(
        Machine(roots),
        top_talkers,
        write,
        lambda: [*gateway_probes(), *probes],
        lambda mailbox, pause: watch_file(path, read, mailbox, pause),
        listening=listening,
    )


def _run(  # noqa: PLR0913 - what differs between cluster and file
    machine: Machine,
    top_talkers: int,
    write: Callable[[NodeStatus], None],
    find_probes: Callable[[], Sequence[Probe]],
    watch: Callable[[Mailbox, threading.Event], None],
    *,
    listening: socket.socket | None,
) -> int:
    give_back_early()
    mailbox, pause = Mailbox(), threading.Event()
    failure: list[BaseException] = []

    def watched() -> None:
        try:
            watch(mailbox, pause)
        except BaseException as error:  # noqa: BLE001 - a dead watcher must end the process, not hide in its thread
            failure.append(error)
            mailbox.stop()

    with StateDirectory(machine.roots) as state, Meter(machine.roots) as meter:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: mailbox.stop_soon())
        threading.Thread(target=watched, name="watch", daemon=True).start()
        # What was imported stays; the collector need not look at it again.
        gc.collect()
        gc.freeze()
        duty = Duty(machine, state, find_probes)
        meter.may_load = lambda: duty.acts
        agent = Agent(
            duty=duty,
            mailbox=mailbox,
            meter=meter,
            write_status=write,
            top_talkers=lambda entries: meter.talkers(top_talkers, entries),
            figures=duty.figures,
        )
        if listening is not None:
            AgentMetrics(duty, duty.figures).serve(listening)
        agent.run()
        pause.set()
        # Nothing is left to be told. Python would put the default back before it exits, and another SIGTERM be its end.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
    if failure:
        raise Retry(f"the watch ended unexpectedly: {failure[0]!r}") from failure[0]
    return 0
