"""How many rules the tables of iptables-legacy hold, asked of the kernel in a few microseconds, with no program run.

Rules of iptables-legacy do not move the nftables generation, so that a firewall's reload (iptables -F) would be seen
only by reading everything. The kernel tells the shape of a table by a socket option (IPT_SO_GET_INFO, since 2.4).
"""

import ctypes
import os
import socket
from pathlib import Path

# include/uapi/linux/netfilter_ipv4/ip_tables.h and .../ip6_tables.h; both options have the same number.
_GET_INFO = 64
_INFO_BYTES = 84
"""struct ipt_getinfo: name[32], valid_hooks, hook_entry[5], underflow[5], num_entries, size."""
_FAMILIES = (
    ("ip_tables_names", socket.AF_INET, socket.IPPROTO_IP),
    ("ip6_tables_names", socket.AF_INET6, socket.IPPROTO_IPV6),
)
# A thread may be in another network namespace than its process.
_PROC_NET = Path("/proc/thread-self/net")

_libc = ctypes.CDLL(None, use_errno=True)


def read_shapes() -> tuple[bytes, ...]:
    """Return one value for each table of iptables-legacy in this thread's network namespace, none where there are none.

    A value is another one as soon as the table has another number of rules, or rules of other sizes. Needs NET_ADMIN.
    What cannot be read is left out; raises nothing.
    """
    found = []
    for file, family, level in _FAMILIES:
        # Only tables that are there: asking for another would load its module and make it.
        try:
            names = (_PROC_NET / file).read_bytes().split()
            if names:
                with socket.socket(family, socket.SOCK_DGRAM) as asking:
                    found += [shape for name in sorted(names) if (shape := _shape(asking.fileno(), level, name))]
        except OSError:
            continue
    return tuple(found)


def _shape(descriptor: int, level: int, name: bytes) -> bytes:
    info = ctypes.create_string_buffer(name, _INFO_BYTES)
    length = ctypes.c_uint(_INFO_BYTES)
    if _libc.getsockopt(descriptor, level, _GET_INFO, info, ctypes.byref(length)) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return info.raw
