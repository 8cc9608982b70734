"""The address of metrics and health: what it answers, and what is said of a wrong one."""

import contextlib
import http.client
import re
import resource
import socket
import threading
from collections.abc import Callable, Iterator

import pytest
from tests.lab.programs import free_port, wait_until

from conntrack_operator.errors import Invalid, Unsupported
from conntrack_operator.metrics.endpoint import Endpoint, listen


@pytest.fixture
def port() -> Iterator[int]:
    """Give the port of an endpoint that is live and not ready."""
    yield from serving(lambda: "a 1\n", lambda: "")


def serving(metrics: Callable[[], str], live: Callable[[], str]) -> Iterator[int]:
    """Serve at a free port of loopback."""
    number = free_port()
    with listen(f"127.0.0.1:{number}") as listening:
        Endpoint(listening, metrics, live=live, ready=lambda: "the first look is not done yet").start()
        yield number
        listening.shutdown(socket.SHUT_RDWR)  # ends the thread before the socket is closed under it


def ask(port: int, method: str, path: str) -> tuple[int, str]:
    """Return status and body."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    with contextlib.closing(connection):
        connection.request(method, path)
        with connection.getresponse() as answer:
            return answer.status, answer.read().decode()


@pytest.mark.parametrize(
    ("method", "path", "status", "body"),
    [
        ("GET", "/metrics", 200, "a 1\n"),
        ("GET", "/metrics?name[]=a", 200, "a 1\n"),
        ("HEAD", "/metrics", 200, ""),
        ("GET", "/healthz", 200, "ok\n"),
        ("GET", "/readyz", 503, "the first look is not done yet\n"),
        ("GET", "/", 404, "there are /metrics, /healthz and /readyz\n"),
        ("POST", "/metrics", 405, "only GET and HEAD\n"),
    ],
)
def test_it_answers(port: int, method: str, path: str, status: int, body: str) -> None:
    """Each page with its status; nothing else is there."""
    assert ask(port, method, path) == (status, body)


@pytest.mark.parametrize("nonsense", [b"", b"hello\n\n", b"GET\r\n\r\n", b"\xff" * 20_000])
def test_nonsense_does_not_end_it(port: int, nonsense: bytes) -> None:
    """A client that hangs up, speaks something else or talks for ever harms nobody after it."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as client:
        client.sendall(nonsense)
    assert ask(port, "GET", "/healthz") == (200, "ok\n")


def test_a_silent_client_holds_nobody_up_for_long(port: int) -> None:
    """It is given up after two seconds."""
    with socket.create_connection(("127.0.0.1", port), timeout=60):
        assert ask(port, "GET", "/healthz") == (200, "ok\n")


def test_a_dripping_client_holds_nobody_up_for_long(port: int) -> None:
    """A byte now and then buys no more time than silence does; with one it could keep the probes out for hours."""
    done = threading.Event()
    with socket.create_connection(("127.0.0.1", port), timeout=60) as client:

        def drip() -> None:
            with contextlib.suppress(OSError):
                while not done.wait(0.2):
                    client.sendall(b"G")

        dripping = threading.Thread(target=drip)
        dripping.start()
        try:
            assert ask(port, "GET", "/healthz") == (200, "ok\n")
        finally:
            done.set()
            dripping.join()


def test_a_want_of_descriptors_passes(port: int, caplog: pytest.LogCaptureFixture) -> None:
    """A client that cannot be taken ends nothing: it is answered once there is a descriptor."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    with socket.socket() as client:
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, before[1]))
        try:
            client.connect(("127.0.0.1", port))  # is taken: accept has reserved its descriptor before it waited
            client.close()
            wait_until(lambda: "Too many open files" in caplog.text, 60, "there is none for the next one")
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert ask(port, "GET", "/healthz") == (200, "ok\n")


def test_a_bug_in_a_figure_is_an_answer() -> None:
    """It is said, as 503, and the next scrape is answered."""

    def broken() -> str:
        raise KeyError("entries")

    served = serving(broken, lambda: "")
    port = next(served)
    assert ask(port, "GET", "/metrics") == (503, "KeyError: 'entries'\n")
    assert ask(port, "GET", "/healthz") == (200, "ok\n")
    assert next(served, None) is None


@pytest.mark.parametrize(
    "address", ["", "9464", "localhost", "::1:9464", "1.2.3.4:", "1.2.3.4:0", "a:65536", "[a]:1", "[]:1"]
)
def test_a_wrong_address_is_said(address: str) -> None:
    """With the option's name and what to write instead."""
    with pytest.raises(Invalid, match=r"--metrics-address: .* is not HOST:PORT, such as"):
        listen(address)


def test_a_port_in_use_is_said() -> None:
    """And so is an address of somebody else."""
    address = f"127.0.0.1:{free_port()}"
    in_use = re.escape(f"nothing can listen at {address} (Address already in use);")
    with listen(address), pytest.raises(Unsupported, match=in_use):
        listen(address)
    with pytest.raises(Unsupported, match=re.escape("nothing can listen at 192.0.2.1:9464 (Cannot assign requested")):
        listen("192.0.2.1:9464")


@pytest.mark.parametrize("host", ["127.0.0.1", "[127.0.0.1]", *(["[::1]"] if socket.has_dualstack_ipv6() else [])])
def test_one_address_is_that_one_alone(host: str) -> None:
    """Brackets fit either family, as a pod's specification needs it that does not know which its node has."""
    port = free_port()
    with listen(f"{host}:{port}") as listening:
        assert listening.getsockname()[0] == host.strip("[]")
        socket.create_connection((host.strip("[]"), port), timeout=60).close()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.2", port), timeout=60)


def test_without_a_host_it_is_every_address() -> None:
    """IPv4 and IPv6, as Prometheus' own programs have it."""
    port = free_port()
    with listen(f":{port}"):
        for host in ("127.0.0.1", *(["::1"] if socket.has_dualstack_ipv6() else [])):
            socket.create_connection((host, port), timeout=60).close()
