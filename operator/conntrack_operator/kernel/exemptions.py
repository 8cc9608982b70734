"""Connections that go out from a port of a Server rule and are there already: found among the kernel's entries.

Packets teach the exemptions of those that begin later (`decide.notrack_exemptions`); these would lose the translation
of their replies in the moment the rules go in, so they go in with them.
"""

from collections.abc import Iterator
from ipaddress import ip_address
from itertools import islice
from pathlib import Path

from conntrack_operator.decide.intervals import Intervals
from conntrack_operator.decide.notrack_exemptions import SIZE, Exemption
from conntrack_operator.errors import Retry, Unsupported

from .flow_counting import PREFIX, PREFIXES_MAX, layout_among
from .flow_layout import Layout
from .flows import CT_GET
from .netlink import Netlink

_TCP = 6
_NET = Path("/proc/thread-self/net")


def live_exemptions(ports: Intervals) -> list[Exemption]:
    """Return the tracked TCP connections that began here and whose packets come to or go out from one of `ports`.

    At most half of what the sets hold, for each IP version. A dump of the table: 6 s of CPU for 1,000,000 entries.
    Raises errors.Unsupported (no permission, no module) and errors.Retry (an interrupted or broken answer).
    """
    if not ports:
        return []
    wanted = bytearray(65536)
    for first, last in ports:
        wanted[first : last + 1] = b"\1" * (last + 1 - first)
    return list(dict.fromkeys(islice(_found(wanted, _own_addresses()), SIZE)))


def _found(wanted: bytearray, own: set[bytes]) -> Iterator[Exemption]:
    layouts: dict[bytes, list[Layout]] = {}
    with Netlink() as netlink:
        for entry in netlink.messages(CT_GET, dump=True):
            layout = layout_among(layouts.setdefault(entry[:PREFIX], []), entry)
            if len(layouts) > PREFIXES_MAX:
                layouts.clear()
            if layout.protocol != _TCP:
                continue
            # As replies come in, and as packets of the node's own go out before they are translated.
            for far, near in (("reply.source", "reply.destination"), ("original.destination", "original.source")):
                port = layout.number(entry, f"{near}_port") or 0
                if wanted[port] and layout.value(entry, near) in own:
                    address = str(ip_address(layout.value(entry, far)))
                    yield Exemption(address, layout.number(entry, f"{far}_port") or 0, port)


def _own_addresses() -> set[bytes]:
    """Return the addresses of this network namespace, loopback aside: both files are there on every kernel."""
    own = set()
    leaf = ""
    for line in _lines("fib_trie"):
        words = line.split()
        if words[:1] == ["|--"]:
            leaf = words[1]
        elif words[:3] == ["/32", "host", "LOCAL"] and not leaf.startswith("127."):
            own.add(ip_address(leaf).packed)
    own.update(bytes.fromhex(line.split()[0]) for line in _lines("if_inet6") if not line.endswith(" lo"))
    return own


def _lines(name: str) -> list[str]:
    try:
        return (_NET / name).read_text().splitlines()
    except FileNotFoundError:
        return []  # a kernel without IPv6
    except PermissionError as error:
        raise Unsupported(f"this machine's addresses cannot be read from {_NET / name}: {error.strerror}") from error
    except OSError as error:
        raise Retry(f"this machine's addresses could not be read from {_NET / name}: {error.strerror}") from error
