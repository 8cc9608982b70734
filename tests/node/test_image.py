"""The image as it is built from the Dockerfile: what is in it, how large it is, and as whom it runs. No cluster."""

import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.lab import image

from conntrack_operator import __version__

MEGABYTE = 1_000_000
GOAL_BYTES = 120 * MEGABYTE
NFT_TOO_NEW = (1, 1, 2)
"""Sets that it writes crash older nft programs beside it (kubernetes #136786)."""

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def path(request: pytest.FixtureRequest, archive_of: Callable[[str], Path]) -> Path:
    """Give the image's archive."""
    if request.config.getoption("--kind"):
        pytest.skip("buildah looks into the image; kind's is Docker's")
    return archive_of(__version__)


@pytest.fixture(scope="module")
def archive(path: Path) -> image.Archive:
    """Give the archive, read."""
    return image.Archive(path)


@pytest.fixture(scope="module")
def run(path: Path) -> Iterator[Run]:
    """Give what runs a command in a container of the image."""
    with image.container(path) as run:
        yield run


def test_it_is_small(archive: image.Archive) -> None:
    """What lies beyond the base, unpacked, is within the goal."""
    base, ours = archive.unpacked_bytes
    assert base > 100 * MEGABYTE, "the first layer is the base"
    assert 20 * MEGABYTE < ours <= GOAL_BYTES


def test_its_labels(archive: image.Archive) -> None:
    """They say what it is, of which version, under which licence, and on what it was built."""
    labels = archive.config["Labels"]
    found = {name.removeprefix("org.opencontainers.image."): value for name, value in labels.items()}
    assert found["title"] == image.NAME
    assert found["version"] == __version__
    assert found["licenses"] == "Apache-2.0"
    assert found["revision"] == "unknown", "whoever builds it names the commit"
    assert found["base.name"] == image.BASE
    assert found["description"]


def test_it_runs_as_nobody(archive: image.Archive, run: Run) -> None:
    """A number, so that the kubelet can check that it is not root; nothing in it belongs to that user."""
    assert archive.config["User"] == "65532:65532"
    assert archive.config["Entrypoint"] == ["conntrack-operator"]
    assert run("id", "-u").stdout.strip() == "65532"
    writable = run("find", "/opt/conntrack-operator", "/usr/sbin", "-writable", "-not", "-type", "l")
    assert (writable.returncode, writable.stdout) == (0, "")


def test_it_tells_its_version(run: Run) -> None:
    """`--version` is the package's."""
    assert run("conntrack-operator", "--version").stdout.split() == ["conntrack-operator", __version__]


def test_nothing_is_compiled_at_a_start(run: Run) -> None:
    """On a read-only root it would be done at every start: each module that an agent imports is compiled already."""
    program = (
        "import sys, importlib.util, pathlib, conntrack_operator.agent.run, conntrack_operator.cluster.own_node;"
        "print(*[m.__cached__ for m in list(sys.modules.values()) if getattr(m, '__cached__', None)"
        " and not pathlib.Path(m.__cached__).exists()])"
    )
    done = run("python3", "-c", program)
    assert (done.returncode, done.stdout.split()) == (0, []), done.stderr


@pytest.mark.parametrize(
    ("program", "variant"),
    [("iptables-nft", "nf_tables"), ("iptables-legacy", "legacy"), ("ip6tables-nft", "nf_tables"),
     ("ip6tables-legacy", "legacy")],
)  # fmt: skip
def test_both_variants_of_iptables_are_inside(run: Run, program: str, variant: str) -> None:
    """Firewalls of either kind are met on nodes."""
    assert f"({variant})" in run(program, "--version").stdout


def test_nft_is_old_enough(run: Run) -> None:
    """Older than the one whose sets crash others."""
    found = re.search(r"v(\d+)\.(\d+)\.(\d+)", run("nft", "--version").stdout)
    assert found
    assert tuple(map(int, found.groups())) < NFT_TOO_NEW
