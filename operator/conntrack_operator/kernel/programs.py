"""Programs that print more than one wants to hold in memory at once: their output, read as it comes."""

import contextlib
import os
import subprocess
import threading
from collections.abc import Iterator, Sequence
from typing import IO

from conntrack_operator.errors import Retry, Unsupported

TIMEOUT_SECONDS = 60
COMPLAINT_BYTES = 2000

_NOT_PERMITTED = ("Operation not permitted", "you must be root", "Permission denied")


class Gone(Retry):
    """What was to be listed is not there any more."""


class NotInstalled(Unsupported):
    """There is no such program."""


class NotPermitted(Unsupported):
    """The program may not do it."""


@contextlib.contextmanager
def output_of(command: Sequence[str]) -> Iterator[IO[str]]:
    """Run a program with constant arguments and give its standard output; it is over when the block is left.

    Leaving the block before the output's end ends the program. Raises at the end of the block, or in place of a Retry
    that the block raises over output that was cut short: Gone when the program says there is no such thing,
    NotInstalled, NotPermitted, errors.Unsupported when it fails otherwise, and Retry when it takes longer than 60
    seconds.
    """
    with os.fdopen(os.memfd_create("complaint"), "w+b") as complaint:
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=complaint,
                text=True,
                errors="replace",
                env={**os.environ, "LANG": "C", "LC_ALL": "C"},  # messages are matched below
            )
        except FileNotFoundError as error:
            raise NotInstalled(f"{command[0]} is not installed") from error
        except OSError as error:
            raise Unsupported(f"{command[0]} cannot be run: {error.strerror}") from error
        watch = threading.Timer(TIMEOUT_SECONDS, process.kill)
        watch.start()
        try:
            assert process.stdout  # noqa: S101  for the type checker: it is a pipe
            with process.stdout:
                yield process.stdout
            status = process.wait()
        except Retry:
            # What was read makes no sense to the reader; if the program failed, that is why.
            status = process.wait()
            if status <= 0:
                raise
        finally:
            in_time = watch.is_alive()
            watch.cancel()
            process.kill()
            process.wait()
        if not in_time:
            raise Retry(f"{command[0]} did not finish within {TIMEOUT_SECONDS} s")
        if status != 0:
            complaint.seek(0)
            raise _error_of(command[0], status, complaint.read(COMPLAINT_BYTES).decode(errors="replace"))


def _error_of(program: str, status: int, complaint: str) -> Retry | Unsupported:
    said = " ".join(complaint.split())[:200] or f"exit status {status}"
    if "No such file or directory" in complaint:
        return Gone(f"{program}: {said}")
    if any(words in complaint for words in _NOT_PERMITTED):
        return NotPermitted(f"{program} is not permitted: {said}")
    return Unsupported(f"{program} failed: {said}")
