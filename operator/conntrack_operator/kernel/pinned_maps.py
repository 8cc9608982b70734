"""Cilium's own connection tables, BPF maps pinned in the BPF file system: size and, where it may be read, fill.

bpf(2) by number, since no library is worth it for three calls; include/uapi/linux/bpf.h. Needs CAP_BPF or SYS_ADMIN
and read permission on the pin; what cannot be read is left open. A map is counted by walking its keys, for a second at
most.
"""

import ctypes
import os
import platform
import struct
import time
from pathlib import Path

from conntrack_operator.decide.symptoms import PinnedMap

from .roots import Roots

GET_NEXT_KEY, OBJ_GET, INFO_BY_FD = 4, 7, 15
READ_ONLY = 1 << 3  # BPF_F_RDONLY
INFO_BYTES = 88
SECONDS_MAX = 1.0
_NUMBERS = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "ppc64le": 361, "s390x": 351}
"""The system call's number by machine."""

_libc = ctypes.CDLL(None, use_errno=True)


def read_cilium_maps(roots: Roots) -> tuple[PinnedMap, ...]:
    """Return Cilium's connection tables that are pinned on this machine; none where Cilium is not."""
    try:
        pins = sorted((roots.sys / "fs/bpf/tc/globals").glob("cilium_ct*"))
    except OSError:
        return ()
    # cilium_ct4_global and the like; the per-cluster outer maps hold maps and no connections.
    return tuple(_read(pin) for pin in pins if "per_cluster" not in pin.name)


def _read(pin: Path) -> PinnedMap:
    path = ctypes.create_string_buffer(os.fsencode(pin))
    try:
        descriptor = _bpf(OBJ_GET, struct.pack("=QII", ctypes.addressof(path), 0, READ_ONLY))
    except OSError:
        return PinnedMap(pin.name)
    try:
        info = ctypes.create_string_buffer(INFO_BYTES)
        _bpf(INFO_BY_FD, struct.pack("=IIQ", descriptor, INFO_BYTES, ctypes.addressof(info)))
        _, _, key_bytes, _, most = struct.unpack_from("=5I", info.raw)
        return PinnedMap(pin.name, most, _count(descriptor, key_bytes, most))
    except OSError:
        return PinnedMap(pin.name)
    finally:
        os.close(descriptor)


def _count(descriptor: int, key_bytes: int, most: int) -> int | None:
    """Return how many keys the map has; None when it took too long or may not be read."""
    keys = [ctypes.create_string_buffer(key_bytes) for _ in range(2)]
    addresses = [ctypes.addressof(key) for key in keys]
    deadline = time.monotonic() + SECONDS_MAX
    for number in range(most + 1):
        request = struct.pack("=IIQQ", descriptor, 0, addresses[0] if number else 0, addresses[1])
        try:
            _bpf(GET_NEXT_KEY, request)
        except FileNotFoundError:
            return number  # there is no next one
        except OSError:
            return None
        ctypes.memmove(addresses[0], addresses[1], key_bytes)
        if number % 1024 == 1023 and time.monotonic() > deadline:
            return None
    return most  # keys came and went meanwhile, and the walk began anew


def _bpf(command: int, attributes: bytes) -> int:
    number = _NUMBERS.get(platform.machine())
    if number is None:
        raise OSError(38, os.strerror(38))  # ENOSYS
    room = ctypes.create_string_buffer(attributes, 128)
    result = int(_libc.syscall(number, command, ctypes.byref(room), 128))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result
