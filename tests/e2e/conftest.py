"""One controller and one agent for the end-to-end tests of a module, on this very machine."""

from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
import yaml
from tests.lab import examples
from tests.lab import host as machine
from tests.lab.cluster import Cluster
from tests.lab.operator import Operator
from tests.lab.programs import wait_until

_running = pytest.StashKey[Operator]()


@pytest.fixture(scope="module")
def host() -> Iterator[machine.Host]:
    """Give this machine, locked for us alone, with a small table; put back at the end."""
    reason = machine.missing()
    if reason:
        pytest.skip(reason)
    with machine.Host() as locked:
        locked.shrink(131_072)
        yield locked


@pytest.fixture(scope="module")
def _started(
    request: pytest.FixtureRequest,
    cluster: Cluster,
    crds: Path,  # noqa: ARG001 - must be served
    host: machine.Host,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Operator]:
    cluster.clear()
    labels: dict[str, str] = {}
    for name in ("web", "timeouts"):
        document = yaml.safe_load((examples.FOLDER / f"{name}.yaml").read_text())
        labels |= document["spec"]["nodeSelector"]["matchLabels"]
    operator = request.config.stash[_running] = Operator(cluster, host, tmp_path_factory.mktemp("operator"))
    try:
        operator.start(labels)
        yield operator
    finally:
        operator.stop()
        cluster.clear()


@pytest.fixture
def operator(_started: Operator) -> Iterator[Operator]:
    """Give controller and agent at work, with no policy for this machine; after the test there is none again."""
    _started.withdraw()
    try:
        yield _started
    finally:
        if _started.policy("elsewhere") is None:
            _started.agent.stop()
            # Its account goes with the last policy, as the last thing; a token of that one would be worth nothing soon.
            wait_until(_started.has_no_account, 60, "the agents' account is gone")
        if not _started.agent.running:
            _started.start_agent()
        _started.withdraw()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show the end of controller's and agent's logs where a test fails."""
    report = yield
    if report.failed and _running in item.config.stash:
        for program in item.config.stash[_running].programs:
            report.sections.append((f"end of {program.log}", program.tail()))
    return report
