"""Statistics of network drivers, by the ioctl that `ethtool -S` uses: for what EC2's cards tell of its own tracking.

include/uapi/linux/ethtool.h. Any user may ask. Interfaces of the calling thread's network namespace alone.
"""

import array
import fcntl
import socket
import struct

from conntrack_operator.decide.symptoms import Allowance

SIOCETHTOOL = 0x8946
GET_DRIVER = 0x3  # ETHTOOL_GDRVINFO
GET_STRINGS = 0x1B  # ETHTOOL_GSTRINGS
GET_STATISTICS = 0x1D  # ETHTOOL_GSTATS
STATISTICS = 1  # ETH_SS_STATS
NAME_BYTES = 32  # ETH_GSTRING_LEN
DRIVER_BYTES = 196  # struct ethtool_drvinfo
COUNT_AT = 180  # its n_stats
MOST_STATISTICS = 65_536

EXCEEDED, AVAILABLE = "conntrack_allowance_exceeded", "conntrack_allowance_available"
"""Read: drivers/net/ethernet/amazon/ena/ena_ethtool.c, and AWS' page on network performance metrics."""


def read_allowances() -> tuple[Allowance, ...]:
    """Return what every network card of EC2 (driver ena) says; nothing on other machines."""
    found = []
    for _, interface in socket.if_nameindex():
        if driver_of(interface) != "ena":
            continue
        statistics = statistics_of(interface)
        if EXCEEDED in statistics:
            found.append(Allowance(interface, statistics[EXCEEDED], statistics.get(AVAILABLE)))
    return tuple(found)


def driver_of(interface: str) -> str:
    """Return the name of an interface's driver, empty when it has none that says."""
    answer = _ask(interface, struct.pack("=I", GET_DRIVER) + bytes(DRIVER_BYTES - 4))
    return _text(answer[4 : 4 + 32]) if answer else ""


def statistics_of(interface: str) -> dict[str, int]:
    """Return an interface's driver statistics by name; empty when its driver keeps none."""
    driver = _ask(interface, struct.pack("=I", GET_DRIVER) + bytes(DRIVER_BYTES - 4))
    count = struct.unpack_from("=I", driver, COUNT_AT)[0] if driver else 0
    if not 0 < count <= MOST_STATISTICS:
        return {}
    names = _ask(interface, struct.pack("=III", GET_STRINGS, STATISTICS, count) + bytes(count * NAME_BYTES))
    values = _ask(interface, struct.pack("=II", GET_STATISTICS, count) + bytes(count * 8))
    if not names or not values:
        return {}
    return {
        _text(names[12 + number * NAME_BYTES :][:NAME_BYTES]): value
        for number, value in enumerate(struct.unpack_from(f"={count}Q", values, 8))
    }


def _ask(interface: str, request: bytes) -> bytes:
    """Hand one request to the driver and return the answer in its place; empty when it has none."""
    room = array.array("B", request)
    address, _ = room.buffer_info()
    ifreq = struct.pack("@16sP", interface.encode()[:15], address) + bytes(16)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
        try:
            fcntl.ioctl(asker.fileno(), SIOCETHTOOL, ifreq)
        except OSError:
            return b""
    return room.tobytes()


def _text(raw: bytes) -> str:
    return raw.split(b"\0", 1)[0].decode(errors="replace")
