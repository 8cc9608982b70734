"""Reads what one machine is: RAM, CPUs, kernel, entries, sysctls."""

import os
import re
from pathlib import Path

from conntrack_operator.errors import Unsupported
from conntrack_operator.model.facts import DEFAULT_ENTRY_BYTES, Facts

from .roots import Roots
from .sysctl import is_initial_namespace, read_sysctls

COUNT = "net.netfilter.nf_conntrack_count"


def read_facts(roots: Roots, *, tracking_needed: bool = True) -> Facts:
    """Return the facts of this machine, in the network namespace of this process.

    Raises Unsupported when nf_conntrack is not loaded, unless it is not needed: then there are no sysctls and no
    entries. Raises Unsupported when /proc cannot be read.
    """
    sysctls = read_sysctls(roots)
    if COUNT not in sysctls and tracking_needed:
        raise Unsupported(
            f"connection tracking is not loaded (no {roots.netfilter}/nf_conntrack_count); run: modprobe nf_conntrack"
        )
    if COUNT not in sysctls and not (roots.proc / "sys/net").is_dir():
        # Every Linux with a network has it: a wrong path must not pass for a machine without tracking.
        raise Unsupported(f"{roots.proc / 'sys/net'} is not there; point --proc-root at a /proc of Linux")
    kernel = os.uname()
    return Facts(
        memory_bytes=_memory_bytes(roots.file("meminfo")),
        cpus=_cpus(roots.file("stat")),
        word_bits=64 if "64" in kernel.machine or kernel.machine == "s390x" else 32,
        kernel=kernel.release,
        entries=sysctls.get(COUNT, 0),
        sysctls=sysctls,
        page_bytes=os.sysconf("SC_PAGE_SIZE"),
        entry_bytes=_entry_bytes(roots.file("slabinfo")),
        initial_namespace=is_initial_namespace(roots),
    )


def read_boot_id(roots: Roots) -> str:
    """Return the kernel's boot id; it changes with every boot and never otherwise."""
    return _text(roots.file("sys/kernel/random/boot_id")).strip()


def _memory_bytes(path: Path) -> int:
    match = re.search(r"^MemTotal:\s+(\d+) kB", _text(path), re.MULTILINE)
    if not match:
        raise Unsupported(f"{path} has no MemTotal; point --proc-root at a /proc of Linux")
    return int(match[1]) * 1024


def _cpus(path: Path) -> int:
    return len(re.findall(r"^cpu\d+ ", _text(path), re.MULTILINE)) or 1


_entry_sizes: dict[Path, int] = {}
"""Of what was read once: it is the same until the next boot, and the whole list costs 2 ms."""


def _entry_bytes(path: Path) -> int:
    if path not in _entry_sizes and (size := _read_entry_bytes(path)) is not None:
        _entry_sizes[path] = size
    return _entry_sizes.get(path, DEFAULT_ENTRY_BYTES)


def _read_entry_bytes(path: Path) -> int | None:
    try:
        # One line of a long file: name, active, all, object size.
        match = re.search(r"^nf_conntrack +\d+ +\d+ +(\d+)", path.read_text(), re.MULTILINE)
    except OSError:
        match = None
    return int(match[1]) if match else None


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError as error:
        raise Unsupported(f"{path} cannot be read ({error.strerror}); point --proc-root at a /proc of Linux") from error
