"""Where the tests of tests/node run: a cluster whose node is this machine, or one that kind made in Docker.

A test speaks to the cluster by kubectl and helm and looks at its node by commands, and so runs on both unchanged.
"""

import subprocess
from pathlib import Path
from typing import Any, Protocol

from tests.lab.host import Writes


class Place(Protocol):
    """A cluster with one node, and that node looked into."""

    folder: Path
    kubeconfig: Path
    node_name: str
    node_address: str
    can_size: bool
    """Whether the table's sizes can be written there: not in a container's network namespace."""

    def kubectl(
        self, *arguments: str, input: str | dict[str, Any] | None = None, check: bool = True  # noqa: A002
    ) -> subprocess.CompletedProcess[str]:  # fmt: skip
        """Run kubectl as an administrator."""

    def get(self, *arguments: str) -> dict[str, Any] | None:
        """Return an object, None when there is none."""

    def items(self, *arguments: str) -> list[dict[str, Any]]:
        """Return the objects of a list."""

    def add_image(self, archive: Path) -> None:
        """Put an image on the node."""

    def name_image(self, name: str, another: str) -> None:
        """Give an image that is on the node another name besides; both without a registry's."""

    def on_node(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command on the node as root, with its files, processes and network."""

    def writes(self) -> Writes:
        """Return what counts writes to its kernel; skips the test where they cannot be seen."""
