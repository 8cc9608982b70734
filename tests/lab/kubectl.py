"""kubectl, on whatever cluster a test has."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

from tests.lab import kube

NAMESPACE = "conntrack-system"
"""The operator's."""
UNHEARD, TRIES = "Unable to connect to the server: net/http: TLS handshake timeout", 3
"""What kubectl says of an API server that stood still for 10 s: nothing was asked of it yet, and may be again."""


class Kubectl:
    """The real kubectl, with an administrator's `kubeconfig`, on a cluster whose API server is at `address`."""

    def __init__(self, folder: Path, kubeconfig: Path, address: str) -> None:
        self.folder, self.kubeconfig, self.address = folder, kubeconfig, address

    def kubectl(
        self,
        *arguments: str,
        input: str | dict[str, Any] | None = None,  # noqa: A002 as subprocess.run calls it
        check: bool = True,
        kubeconfig: Path | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run the real kubectl with `input` (text, or a document) on its stdin. Failure shows what it said."""
        text = json.dumps(input) if isinstance(input, dict) else input
        for _ in range(TRIES):
            done = subprocess.run(
                [kube.kubectl(), f"--kubeconfig={kubeconfig or self.kubeconfig}", *arguments],
                input=text, stdin=subprocess.DEVNULL if text is None else None,
                capture_output=True, text=True, check=False, timeout=120,
                env={**os.environ, "HOME": str(self.folder), "NO_PROXY": self.address},
            )  # fmt: skip
            if done.returncode == 0 or done.stdout or UNHEARD not in done.stderr:
                break
        if check and done.returncode != 0:
            raise RuntimeError(f"kubectl {' '.join(arguments)} exited {done.returncode}:\n{done.stderr}{done.stdout}")
        return done

    def get(self, *arguments: str) -> dict[str, Any] | None:
        """Return what `kubectl get ARGUMENTS -o json` prints, None when there is no such object."""
        done = self.kubectl("get", *arguments, "--ignore-not-found", "-o", "json")
        return json.loads(done.stdout) if done.stdout.strip() else None

    def items(self, *arguments: str) -> list[dict[str, Any]]:
        """Return the objects of a list."""
        return list((self.get(*arguments) or {"items": []})["items"])

    def token(self, account: str, namespace: str = NAMESPACE, node: str | None = None) -> str:
        """Return a token of a ServiceAccount, as the API server issues them; bound to a Node when one is named."""
        bound = ("--bound-object-kind=Node", f"--bound-object-name={node}") if node else ()
        return self.kubectl("create", "token", account, "-n", namespace, *bound).stdout.strip()
