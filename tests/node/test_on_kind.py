"""The tests of this folder once more, on a cluster that kind makes in Docker, where a Docker engine runs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.lab import kind

KIND = "v0.30.0"
"""Its node image is Kubernetes 1.34; what pytest-kind would take by itself is older than the chart needs."""


def test_the_tests_of_this_folder_pass_on_kind(request: pytest.FixtureRequest) -> None:
    """Nothing in them is about this machine: what a container's kernel lets nobody write is left out."""
    if request.config.getoption("--kind"):
        pytest.skip("this is that run")
    if reason := kind.missing():
        pytest.skip(reason)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--kind", str(Path(__file__).parent)],
        env=os.environ | {"KIND_VERSION": os.environ.get("KIND_VERSION", KIND)},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-5_000:]
