"""A cluster with a real kubelet for each module, the operator's image on its node, and helm.

The node is this machine, in a network of its own but for modules that tune the machine; with `--kind` it is a container
that kind made (tests/lab/place.py).
"""

import contextlib
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest
from tests.lab import helm as lab
from tests.lab import host as machine
from tests.lab import image, kind, kube, namespaces, real
from tests.lab.halves import MARK
from tests.lab.installed import NAMESPACE, Installed
from tests.lab.node import Proxy
from tests.lab.place import Place

from conntrack_operator import __version__

_place = pytest.StashKey[real.Real]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that chooses the place."""
    parser.addoption("--kind", action="store_true", help="run tests/node on kind, in Docker")


@pytest.fixture(scope="session")
def say(request: pytest.FixtureRequest) -> kube.Say:
    """Give what tells of builds that take long, past pytest's capture."""
    capture = request.config.pluginmanager.getplugin("capturemanager")

    def line(text: str) -> None:
        with capture.global_and_fixture_disabled():
            print(f"\n{text}", end="", flush=True)

    return line


@pytest.fixture(scope="session")
def archive_of(
    request: pytest.FixtureRequest, say: kube.Say, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """Give what builds the image of a version from the Dockerfile."""
    if request.config.getoption("--kind"):
        return lambda version: kind.archive(tmp_path_factory.mktemp("image"), version)
    if reason := image.missing():
        pytest.skip(reason)
    return lambda version: image.archive(say, version)


@pytest.fixture(scope="module")
def proxy() -> Proxy:
    """Give kube-proxy's mode; a module may override it."""
    return "nftables"


@pytest.fixture(scope="module")
def place(
    request: pytest.FixtureRequest, proxy: Proxy, archive_of: Callable[[str], Path], say: kube.Say,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Place]:  # fmt: skip
    """Give a cluster whose node is Ready and has the image."""
    folder = tmp_path_factory.mktemp("place")
    archive = archive_of(__version__)
    if request.config.getoption("--kind"):
        if reason := kind.missing():
            pytest.skip(reason)
        if proxy != "nftables":
            pytest.skip("kube-proxy has one mode on kind, in which all of this ran")
        there = kind.Kind(request.getfixturevalue("kind_cluster"), folder)
        there.clear()
        there.add_image(archive)
        yield there
        there.clear()
        return
    sizes = request.node.get_closest_marker(MARK) is not None
    if reason := real.missing() or (machine.missing() if sizes else namespaces.missing()):
        pytest.skip(reason)
    with contextlib.ExitStack() as stack:
        if sizes:
            stack.enter_context(machine.Host()).shrink(131_072)
        here = stack.enter_context(real.running(folder, say, proxy, sizes=sizes))
        request.config.stash[_place] = here
        here.add_image(archive)
        yield here


@pytest.fixture(scope="module")
def helm(place: Place, say: kube.Say) -> lab.Helm:
    """Give helm, on this cluster."""
    return lab.Helm(kube.binary(say, lab.HELM), place.folder, place)


@pytest.fixture(scope="module")
def installed(place: Place, helm: lab.Helm) -> Installed:
    """Give the operator, installed by its chart in this cluster."""
    operator = Installed(place, helm)
    operator.install()
    return operator


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show what the cluster and its programs said last where a test fails."""
    report = yield
    if report.failed and "place" in getattr(item, "fixturenames", ()) and _place in item.config.stash:
        here = item.config.stash[_place]
        for program in (*here.programs, *here.node.programs):
            report.sections.append((f"end of {program.log}", program.tail()))
        for what in (("get", "pods,ctp,nct", "-A", "-o", "wide"), ("get", "events", "-A")):
            report.sections.append((f"kubectl {' '.join(what)}", here.kubectl(*what, check=False).stdout[-6000:]))
        names = here.kubectl("get", "pods", "-n", NAMESPACE, "-o", "name", check=False).stdout.split()
        for what in (("logs", "-n", NAMESPACE, name, "--tail=30") for name in names):
            report.sections.append((f"kubectl {' '.join(what)}", here.kubectl(*what, check=False).stdout))
    return report
