"""Throwaway network namespaces with links between them: where tests and benchmarks meet a real kernel.

Owns the names (`cto-<random>`), the links and the way back: closing a `Lab` ends what was started inside and
removes every namespace. Never touches the initial namespace beyond making and moving veth pairs.
"""

import contextlib
import ctypes
import ipaddress
import os
import secrets
import shutil
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.lab.halves import may_make_namespaces

CLONE_NEWNET = 0x40000000  # include/uapi/linux/sched.h
NAMESPACES = Path("/run/netns")

TRACKING = """
table inet lab_tracking {
  chain input { type filter hook input priority filter; ct state new counter; }
  chain output { type filter hook output priority filter; ct state new counter; }
  chain forward { type filter hook forward priority filter; ct state new counter; }
}
"""

_libc = ctypes.CDLL(None, use_errno=True)


def missing() -> str:
    """Return why no namespace can be made here, found by looking, or an empty string."""
    if os.geteuid() != 0:
        return f"network namespaces need root, this is uid {os.geteuid()}"
    absent = [program for program in ("ip", "nft") if shutil.which(program) is None]
    if absent:
        return f"not installed: {', '.join(absent)}"
    name = f"cto-{secrets.token_hex(4)}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
    return "" if made.returncode == 0 else f"ip netns add failed: {made.stderr.strip()}"


def _enter(descriptor: int) -> None:
    # os.setns came with Python 3.12. It moves the calling thread alone.
    if _libc.setns(descriptor, CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


@dataclass
class Namespace:
    """One network namespace. A socket stays in the namespace where it was made: make it `inside`, use it anywhere."""

    name: str
    _started: list[subprocess.Popen[str]] = field(default_factory=list)

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """Move the calling thread into this namespace and back: its sockets, /proc/sys/net and child processes."""
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            there = os.open(NAMESPACES / self.name, os.O_RDONLY | os.O_CLOEXEC)
            try:
                _enter(there)
            finally:
                os.close(there)
            try:
                yield
            finally:
                _enter(home)
        finally:
            os.close(home)

    def run(self, *command: str, text: str | None = None, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a program in here with `text` as its input; its output is captured. Failure shows what it said."""
        with self.inside():
            done = subprocess.run(command, input=text, capture_output=True, text=True, check=False, timeout=120)
        if check and done.returncode != 0:
            complaint = f"{' '.join(command)} exited {done.returncode}: {done.stderr}{done.stdout}"
            raise RuntimeError(complaint)
        return done

    def start(self, *command: str) -> subprocess.Popen[str]:
        """Start a program in here and leave it running until the lab closes."""
        with self.inside():
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self._started.append(process)
        return process

    def nft(self, script: str) -> None:
        """Load an nftables script."""
        self.run("nft", "-f", "-", text=script)

    def track(self) -> None:
        """Switch connection tracking on, as any stateful firewall does: by a rule that looks at `ct state`."""
        self.nft(TRACKING)

    def sysctl(self, name: str, value: int | str | None = None) -> str:
        """Write a sysctl when a value is given; return what it reads."""
        path = Path("/proc/sys") / name.replace(".", "/")
        with self.inside():
            if value is not None:
                path.write_text(f"{value}\n")
            return path.read_text().strip()

    def make_socket(self, family: int = socket.AF_INET, kind: int = socket.SOCK_STREAM) -> socket.socket:
        """Return a new socket of this namespace, with a timeout of 30 s. The caller closes it."""
        with self.inside():
            made = socket.socket(family, kind)
        made.settimeout(30)
        return made

    def listen(self, address: str, port: int = 0) -> socket.socket:
        """Return a listening TCP socket on `address`, either family. The caller closes it."""
        listener = self.make_socket(_family(address))
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, port))
        listener.listen(4096)
        return listener

    def connect(self, address: str, port: int, source_port: int = 0) -> socket.socket:
        """Return a TCP socket connected to `address`. The caller closes it."""
        client = self.make_socket(_family(address))
        try:
            if source_port:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                client.bind(("", source_port))
            client.connect((address, port))
        except OSError:
            client.close()
            raise
        return client

    def connect_udp(self, address: str, port: int) -> socket.socket:
        """Return a UDP socket connected to `address`, whose errors it hears. The caller closes it."""
        client = self.make_socket(_family(address), socket.SOCK_DGRAM)
        client.connect((address, port))
        return client

    def stop(self) -> None:
        """End what was started in here."""
        for process in self._started:
            process.kill()
            process.communicate()
        self._started.clear()


def _family(address: str) -> int:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


@dataclass(frozen=True)
class End:
    """One end of a link: the interface's name in its namespace, and its addresses."""

    interface: str
    ipv4: str
    ipv6: str


class Lab:
    """Makes namespaces and links, and removes them all when closed."""

    def __init__(self) -> None:
        self.tag = secrets.token_hex(3)
        self._namespaces: list[Namespace] = []
        self._links = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def namespace(self) -> Namespace:
        """Return a new namespace: loopback up, no duplicate address detection, tracking off."""
        may_make_namespaces()
        made = Namespace(f"cto-{self.tag}-{len(self._namespaces)}")
        subprocess.run(["ip", "netns", "add", made.name], check=True, capture_output=True)
        self._namespaces.append(made)
        for scope in ("all", "default"):
            made.sysctl(f"net.ipv6.conf.{scope}.accept_dad", 0)
        made.run("ip", "link", "set", "lo", "up")
        return made

    def link(self, left: Namespace, right: Namespace, mtu: int = 1500) -> tuple[End, End]:
        """Join two namespaces by a veth pair with addresses x.1/x.2 of 10.99.<n>.0/24 and fd99:<n>::/64."""
        self._links += 1
        number = self._links
        ends = tuple(
            End(f"veth{number}{side}", f"10.99.{number}.{host}", f"fd99:{number:x}::{host}")
            for host, side in ((1, "a"), (2, "b"))
        )
        with left.inside():
            create = ["ip", "link", "add", ends[0].interface, "mtu", str(mtu), "type", "veth"]
            subprocess.run(
                [*create, "peer", "name", ends[1].interface, "mtu", str(mtu), "netns", right.name],
                check=True,
                capture_output=True,
            )
        for namespace, end in ((left, ends[0]), (right, ends[1])):
            namespace.run("ip", "addr", "add", f"{end.ipv4}/24", "dev", end.interface)
            namespace.run("ip", "-6", "addr", "add", f"{end.ipv6}/64", "dev", end.interface, "nodad")
            namespace.run("ip", "link", "set", end.interface, "up")
        return ends[0], ends[1]

    def route(self, namespace: Namespace, gateway: End) -> None:
        """Send everything that is not on a link to `gateway`, both families."""
        namespace.run("ip", "route", "add", "default", "via", gateway.ipv4)
        namespace.run("ip", "-6", "route", "add", "default", "via", gateway.ipv6)

    def forward(self, namespace: Namespace) -> None:
        """Make `namespace` a router, both families."""
        namespace.sysctl("net.ipv4.ip_forward", 1)
        namespace.sysctl("net.ipv6.conf.all.forwarding", 1)

    def routed(self, near_mtu: int = 1500, far_mtu: int = 1500) -> "Routed":
        """Return client - router - server with routes both ways; `far_mtu` is that of the server's link."""
        client, router, server = (self.namespace() for _ in range(3))
        client_end, router_near = self.link(client, router, near_mtu)
        router_far, server_end = self.link(router, server, far_mtu)
        self.forward(router)
        self.route(client, router_near)
        self.route(server, router_far)
        return Routed(client, router, server, client_end, router_near, router_far, server_end)

    def close(self) -> None:
        """End everything that was started and remove every namespace made."""
        for namespace in reversed(self._namespaces):
            namespace.stop()
            subprocess.run(["ip", "netns", "del", namespace.name], check=False, capture_output=True)
        self._namespaces.clear()


@dataclass(frozen=True)
class Routed:
    """Three namespaces in a row."""

    client: Namespace
    router: Namespace
    server: Namespace
    client_end: End
    router_near: End
    router_far: End
    server_end: End


def packed(address: str) -> bytes:
    """Return the address as the bytes a packet carries."""
    return ipaddress.ip_address(address).packed
