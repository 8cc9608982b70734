"""The address where metrics and health are asked for: HTTP/1.1, GET and HEAD, one answer a connection.

The standard library's server would do, at 0.7 MB of modules and a thread for each client; this is one thread that
answers one client after the other. It reads nothing of a request but its first line.
"""

import contextlib
import ipaddress
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping

from conntrack_operator.errors import Invalid, Problem, Unsupported

from .exposition import CONTENT_TYPE

log = logging.getLogger(__name__)

REQUEST_BYTES = 8192
CLIENT_SECONDS = 2.0
"""How long one client may take over its whole request, or over reading the answer: others wait meanwhile."""
AGAIN_SECONDS = 1.0
"""Until the next client is taken after one could not be."""
BACKLOG = 16

Check = Callable[[], str]
"""Returns why something is not well, as a sentence; empty when it is."""

_WORDS = {200: "OK", 400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed", 503: "Service Unavailable"}


def listen(address: str) -> socket.socket:
    """Return a socket that listens at HOST:PORT; without a host, at every address of this machine.

    IPv6 stands in brackets, and any address may, so that `[$(HOST_IP)]:9817` is right for either family; without them
    nobody could tell where `::1:9464` ends. Raises Invalid for what is no such address, Unsupported when nothing can
    listen there.
    """
    host, colon, digits = address.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    host = host[1:-1] if bracketed else host
    is_port = digits.isascii() and digits.isdigit() and 1 <= int(digits) <= 65535
    if not colon or not is_port or (not _is_address(host) if bracketed else ":" in host):
        example = "such as 127.0.0.1:9464, [::1]:9464, or :9464 for every address"
        raise Invalid(Problem("--metrics-address", f"{address!r} is not HOST:PORT, {example}"))
    try:
        if not host and socket.has_dualstack_ipv6():
            return _listening(("::", int(digits)), socket.AF_INET6, dualstack_ipv6=True)
        anywhere = "0.0.0.0"  # noqa: S104 - without a host it is asked for
        family, _, _, _, where = socket.getaddrinfo(
            host or anywhere, int(digits), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        return _listening(where[:2], family)
    except OSError as error:
        # create_server adds where it tried to the words of the number; a name that is not found has no such number.
        numbered = error.errno and not isinstance(error, socket.gaierror)
        reason = os.strerror(error.errno or 0) if numbered else error.strerror or str(error)
        raise Unsupported(
            f"--metrics-address: nothing can listen at {address} ({reason}); name an address of this machine and a"
            " port that nobody has"
        ) from error


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _listening(where: tuple[object, ...], family: int, *, dualstack_ipv6: bool = False) -> socket.socket:
    return socket.create_server(where, family=family, backlog=BACKLOG, dualstack_ipv6=dualstack_ipv6)


class Endpoint:
    """Answers /metrics by `metrics`, /healthz and /readyz by their checks, in a thread of its own."""

    def __init__(self, listening: socket.socket, metrics: Callable[[], str], *, live: Check, ready: Check) -> None:
        self._listening = listening
        self._metrics = metrics
        self._checks: Mapping[str, Check] = {"/healthz": live, "/readyz": ready}

    def start(self) -> None:
        """Answer from now on, until the process ends."""
        threading.Thread(target=self._serve, name="metrics", daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError as error:
                if self._listening.fileno() < 0:
                    return  # closed
                # The client's network, or no descriptor is free: both pass (accept(2)).
                log.warning("a client that asks for metrics could not be answered: %s", error)
                time.sleep(AGAIN_SECONDS)
                continue
            # Whoever hangs up, sends nonsense or is slow has that of it; the next one is answered.
            with client, contextlib.suppress(OSError):
                line = _first_line(client, time.monotonic() + CLIENT_SECONDS)
                client.settimeout(CLIENT_SECONDS)
                client.sendall(self._answer(line))
                client.shutdown(socket.SHUT_WR)

    def _answer(self, line: str) -> bytes:
        method, _, rest = line.partition(" ")
        path, _, protocol = rest.partition(" ")
        if not protocol.startswith("HTTP/"):
            status, body = 400, "this speaks HTTP\n"
        elif method not in {"GET", "HEAD"}:
            status, body = 405, "only GET and HEAD\n"
        else:
            status, body = self._page(path.partition("?")[0])
        content = body.encode()
        kind = CONTENT_TYPE if status == 200 else "text/plain; charset=utf-8"
        head = (
            f"HTTP/1.1 {status} {_WORDS[status]}\r\nContent-Type: {kind}\r\nContent-Length: {len(content)}\r\n"
            "Connection: close\r\n\r\n"
        )
        return head.encode() + (b"" if method == "HEAD" else content)

    def _page(self, path: str) -> tuple[int, str]:
        try:
            if path == "/metrics":
                return 200, self._metrics()
            check = self._checks.get(path)
            if check is None:
                return 404, "there are /metrics, /healthz and /readyz\n"
            trouble = check()
        except Exception as error:  # noqa: BLE001 - a bug in one figure must not end all answers
            log.warning("%s could not be answered: %s: %s", path, type(error).__name__, error)
            trouble = f"{type(error).__name__}: {error}"
        return (503, f"{trouble}\n") if trouble else (200, "ok\n")


def _first_line(client: socket.socket, until: float) -> str:
    """Return the first line of a request that has come whole, so that closing sends no reset; empty when it is none.

    Raises OSError when it has not come `until` then (time.monotonic): a request that drips in keeps each wait short.
    """
    request = b""
    while b"\r\n\r\n" not in request and b"\n\n" not in request:
        client.settimeout(max(until - time.monotonic(), 0.0))  # 0 waits for nothing, and is an error
        more = client.recv(REQUEST_BYTES)
        request += more
        if not more or len(request) > REQUEST_BYTES:
            return ""
    return request.split(b"\n", 1)[0].rstrip(b"\r").decode("latin-1")
