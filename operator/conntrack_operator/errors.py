"""Every error this package raises on purpose, named for what the caller should do about it.

One hierarchy keeps the edges honest: the command line prints `str(error)` and exits 1 for anything
here, the agent turns `Refused` into a result in the status, the loops retry `Retry`. Anything else that
escapes is a bug and deserves its traceback. Absence (a missing sysctl, no table, no object) is a value,
never an exception.
"""

from dataclasses import dataclass


class ConntrackOperatorError(Exception):
    """Base of all: one sentence that names the field or thing, and the remedy."""


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a document: `path` as Kubernetes writes it (`spec.table.size`), and a sentence."""

    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


class Invalid(ConntrackOperatorError):
    """A document is wrong; nothing was applied. The person who wrote it must change it."""

    def __init__(self, *problems: Problem) -> None:
        self.problems = problems
        super().__init__("\n".join(str(problem) for problem in problems))


class Refused(ConntrackOperatorError):
    """The node will not do it, for `reason` (CamelCase, as in a condition). Retrying unchanged is useless."""

    def __init__(self, reason: str, message: str) -> None:
        self.reason = reason
        super().__init__(message)


class Retry(ConntrackOperatorError):
    """The world did not answer this time (API server, netlink, a locked file). Try again later."""


class LookAgain(Retry):
    """The object is no longer what the decision was made about; nothing was written. Look at it and decide anew."""


class StandBack(Retry):
    """We may not lead any more by the time this would be written, so it was not. Write only once we surely lead."""


class Unsupported(ConntrackOperatorError):
    """The machine lacks what is needed (root, a kernel module, a program, a writable /proc/sys)."""


FAILURES = (ConntrackOperatorError, OSError, RuntimeError, MemoryError)
"""What the world can do to a program that must go on: errors of ours, or no memory, threads, processes, descriptors."""
