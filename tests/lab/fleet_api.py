"""Many small requests to the API server in little time: plain HTTP on kept connections."""

import contextlib
import json
import re
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Any
from urllib.parse import urlsplit

from conntrack_operator.cluster.access import Access

GROUP = "/apis/conntrack-operator.io/v1alpha1"
THREADS = 4
BUSY = 429
"""What the API server answers while it is not ready for a kind: a CRD's, just after its own start."""
BUSY_SECONDS = 20
MERGE, JSON_PATCH, APPLY = (
    "application/merge-patch+json", "application/json-patch+json", "application/apply-patch+yaml",
)  # fmt: skip


class Api:
    """Requests as whoever `access` names. Safe to use from several threads."""

    def __init__(self, access: Access) -> None:
        self._access = access
        self._free: list[HTTPConnection] = []

    def request(
        self, method: str, path: str, body: Any = None, kind: str = "application/json", accept: str = "*/*"
    ) -> dict[str, Any]:
        """Return the answer as JSON, empty for 404. RuntimeError shows any other refusal."""
        text = self._text(method, path, json.dumps(body) if body is not None else None, kind, accept)
        return dict(json.loads(text)) if text else {}

    def _text(self, method: str, path: str, body: str | None, kind: str, accept: str = "*/*") -> str:
        headers = {"Accept": accept, "Content-Type": kind, **self._access.headers()}
        began = time.monotonic()
        while True:
            try:
                status, text = self._answer(self._kept() or self._connect(), method, path, body, headers)
            except (HTTPException, OSError):
                # A kept connection may have ended since: once more, on a new one.
                status, text = self._answer(self._connect(), method, path, body, headers)
            if status != BUSY or time.monotonic() - began > BUSY_SECONDS:
                break
            time.sleep(0.2)
        if status >= 400 and status != 404:
            raise RuntimeError(f"{method} {path}: {status} {text[:500]}")
        return text if status != 404 else ""

    def _answer(
        self, connection: HTTPConnection, method: str, path: str, body: str | None, headers: dict[str, str]
    ) -> tuple[int, str]:
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            text = response.read().decode()
        except BaseException:
            connection.close()
            raise
        self._free.append(connection)
        return response.status, text

    def _kept(self) -> HTTPConnection | None:
        # Another thread may take the last one between a look and the taking.
        with contextlib.suppress(IndexError):
            return self._free.pop()
        return None

    def _connect(self) -> HTTPConnection:
        server = urlsplit(self._access.server)
        if self._access.tls is None:
            return HTTPConnection(server.hostname or "", server.port, timeout=60)
        return HTTPSConnection(server.hostname or "", server.port, timeout=60, context=self._access.tls)

    def close(self) -> None:
        """Close the connections that were kept."""
        while self._free:
            self._free.pop().close()

    def each(self, work: Callable[[str], object], names: Iterable[str]) -> None:
        """Do `work` for every name, a few at a time; an error of any is raised."""
        with ThreadPoolExecutor(THREADS) as pool:
            for _ in pool.map(work, names):
                pass

    def items(self, path: str) -> list[dict[str, Any]]:
        """Return the objects of a list."""
        return list(self.request("GET", path)["items"])

    def counted(self, metric: str, **labels: str) -> int:
        """Return a counter of the API server's own, summed over all that have these labels."""
        wanted = [f'{name}="{value}"' for name, value in labels.items()]
        text = self._text("GET", "/metrics", None, "text/plain")
        lines = re.findall(rf"^{metric}\{{(.*)\}} (\S+)$", text, re.MULTILINE)
        return sum(int(float(value)) for names, value in lines if all(label in names.split(",") for label in wanted))
