"""What people run on a node: a web server on the host's port 80, a Service with a NodePort, and a client of both.

All run from the operator's own image, which is there and holds Python. The client is a pod on the pods' network, asks
each target ten times a second over a new connection, and says so; nothing it is refused is forgotten.
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
import http.client, sys, time, urllib.parse
targets, asked = sys.argv[1:], dict.fromkeys(sys.argv[1:], 0)
for turn in range(1 << 30):
    for target in targets:
        asked[target] += 1
        place = urllib.parse.urlsplit(target)
        connection = http.client.HTTPConnection(place.hostname, place.port, timeout=2)
        try:
            connection.connect()  # the other end's kernel answers, however busy the server is
            connection.sock.settimeout(30)
            connection.request("GET", "/")
            answer = connection.getresponse()
            answer.read(1)
            if answer.status != 200:
                raise OSError(answer.status)
        except (OSError, http.client.HTTPException) as error:
            print("FAILED", time.strftime("%H:%M:%S"), target, repr(error), flush=True)
        connection.close()
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
        namespace, *others = self._objects
        self.place.kubectl("create", "-f", "-", input=namespace)
        wait_until(self._has_account, 60, "the namespace has its ServiceAccount, without which no pod is taken")
        for each in others:
            self.place.kubectl("create", "-f", "-", input=each)
        for name in ("web", "shop"):
            self.place.kubectl("wait", "-n", NAMESPACE, "--for=condition=Ready", f"pod/{name}", "--timeout=100s")
        service = self.place.get("service", "shop", "-n", NAMESPACE)
        assert service
        node = self.place.node_address
        self.targets = [f"http://{node}:80/", f"http://{node}:{NODE_PORT}/", f"http://{service['spec']['clusterIP']}/"]
        client = self._object("Pod", "client", _pod(self._image, [CLIENT, *self.targets]))
        self.place.kubectl("create", "-f", "-", input=client)
        wait_until(self._all_answer, 120, "the client is answered by all")

    def _all_answer(self) -> bool:
        """Tell whether each was asked ten times since the last that failed, as before kube-proxy knew the Service."""
        log = self._log()
        self._began = len(_failures(log))
        return log.rpartition("FAILED")[2].count("asked ") >= 2

    def _has_account(self) -> bool:
        return self.place.get("serviceaccount", "default", "-n", NAMESPACE) is not None

    def _log(self) -> str:
        return self.place.kubectl("logs", "-n", NAMESPACE, "client", check=False).stdout

    def failures(self) -> list[str]:
        """Return what the client was not answered since the start; it has asked each target ten times more by then."""
        log, counts = "", []

        def asks_on() -> bool:
            nonlocal log
            log = self._log()  # empty where the kubelet does not answer
            counts.extend(_asked(log))
            return bool(counts) and counts[-1] > counts[0] + 10

        wait_until(asks_on, 120, "the client asks on")
        return _failures(log)[self._began :]


def _failures(log: str) -> list[str]:
    return [line for line in log.splitlines() if line.startswith("FAILED")]


def _asked(log: str) -> list[int]:
    """Return how often each target was asked at least, when that was said last; nothing where it was not."""
    found = re.findall(r"^asked (\{.*\})$", log, re.MULTILINE)
    return [min(json.loads(found[-1].replace("'", '"')).values())] if found else []
