"""The watches as a thread of the controller: they begin anew whatever ends them."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from tests.lab.programs import wait_until

from conntrack_operator.controller import watch
from conntrack_operator.controller.figures import Figures
from conntrack_operator.controller.store import Store
from conntrack_operator.controller.touched import Key
from conntrack_operator.controller.watch import Watches
from conntrack_operator.controller.workqueue import WorkQueue


class _Stranger(BaseHTTPRequestHandler):
    """An API server that does not know who asks."""

    def do_GET(self) -> None:
        body = json.dumps({"kind": "Status", "code": 401, "reason": "Unauthorized"}).encode()
        self.send_response(401)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def kubeconfig(tmp_path: Path) -> Iterator[str]:
    """Give a way to that server."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Stranger) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        document = {
            "current-context": "c",
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
            "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{server.server_port}"}}],
            "users": [{"name": "u", "user": {"token": "expired"}}],
        }
        (tmp_path / "config").write_text(json.dumps(document))
        yield str(tmp_path / "config")
        server.shutdown()


def test_kopf_may_end_by_itself(
    kubeconfig: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Refused as nobody kopf gives up, after 5 s; that is noticed and said, so that the watches are begun anew."""
    monkeypatch.setattr(watch, "RESTART_SECONDS", 60)
    watches = Watches(Store(), WorkQueue[Key](), kubeconfig, Figures())
    running = threading.Thread(target=watches.run, daemon=True)
    running.start()
    try:
        wait_until(lambda: "the watches ended: LoginError" in caplog.text, 30, "it is noticed that they have ended")
    finally:
        watches.end()
        running.join(30)
    assert not running.is_alive()
