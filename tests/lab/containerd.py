"""containerd, its shim for runc, and ctr, built here by Go, once, as tests/lab/kube.py builds Kubernetes.

The one of Debian 12 is a 1.x, which the kubelet refuses since 1.36. `python -m tests.lab.containerd` builds them, or
says where they lie.
"""

import sys
from pathlib import Path

from tests.lab import kube

_COMMANDS = "github.com/containerd/containerd/v2/cmd"
CONTAINERD = kube.Source(
    "containerd",
    Path(__file__).parents[1] / "node" / "containerd",
    ("build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w"),
    tuple(f"{_COMMANDS}/{name}" for name in ("containerd", "containerd-shim-runc-v2", "ctr")),
    "containerd once, 1 minute on two cores",
)


def programs(say: kube.Say) -> Path:
    """Return the folder with the three programs, built now if it is not there."""
    return kube.binary(say, CONTAINERD)


if __name__ == "__main__":
    print(programs(lambda line: print(line, file=sys.stderr, flush=True)))
