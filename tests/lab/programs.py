"""Programs that a test starts and ends: each has a log of its own, ends with the test run, and is waited for."""

import contextlib
import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

TAIL_BYTES = 4000


_taken: list[socket.socket] = []
"""One for each port that was given out; they end with this process."""


def free_port() -> int:
    """Return a TCP port nobody holds on loopback, outside the range that outgoing connections take theirs from.

    No other process of the tests is given it while this one lives, also before anybody listens there, or between two
    who do.
    """
    while True:
        port = random.randint(20000, 29999)
        mine = socket.socket(socket.AF_UNIX)
        with socket.socket() as probe:
            try:
                mine.bind(f"\0conntrack-operator-test-port-{port}")  # an abstract name: no file is left
                probe.bind(("127.0.0.1", port))
            except OSError:
                mine.close()
                continue
        _taken.append(mine)
        return port


def wait_until(holds: Callable[[], object], seconds: float, what: str, every: float = 0.1) -> float:
    """Wait until `holds()` is true; return the seconds it took. TimeoutError names `what` after `seconds`."""
    began = time.monotonic()
    is_late = False
    while not holds():
        if is_late:
            raise TimeoutError(f"not within {seconds:g} s: {what}")
        time.sleep(every)
        # Before the next look, so that there is always one after the limit: it may be we who stood still.
        is_late = time.monotonic() - began > seconds
    return time.monotonic() - began


class Program:
    """One program, started and stopped at will, with all its output in one log."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        log: Path,
        env: Mapping[str, str] | None = None,
        inside: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext,
    ) -> None:
        self.name = name
        self.inside = inside
        """Entered for the moment of each start, such as a network namespace."""
        self.command = list(command)
        self.log = log
        self.env = dict(env) if env is not None else None
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it. It is killed when the test run dies, so that nothing is left behind."""
        assert not self.running
        with self.inside(), self.log.open("ab") as log:
            self.process = subprocess.Popen(
                # setpriv replaces itself by the program: the pid stays.
                ["setpriv", "--pdeathsig", "KILL", *self.command],
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=self.env,
                start_new_session=True,  # Ctrl-C is for pytest, which then ends them in order
            )  # fmt: skip

    @property
    def running(self) -> bool:
        """Whether it was started and has not ended."""
        return self.process is not None and self.process.poll() is None

    def send(self, number: signal.Signals) -> None:
        """Send a signal (SIGSTOP and SIGCONT freeze and thaw)."""
        assert self.process
        os.kill(self.process.pid, number)

    def stop(self, seconds: float = 10) -> int | None:
        """End it by SIGTERM, after `seconds` by SIGKILL, and wait. Return its exit status, None if it never started."""
        if self.process is None:
            return None
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(seconds)
            except subprocess.TimeoutExpired:
                self.process.kill()
        return self.process.wait()

    def tail(self) -> str:
        """Return the end of its log."""
        if not self.log.exists():
            return "(no output)"
        return self.log.read_bytes()[-TAIL_BYTES:].decode(errors="replace")

    def wait_until(self, holds: Callable[[], object], seconds: float, what: str) -> float:
        """Wait until `holds()`; a TimeoutError or an early end of the program shows the end of its log."""

        def holds_or_ended() -> bool:
            return bool(holds()) or not self.running

        try:
            took = wait_until(holds_or_ended, seconds, what)
        except TimeoutError as error:
            raise TimeoutError(f"{error}; {self.name} said:\n{self.tail()}") from None
        if not self.running:
            raise RuntimeError(f"{self.name} ended by itself; it said:\n{self.tail()}")
        return took
