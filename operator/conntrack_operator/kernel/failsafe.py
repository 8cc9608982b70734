"""Ports that this node lives by, as found on it: who listens, by its program where that can be seen.

In a container without the host's processes the programs are out of sight: then a listener on a well-known port is
taken for what everybody runs there. Listeners on loopback alone are left out: no rule of ours touches loopback.
"""

import ipaddress
import os
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from conntrack_operator.errors import ConntrackOperatorError
from conntrack_operator.model.surroundings import FailsafePort, PortRanges

from .roots import Roots
from .sockets import read_listening

KUBELET, APISERVER, ETCD, SSHD, BGP = "kubelet", "the API server", "etcd", "sshd", "BGP"
PROGRAMS = {
    "kubelet": KUBELET, "k3s": KUBELET, "k3s-server": KUBELET, "k3s-agent": KUBELET, "rke2": KUBELET, "k0s": KUBELET,
    "kube-apiserver": APISERVER, "etcd": ETCD, "sshd": SSHD, "dropbear": SSHD,
    "bird": BGP, "bird6": BGP, "gobgpd": BGP, "bgpd": BGP,
}  # fmt: skip
"""Programs a node is lost without, and what to call them."""
WELL_KNOWN = {22: SSHD, 179: BGP, 2379: ETCD, 2380: ETCD, 6443: APISERVER, 10250: KUBELET}
"""What a listener is taken for when its program cannot be seen; 10250 is kubelet's --port."""
ALWAYS = (
    FailsafePort(53, "TCP", "Client", "DNS"),
    FailsafePort(53, "UDP", "Client", "DNS"),
    FailsafePort(443, "TCP", "Client", "the API server's Service, registries and webhooks"),
)
BGP_PORT = 179
APISERVER_PORT = 6443
"""kube-apiserver's --secure-port where nobody chose another; kubelet talks to it there, and not to the Service."""
_LISTEN = "0A"  # TCP_LISTEN, include/net/tcp_states.h
_INODE = re.compile(r"^socket:\[(\d+)\]$")
# A thread may be in another network namespace than its process.
_PROC_NET = Path("/proc/thread-self/net")


class Listener(NamedTuple):
    """A listening TCP socket that can be reached from outside."""

    port: int
    inode: int


def read_failsafe(
    roots: Roots, api_server: tuple[str, int] | None = None, interest: PortRanges | None = None
) -> tuple[FailsafePort, ...]:
    """Return the ports this node lives by; `api_server` is where its API server is, as configured. Raises nothing.

    With `interest`, no listener on another port is looked at; where none is left, neither are the node's programs.
    """
    listeners = [each for each in read_listeners() if interest is None or _concerns(each, interest)]
    owners = _owners(roots, {listener.inode for listener in listeners}) if listeners else {}
    found = {
        FailsafePort(port, "TCP", "Server", what)
        for port, inode in listeners
        if (what := owners.get(inode) or WELL_KNOWN.get(port))
    }
    if any(each.what == BGP for each in found):
        found.add(FailsafePort(BGP_PORT, "TCP", "Client", BGP))  # either side may open the connection
    if any(each.what == KUBELET for each in found):
        found.add(FailsafePort(APISERVER_PORT, "TCP", "Client", APISERVER))  # behind its Service's 443
    if api_server:
        found.add(FailsafePort(api_server[1], "TCP", "Client", APISERVER))
    others = [each for each in ALWAYS if (each.port, each.protocol, each.side) not in
              {(known.port, known.protocol, known.side) for known in found}]  # fmt: skip
    return tuple(sorted((*found, *others), key=lambda each: (each.port, each.protocol, each.side, each.what)))


def _concerns(listener: Listener, interest: PortRanges) -> bool:
    # A listener of BGP or kubelet tells, on whatever port, that this node is a client of another port.
    ports = (listener.port, BGP_PORT, APISERVER_PORT)
    return any(first <= port <= last for first, last in interest for port in ports)


def read_listeners() -> list[Listener]:
    """Return the listening TCP sockets of this network namespace, those on loopback left out."""
    try:
        return list(
            {
                Listener(port, inode): None
                for address, port, inode in read_listening()
                if not ipaddress.ip_address(address).is_loopback
            }
        )
    except ConntrackOperatorError:
        return listed()  # a kernel without tcp_diag


def listed() -> list[Listener]:
    """Return the same as /proc/net/tcp shows it, for which the kernel goes through every connection."""
    found: dict[Listener, None] = {}
    for name in ("tcp", "tcp6"):
        try:
            with (_PROC_NET / name).open() as lines:
                for listener in _listening(lines):
                    found[listener] = None
        except OSError:
            continue  # IPv6 may be switched off
    return list(found)


def _listening(lines: Iterator[str]) -> Iterator[Listener]:
    for line in lines:
        fields = line.split(maxsplit=10)
        if len(fields) > 9 and fields[3] == _LISTEN:
            address, _, port = fields[1].partition(":")
            if not _address(address).is_loopback:
                yield Listener(int(port, 16), int(fields[9]))


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """Return an address as /proc/net/tcp prints it: words of four bytes, each in the machine's order."""
    words = [int(text[at : at + 8], 16) for at in range(0, len(text), 8)]
    raw = struct.pack(f"={len(words)}I", *words)
    address = ipaddress.ip_address(raw)
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def _owners(roots: Roots, inodes: set[int]) -> dict[int, str]:
    """Return what holds each of these sockets open, looking only into the programs of the table."""
    found: dict[int, str] = {}
    try:
        pids = [name for name in os.listdir(roots.proc) if name.isdigit()]  # noqa: PTH208
    except OSError:
        return found
    for pid in pids:
        directory = f"{roots.proc}/{pid}"
        what = _program(directory)
        if what:
            found.update({inode: what for inode in _sockets(directory) if inode in inodes})
    return found


def _program(directory: str) -> str:
    # For every program of the node: texts are cheaper here than paths.
    try:
        with open(f"{directory}/cmdline", "rb", buffering=0) as file:  # noqa: PTH123
            arguments = (file.readall() or b"").decode(errors="replace").rstrip("\0").split("\0")
    except OSError:
        return ""
    # `sshd: /usr/sbin/sshd -D` names itself so; a program that is many has its name as its first argument.
    names = (arguments[0].partition(" ")[0].rstrip(":").rpartition("/")[2], *arguments[1:2])
    return next((PROGRAMS[name] for name in names if name in PROGRAMS), "")


def _sockets(directory: str) -> Iterator[int]:
    try:
        for name in os.listdir(f"{directory}/fd"):  # noqa: PTH208
            match = _INODE.match(os.readlink(f"{directory}/fd/{name}"))  # noqa: PTH115
            if match:
                yield int(match[1])
    except OSError:
        return  # not ours to look into, or gone
