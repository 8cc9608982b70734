"""Transfers that go on at a steady rate while something is done to the machine between their ends."""

import socket
import threading
import time
from types import TracebackType
from typing import Self

MEGABYTE = 1_000_000
_TICK_SECONDS = 0.01
PATIENCE_SECONDS = 30.0
"""What is sent in a dead connection never arrives; what a busy machine holds up does, seconds later."""


class Paced:
    """Sends `bytes_per_second` over a connected pair of sockets from when it is entered until `stop` or exit.

    After a pause it sends what it is behind, so that whatever was due arrives in the end unless the connection is dead.
    """

    def __init__(self, sender: socket.socket, receiver: socket.socket, bytes_per_second: int = 3 * MEGABYTE) -> None:
        self.sent = self.received = 0
        self._started = time.monotonic()
        self._sender, self._receiver = sender, receiver
        self._rate = bytes_per_second
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._send, self._receive)]

    def __enter__(self) -> Self:
        self._sender.settimeout(0.5)
        self._receiver.settimeout(0.1)
        self._started = time.monotonic()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join(5)

    def keeps_up(self, patience_seconds: float = PATIENCE_SECONDS) -> bool:
        """Tell whether what is due by now arrives within that time."""
        due = max(self.received + 1, int((time.monotonic() - self._started) * self._rate))
        limit = time.monotonic() + patience_seconds
        while self.received < due:
            if time.monotonic() > limit:
                return False
            time.sleep(_TICK_SECONDS)
        return True

    def _send(self) -> None:
        chunk = bytes(65536)
        while not self._ended.wait(_TICK_SECONDS):
            due = int((time.monotonic() - self._started) * self._rate)
            while self.sent < due and not self._ended.is_set():
                try:
                    self.sent += self._sender.send(chunk[: min(len(chunk), due - self.sent)])
                except TimeoutError:
                    continue
                except OSError:
                    return

    def _receive(self) -> None:
        while not self._ended.is_set():
            try:
                got = len(self._receiver.recv(1 << 18))
            except TimeoutError:
                continue
            except OSError:
                return
            if not got:
                return
            self.received += got
