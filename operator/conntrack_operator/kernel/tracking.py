"""Whether connections are tracked in this network namespace: asked of the kernel, by a connection over loopback.

Rules can be read, but not all that tracks is a rule (Open vSwitch, tc, the module's enable_hooks parameter), and the
list of netfilter hooks (nfnetlink_hook) is missing on many kernels. SO_ORIGINAL_DST answers on every kernel and needs
no capability: it looks the socket's own connection up among the entries (getorigdst in nf_conntrack_proto.c).
"""

import errno
import socket

from conntrack_operator.model.surroundings import TrackingState

from .modules import may_unload, presence_of_conntrack, read_modules
from .roots import Roots

SO_ORIGINAL_DST = 80
"""include/uapi/linux/netfilter_ipv4.h; IP6T_SO_ORIGINAL_DST has the same number."""
ADDRESS_BYTES = 28
"""struct sockaddr_in6, the larger of the two."""
TIMEOUT_SECONDS = 1.0
"""For a connection over loopback, which takes 0.1 ms; a firewall that drops it makes it last this long."""
_NO_ENTRY = (errno.ENOENT, errno.ENOPROTOOPT)
"""Not tracked; no such option, since nf_conntrack is not loaded."""
_NO_FAMILY = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)
"""IPv6 is not in this kernel, or off (net.ipv6.conf.lo.disable_ipv6)."""
_ENDS = {
    4: (socket.AF_INET, socket.IPPROTO_IP, "127.0.0.1"),
    6: (socket.AF_INET6, socket.IPPROTO_IPV6, "::1"),
}


def read_tracking(roots: Roots) -> TrackingState:
    """Return whether anything is tracked here, and where nf_conntrack is in this kernel. Raises nothing."""
    presence = presence_of_conntrack(roots)
    return TrackingState(
        presence=presence,
        families=frozenset() if presence == "absent" else tracked_families(),
        modules=read_modules(roots),
        may_unload=may_unload(roots),
    )


def tracked_families() -> frozenset[int] | None:
    """Return the IP versions of which a connection over loopback is tracked in this thread's network namespace.

    None when that cannot be told (a firewall drops it, no loopback). One connection each, 0.4 ms together; where
    tracking is on each leaves an entry until its TIME_WAIT is over. An IP version this host does not have is untracked.
    """
    answers = {version: _is_tracked(version) for version in _ENDS}
    tracked = frozenset(version for version, answer in answers.items() if answer)
    return None if not tracked and None in answers.values() else tracked


def _is_tracked(version: int) -> bool | None:
    family, level, host = _ENDS[version]
    try:
        with socket.socket(family) as listener, socket.socket(family) as client:
            listener.bind((host, 0))
            listener.listen(1)
            client.settimeout(TIMEOUT_SECONDS)
            client.connect(listener.getsockname()[:2])
            client.getsockopt(level, SO_ORIGINAL_DST, ADDRESS_BYTES)
    except OSError as error:
        return False if error.errno in (*_NO_ENTRY, *_NO_FAMILY) else None
    return True
