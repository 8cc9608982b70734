"""The controller as a process: first a full list, then workers, and kopf's watches until somebody says stop."""

import logging
import signal
import threading
import time

import kopf

from conntrack_operator.cluster.connection import Connection
from conntrack_operator.cluster.objects import Objects
from conntrack_operator.errors import ConntrackOperatorError

from .agents import Agents
from .book import Book
from .guard import Guard
from .reconcile import Reconciler
from .rollouts import Rollouts
from .store import Store
from .touched import Key
from .watch import registry_for, settings_for_watching
from .workqueue import WorkQueue

log = logging.getLogger(__name__)

WORKERS = 4
RESTART_SECONDS = 3.0
STOP_SECONDS = 5.0
"""How long kopf may take to end its watches; they hold nothing that would be lost."""


def run(kubeconfig: str | None, namespace: str, agent_image: str) -> int:
    """Run until SIGTERM or SIGINT and return the exit code. Raises Unsupported when no API server is configured.

    Ending changes nothing on any node.
    """
    _set_up_logging()
    objects = Objects(Connection(kubeconfig))
    queue: WorkQueue[Key] = WorkQueue()
    store = Store(namespace)
    rollouts = Rollouts(store, queue, Book(objects, namespace), Guard(objects, namespace))
    store.kept = rollouts.book.contents
    agents = Agents(objects, namespace, agent_image, store.agent_pods)
    reconciler = Reconciler(objects, store, queue, agents, rollouts)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    watches = threading.Thread(target=_watch, args=(store, queue, kubeconfig, stop), name="watches", daemon=True)
    beginning = threading.Thread(target=_begin, args=(reconciler, queue), name="begin", daemon=True)
    watches.start()
    beginning.start()
    stop.wait()
    queue.close()
    watches.join(STOP_SECONDS)
    log.info("stopped")
    return 0


def _begin(reconciler: Reconciler, queue: WorkQueue[Key]) -> None:
    """List everything, as often as it takes, and only then let the workers begin: half a picture decides nothing."""
    key, delay = Key("list"), 0.0
    while True:
        time.sleep(delay)
        try:
            reconciler.read_everything()
        except ConntrackOperatorError as error:
            delay = queue.failed(key)
            log.warning("%s; again in %.1f s", error, delay)
        else:
            break
    queue.done(key)
    log.info("everything is read; %d keys to look at", len(queue))
    for number in range(WORKERS):
        threading.Thread(target=_work, args=(reconciler, queue), name=f"worker-{number}", daemon=True).start()


def _work(reconciler: Reconciler, queue: WorkQueue[Key]) -> None:
    while (key := queue.take()) is not None:
        try:
            reconciler.put_right(key)
        except ConntrackOperatorError as error:
            log.warning("%s: %s; again in %.1f s", key, error, queue.failed(key))
        except Exception as error:  # a bug in one key's work must not stop the others'
            delay = queue.failed(key)
            log.error(  # noqa: TRY400 - one line each time; the traceback is there when debugging
                "%s: %s: %s; again in %.1f s", key, type(error).__name__, error, delay
            )
            log.debug("%s", key, exc_info=True)
        else:
            queue.done(key)


def _watch(store: Store, queue: WorkQueue[Key], kubeconfig: str | None, stop: threading.Event) -> None:
    """Run kopf until `stop`; when it ends for any other reason, begin anew: what it missed the next list brings."""
    while not stop.is_set():
        try:
            kopf.run(
                registry=registry_for(store, queue, kubeconfig),
                settings=settings_for_watching(),
                standalone=True,
                clusterwide=True,
                stop_flag=stop,
            )
        except Exception as error:  # noqa: BLE001 - whatever ended the watches, they are needed
            log.error("the watches ended: %s: %s; again in %.0f s", type(error).__name__, error, RESTART_SECONDS)  # noqa: TRY400
        if not stop.wait(RESTART_SECONDS):
            queue.add(Key("list"))


def _set_up_logging() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("kopf").setLevel(logging.WARNING)
    # It says that it leaves signals to us, and it should.
    logging.getLogger("kopf._core.reactor.running").setLevel(logging.ERROR)
