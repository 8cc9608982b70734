"""Fixtures for the whole suite (a real control plane), and what a skip means in CI."""

import os
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from tests.lab import cluster as lab

ROOT = Path(__file__).parents[1]

EXPECTED_SKIPS: dict[str, str] = {}
"""Skips that CI may show: the start of a test's id, and the start of the reason. Any other skip fails the run in CI."""

MACHINE = (
    "test_cli_use",
    "test_counters",
    "test_demo",
    "test_doctor",
    "test_duty",
    "test_flow_editing",
    "test_flows",
    "test_policy_to_kernel",
    "test_services_and_rules",
    "test_sizes",
    "test_trial_and_api_server",
)
"""Modules that tune this machine, fill a table to its limit or count all of a large one.

Limit and hash table are one for all network namespaces, so that these run one after the other, in one process.
"""

_cluster = pytest.StashKey[lab.Cluster]()


class Skips:
    """Gathers skips that nobody expects, also those that other processes of the run report."""

    def __init__(self) -> None:
        self.unexpected: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Look at one report."""
        if report.skipped and not hasattr(report, "wasxfail"):
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
            if not _expected(report.nodeid, reason.removeprefix("Skipped: ")):
                self.unexpected.append(f"{report.nodeid}: {reason}")


_skips = pytest.StashKey[Skips]()


def pytest_configure(config: pytest.Config) -> None:
    """Have an eye on skips."""
    config.stash[_skips] = Skips()
    config.pluginmanager.register(config.stash[_skips])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Say which tests stay together when `make test` runs two processes: most of them wait most of the time.

    One process tunes the machine, and each that needs a control plane starts its own: so these are few.
    """
    for item in items:
        module = item.path.stem
        if module in MACHINE:
            group = "machine"
        else:
            group = "cluster" if "cluster" in getattr(item, "fixturenames", ()) else module
        item.add_marker(pytest.mark.xdist_group(group))


@pytest.fixture(scope="session")
def cluster(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[lab.Cluster]:
    """Give a running control plane, the same one for all tests of the run. A test clears what it made."""
    reason = lab.missing()
    if reason:
        pytest.skip(reason)
    capture = request.config.pluginmanager.getplugin("capturemanager")

    def say(line: str) -> None:
        with capture.global_and_fixture_disabled():
            print(f"\n{line}", end="", flush=True)

    started = lab.Cluster(tmp_path_factory.mktemp("cluster"), say)
    request.config.stash[_cluster] = started
    try:
        started.start()
        yield started
    finally:
        started.stop()


@pytest.fixture(scope="session")
def crds(cluster: lab.Cluster) -> Path:
    """Have the committed CRDs served by the control plane; return their folder."""
    cluster.apply_crds(ROOT / "crds")
    return ROOT / "crds"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show the end of the control plane's logs where a test that uses it fails."""
    report = yield
    config = item.config
    if report.failed and "cluster" in getattr(item, "fixturenames", ()) and _cluster in config.stash:
        for program in config.stash[_cluster].programs:
            report.sections.append((f"end of {program.log}", program.tail()))
    return report


def _expected(test: str, reason: str) -> bool:
    return any(test.startswith(start) and reason.startswith(why) for start, why in EXPECTED_SKIPS.items())


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """In CI, a skip that is not in the table is a failure: a test that never runs proves nothing."""
    if os.environ.get("CI") and session.config.stash[_skips].unexpected and exitstatus == 0:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Name the skips that failed the run."""
    for line in config.stash[_skips].unexpected:
        if os.environ.get("CI"):
            terminalreporter.write_line(f"FAILED: skipped in CI without being expected: {line}", red=True)
