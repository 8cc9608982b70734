"""The two halves of the suite that `make test` runs side by side, and what keeps the one from disturbing the other.

The limit and the hash table of conntrack are one for all network namespaces of a machine. Tests that tune them, fill a
table or look at one run one after the other, in one process. The others, in the folders BESIDE, touch no conntrack at
all: decisions, models, and what happens between API objects. `make test` gives them a network namespace of their own,
in which the kernel refuses to change sizes; and here, also in a run of everything in one process, they cannot make a
namespace or tune the machine.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
BESIDE = ("tests/unit", "tests/control_plane")
"""Folders whose tests touch no conntrack. Whatever lies elsewhere, belongs to the other half."""

_beside = ""


@contextlib.contextmanager
def at_work(test: str, path: Path) -> Iterator[None]:
    """Note that this test, of the file `path`, is at work."""
    global _beside  # noqa: PLW0603 - one test at a time
    _beside = test if any(path.is_relative_to(ROOT / folder) for folder in BESIDE) else ""
    try:
        yield
    finally:
        _beside = ""


def touch_the_kernel() -> None:
    """Fail in a test that runs beside those which tune this machine. Called by whatever is about to touch it."""
    if _beside:
        raise AssertionError(
            f"{_beside} runs beside tests that tune this machine, so that it may make no network namespace and tune"
            " nothing: move it to tests/kernel, or to tests/e2e when it needs the control plane"
        )
