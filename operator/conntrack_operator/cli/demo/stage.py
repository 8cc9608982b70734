"""The demo's stage: two network namespaces and a cable between them.

They have no names. A namespace lives as long as a descriptor or a process is in it, so whatever ends the demo,
a power cut or kill -9 included, nothing is left behind. The addresses are those of RFC 2544, for benchmarks.
"""

import contextlib
import ctypes
import fcntl
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from conntrack_operator.errors import Unsupported

CLIENT, SERVER = "198.19.0.1", "198.19.0.2"
CLIENTS_NETWORK = "198.18.0.0/16"
"""Where the many clients are; the server has a route there and nobody else knows of them."""

TCP_PORT = 8080
TRANSLATED_PORT = 80
FIREWALL = f"""
table inet demo_firewall {{
  chain input {{
    type filter hook input priority filter; policy drop;
    ct state established,related accept
    udp dport 53 accept
    tcp dport {{ 53, {TCP_PORT} }} accept
  }}
}}
"""
"""A firewall as servers have it: `ct state` is what switches connection tracking on."""

TRANSLATION = f"""
table ip demo_nat {{
  chain prerouting {{
    type nat hook prerouting priority dstnat;
    tcp dport {TRANSLATED_PORT} redirect to :{TCP_PORT}
  }}
}}
"""
"""A port that leads to another one."""

_CLONE_NEWNET = 0x40000000  # include/uapi/linux/sched.h
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Namespace:
    """One network namespace, held open by a descriptor."""

    descriptor: int

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """Move the calling thread in and back: its sockets, /proc/sys/net and the programs it starts."""
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            _enter(self.descriptor)
            try:
                yield
            finally:
                _enter(home)
        finally:
            os.close(home)

    def run(self, *command: str, text: str = "") -> None:
        """Run a program in here. Raises Unsupported with what it said when it fails."""
        with self.inside():
            done = subprocess.run(command, input=text, capture_output=True, text=True, check=False, timeout=30)
        if done.returncode != 0:
            said = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
            raise Unsupported(f"the demo cannot set its stage: {' '.join(command)}: {said}")

    def start(self, command: list[str]) -> "subprocess.Popen[str]":
        """Start a program in here whose output is read line by line."""
        with self.inside():
            # A session of its own: Ctrl-C is for the demo, which ends it.
            return subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, start_new_session=True
            )

    def read(self, path: str) -> str:
        """Return the content of a file as it is in here."""
        with self.inside():
            return Path(path).read_text().strip()

    def socket(self, kind: int) -> socket.socket:
        """Return a new IPv4 socket of this namespace."""
        with self.inside():
            return socket.socket(socket.AF_INET, kind)


class Stage:
    """Client and server, joined and addressed; the server tracks connections. A context manager: all is gone after it.

    Raises Unsupported when it cannot be set: no root, a program missing, no namespaces here.
    """

    def __init__(self) -> None:
        require_tools()
        self._stack = contextlib.ExitStack()
        self._links: list[str] = []

    def __enter__(self) -> Self:
        with self._stack:  # closes what is open when the rest fails
            self.client, self.server = (self._namespace() for _ in range(2))
            self._join()
            self.server.run("nft", "-f", "-", text=FIREWALL)
            self._kept = self._stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._kept.close()

    def held_by(self) -> list[str]:
        """Return the processes that are in one of these namespaces, by their ids; to be asked when all is over."""
        held = []
        for link in Path("/proc").glob("[0-9]*/ns/net"):
            with contextlib.suppress(OSError):
                if str(link.readlink()) in self._links:
                    held.append(link.parts[2])
        return held

    def mac_of(self, namespace: Namespace) -> str:
        """Return the hardware address of a namespace's end of the cable."""
        # /sys shows the namespace it was mounted in, an ioctl that of its socket.
        with namespace.socket(socket.SOCK_DGRAM) as probe:
            answer = fcntl.ioctl(probe, 0x8927, b"wire".ljust(256, b"\0"))  # SIOCGIFHWADDR
        return answer[18:24].hex(":")

    def _namespace(self) -> Namespace:
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            if _libc.unshare(_CLONE_NEWNET) != 0:
                why = os.strerror(ctypes.get_errno())
                raise Unsupported(f"no network namespace can be made here ({why}); run the demo as root on a host")
            made = Namespace(os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC))
            self._stack.callback(os.close, made.descriptor)
            self._links.append(str(Path(f"/proc/self/fd/{made.descriptor}").readlink()))
            _enter(home)
        finally:
            os.close(home)
        made.run("ip", "link", "set", "lo", "up")
        return made

    def _join(self) -> None:
        other = f"/proc/{os.getpid()}/fd/{self.server.descriptor}"
        self.client.run("ip", "link", "add", "wire", "type", "veth", "peer", "name", "wire", "netns", other)
        for namespace, address in ((self.client, CLIENT), (self.server, SERVER)):
            namespace.run("ip", "addr", "add", f"{address}/24", "dev", "wire")
            namespace.run("ip", "link", "set", "wire", "up")
        self.server.run("ip", "route", "add", CLIENTS_NETWORK, "via", CLIENT)


def lines_of(process: "subprocess.Popen[str]") -> Iterator[str]:
    """Yield what a started program prints, line by line, until it ends."""
    yield from process.stdout or ()


def require_tools() -> None:
    """Raise Unsupported when the demo cannot work here."""
    if os.geteuid() != 0:
        raise Unsupported(
            f"the demo makes network namespaces and needs root, this is uid {os.geteuid()}; run it with sudo"
        )
    for program, package in (("ip", "iproute2"), ("nft", "nftables")):
        if shutil.which(program) is None:
            raise Unsupported(f"{program} is not installed and the demo needs it; install {package}")


def _enter(descriptor: int) -> None:
    # os.setns came with Python 3.12. It moves the calling thread alone.
    if _libc.setns(descriptor, _CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
