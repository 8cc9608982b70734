"""One controller leads, by a Lease; the others wait for it. Why a loop of our own: docs/decisions/0012-leadership.md.

Owns the Lease and the fence. It starts and stops nothing else, and changes no object but the Lease.
"""

import logging
import secrets
import socket
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from conntrack_operator.cluster.connection import Connection
from conntrack_operator.cluster.objects import LEASES, Objects
from conntrack_operator.decide.election import (
    DURATION_SECONDS,
    Lease,
    Sighting,
    given_up,
    renewed,
    sighting_after,
    taken,
    wait_before_taking,
)
from conntrack_operator.errors import ConntrackOperatorError, LookAgain, Refused
from conntrack_operator.kernel.clock import read_boottime

from .fence import Fence

log = logging.getLogger(__name__)

NAME = "conntrack-operator-controller"
RENEW_SECONDS = 3.0
"""Between renewals: four may fail before the Lease runs out."""
CONNECT_SECONDS, READ_SECONDS = 1.5, 2.5
POLL_SECONDS = 1.0
"""Between a waiting controller's looks at the Lease: one small request."""
RETRY_SECONDS = 1.0
MOST_RETRY_SECONDS = 5.0
WATCH_SECONDS = 0.25
"""Between looks at the deadline. Never one long sleep: that would not count the time the machine is suspended for."""
GIVE_UP_SECONDS = 2.0


def identity() -> str:
    """Return a name that says where we run and that no other process, nor this one started again, ever has."""
    return f"{socket.gethostname()}_{secrets.token_hex(4)}"


def leases(kubeconfig: str | None) -> Objects:
    """Return a way to the API server for the Lease alone, with little patience. Raises Unsupported when there is none.

    It passes no fence: a Lease is taken before we lead, and its writes are guarded by its resource version.
    """
    return Objects(Connection(kubeconfig, connect_seconds=CONNECT_SECONDS, read_seconds=READ_SECONDS))


class Leadership:
    """One candidate: `win`, then `keep`, then `resign`. Writes of what it leads pass the `fence`."""

    def __init__(
        self,
        objects: Objects,
        namespace: str,
        name: str,
        clock: Callable[[], float] = read_boottime,
        wall: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.name = name
        self.beat = time.monotonic()
        """When its loop was last at work, on time.monotonic."""
        self.fence = Fence(clock)
        self._objects, self._namespace = objects, namespace
        self._clock, self._wall = clock, wall
        self._sighting: Sighting | None = None
        self._failures = 0
        self._said = ""
        self._lock = threading.Lock()  # around everything that writes the Lease once it is held
        self._held: Lease | None = None
        self._over = threading.Event()
        self._lost = ""

    def win(self, stop: threading.Event) -> bool:
        """Wait until we lead, and renew from then on; False when `stop` came first."""
        pause: float | None = 0.0
        while pause is not None:
            self.beat = time.monotonic()
            if stop.wait(pause):
                return False
            pause = self.attempt()
        threading.Thread(target=self._renew_on, name="lease", daemon=True).start()
        return True

    def keep(self, stop: threading.Event) -> str:
        """Return when we lead no longer, with a sentence that says why; an empty one when `stop` came first."""
        while not stop.wait(WATCH_SECONDS):
            self.beat = time.monotonic()
            if why := self.loss():
                self.fence.shut()
                return why
        return ""

    @property
    def trouble(self) -> str:
        """Why it neither leads nor knows who does; empty when all is well."""
        return self._said if self._failures and self.fence.left_seconds() <= 0 else ""

    def loss(self) -> str:
        """Return why we do not lead any more; empty while we do."""
        if not self._lost and self.fence.left_seconds() <= 0:
            reason = f": {self._said}" if self._said else ""
            self._lose(f"the lease ran out before it could be renewed{reason}")
        return self._lost

    def attempt(self) -> float | None:
        """Look at the Lease and take it if it may be taken. Return the seconds until the next attempt, None if won."""
        try:
            lease = self._look()
            self._sighting = sighting_after(self._sighting, lease, self._clock())
            wait = wait_before_taking(self._sighting, self.name, self._clock())
            if wait <= 0:
                self._take(lease)
        except LookAgain:  # somebody was quicker
            return POLL_SECONDS
        except ConntrackOperatorError as error:
            self._say(_with_remedy(error))
            self._failures += 1
            return min(MOST_RETRY_SECONDS, RETRY_SECONDS * 2.0 ** (self._failures - 1))
        self._failures = 0
        if self._held is None:
            self._say(f"waiting: {lease.holder if lease else 'a controller whose lease is gone'} leads")
            return min(POLL_SECONDS, wait)
        self._said = ""
        log.info("leading as %s", self.name)
        return None

    def renew(self) -> None:
        """Renew the Lease once. Raises Retry or Refused; after either we do not know what is in it."""
        held, self._held = self._held, None
        if held is None:
            held = self._look()
            if held is not None and held.holder != self.name:
                self._lose(f"{held.holder or 'nobody'} is named in the lease, which was ours")
                return
        # A Lease that somebody deleted is made anew: that fails if another has been quicker.
        self._take(held, renewing=True)
        self._said = ""

    def resign(self, seconds: float) -> None:
        """Shut the fence and hand the Lease over to whoever waits, at once.

        A write that is not answered within `seconds` may still be carried out: then the Lease is left to run out.
        """
        self._over.set()
        self.fence.shut()
        if self.fence.wait_until_idle(seconds):
            self._give_up()
        else:
            log.warning("the lease is left to run out: a write is not answered")

    def _give_up(self) -> None:
        if not self._lock.acquire(timeout=GIVE_UP_SECONDS):
            log.warning("the lease is left to run out: its last renewal is not answered")
            return
        try:
            held = self._held or self._look()
            if held is not None and held.holder == self.name:
                self._write(held, given_up(held, self._wall()))
                log.info("the lease is given up")
        except ConntrackOperatorError as error:
            log.warning("the lease is left to run out: %s", error)
        finally:
            self._lock.release()

    def _renew_on(self) -> None:
        pause = RENEW_SECONDS
        while not self._over.wait(pause):
            with self._lock:
                if self._over.is_set() or self.loss():
                    return
                pause = self._renewed()

    def _renewed(self) -> float:
        """Renew once, come what may; return the seconds until the next time."""
        try:
            self.renew()
        except LookAgain:  # an answer that never came, or a hand in the Lease: look who is in it, now
            return 0.0 if self._once_more() else RETRY_SECONDS
        except ConntrackOperatorError as error:
            self._say(_with_remedy(error))
            return RETRY_SECONDS
        self._failures = 0
        return RENEW_SECONDS

    def _once_more(self) -> bool:
        self._failures += 1
        return self._failures == 1

    def _look(self) -> Lease | None:
        found = self._objects.get(LEASES, NAME, self._namespace)
        return None if found is None else Lease.read(found)

    def _take(self, lease: Lease | None, *, renewing: bool = False) -> None:
        """Write us into the Lease as it was seen. We lead from before the request on: its answer may take long."""
        sent = self._clock()
        wall = self._wall()
        spec = renewed(lease, self.name, wall) if lease and renewing else taken(lease, self.name, wall)
        stored = self._write(lease, spec)
        if not self.fence.extend(sent + DURATION_SECONDS):
            self._lose("the lease's renewal was answered when it had run out")
            return
        self._held = Lease.read(stored)

    def _write(self, lease: Lease | None, spec: dict[str, Any]) -> dict[str, Any]:
        if lease is None:
            return self._objects.create(LEASES, {"metadata": {"name": NAME}, "spec": spec}, self._namespace)
        unchanged = {"/metadata/uid": lease.uid, "/metadata/resourceVersion": lease.resource_version}
        stored = self._objects.replace_parts(
            LEASES, NAME, {"/spec": spec}, namespace=self._namespace, only_if=unchanged
        )
        if stored is None:
            raise LookAgain("the lease is gone")
        return stored

    def _lose(self, why: str) -> None:
        # Said before it is shut: whoever finds the fence closed asks why, and the first reason is the true one.
        self._lost = self._lost or f"this controller leads no longer and ends: {why}"
        self.fence.shut()

    def _say(self, sentence: str) -> None:
        """Log what has not been said already."""
        if sentence != self._said:
            self._said = sentence
            log.info("%s", sentence)


def _with_remedy(error: ConntrackOperatorError) -> str:
    if isinstance(error, Refused) and "is being terminated" not in str(error):
        return f"{error}; give the controller its rights on leases (docs/architecture.md)"
    return str(error)
