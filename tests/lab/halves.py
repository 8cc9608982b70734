"""What a test may touch of this machine, by its folder and its mark, and what keeps tests from disturbing each other.

The limit and the hash table of conntrack are one for all network namespaces of a machine. So there are three kinds:

- BESIDE, by folder: unit tests and what happens between API objects. They touch no conntrack at all.
- MACHINE, by a fixture `host` or the mark `tunes_this_machine`: they tune it, fill its table or look at all of it. Only
  tests of the first kind may run meanwhile, and those of the third that need no steady sizes.
- NAMESPACES, all others: in network namespaces of their own, where sizes cannot be written. Any number of processes can
  be at them. Those of tests/node, on a node with a network of its own, do without sizes.

In every run, also of everything in one process, a test that does what its kind may not do fails and says so. Where two
processes share a run, a module of the third kind holds a lock that a test of the second kind waits for.
"""

import contextlib
import enum
import fcntl
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS_BESIDE = ("tests/unit", "tests/control_plane")
MARK = "tunes_this_machine"
FOLDER_WITHOUT_SIZES = "tests/node"


class Kind(enum.Enum):
    """What a test may touch."""

    BESIDE = "beside"
    MACHINE = "machine"
    NAMESPACES = "namespaces"


def kind_of(item: pytest.Item) -> Kind:
    """Return the kind of a test."""
    if any(item.path.is_relative_to(ROOT / folder) for folder in FOLDERS_BESIDE):
        return Kind.BESIDE
    tunes = item.get_closest_marker(MARK) or "host" in getattr(item, "fixturenames", ())
    return Kind.MACHINE if tunes else Kind.NAMESPACES


def needs_steady_sizes(item: pytest.Item) -> bool:
    """Return whether a test must not run while another changes the table's sizes."""
    return kind_of(item) is Kind.NAMESPACES and not item.path.is_relative_to(ROOT / FOLDER_WITHOUT_SIZES)


_at_work: tuple[Kind, str] | None = None


def may_make_namespaces() -> None:
    """Fail in a test that may not; called before one is made."""
    if _at_work and _at_work[0] is Kind.BESIDE:
        raise AssertionError(
            f"{_at_work[1]} runs beside tests that tune this machine, and may make no network namespace: move it to"
            " tests/kernel, or to tests/e2e if it needs the control plane"
        )


def may_tune_the_machine() -> None:
    """Fail in a test that may not; called before the machine is locked."""
    if _at_work and _at_work[0] is not Kind.MACHINE:
        raise AssertionError(
            f"{_at_work[1]} may not tune this machine, others run meanwhile: mark it or its module, in tests/kernel"
            f" or tests/e2e, pytest.mark.{MARK}"
        )


@contextlib.contextmanager
def at_work(item: pytest.Item) -> Iterator[None]:
    """Note which test is at work."""
    global _at_work  # noqa: PLW0603 - one test at a time
    _at_work = kind_of(item), item.nodeid
    try:
        yield
    finally:
        _at_work = None


run_folder: Path | None = None
"""What the processes of one run share; None where one process runs everything."""


class Turn:
    """A lock among the processes of this run: shared by those who need the table's sizes steady, or of one alone."""

    def __init__(self, *, alone: bool) -> None:
        self._held: TextIO | None = None
        if run_folder is None:
            return
        how = fcntl.LOCK_EX if alone else fcntl.LOCK_SH
        # Who waits to be alone holds the turn, so that the others do not go on taking turns before it.
        with (run_folder / "turn").open("a") as turn:
            fcntl.flock(turn, how)
            held = (run_folder / "lock").open("a")
            try:
                fcntl.flock(held, how)
            except BaseException:
                held.close()
                raise
            self._held = held

    def end(self) -> None:
        """Let others in."""
        if self._held is not None:
            self._held.close()
            self._held = None
