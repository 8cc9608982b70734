"""Helm, for the tests of the chart."""

from pathlib import Path

import pytest
from tests.lab import helm as lab
from tests.lab import kube


@pytest.fixture(scope="session")
def helm_program(request: pytest.FixtureRequest) -> Path:
    """Return helm's path, built now if it is not there."""
    capture = request.config.pluginmanager.getplugin("capturemanager")

    def say(line: str) -> None:
        with capture.global_and_fixture_disabled():
            print(f"\n{line}", end="", flush=True)

    try:
        return kube.binary(say, lab.HELM)
    except (RuntimeError, OSError) as error:
        pytest.skip(f"helm cannot be built: {error}")
