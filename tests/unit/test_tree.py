"""The shape of the repository: what would break quietly if somebody added a file in the wrong place."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

TOP_LEVEL = {
    ".ci", ".dockerignore", ".gitignore", "CHANGELOG.md", "Dockerfile", "LICENSE", "Makefile", "README.md", "charts",
    "crds", "docs", "manifests", "operator", "pyproject.toml", "tests",
}  # fmt: skip

# Written in pieces, so that this file does not find itself. Registries come from the machine's own configuration.
HOSTS = re.compile(
    "|".join(
        re.escape(".".join(pieces))
        for pieces in (
            ("pypi", "org"), ("pythonhosted", "org"), ("deb", "debian", "org"), ("registry", "npmjs", "org"),
            ("proxy", "golang", "org"), ("sum", "golang", "org"), ("index", "docker", "io"),
        )
    )
)  # fmt: skip


def committed() -> list[Path]:
    """Return every file that is or is about to be committed, relative to the root."""
    done = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        pytest.skip(f"not a git checkout: {done.stderr.strip()}")
    return [path for name in done.stdout.split("\0") if name and (path := Path(name)) and (ROOT / path).is_file()]


def test_operator_is_a_folder_and_never_a_package() -> None:
    """operator/__init__.py would shadow the standard library's operator module for everybody who runs from the root."""
    assert not (ROOT / "operator" / "__init__.py").exists()
    done = subprocess.run(
        [sys.executable, "-c", "import operator; print(operator.__file__); print(operator.attrgetter)"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert str(ROOT) not in done.stdout.splitlines()[0]


def test_the_top_level_holds_what_it_should() -> None:
    """A new name at the top is a decision, not an accident: it is added here too."""
    assert {path.parts[0] for path in committed()} <= TOP_LEVEL


def test_no_registry_is_named() -> None:
    """Where packages come from is the machine's business: its own index, mirror and proxy must be used."""
    found = [
        f"{path}: {match[0]}"
        for path in committed()
        if path.suffix != ".sum" and (match := HOSTS.search((ROOT / path).read_text(errors="replace")))
    ]
    assert not found


def test_every_locked_package_has_hashes() -> None:
    """A lock without hashes would let an index hand out something else."""
    for name in ("operator/requirements.txt", "tests/requirements.txt", "tests/control_plane/go.txt"):
        lines = (ROOT / name).read_text().splitlines()
        pinned = [number for number, line in enumerate(lines) if "==" in line]
        assert pinned, name
        assert all("--hash=sha256:" in lines[number + 1] for number in pinned), name
