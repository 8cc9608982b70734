"""A way to the API server that writes down every request that takes it, and can hold requests up on it."""

import contextlib
import http.client
import json
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tests.lab.cluster import Cluster


@dataclass
class Entry:
    """One request: when it came (time.monotonic), and the answer's status once there is one; 0 for none."""

    method: str
    path: str
    at: float = field(default_factory=time.monotonic)
    status: int | None = None


class _Server(ThreadingHTTPServer):
    daemon_threads = False  # so that the end waits for them
    request_queue_size = 128  # with 5, a controller that starts would wait for seconds until it is let in

    def handle_error(self, *_: object) -> None:
        """Say nothing: senders are killed here."""


class Ledger:
    """Forwards plain HTTP to the API server of `cluster`. A request whose sender has died is carried out all the same.

    So it is with a request that an API server has received and not read yet.
    """

    def __init__(self, cluster: Cluster) -> None:
        self.entries: list[Entry] = []
        self._cluster = cluster
        self._held, self._free, self._dropped = "", 0, False
        self._lock = threading.Lock()
        self._go_on = threading.Event()
        self._go_on.set()
        self._trust = ssl.create_default_context(cafile=str(cluster.authority))
        self._open: set[http.client.HTTPSConnection] = set()
        self._server = _Server(("127.0.0.1", 0), self._handler())
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def kubeconfig(self, path: Path) -> Path:
        """Write the administrator's kubeconfig with this way to the API server; return `path`."""
        document = json.loads(self._cluster.kubeconfig.read_text())
        document["clusters"][0]["cluster"] = {"server": f"http://127.0.0.1:{self._server.server_address[1]}"}
        path.write_text(json.dumps(document))
        path.chmod(0o600)
        return path

    def writes(self, part: str = "", since: float = 0.0) -> list[Entry]:
        """Return what was not a GET, has `part` in its path, and came after `since`."""
        return [each for each in self.entries if each.method != "GET" and part in each.path and each.at > since]

    def hold(self, part: str, after: int = 0) -> None:
        """Hold up every write with `part` in its path, but for the first ones, as many as `after` says."""
        self._held, self._free, self._dropped = part, after, False
        self._go_on.clear()

    def drop(self) -> None:
        """Let what is held up never arrive, and hold up nothing more."""
        self._dropped = True
        self._go_on.set()

    def release(self) -> None:
        """Let what was held up go on, and hold up nothing more."""
        self._go_on.set()

    def close(self) -> None:
        """End it, and every request that is still open."""
        self.release()
        self._server.shutdown()
        for connection in list(self._open):
            if connection.sock is not None:
                with contextlib.suppress(OSError):
                    connection.sock.shutdown(socket.SHUT_RDWR)
        self._server.server_close()

    @contextlib.contextmanager
    def _answer(self, entry: Entry, content: bytes, headers: dict[str, str]) -> Iterator[http.client.HTTPResponse]:
        if self._is_held(entry):
            self._go_on.wait()
            if self._dropped:
                raise ConnectionAbortedError
        # Nothing here gives a request up: what was sent arrives, however late.
        connection = http.client.HTTPSConnection("127.0.0.1", self._cluster.port, timeout=600, context=self._trust)
        self._open.add(connection)
        try:
            connection.request(entry.method, entry.path, content, headers)
            with connection.getresponse() as response:
                entry.status = response.status
                yield response
        finally:
            self._open.discard(connection)
            connection.close()

    def _is_held(self, entry: Entry) -> bool:
        with self._lock:
            if self._go_on.is_set() or entry.method == "GET" or self._held not in entry.path:
                return False
            self._free -= 1
            return self._free < 0

    def _handler(ledger) -> type[BaseHTTPRequestHandler]:  # noqa: N805 - the handler has a self of its own
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if len(content) < int(self.headers.get("Content-Length") or 0):
                    return  # thought better of
                entry = Entry(self.command, self.path)
                ledger.entries.append(entry)
                kept = {"Accept", "Authorization", "Content-Type"}
                headers = {key: value for key, value in self.headers.items() if key.title() in kept}
                try:
                    with ledger._answer(entry, content, headers) as response:
                        self._pass_on(response)
                except (OSError, http.client.HTTPException, ValueError):
                    entry.status = entry.status or 0

            def _pass_on(self, response: http.client.HTTPResponse) -> None:
                self.send_response(response.status)
                self.send_header("Content-Type", response.headers.get("Content-Type", "application/json"))
                self.end_headers()  # HTTP/1.0: the end of the connection is the end of the answer
                while part := response.read1():
                    self.wfile.write(part)

            do_POST = do_PUT = do_PATCH = do_DELETE = do_GET  # noqa: N815 - as http.server calls them

            def log_message(self, *_: object) -> None:
                pass

        return Handler
