"""What people run on a node: a web server on the host's port 80, a Service with a NodePort, and a client of both.

All run from the operator's own image, which is there and holds Python. The client is a pod on the pods' network, asks
each target ten times a second over a new connection, and says so; nothing it is refused is forgotten. It waits 5 s for
an answer: a server on a busy machine may take seconds, and one that cannot be reached any more gives none at all.
"""

import json
import re
from typing import Any

from tests.lab.place import Place
from tests.lab.programs import wait_until

NAMESPACE = "shop"
NODE_PORT = 30080
SERVER = "import http.server as h; h.ThreadingHTTPServer(('', {port}), h.SimpleHTTPRequestHandler).serve_forever()"
CLIENT = """
import sys, time, urllib.request
targets, asked, failed = sys.argv[1:], dict.fromkeys(sys.argv[1:], 0), []
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
for turn in range(1 << 30):
    for target in targets:
        asked[target] += 1
        try:
            opener.open(target, timeout=5).read(1)
        except OSError as error:
            print("FAILED", time.strftime("%H:%M:%S"), target, error, flush=True)
    if turn % 10 == 0:
        print("asked", asked, flush=True)
    time.sleep(0.1)
"""


def _pod(image: str, command: list[str], **more: Any) -> dict[str, Any]:
    container = {"name": "main", "image": image, "command": ["python3", "-c", *command]}
    container |= more.pop("container", {})
    return {"containers": [container], "terminationGracePeriodSeconds": 0, **more}


class Workload:
    """The three at work, on a place."""

    def __init__(self, place: Place, image: str) -> None:
        self.place = place
        root = {"container": {"securityContext": {"runAsUser": 0}}}  # port 80 is root's
        self._objects = [
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}},
            self._object("Pod", "web", _pod(image, [SERVER.format(port=80)], hostNetwork=True, **root)),
            self._object("Pod", "shop", _pod(image, [SERVER.format(port=8080)]), {"app": "shop"}),
            self._object(
                "Service", "shop",
                {"type": "NodePort", "selector": {"app": "shop"},
                 "ports": [{"port": 80, "targetPort": 8080, "nodePort": NODE_PORT}]},
            ),
        ]  # fmt: skip
        self._image = image

    def _object(
        self, kind: str, name: str, spec: dict[str, Any], labels: dict[str, str] | None = None
    ) -> dict[str, Any]:
        metadata = {"name": name, "namespace": NAMESPACE, "labels": labels or {}}
        return {"apiVersion": "v1", "kind": kind, "metadata": metadata, "spec": spec}

    def start(self) -> None:
        """Start them and wait until the client is answered by all."""
        for each in self._objects:
            self.place.kubectl("create", "-f", "-", input=each)
        wait_until(self._has_account, 60, "the namespace has its ServiceAccount")
        for name in ("web", "shop"):
            self.place.kubectl("wait", "-n", NAMESPACE, "--for=condition=Ready", f"pod/{name}", "--timeout=100s")
        service = self.place.get("service", "shop", "-n", NAMESPACE)
        assert service
        node = self.place.node_address
        self.targets = [f"http://{node}:80/", f"http://{node}:{NODE_PORT}/", f"http://{service['spec']['clusterIP']}/"]
        client = self._object("Pod", "client", _pod(self._image, [CLIENT, *self.targets]))
        self.place.kubectl("create", "-f", "-", input=client)
        wait_until(lambda: min(self.asked().values(), default=0) > 10, 120, "the client asks")
        self._began = len(self._failures())  # what was asked before kube-proxy had heard of the Service

    def _has_account(self) -> bool:
        return self.place.get("serviceaccount", "default", "-n", NAMESPACE) is not None

    def _log(self) -> str:
        return self.place.kubectl("logs", "-n", NAMESPACE, "client", check=False).stdout

    def _failures(self) -> list[str]:
        return [line for line in self._log().splitlines() if line.startswith("FAILED")]

    def asked(self) -> dict[str, int]:
        """Return how often the client has asked each target."""
        found = re.findall(r"^asked (.*)$", self._log(), re.MULTILINE)
        return dict(json.loads(found[-1].replace("'", '"'))) if found else {}

    def failures(self) -> list[str]:
        """Return what the client was not answered since the start; it has asked each target ten times more by then."""
        wait_until(self.asked, 60, "the client's log can be read")
        before = self.asked()
        wait_until(
            lambda: all(self.asked().get(target, 0) > before.get(target, 0) + 10 for target in self.targets),
            120, "the client asks on",
        )  # fmt: skip
        return self._failures()[self._began :]
