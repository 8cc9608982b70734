"""Other network namespaces, mostly pods' own: how full their tables are.

The limit is the machine's and each namespace counts for itself, so a pod's table can be full while the host's is empty.
A thread of its own enters each namespace in turn and ends there: the process stays where it is. Needs SYS_ADMIN and
NET_ADMIN; what may not be entered is counted and said. Namespaces are found through the processes in them and through
/run/netns, so a container without the host's pids sees few.
"""

import contextlib
import contextvars
import ctypes
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from conntrack_operator.decide.symptoms import NamespaceUse
from conntrack_operator.errors import ConntrackOperatorError

from .counters import read_counters
from .roots import Roots

CLONE_NEWNET = 0x40000000  # include/uapi/linux/sched.h
NAMESPACES_MAX = 4096
"""Namespaces looked into; a node has one for each pod."""
TIMEOUT_SECONDS = 20


def own_inode() -> int:
    """Return the inode of this process's network namespace, the number the kernel's log names it by; 0 when unknown."""
    try:
        return Path("/proc/self/ns/net").stat().st_ino
    except OSError:
        return 0


def read_other_namespaces(roots: Roots) -> tuple[tuple[NamespaceUse, ...], str]:
    """Return the tables of the other network namespaces, fullest first, and a sentence about those not looked into."""
    places = _places(roots)
    places.pop(own_inode(), None)
    looks = _Looks(places, _starts(roots))
    # With this thread's context: where nothing may be loaded, nothing is there either.
    thread = threading.Thread(target=contextvars.copy_context().run, args=(looks.look,), daemon=True)
    thread.start()
    thread.join(TIMEOUT_SECONDS)
    found = sorted(looks.found, key=lambda namespace: (-namespace.entries, namespace.inode))
    missed = len(places) - len(found)
    problem = ""
    if missed:
        why = looks.problem or "it took too long"
        problem = f"{missed} of {len(places)} other network namespaces could not be looked into: {why}"
    return tuple(found), problem


def began_seconds(roots: Roots, inode: int) -> float:
    """Return when the oldest process but this one in a namespace started, seconds since 1970; 0 when there is none."""
    return _starts(roots).get(inode, 0.0)


class _Looks:
    """Goes through the namespaces, in a thread that never comes back to where it began."""

    def __init__(self, places: dict[int, tuple[Path, str]], starts: dict[int, float]) -> None:
        self._places = places
        self._starts = starts
        self.found: list[NamespaceUse] = []
        self.problem = ""

    def look(self) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        for inode, (path, name) in list(self._places.items()):
            try:
                descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                self.problem = error.strerror or str(error)
                continue
            try:
                if libc.setns(descriptor, CLONE_NEWNET) != 0:  # os.setns came with Python 3.12
                    self.problem = os.strerror(ctypes.get_errno())
                    continue
                counters = read_counters()
            except ConntrackOperatorError as error:
                self.problem = str(error)
                continue
            finally:
                os.close(descriptor)
            self.found.append(
                NamespaceUse(
                    inode=inode,
                    name=name,
                    entries=counters.entries,
                    max_entries=counters.max_entries,
                    drop=counters.drop,
                    early_drop=counters.early_drop,
                    insert_failed=counters.insert_failed,
                    began_seconds=self._starts.get(inode, 0.0),
                )
            )


def _places(roots: Roots) -> dict[int, tuple[Path, str]]:
    """Return each namespace by its inode, with a way into it and a name; a process that runs in it names it best."""
    places: dict[int, tuple[Path, str]] = {}
    for path, name in _ways(roots):
        try:
            inode = path.stat().st_ino
        except OSError:
            continue
        # A pod's first process is the pause container, which tells nobody which pod it is.
        if inode not in places or places[inode][1].startswith("pause "):
            places[inode] = (path, name)
        if len(places) >= NAMESPACES_MAX:
            break
    return places


def _ways(roots: Roots) -> Iterator[tuple[Path, str]]:
    with contextlib.suppress(OSError):
        for pid in sorted(int(path.name) for path in roots.proc.iterdir() if path.name.isdigit()):
            yield roots.proc / str(pid) / "ns/net", _process_words(roots.proc / str(pid), pid)
    with contextlib.suppress(OSError):
        for path in sorted((roots.run / "netns").iterdir()):
            yield path, f"netns {path.name}"


def _process_words(directory: Path, pid: int) -> str:
    try:
        return f"{(directory / 'comm').read_text().strip()} (pid {pid})"
    except OSError:
        return f"pid {pid}"


def _starts(roots: Roots) -> dict[int, float]:
    """Return the start of the oldest process in each namespace by the wall clock, without this process."""
    booted = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    ticks = os.sysconf("SC_CLK_TCK")
    starts: dict[int, float] = {}
    with contextlib.suppress(OSError):
        for directory in roots.proc.iterdir():
            if not directory.name.isdigit() or int(directory.name) == os.getpid():
                continue
            try:
                inode = (directory / "ns/net").stat().st_ino
                # Field 22 of proc_pid_stat(5); the name before it may hold anything but ends with the last bracket.
                start = booted + int((directory / "stat").read_text().rpartition(")")[2].split()[19]) / ticks
            except (OSError, ValueError, IndexError):
                continue
            starts[inode] = min(start, starts.get(inode, start))
    return starts
