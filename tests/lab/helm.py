"""Helm, built here by Go, once, as tests/lab/kube.py builds Kubernetes; a `helm` on PATH is not asked, versions differ.

`python -m tests.lab.helm` builds it, or says where it lies.
"""

import os
import subprocess
import sys
from pathlib import Path

from tests.lab import kube
from tests.lab.kubectl import Kubectl

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "conntrack-operator"
HELM = kube.Source(
    "helm",
    Path(__file__).parents[1] / "control_plane" / "helm",
    ("build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w"),
    ("helm.sh/helm/v4/cmd/helm",),
    "helm once, 2 to 5 minutes on two cores",
)


class Helm:
    """The program, with folders of its own, on `cluster` when there is one."""

    def __init__(self, program: Path, folder: Path, cluster: Kubectl | None = None) -> None:
        self.program, self.folder, self.cluster = program, folder, cluster

    def command(self, *arguments: str) -> tuple[list[str], dict[str, str]]:
        """Return a command line and its environment."""
        homes = {f"HELM_{kind}_HOME": str(self.folder / kind.lower()) for kind in ("CACHE", "CONFIG", "DATA")}
        where = [f"--kubeconfig={self.cluster.kubeconfig}"] if self.cluster else []
        env = {
            **os.environ,
            **homes,
            "HOME": str(self.folder),
            "NO_PROXY": self.cluster.address if self.cluster else "",
        }
        return [str(self.program), *arguments, *where], env

    def __call__(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run it and return what it said."""
        command, env = self.command(*arguments)
        done = subprocess.run(
            command, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=300
        )
        if check and done.returncode != 0:
            raise RuntimeError(f"helm {' '.join(arguments)} exited {done.returncode}:\n{done.stderr}{done.stdout}")
        return done

    def template(self, *arguments: str) -> str:
        """Return the chart's rendering."""
        chart = str(CHART.relative_to(ROOT))
        command, env = self.command("template", "conntrack-operator", chart, "--namespace=conntrack-system", *arguments)
        done = subprocess.run(
            command,
            env=env,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        if done.returncode != 0:
            raise RuntimeError(f"helm template exited {done.returncode}:\n{done.stderr}")
        return done.stdout


def program() -> Path:
    """Return helm's path, built now if it is not there."""
    return kube.binary(lambda line: print(line, file=sys.stderr, flush=True), HELM)


if __name__ == "__main__":
    print(program())
