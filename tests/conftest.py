"""Fixtures for the whole suite (a real control plane), and what a skip means in CI."""

import gc
import os
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from tests.lab import cluster as lab
from tests.lab import control_plane, halves

ROOT = Path(__file__).parents[1]

EXPECTED_SKIPS: dict[str, str] = {"tests/node/test_on_kind.py": ""}
"""Skips that CI may show: the start of a test's id, and the start of the reason. Any other skip fails the run in CI."""

_cluster = pytest.StashKey[lab.Cluster]()
_turn = pytest.StashKey[halves.Turn]()
_unexpected = pytest.StashKey[list[str]]()


@pytest.fixture(scope="session")
def cluster(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[lab.Cluster]:
    """Give a running control plane, the same one for all tests of the run. A test clears what it made."""
    reason = control_plane.missing()
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


def pytest_collection_finish() -> None:
    """Have what was imported and collected passed over when agents that run in this process collect their garbage.

    They do after each deed (kernel.heap), and with all of the suite it would take a tenth of a second each time.
    """
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> Generator[None, object, object]:
    """Keep a test from touching what its kind may not (tests/lab/halves.py), and the table's sizes steady for it."""
    stash = item.config.stash
    if halves.needs_steady_sizes(item) and _turn not in stash:
        stash[_turn] = halves.Turn(alone=False)
    try:
        with halves.at_work(item):
            return (yield)
    finally:
        on = nextitem is not None and nextitem.path == item.path and halves.needs_steady_sizes(nextitem)
        if _turn in stash and not on:
            stash[_turn].end()
            del stash[_turn]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show the end of the control plane's logs where a test that uses it fails; note skips nobody expects."""
    report = yield
    config = item.config
    if report.failed and "cluster" in getattr(item, "fixturenames", ()) and _cluster in config.stash:
        for program in config.stash[_cluster].programs:
            report.sections.append((f"end of {program.log}", program.tail()))
    if report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if not _expected(item.nodeid, reason.removeprefix("Skipped: ")):
            config.stash.setdefault(_unexpected, []).append(f"{item.nodeid}: {reason}")
    return report


def _expected(test: str, reason: str) -> bool:
    return any(test.startswith(start) and reason.startswith(why) for start, why in EXPECTED_SKIPS.items())


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """In CI, a skip that is not in the table is a failure: a test that never runs proves nothing."""
    if os.environ.get("CI") and session.config.stash.get(_unexpected, []) and exitstatus == 0:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Name the skips that failed the run."""
    for line in config.stash.get(_unexpected, []):
        if os.environ.get("CI"):
            terminalreporter.write_line(f"FAILED: skipped in CI without being expected: {line}", red=True)
