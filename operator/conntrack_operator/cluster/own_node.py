"""The agent's one window to the API server: list, watch and patch its own NodeConntrack, nothing else.

A thin client on urllib3, because it runs on every node; three requests do not earn a 43 MB library.
"""

import json
from collections.abc import Iterator
from typing import Any

import urllib3

from conntrack_operator.errors import Retry
from conntrack_operator.model.base import API_VERSION

from .access import Access

PATH = f"/apis/{API_VERSION}/nodeconntracks"
REQUEST_SECONDS = 10
WATCH_SECONDS = 240
"""The server ends a watch after this; a silent line is noticed a little later."""


class OwnNode:
    """The NodeConntrack named `node`. Every method raises Retry when the API server does not answer as it should."""

    def __init__(self, access: Access, node: str) -> None:
        self._access = access
        self._node = node
        self._pool = urllib3.PoolManager(
            num_pools=1, maxsize=2, retries=False, ssl_context=access.tls, timeout=urllib3.Timeout(REQUEST_SECONDS)
        )

    def read(self) -> tuple[dict[str, Any] | None, str]:
        """Return the object (None when there is none) and the resource version to watch from."""
        body = self._ask("GET", PATH, fields={"fieldSelector": f"metadata.name={self._node}"})
        items = body.get("items") or [None]
        return items[0], body.get("metadata", {}).get("resourceVersion", "")

    def changes_since(self, resource_version: str) -> Iterator[dict[str, Any] | None]:
        """Yield the object at each change, None when it was deleted; ends when the server ends the watch."""
        response = self._send(
            "GET",
            PATH,
            fields={
                "fieldSelector": f"metadata.name={self._node}",
                "watch": "1",
                "resourceVersion": resource_version,
                "timeoutSeconds": str(WATCH_SECONDS),
            },
            preload_content=False,
            timeout=urllib3.Timeout(connect=REQUEST_SECONDS, read=WATCH_SECONDS + 10),
        )
        try:
            for line in _lines(response):
                event = json.loads(line)
                if event["type"] == "ERROR":
                    raise Retry(f"the watch ended: {event['object'].get('message', 'no reason given')}")
                yield None if event["type"] == "DELETED" else event["object"]
        except (urllib3.exceptions.HTTPError, ValueError, KeyError, OSError) as error:
            raise Retry(f"the watch broke off: {error}") from error
        finally:
            response.close()
            response.release_conn()

    def write_status(self, status: dict[str, Any]) -> None:
        """Replace the object's status as a whole. An object that is gone meanwhile is no error."""
        patch = [{"op": "add", "path": "/status", "value": status}]
        self._ask(
            "PATCH",
            f"{PATH}/{self._node}/status",
            body=json.dumps(patch, separators=(",", ":")).encode(),
            headers={"Content-Type": "application/json-patch+json"},
            gone_is_fine=True,
        )

    def _ask(self, method: str, path: str, *, gone_is_fine: bool = False, **options: Any) -> dict[str, Any]:
        response = self._send(method, path, gone_is_fine=gone_is_fine, **options)
        try:
            body: dict[str, Any] = json.loads(response.data)
        except ValueError as error:
            raise Retry(f"the API server's answer to {method} {path} is not JSON") from error
        return body

    def _send(
        self,
        method: str,
        path: str,
        *,
        gone_is_fine: bool = False,
        headers: dict[str, str] | None = None,
        **options: Any,
    ) -> urllib3.BaseHTTPResponse:
        try:
            response = self._pool.request(
                method,
                self._access.server + path,
                headers={"Accept": "application/json", **self._access.headers(), **(headers or {})},
                **options,
            )
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise Retry(f"the API server does not answer: {error}") from error
        if response.status >= 400 and not (gone_is_fine and response.status == 404):
            words = response.data.decode(errors="replace")
            raise Retry(f"the API server refused {method} {path}: {response.status} {_message(words)}")
        return response


def _lines(response: urllib3.BaseHTTPResponse) -> Iterator[bytes]:
    rest = b""
    while chunk := response.read1():
        *lines, rest = (rest + chunk).split(b"\n")
        yield from filter(None, lines)


def _message(words: str) -> str:
    try:
        return str(json.loads(words)["message"])
    except (ValueError, KeyError, TypeError):
        return words[:300]
