"""What a leading controller does: first a full list, then workers, and kopf's watches beside them."""

import logging
import threading
import time
from dataclasses import dataclass, field

from conntrack_operator.errors import ConntrackOperatorError, LookAgain, StandBack

from .figures import Figures
from .reconcile import Reconciler
from .store import Store
from .touched import Key
from .watch import Watches
from .workqueue import WorkQueue

log = logging.getLogger(__name__)

WORKERS = 4


@dataclass
class Work:
    """The threads that do the work, from `begin` to `finish`. None of them keeps the process from ending."""

    kubeconfig: str | None
    store: Store
    queue: WorkQueue[Key]
    reconciler: Reconciler
    _stop: threading.Event = field(default_factory=threading.Event)
    figures: Figures = field(default_factory=Figures)
    _workers: list[threading.Thread] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._watches = Watches(self.store, self.queue, self.kubeconfig, self.figures)
        self.reconciler.lookout.begin_watches_anew = self._watches.begin_anew

    def begin(self) -> None:
        """Start the watches, and the workers as soon as everything is read."""
        threading.Thread(target=self._watches.run, name="watches", daemon=True).start()
        threading.Thread(target=self._begin, name="begin", daemon=True).start()

    def finish(self, seconds: float) -> None:
        """Begin no more work, stop watching, and wait for what is being worked on, `seconds` at most.

        The watches may take longer to end.
        """
        self._stop.set()
        self._watches.end()
        self.queue.close()
        end = time.monotonic() + seconds
        for worker in list(self._workers):
            worker.join(max(0.0, end - time.monotonic()))

    def _begin(self) -> None:
        """List everything, as often as it takes, then let the workers begin: half a picture decides nothing."""
        key, delay = Key("list"), 0.0
        while not self._stop.wait(delay):
            try:
                self.reconciler.read_everything()
            except ConntrackOperatorError as error:
                delay = self.queue.failed(key)
                log.warning("%s; again in %.1f s", error, delay)
                self.reconciler.lookout.distrust()
            except Exception as error:  # a leader that does not begin would keep every other from it
                delay = self.queue.failed(key)
                log.error("%s: %s; again in %.1f s", type(error).__name__, error, delay)  # noqa: TRY400 - as in _work
                log.debug("%s", key, exc_info=True)
            else:
                break
        self.queue.done(key)
        self.queue.add(Key("look"))
        log.info("everything is read; %d keys to look at", len(self.queue))
        self._workers += [
            threading.Thread(target=self._work, name=f"worker-{number}", daemon=True) for number in range(WORKERS)
        ]
        for worker in self._workers:
            worker.start()

    def _work(self) -> None:
        while (key := self.queue.take()) is not None:
            began = time.monotonic()
            try:
                self.reconciler.put_right(key)
            except (LookAgain, StandBack) as error:
                log.info("%s: %s; again in %.1f s", key, error, self.queue.failed(key))
                self.figures.failures.add(key.kind)
            except ConntrackOperatorError as error:
                log.warning("%s: %s; again in %.1f s", key, error, self.queue.failed(key))
                self.figures.failures.add(key.kind)
            except Exception as error:  # a bug in one key's work must not stop the others'
                delay = self.queue.failed(key)
                log.error(  # noqa: TRY400 - one line each time; the traceback is there when debugging
                    "%s: %s: %s; again in %.1f s", key, type(error).__name__, error, delay
                )
                log.debug("%s", key, exc_info=True)
                self.figures.failures.add(key.kind)
            else:
                self.queue.done(key)
            finally:
                self.figures.reconciles.observe(key.kind, time.monotonic() - began)
