"""Probes: what this node must still reach after a change, each asked on a fresh connection.

A connection that was there before proves nothing: it may live on while no new one comes about. The names are read by
people, in a status and on a terminal. Only the standard library, since the agent's memory is counted; the API server's
probe is `cluster.reach`'s, since only `cluster` speaks to it.
"""

import contextlib
import ipaddress
import os
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from conntrack_operator.errors import Retry
from conntrack_operator.kernel.roots import Roots

KUBELET_PORT = 10250
"""kubelet's own default, --port."""
DISCARD_PORT = 9
"""Asked of a gateway that answers no ping: nobody listens there, so that whoever is alive refuses."""

_ROUTES = Path("/proc/thread-self/net")
_DEFAULT6 = "0" * 32


@dataclass(frozen=True)
class Probe:
    """One thing to reach. `ask` tells whether it answered within that many seconds; OSError and False mean no."""

    name: str
    ask: Callable[[float], bool]
    needed_again: bool = False
    """Whether a change that failed once is not tried again while this does not answer: nobody could tell then."""


def passing(probes: Sequence[Probe], seconds: float) -> frozenset[str]:
    """Return the names of the probes that pass within `seconds`, all asked at once.

    It takes no longer, even where a name server hangs: who has not answered by then is not waited for. Raises Retry
    when they cannot be asked.
    """
    passed: set[str] = set()
    deadline = time.monotonic() + seconds

    def ask(probe: Probe) -> None:
        with contextlib.suppress(OSError, ValueError):
            if probe.ask(seconds) and time.monotonic() <= deadline:
                passed.add(probe.name)

    # A new thread is in the network namespace of the one that starts it.
    threads = [threading.Thread(target=ask, args=(probe,), name="probe", daemon=True) for probe in probes]
    try:
        for thread in threads:
            thread.start()
    except RuntimeError as error:
        # Not the same as no answer: without one before the change there would be nothing to watch after it.
        raise Retry("the probes cannot be asked: no more threads (pids.max, ulimit -u); try again") from error
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return frozenset(passed)


def tcp_probe(name: str, host: str, port: int) -> Probe:
    """Return a probe that passes when a TCP connection comes about."""

    def ask(seconds: float) -> bool:
        with socket.create_connection((host, port), seconds):
            return True

    return Probe(name, ask)


def asked_for(text: str) -> Probe:
    """Return the probe for HOST:PORT as a person writes it. Raises ValueError when it is not that."""
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not re.fullmatch(r"[0-9]{1,5}", port, re.ASCII) or not 1 <= int(port) <= 65535:
        raise ValueError(text)
    if ":" in host:
        ipaddress.IPv6Address(host.partition("%")[0])
    return tcp_probe(text, host, int(port))


def cluster_probes(roots: Roots, host: str, port: int, environment: Mapping[str, str]) -> Iterator[Probe]:
    """Yield the probes of a node in a cluster, but for that of the API server, which it reaches at `host`, `port`."""
    service, service_port = environment.get("KUBERNETES_SERVICE_HOST", ""), environment.get("KUBERNETES_SERVICE_PORT")
    if service and (service, service_port) != (host, str(port)):
        yield tcp_probe(f"ClusterIP {address_of(service, int(service_port or 443))}", service, int(service_port or 443))
    yield from name_server_probe(roots)
    yield from kubelet_probe(host, port, environment.get("HOST_IP", ""))


def name_server_probe(roots: Roots) -> Iterator[Probe]:
    """Yield a probe of the first name server in resolv.conf, by a query of its own; any answer passes."""
    try:
        lines = (roots.etc / "resolv.conf").read_text(errors="replace").splitlines()
    except OSError:
        return
    servers = [words[1] for words in map(str.split, lines) if len(words) > 1 and words[0] == "nameserver"]
    if servers:
        yield Probe(f"DNS {servers[0]}", partial(_answers_queries, servers[0]))


def kubelet_probe(peer: str, port: int, own: str = "") -> Iterator[Probe]:
    """Yield a probe of this node's kubelet at `own`, the node's address, if empty that from which it reaches `peer`.

    A kubelet may listen at the node's address alone, and a node with several may reach the API server from another. The
    loopback interface is exempt from every rule, so 127.0.0.1 alone would prove little.
    """
    if own:
        yield tcp_probe(f"kubelet {address_of(own, KUBELET_PORT)}", own, KUBELET_PORT)
        return
    try:
        found = socket.getaddrinfo(peer, port, type=socket.SOCK_DGRAM)
        family, kind, _, _, address = found[0]
        with socket.socket(family, kind) as route:
            route.connect(address)
            own = str(route.getsockname()[0])
    except OSError:
        return
    yield tcp_probe(f"kubelet {address_of(own, KUBELET_PORT)}", own, KUBELET_PORT)


def gateway_probes() -> Iterator[Probe]:
    """Yield a probe of each default gateway: an answer to a ping, else to a TCP connection, be it a refusal.

    Both need an IP packet there and one back, which an entry in the neighbour table does not.
    """
    for address in (*_gateways4(), *_gateways6()):
        yield Probe(f"default gateway {address}", partial(_is_alive, address))


def _gateways4() -> Iterator[str]:
    # Interface, destination, gateway, ... in hexadecimal, host byte order (net/ipv4/fib_trie.c, fib_route_seq_show).
    for fields in _rows("route"):
        if len(fields) > 7 and fields[1] == fields[7] == "00000000" and fields[2] != "00000000":
            yield socket.inet_ntoa(struct.pack("=I", int(fields[2], 16)))
            return


def _gateways6() -> Iterator[str]:
    # Destination, its prefix, source, its prefix, next hop, ..., interface (net/ipv6/route.c, rt6_info_route).
    for fields in _rows("ipv6_route"):
        if len(fields) > 9 and fields[0] == _DEFAULT6 and fields[1] == "00" and fields[4] != _DEFAULT6:
            address = ipaddress.IPv6Address(bytes.fromhex(fields[4]))
            yield f"{address}%{fields[9]}" if address.is_link_local else str(address)
            return


def _rows(name: str) -> Iterator[list[str]]:
    try:
        for line in (_ROUTES / name).read_text().splitlines():
            yield line.split()
    except OSError:
        return


def _is_alive(address: str, seconds: float) -> bool:
    with contextlib.suppress(OSError):
        if _answers_ping(address, seconds / 2):
            return True
    try:
        with socket.create_connection((address, DISCARD_PORT), seconds / 2):
            return True
    except ConnectionRefusedError:
        return True


def _answers_ping(address: str, seconds: float) -> bool:
    """Send one ICMP echo request by a ping socket, else by a raw one. Raises OSError when neither is permitted."""
    info = socket.getaddrinfo(address, 0, type=socket.SOCK_DGRAM)[0]
    family, target = info[0], info[4]
    protocol, request, reply = (socket.IPPROTO_ICMPV6, 128, 129) if family == socket.AF_INET6 else (1, 8, 0)
    token = os.urandom(8)
    with _echo_socket(family, protocol) as asking:
        asking.sendto(_echo(request, token, checksum=family == socket.AF_INET), target)
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            asking.settimeout(left)
            packet = asking.recv(512)
            if packet[-8:] == token and bytes([reply, 0]) in (packet[:2], packet[-16:-14]):
                return True
    return False


def _echo_socket(family: int, protocol: int) -> socket.socket:
    try:
        # Permitted to the groups in net.ipv4.ping_group_range (net/ipv4/ping.c); to nobody in a new namespace.
        return socket.socket(family, socket.SOCK_DGRAM, protocol)
    except OSError:
        return socket.socket(family, socket.SOCK_RAW, protocol)


def _echo(kind: int, token: bytes, *, checksum: bool) -> bytes:
    header = struct.pack("!BBHHH", kind, 0, 0, os.getpid() & 0xFFFF, 1)
    if not checksum:
        return header + token  # the kernel sums ICMPv6 itself
    words = sum(struct.unpack("!8H", header + token))
    words = (words & 0xFFFF) + (words >> 16)
    words = (words & 0xFFFF) + (words >> 16)
    return header[:2] + struct.pack("!H", ~words & 0xFFFF) + header[4:] + token


def _answers_queries(server: str, seconds: float) -> bool:
    """Ask for the address of `localhost.`; any answer, a refusal too, shows that packets go there and back."""
    identity = os.urandom(2)
    # RFC 1035: header with one question, recursion desired; one label of 9 letters; type A, class IN.
    query = identity + struct.pack("!5H", 0x0100, 1, 0, 0, 0) + b"\x09localhost\x00" + struct.pack("!2H", 1, 1)
    family, kind, _, _, address = socket.getaddrinfo(server, 53, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as asking:
        asking.settimeout(seconds / 2)
        asking.connect(address)
        for _ in range(2):  # one packet may be lost for no reason of ours
            asking.send(query)
            with contextlib.suppress(TimeoutError):
                return asking.recv(512)[:2] == identity
    return False


def address_of(host: str, port: int) -> str:
    """Return both as one writes them in a URL."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
