"""Fixtures of the kernel tests: fresh network namespaces for each test, or a skip that names what was probed."""

from collections.abc import Iterator

import pytest
from tests.lab.namespaces import Lab, missing


@pytest.fixture(scope="session")
def _namespaces_possible() -> None:
    reason = missing()
    if reason:
        pytest.skip(reason)


@pytest.fixture
def netns(_namespaces_possible: None) -> Iterator[Lab]:
    """Give a lab: `netns.namespace()`, `netns.link(a, b)`, `netns.routed()`. All of it is gone after the test."""
    with Lab() as lab:
        yield lab
