"""The controller as a process: it waits until it leads, works while it leads, and ends when it leads no longer."""

import logging
import os
import signal
import socket
import sys
import threading
from dataclasses import dataclass
from typing import NoReturn

from conntrack_operator.cluster.connection import Connection
from conntrack_operator.cluster.objects import Objects
from conntrack_operator.model.agent_config import AgentConfig

from .agents import Agents
from .book import Book
from .fence import Fence
from .figures import Figures
from .guard import Guard
from .leadership import Leadership, identity, leases
from .metrics import ControllerMetrics
from .reconcile import Reconciler
from .rollouts import Rollouts
from .store import Store
from .telling import Telling
from .touched import Key
from .work import Work
from .workqueue import WorkQueue

log = logging.getLogger(__name__)

FINISH_SECONDS = 1.5
"""How long what is being worked on may take once somebody says stop; then the fence is shut."""
ANSWER_SECONDS = 2.0
"""How long writes that are on their way may take then. If one takes longer, the lease is not given up but runs out."""


@dataclass(frozen=True)
class Place:
    """Where the controller works, and how it makes the agents."""

    kubeconfig: str | None
    namespace: str
    agent_image: str
    agent_config: AgentConfig


def run(place: Place, listening: socket.socket | None = None) -> NoReturn:
    """Run until SIGTERM or SIGINT, and end the process with 0; with 1 when it led and does not lead any more.

    Metrics are served on `listening`, where that is given, also while it waits. Raises Unsupported when no API server
    is configured. Ending changes nothing on any node.
    """
    _set_up_logging()
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    leadership = Leadership(leases(place.kubeconfig), place.namespace, identity())
    figures = Figures()
    metrics = ControllerMetrics(leadership, figures)
    if listening is not None:
        metrics.serve(listening)
    if leadership.win(stop):
        work = metrics.work = _work(place, leadership.fence, figures)
        work.begin()
        if why := leadership.keep(stop):
            log.error("%s", why)
            _end(1)
        work.finish(FINISH_SECONDS)
        leadership.resign(ANSWER_SECONDS)
    log.info("stopped")
    _end(0)


def _work(place: Place, fence: Fence, figures: Figures) -> Work:
    objects = Objects(Connection(place.kubeconfig, fence), figures.writes.add)
    queue: WorkQueue[Key] = WorkQueue()
    store = Store(place.namespace)
    rollouts = Rollouts(store, queue, Book(objects, place.namespace), Guard(objects, place.namespace))
    store.keep_in_mind(rollouts.book)
    agents = Agents(objects, place.namespace, place.agent_image, store.agent_pods, config=place.agent_config)
    reconciler = Reconciler(objects, store, queue, agents, rollouts, Telling(objects, figures=figures), figures)
    return Work(place.kubeconfig, store, queue, reconciler, figures=figures)


def _end(code: int) -> NoReturn:
    """End at once, as it is: threads that wait for an answer or for kopf's watches must neither delay it nor go on."""
    logging.shutdown()
    sys.stdout.flush()
    os._exit(code)


def _set_up_logging() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("kopf").setLevel(logging.WARNING)
    # It says that it leaves signals to us, and it should.
    logging.getLogger("kopf._core.reactor.running").setLevel(logging.ERROR)
