"""`kubectl conntrack` as a person types it: the real kubectl finds the plugin on PATH."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.lab import kube
from tests.lab.cluster import Cluster
from tests.lab.operator import NAMESPACE
from tests.lab.place import Place


class Plugin:
    """kubectl conntrack, as whoever a kubeconfig names."""

    def __init__(self, cluster: Place | Cluster, kubeconfig: Path | None = None, namespace: str = NAMESPACE) -> None:
        self.folder = cluster.folder
        self.first: list[Path] = []
        self.options = [f"--kubeconfig={kubeconfig or cluster.kubeconfig}", f"--namespace={namespace}"]

    def run(self, *arguments: str, code: int = 0, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run it; its exit code must be `code`."""
        here = [*self.first, Path(sys.executable).parent, Path(kube.kubectl()).parent]
        path = os.pathsep.join([*map(str, here), os.environ["PATH"]])
        done = subprocess.run(
            [kube.kubectl(), "conntrack", *arguments, *self.options], input=stdin,
            capture_output=True, text=True, check=False, timeout=120,
            env={**os.environ, "PATH": path, "HOME": str(self.folder), "NO_PROXY": "*"},
        )  # fmt: skip
        assert done.returncode == code, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def json(self, *arguments: str, code: int = 0, stdin: str = "") -> dict[str, Any]:
        """Return what it prints with -o json."""
        return dict(json.loads(self.run(*arguments, "-o", "json", code=code, stdin=stdin).stdout))

    def complaint(self, *arguments: str, stdin: str = "") -> str:
        """Return the one sentence it ends with, exit 1 and nothing on stdout."""
        done = self.run(*arguments, code=1, stdin=stdin)
        assert done.stdout == ""
        lines = [line for line in done.stderr.splitlines() if not line.startswith("error: exit status")]
        assert len(lines) == 1, done.stderr
        assert lines[0].startswith("kubectl conntrack: ")
        return lines[0].removeprefix("kubectl conntrack: ")
