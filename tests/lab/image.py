"""The image, built here from the repository's Dockerfile by buildah, without a container engine or a registry.

Its base is a Debian bookworm that debootstrap made: the real one, python:slim, comes from a registry, which a machine
that tests need not reach. Both are kept as archives in the cache folder, ours by a hash of all that goes into it.

`python -m tests.lab.image` builds it, and the same under another version, or says where they lie. `make test` does so
before its processes begin: those in network namespaces of their own reach no Debian.
"""

import contextlib
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.lab import kube

from conntrack_operator import __version__

ROOT = Path(__file__).parents[2]
SUITE = "bookworm"
BASE = f"localhost/base:{SUITE}"
NAME = "conntrack-operator"
OTHER_VERSION = f"{__version__}-other"
"""What a node is upgraded to in tests."""
SOURCES = (
    "Dockerfile",
    ".dockerignore",
    "pyproject.toml",
    "LICENSE",
    "README.md",
    "tests/requirements.txt",
    "operator",
)
TRUSTED = Path("/etc/ssl/certs/ca-certificates.crt")
KEPT = 6
"""Archives of ours that stay in the cache, the newest ones."""
LAYERS_MAX = 200
"""With more images in the store, which are layers of earlier builds for the most part, a build begins without them."""


def missing() -> str:
    """Return what this machine lacks to build it, or an empty string."""
    if os.geteuid() != 0:
        return f"building the image needs root, this is uid {os.geteuid()}"
    absent = [program for program in ("buildah", "debootstrap") if shutil.which(program) is None]
    return f"not installed: {', '.join(absent)}" if absent else ""


class Store:
    """Buildah's images, in a folder of their own; layers that did not change are not built again."""

    def __init__(self) -> None:
        self.folder = kube.cache() / "buildah"

    def command(self, *arguments: str) -> list[str]:
        """Return the command line of buildah."""
        place = ("--root", str(self.folder), "--runroot", "/run/conntrack-operator-buildah")
        return ["buildah", *place, "--storage-driver", "overlay", *arguments]

    def __call__(self, *arguments: str) -> str:
        """Run buildah and return what it printed."""
        done = subprocess.run(
            self.command(*arguments),
            cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode != 0:
            lines = (done.stdout + done.stderr).splitlines()[-40:]
            raise RuntimeError(f"buildah {arguments[0]} exited {done.returncode}:\n" + "\n".join(lines))
        return done.stdout.strip()

    def has(self, name: str) -> bool:
        """Return whether there is an image of this name."""
        return bool(self("images", "--quiet", "--filter", f"reference={name}"))


def archive(say: kube.Say, version: str = __version__) -> Path:
    """Return the image `conntrack-operator:VERSION` as a file that `ctr images import` and `docker load` take."""
    path = kube.cache() / f"image-{_key(version)}.tar"
    with contextlib.suppress(FileNotFoundError):
        os.utime(path)  # it is in use, and stays; touch() would make an empty one where another run has just removed it
        return path
    with kube.locked(kube.cache() / "image.lock", say):
        if not path.exists():  # another run may have built it while this one waited
            _build(path, version, say)
            for old in sorted(kube.cache().glob("image-*.tar"), key=lambda each: each.stat().st_mtime)[:-KEPT]:
                old.unlink()
    return path


def base(store: Store, say: kube.Say) -> str:
    """Return the name of the base image in `store`."""
    if not store.has(BASE):
        say(f"making a Debian {SUITE} to build the image on, once, 1 minute")
        with tempfile.TemporaryDirectory(dir=kube.cache()) as name:
            root = Path(name) / "root"
            done = subprocess.run(
                ["debootstrap", "--variant=minbase", SUITE, str(root)],
                stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
            )  # fmt: skip
            if done.returncode != 0:
                raise RuntimeError(f"debootstrap exited {done.returncode}:\n{done.stdout[-2000:]}{done.stderr}")
            shutil.rmtree(root / "var" / "cache" / "apt" / "archives")
            container = store("from", "scratch")
            store("add", "--quiet", container, str(root), "/")
            store("commit", "--quiet", "--rm", container, BASE)
    return BASE


def _build(path: Path, version: str, say: kube.Say) -> None:
    began = time.monotonic()
    store = Store()
    if len(store("images", "--all", "--quiet").splitlines()) > LAYERS_MAX:
        # Not each time: the layers of the build stage go too, and this build takes a minute. It may be refused where
        # another run has a container of one.
        with contextlib.suppress(RuntimeError):
            store("rmi", "--prune")
    under = base(store, say)
    say(f"building the image {NAME}:{version}, 1 minute; kept as {path}")
    with tempfile.TemporaryDirectory() as name:
        # The build trusts whom this machine trusts, which behind a company's proxy is not only what Debian ships.
        pip = Path(name) / "pip.conf"
        pip.write_text("[global]\ncert = /run/trusted.crt\n")
        store(
            "bud", "--isolation=chroot", "--layers", "--pull=never",
            f"--volume={TRUSTED}:/run/trusted.crt:ro", f"--volume={pip}:/etc/pip.conf:ro",
            f"--build-arg=BASE_IMAGE={under}", f"--build-arg=VERSION={version}", f"--tag={NAME}:{version}", ".",
        )  # fmt: skip
    unfinished = path.with_suffix(f".{os.getpid()}")
    store("push", "--quiet", f"localhost/{NAME}:{version}", f"docker-archive:{unfinished}:{NAME}:{version}")
    unfinished.rename(path)
    say(f"built in {int(time.monotonic() - began)} s")


def _key(version: str) -> str:
    digest = hashlib.sha256(f"{version} {SUITE}".encode())
    for file in sorted(_files()):
        digest.update(f"{file.relative_to(ROOT)}\n".encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def _files() -> Iterator[Path]:
    for source in SOURCES:
        path = ROOT / source
        if path.is_dir():
            yield from (file for file in path.rglob("*") if file.suffix == ".py" or file.name == "requirements.txt")
        else:
            yield path


class Archive:
    """An image's archive, read as `docker save` writes it."""

    def __init__(self, path: Path) -> None:
        with tarfile.open(path) as outer:
            self._outer = outer
            manifest = json.loads(self._read("manifest.json"))[0]
            self.config: dict[str, Any] = json.loads(self._read(manifest["Config"]))["config"]
            """What a container is started with: User, Labels, Entrypoint and the like."""
            sizes = []
            for layer in manifest["Layers"]:
                with tarfile.open(fileobj=io.BytesIO(self._read(layer))) as inner:
                    sizes.append(sum(member.size for member in inner))
            self.unpacked_bytes = sizes[0], sum(sizes[1:])
            """The sizes of its files: of the first layer, which is the base, and of all others together."""

    def _read(self, name: str) -> bytes:
        file = self._outer.extractfile(name)
        assert file
        return file.read()


@contextlib.contextmanager
def container(archive: Path) -> Iterator[Callable[..., subprocess.CompletedProcess[str]]]:
    """Give what runs a command in a container of the image in `archive`, as its user, without a container engine."""
    store = Store()
    made = store("from", f"docker-archive:{archive}")

    def run(*command: str, user: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            store.command("run", "--isolation=chroot", *([f"--user={user}"] if user else []), made, "--", *command),
            stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip

    try:
        yield run
    finally:
        store("rm", made)


if __name__ == "__main__":
    if reason := missing():
        sys.exit(print(f"no image is built, and its tests are skipped: {reason}", file=sys.stderr))
    for each in (__version__, OTHER_VERSION):
        print(archive(lambda line: print(line, file=sys.stderr, flush=True), each))
