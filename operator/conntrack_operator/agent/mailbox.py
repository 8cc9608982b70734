"""What the agent was told last. One slot: only the newest wish counts, whoever brings it and however often."""

import threading
from dataclasses import dataclass

from conntrack_operator.model.node import NodeSpec, NodeStatus

from .clock import Clock


@dataclass(frozen=True)
class Delivery:
    """The node's object as it is now; `spec` is None when there is no object."""

    spec: NodeSpec | None
    status: NodeStatus | None = None
    uid: str = ""


class Mailbox:
    """Hands deliveries from the thread that watches to the loop that acts."""

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock or Clock()
        self._changed = threading.Condition()
        self._delivery: Delivery | None = None
        self._stopped = False
        self._woken = False

    def put(self, delivery: Delivery) -> None:
        """Replace whatever was not taken yet."""
        with self._changed:
            self._delivery = delivery
            self._changed.notify()

    def take(self, seconds: float) -> Delivery | None:
        """Wait at most `seconds` for a delivery; None when none came, when woken, or when stopped."""
        with self._changed:
            self._clock.wait(self._changed, lambda: self._delivery is not None or self._stopped or self._woken, seconds)
            delivery, self._delivery = self._delivery, None
            self._woken = False
            return delivery

    def wake(self) -> None:
        """Let whoever waits for a delivery look around, although none came."""
        with self._changed:
            self._woken = True
            self._changed.notify_all()

    def stop(self) -> None:
        """Wake everybody up for good. Safe in a signal handler's thread only through `stop_soon`."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def stop_soon(self) -> None:
        """Stop from a signal handler, which may interrupt the very thread that holds the lock."""
        threading.Thread(target=self.stop, daemon=True).start()

    @property
    def stopped(self) -> bool:
        """Whether `stop` was called."""
        return self._stopped
