"""The addresses of this network namespace, by rtnetlink. Any user may ask; Linux 2.2 and newer.

Kernel files: net/ipv4/devinet.c (inet_dump_ifaddr), net/ipv6/addrconf.c (inet6_dump_addr).
"""

import contextlib
import ipaddress
import struct

from conntrack_operator.errors import Retry

from .netlink import HEADER, NETLINK_ROUTE, NLM_F_DUMP, NLM_F_REQUEST, Netlink, attributes

_RTM_NEWADDR, _RTM_GETADDR = 20, 22
_BODY = struct.Struct("=BBBBI")  # struct ifaddrmsg: family, prefix length, flags, scope, interface index
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_TRIES = 3  # pods come and go, and with each an address may


def local_addresses() -> frozenset[str]:
    """Return every address of every interface, both families, loopback included, as `ipaddress` writes them.

    Addresses that are local by a route alone (`ip route add local 192.0.2.0/24 dev lo`) are no interface's and not
    among them. Raises errors.Retry when the kernel's answer is cut short, or changes meanwhile three times.
    """
    for _ in range(_TRIES - 1):
        with contextlib.suppress(Retry):
            return _read()
    return _read()


def _read() -> frozenset[str]:
    found = set()
    with Netlink(NETLINK_ROUTE) as netlink:
        body = _BODY.pack(0, 0, 0, 0, 0)
        flags = NLM_F_REQUEST | NLM_F_DUMP
        request = HEADER.pack(HEADER.size + len(body), _RTM_GETADDR, flags, netlink.next_sequence(), 0) + body
        for message in netlink.answer(request):
            if HEADER.unpack_from(message)[1] == _RTM_NEWADDR and (address := _address_in(message)):
                found.add(str(ipaddress.ip_address(address)))
    return frozenset(found)


def _address_in(message: bytes) -> bytes | None:
    # Of a point-to-point link IFA_ADDRESS is the other end, and IFA_LOCAL, which IPv6 has only there, our own.
    held = {
        kind: message[start:end] for kind, start, end in attributes(message, HEADER.size + _BODY.size, len(message))
    }
    address = held.get(_IFA_LOCAL, held.get(_IFA_ADDRESS))
    return address if address is not None and len(address) in (4, 16) else None
