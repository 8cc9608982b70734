"""A line between a client and a server on loopback that a test can cut, or let fall silent, and put right again."""

import contextlib
import json
import socket
import threading
from pathlib import Path

from tests.lab.cluster import Cluster


class Line:
    """Forwards TCP connections to `port` of loopback, byte by byte: TLS passes through. `port` is where it listens."""

    def __init__(self, port: int) -> None:
        self._to = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._lock = threading.Lock()
        self._pairs: list[_Pair] = []
        self._flows = threading.Event()
        self._flows.set()
        self._cut = self._closed = False
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()

    def cut(self) -> None:
        """End every connection, and every new one at once."""
        with self._lock:
            self._cut = True
            pairs, self._pairs = self._pairs, []
        for pair in pairs:
            pair.end()

    def stall(self) -> None:
        """Fall silent: connections stay, new ones are accepted, and nothing passes. No side is told."""
        self._flows.clear()

    def strand(self) -> None:
        """Let the connections of now stay silent for good, as a firewall does that forgot them; new ones work."""
        with self._lock:
            for pair in self._pairs:
                pair.stranded = True

    def resume(self) -> None:
        """Work again. What was sent into the silence arrives now."""
        self._cut = False
        self._flows.set()

    def close(self) -> None:
        """End everything, and wait until nothing runs any more."""
        self._closed = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._accepting.join(10)
        self.resume()
        self.cut()

    def kubeconfig(self, cluster: Cluster, path: Path) -> Path:
        """Write the administrator's kubeconfig of `cluster` with this line as the way to it; return `path`."""
        document = json.loads(cluster.kubeconfig.read_text())
        document["clusters"][0]["cluster"]["server"] = f"https://127.0.0.1:{self.port}"
        path.write_text(json.dumps(document))
        path.chmod(0o600)
        return path

    def _accept(self) -> None:
        while not self._closed:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            if self._cut:
                near.close()
                continue
            try:
                far = socket.create_connection(("127.0.0.1", self._to), timeout=5)
            except OSError:
                near.close()  # the server is away
                continue
            far.settimeout(None)
            pair = _Pair(near, far, self._flows)
            with self._lock:
                if self._cut:  # meanwhile
                    near.close()
                    far.close()
                    continue
                for ended in [each for each in self._pairs if not each.alive]:
                    self._pairs.remove(ended)
                    ended.end()
                self._pairs.append(pair)
            pair.start()


class _Pair:
    """One connection and its other half."""

    def __init__(self, near: socket.socket, far: socket.socket, flows: threading.Event) -> None:
        self._ends, self._flows = (near, far), flows
        self.stranded = False
        self._threads = [
            threading.Thread(target=self._copy, args=ends, daemon=True) for ends in ((near, far), (far, near))
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    @property
    def alive(self) -> bool:
        return any(thread.is_alive() for thread in self._threads)

    def end(self) -> None:
        """Shut both ends and wait until nothing is copied any more."""
        for end in self._ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)
        for end in self._ends:
            end.close()

    def _copy(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                self._flows.wait()
                if not self.stranded:
                    sink.sendall(data)
        if self.stranded:
            return
        # Also the end of a stream is not told while the line is silent.
        self._flows.wait()
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
