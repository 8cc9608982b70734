"""The controller's connection: which configuration it finds, and what the API server's answers mean."""

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from kubernetes.config import incluster_config
from tests.lab.programs import free_port

from conntrack_operator.cluster import connection as ours
from conntrack_operator.cluster.connection import JSON_PATCH, READ_SECONDS, Connection, _complaint, read_credentials
from conntrack_operator.errors import LookAgain, Refused, Retry, StandBack, Unsupported

NUMBER_FOR_SERVER = """
{current-context: c, contexts: [{name: c, context: {cluster: c, user: u}}],
 clusters: [{name: c, cluster: {server: 5}}], users: [{name: u, user: {token: secret}}]}
"""


def kubeconfig(folder: Path, server: str = "https://192.0.2.1:6443") -> str:
    """Write a kubeconfig with a token and return its path."""
    path = folder / "config"
    document = {
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {"server": server, "insecure-skip-tls-verify": True}}],
        "users": [{"name": "u", "user": {"token": "secret"}}],
    }
    path.write_text(json.dumps(document))
    return str(path)


def test_credentials_for_the_watches(tmp_path: Path) -> None:
    """The watches get the same server and token as the requests; the token without the word Bearer."""
    credentials = read_credentials(kubeconfig(tmp_path))
    assert (credentials.server, credentials.token) == ("https://192.0.2.1:6443", "secret")
    assert credentials.insecure


def test_credentials_of_a_pod(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The account's token and nothing before it: the watches were refused as `Bearer bearer ...`, and saw nothing."""
    for name, text in (("token", "secret"), ("ca.crt", "certificate")):
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(ours, "SERVICE_ACCOUNT_TOKEN", tmp_path / "token")
    monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(tmp_path / "token"))
    monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", str(tmp_path / "ca.crt"))
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "192.0.2.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    credentials = read_credentials(None)
    assert (credentials.server, credentials.token) == ("https://192.0.2.1:443", "secret")
    assert (credentials.ca_path, credentials.insecure) == (str(tmp_path / "ca.crt"), False)


@pytest.mark.parametrize("text", [None, "", "garbage", "[1, 2", "{}", "[" * 5000, NUMBER_FOR_SERVER])
def test_a_bad_kubeconfig_is_one_sentence(tmp_path: Path, text: str | None) -> None:
    """A missing, empty or broken kubeconfig is named, with what to do, on one line."""
    path = tmp_path / "config"
    if text is not None:
        path.write_text(text)
    with pytest.raises(Unsupported) as caught:
        read_credentials(str(path))
    assert str(path) in str(caught.value)
    assert "--kubeconfig" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("error", "status"),
    [(Refused, status) for status in (400, 403, 413, 422)]
    + [(Retry, status) for status in (401, 429, 500, 503)]
    + [(LookAgain, 409)],
)
def test_what_an_answer_means(error: type[Exception], status: int) -> None:
    """What may pass is tried again; what will not is refused, with the API server's own reason."""
    said = _complaint("PATCH", "/x", status, json.dumps({"reason": "Why", "message": "because"}).encode())
    assert type(said) is error
    assert "PATCH /x" in str(said)
    assert "because" in str(said)
    assert getattr(said, "reason", "Why") == "Why"


def test_no_answer_is_a_retry(tmp_path: Path) -> None:
    """A port where nobody listens means: later."""
    connection = Connection(kubeconfig(tmp_path, f"https://127.0.0.1:{free_port()}"))
    with pytest.raises(Retry, match="does not answer GET /version"):
        connection.request("GET", "/version")


def test_a_patch_that_does_not_fit_is_no_invalid_object() -> None:
    """Both come as 422 Invalid; only an invalid object is named in the details, and only that one is refused."""
    generic = {"reason": "Invalid", "message": "the server rejected our request", "details": {}}
    named = {"reason": "Invalid", "message": "spec.mode", "details": {"name": "n1", "kind": "NodeConntrack"}}
    assert type(_complaint("PATCH", "/x", 422, json.dumps(generic).encode(), JSON_PATCH)) is LookAgain
    assert type(_complaint("PATCH", "/x", 422, json.dumps(named).encode(), JSON_PATCH)) is Refused
    assert type(_complaint("POST", "/x", 422, json.dumps(generic).encode(), "application/json")) is Refused


class Gate:
    """A fence that is open for `seconds`, given one after the other as it is asked; `inside` counts open writes."""

    def __init__(self, *seconds: float) -> None:
        self._seconds = list(seconds)
        self.inside = 0

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Count the writes that have begun."""
        self.inside += 1
        try:
            yield
        finally:
            self.inside -= 1

    def open_seconds(self) -> float:
        """Give the next answer, the last one for ever."""
        seconds = self._seconds.pop(0) if len(self._seconds) > 1 else self._seconds[0]
        if seconds <= 0:
            raise StandBack("closed")
        return seconds


class Server:
    """An API server, silent for `silence_seconds`, then says `answer`; `got` keeps methods and whole contents."""

    def __init__(self, silence_seconds: float = 0, answer: bytes = b'{"metadata": {}}') -> None:
        server = self
        self._ended = threading.Event()
        self.got: list[tuple[str, bytes]] = []

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                content = self.rfile.read(length)
                if len(content) == length:
                    server.got.append((self.command, content))
                server._ended.wait(silence_seconds)
                with contextlib.suppress(OSError):
                    self.send_response(200)
                    self.send_header("Content-Length", str(len(answer)))
                    self.end_headers()
                    self.wfile.write(answer)

            do_PATCH = do_POST = do_DELETE = do_GET  # noqa: N815 - as http.server calls them

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        """End it, and its silence."""
        self._ended.set()
        self._server.shutdown()
        self._server.server_close()


@contextlib.contextmanager
def served(*silence_and_answer: Any, **named: Any) -> Iterator[Server]:
    """Give a server that runs."""
    server = Server(*silence_and_answer, **named)
    try:
        yield server
    finally:
        server.close()


@pytest.mark.parametrize("method", ["POST", "PATCH", "DELETE"])
def test_a_write_arrives_whole_through_an_open_fence(tmp_path: Path, method: str) -> None:
    """What is not a GET passes the fence and arrives with all of its content."""
    gate = Gate(60)
    with served() as server:
        connection = Connection(kubeconfig(tmp_path, server.url), gate)
        assert connection.request(method, "/x", body={"a": "\u00e4" * 5000}) == {"metadata": {}}
        [(got, content)] = server.got
    assert (got, json.loads(content)) == (method, {"a": "\u00e4" * 5000})
    assert gate.inside == 0


@pytest.mark.parametrize("answers", [(0,), (60, 0)], ids=["before", "while the connection is made"])
def test_nothing_is_written_through_a_closed_fence(tmp_path: Path, answers: tuple[float, ...]) -> None:
    """A fence that is closed, or closes before the content is sent: the API server gets nothing it could act on."""
    gate = Gate(*answers)
    with served() as server:
        connection = Connection(kubeconfig(tmp_path, server.url), gate)
        with pytest.raises(StandBack):
            connection.request("PATCH", "/x", body={"a": 1})
        assert connection.request("GET", "/x") == {"metadata": {}}
        assert server.got == [("GET", b"")]
    assert gate.inside == 0


def test_a_write_is_not_waited_for_longer_than_the_fence_is_open(tmp_path: Path) -> None:
    """A silent API server is given up half a second before the fence closes, however patient we are otherwise."""
    with served(silence_seconds=60) as server:
        connection = Connection(kubeconfig(tmp_path, server.url), Gate(1.5))
        began = time.monotonic()
        with pytest.raises(Retry, match="does not answer PATCH /x"):
            connection.request("PATCH", "/x", body={"a": 1})
        assert 0.8 < time.monotonic() - began < READ_SECONDS


def test_a_connection_of_little_patience(tmp_path: Path) -> None:
    """The times for connecting and reading can be cut for one whose answers are soon worth nothing."""
    with served(silence_seconds=60) as server:
        connection = Connection(kubeconfig(tmp_path, server.url), connect_seconds=0.5, read_seconds=0.5)
        began = time.monotonic()
        with pytest.raises(Retry, match="does not answer"):
            connection.request("GET", "/x")
        assert time.monotonic() - began < READ_SECONDS


@pytest.mark.parametrize("answer", ["<html>", "[]", "{}", "null", '"x"', '{"metadata": null}'])
def test_an_answer_of_something_else_is_one_sentence(tmp_path: Path, answer: str) -> None:
    """A proxy or a login page that answers 200 is no API server, and no traceback."""
    with served(answer=answer.encode()) as server:
        connection = Connection(kubeconfig(tmp_path, server.url))
        with pytest.raises(Retry, match="answer to GET /x is no"):
            connection.request("GET", "/x")
