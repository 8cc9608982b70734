"""An agent's wishes written by hand, many in little time, as the controller writes them; which is away meanwhile."""

import contextlib
import json
from collections.abc import Iterator
from typing import Any

from tests.lab.fleet_api import GROUP, JSON_PATCH, Api
from tests.lab.installed import CONTROLLERS, NAMESPACE, RELEASE, Installed
from tests.lab.programs import wait_until

from conntrack_operator.cluster.access import access_for

STATE = "/var/lib/conntrack-operator"
SELECTOR = {"matchLabels": {"kubernetes.io/os": "linux"}}


class ByHand:
    """Reads and writes the node's object, and reads what the agent keeps on the node."""

    def __init__(self, installed: Installed) -> None:
        self.installed, self.place = installed, installed.place
        self._api = Api(access_for(str(self.place.kubeconfig)))
        self._path = f"{GROUP}/nodeconntracks/{self.place.node_name}"

    def policy(self, name: str, **settings: Any) -> dict[str, Any]:
        """Return a policy for the node, which the controller gives it at once."""
        rollout = {"canary": 0, "soakSeconds": 0}
        return {
            "apiVersion": "conntrack-operator.io/v1alpha1", "kind": "ConntrackPolicy", "metadata": {"name": name},
            "spec": {"mode": "Enforce", "nodeSelector": SELECTOR, "rollout": rollout, **settings},
        }  # fmt: skip

    def node(self) -> dict[str, Any]:
        """Return the node's object."""
        return self._api.request("GET", self._path)

    def write(self, spec: dict[str, Any]) -> None:
        """Give the node this spec."""
        patch = [{"op": "replace", "path": "/spec", "value": spec}]
        self._api.request("PATCH", self._path, patch, JSON_PATCH)

    def kept(self, name: str) -> dict[str, Any]:
        """Return a file of the agent's state directory, `journal` or `confirmed`; empty when it is not there."""
        done = self.place.on_node("cat", f"{STATE}/{name}.json", check=False)
        return dict(json.loads(done.stdout)) if done.returncode == 0 else {}

    @contextlib.contextmanager
    def controller_away(self) -> Iterator[None]:
        """Have no controller meanwhile."""
        self._scale(0)
        # Those that are told to end may write yet: gone is what the kubelet has seen end.
        controllers = ("pods", "-n", NAMESPACE, "-l", CONTROLLERS)
        wait_until(lambda: not self.place.items(*controllers), 90, "the controllers have ended")
        try:
            yield
        finally:
            self._scale(2)

    def _scale(self, replicas: int) -> None:
        self.place.kubectl("scale", "-n", NAMESPACE, f"deployment/{RELEASE}", f"--replicas={replicas}")

    def close(self) -> None:
        """Close the connections."""
        self._api.close()
