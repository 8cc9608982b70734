"""The agent's one window to the API server: list, watch and patch its own NodeConntrack, nothing else.

A thin client on the standard library, because it runs on every node (docs/decisions/0002-dependencies.md). Every
request has a connection of its own: there are few, and a connection kept for minutes is one that may be dead.
"""

import json
from collections.abc import Iterator
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import Any
from urllib.parse import urlencode, urlsplit

from conntrack_operator.errors import Retry
from conntrack_operator.model.base import API_VERSION

from .access import Access

PATH = f"/apis/{API_VERSION}/nodeconntracks"
REQUEST_SECONDS = 10
WATCH_SECONDS = 240
"""The server ends a watch after this; a line that went silent is noticed a little later."""


class OwnNode:
    """The NodeConntrack named `node`. Every method raises Retry when the API server does not answer as it should."""

    def __init__(self, access: Access, node: str) -> None:
        self._access = access
        self._node = node

    def read(self) -> tuple[dict[str, Any] | None, str]:
        """Return the object (None when there is none) and the resource version to watch from."""
        body = self._ask("GET", self._query())
        items = body.get("items") or [None]
        return items[0], body.get("metadata", {}).get("resourceVersion", "")

    def changes_since(self, resource_version: str) -> Iterator[dict[str, Any] | None]:
        """Yield the object at each change, None when it was deleted; ends when the server ends the watch."""
        query = self._query(watch="1", resourceVersion=resource_version, timeoutSeconds=str(WATCH_SECONDS))
        connection = self._connection()
        try:
            response = self._answer(connection, "GET", query)
            if connection.sock is not None:
                connection.sock.settimeout(WATCH_SECONDS + REQUEST_SECONDS)
            while line := response.readline():
                event = json.loads(line)
                if event["type"] == "ERROR":
                    raise Retry(f"the watch ended: {event['object'].get('message', 'no reason given')}")
                yield None if event["type"] == "DELETED" else event["object"]
        except (HTTPException, OSError, ValueError, KeyError) as error:
            raise Retry(f"the watch broke off: {error}") from error
        finally:
            connection.close()

    def write_status(self, status: dict[str, Any]) -> None:
        """Replace the object's status as a whole. An object that is gone meanwhile is no error."""
        patch = [{"op": "add", "path": "/status", "value": status}]
        self._ask("PATCH", f"{PATH}/{self._node}/status", json.dumps(patch, separators=(",", ":")))

    def _query(self, **options: str) -> str:
        return f"{PATH}?{urlencode({'fieldSelector': f'metadata.name={self._node}', **options})}"

    def _ask(self, method: str, path: str, body: str | None = None) -> dict[str, Any]:
        connection = self._connection()
        try:
            answer: dict[str, Any] = json.loads(self._answer(connection, method, path, body).read())
        except (HTTPException, OSError) as error:
            raise Retry(f"the API server does not answer: {error}") from error
        except ValueError as error:
            raise Retry(f"the API server's answer to {method} {path} is not JSON") from error
        finally:
            connection.close()
        return answer

    def _connection(self) -> HTTPConnection:
        server = urlsplit(self._access.server)
        if self._access.tls is None:
            return HTTPConnection(server.hostname or "", server.port, timeout=REQUEST_SECONDS)
        return HTTPSConnection(server.hostname or "", server.port, timeout=REQUEST_SECONDS, context=self._access.tls)

    def _answer(self, connection: HTTPConnection, method: str, path: str, body: str | None = None) -> HTTPResponse:
        headers = {"Accept": "application/json", **self._access.headers()}
        if method == "PATCH":
            headers["Content-Type"] = "application/json-patch+json"
        connection.request(method, urlsplit(self._access.server).path + path, body, headers)
        response = connection.getresponse()
        gone = method == "PATCH" and response.status == 404
        if response.status >= 400 and not gone:
            words = _message(response.read(65536))
            raise Retry(f"the API server refused {method} {path}: {response.status} {words}")
        return response


def _message(body: bytes) -> str:
    try:
        return str(json.loads(body)["message"])
    except (ValueError, KeyError, TypeError):
        return body[:300].decode(errors="replace")
