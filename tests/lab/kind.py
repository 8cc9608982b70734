"""A cluster that kind made in Docker, through pytest-kind's fixture, as a place for the tests of tests/node.

Its node is a container with a network namespace of its own, in which the kernel lets nobody write the table's sizes.
"""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from tests.lab import image
from tests.lab.host import Writes
from tests.lab.kubectl import Kubectl


def missing() -> str:
    """Return what this machine lacks for kind, or an empty string."""
    if shutil.which("docker") is None:
        return "not installed: docker"
    done = subprocess.run(["docker", "info"], capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else "docker answers, but no engine runs"


class Kind(Kubectl):
    """What pytest-kind's `kind_cluster` made; a `tests.lab.place.Place`."""

    can_size = False

    def __init__(self, made: Any, folder: Path) -> None:
        super().__init__(folder, Path(made.kubeconfig_path), "127.0.0.1")
        self._made = made
        node = self.items("nodes")[0]
        self.node_name = node["metadata"]["name"]
        addresses = {each["type"]: each["address"] for each in node["status"]["addresses"]}
        self.node_address = addresses["InternalIP"]

    def clear(self) -> None:
        """Remove what a module's tests left, with nothing given back first: the next one starts anew."""
        self.kubectl("delete", "namespace", "conntrack-system", "shop", "--ignore-not-found", "--timeout=120s")
        kinds = "crd,clusterrole,clusterrolebinding,validatingadmissionpolicy,validatingadmissionpolicybinding"
        self.kubectl("delete", kinds, "-l", "app.kubernetes.io/name=conntrack-operator", "--timeout=60s")
        self.on_node("nft", "delete", "table", "inet", "conntrack_operator", check=False)
        self.on_node("rm", "-rf", "/var/lib/conntrack-operator")

    def add_image(self, archive: Path) -> None:
        """Put an image on the node."""
        command = [str(self._made.kind_path), "load", "image-archive", str(archive), "--name", self._made.name]
        subprocess.run(command, check=True, capture_output=True)

    def name_image(self, name: str, another: str) -> None:
        """Give an image that is on the node another name besides."""
        names = (f"docker.io/library/{each}" for each in (name, another))
        self.on_node("ctr", "--namespace=k8s.io", "images", "tag", *names)

    def on_node(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command on the node as root."""
        done = subprocess.run(
            ["docker", "exec", self.node_name, *command], capture_output=True, text=True, check=False, timeout=60
        )
        if check and done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)} exited {done.returncode}:\n{done.stdout}{done.stderr}")
        return done

    def writes(self) -> Writes:
        """Skip the test: the node's kernel is behind Docker."""
        pytest.skip("writes to the kernel are counted on this machine's own node only")


def archive(folder: Path, version: str) -> Path:
    """Return the image as Docker builds it from the Dockerfile, on its own base."""
    name = f"{image.NAME}:{version}"
    subprocess.run(["docker", "build", f"--build-arg=VERSION={version}", "-t", name, str(image.ROOT)], check=True)
    path = folder / f"{version}.tar"
    subprocess.run(["docker", "save", "-o", str(path), name], check=True)
    return path
