"""The kernel log's lines about full tables, read from /dev/kmsg without waiting, and no more of it than there is.

Needs SYSLOG (CAP_SYSLOG) where kernel.dmesg_restrict is 1; without it the answer is a sentence, not an empty log.
Record format: Documentation/ABI/testing/dev-kmsg. Records carry the time since boot without suspends, so the wall clock
of lines from before a suspend is early by its length.

A container has no /dev/kmsg, and its device cgroup would refuse one that is mounted. There the same is asked of the
system call syslog(2), which the default seccomp profiles of container runtimes allow to whoever has SYSLOG.
"""

import ctypes
import os
import re
import time
from collections.abc import Callable
from pathlib import Path

from conntrack_operator.decide.symptoms import FullLine, KernelLog

KMSG = Path("/dev/kmsg")
RECORDS_MAX = 200_000
"""Records read at most: more than the largest ring buffer people configure holds."""
RECORD_BYTES = 8192
"""A record is never longer (CONSOLE_EXT_LOG_MAX, PRINTK_MESSAGE_MAX)."""
LINES_KEPT = 10_000

# include/linux/syslog.h
_READ_ALL, _SIZE_BUFFER = 3, 10
# As print_syslog and print_time of kernel/printk/printk.c write it; the second bracket is of CONFIG_PRINTK_CALLER.
_TEXT = re.compile(r"<(?P<priority>\d+)>\[ *(?P<seconds>\d+)\.(?P<micros>\d{6})\](?:\[ *\w+\])? (?P<text>.*)")

# Facility 0 is the kernel: a program that writes to /dev/kmsg cannot get it. `in netns` came with 6.18.
_RECORD = re.compile(
    r"(?P<priority>\d+),\d+,(?P<micros>\d+),[^;]*;"
    r"(?:(?:nf|ip)_conntrack: )+table full(?: in netns (?P<namespace>\d+))?, dropping packet"
)


def _whole_log() -> str:
    """Return the log as syslog(2) has it: as much as its buffer holds, the newest. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    size = libc.klogctl(_SIZE_BUFFER, None, 0)
    text = ctypes.create_string_buffer(max(size, 1))
    length = libc.klogctl(_READ_ALL, text, size) if size >= 0 else size
    if length < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return text.raw[:length].decode(errors="replace")


def read_kernel_log(source: Path = KMSG, whole: Callable[[], str] = _whole_log) -> KernelLog:
    """Return the lines about full tables that the kernel still holds, oldest first, or why they cannot be read.

    `whole` returns the log's text where `source` cannot be opened, and raises OSError.
    """
    try:
        descriptor = os.open(source, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, PermissionError):
        return _from_text(whole)
    except OSError as error:
        return KernelLog(problem=f"the kernel log cannot be read ({source}: {error.strerror})")
    booted_seconds = time.time() - time.monotonic()
    lines: list[FullLine] = []
    try:
        for record in _records(descriptor):
            line = full_line_in(record, booted_seconds)
            if line is not None:
                lines.append(line)
    except OSError as error:
        return KernelLog(tuple(lines[-LINES_KEPT:]), f"the kernel log could not be read to its end ({error.strerror})")
    finally:
        os.close(descriptor)
    return KernelLog(tuple(lines[-LINES_KEPT:]))


def _from_text(whole: Callable[[], str]) -> KernelLog:
    try:
        text = whole()
    except PermissionError as error:
        need = "it needs root with CAP_SYSLOG (of the agent's pod: agent.kernelLog)"
        return KernelLog(problem=f"the kernel log may not be read ({error.strerror}): {need}")
    except OSError as error:
        return KernelLog(problem=f"the kernel log cannot be read ({KMSG} and syslog(2): {error.strerror})")
    booted_seconds = time.time() - time.monotonic()
    about = [line for line in text.splitlines() if "table full" in line]
    timed = [match for line in about if (match := _TEXT.match(line))]
    records = (f"{each['priority']},0,{each['seconds']}{each['micros']},-;{each['text']}" for each in timed)
    lines = [line for record in records if (line := full_line_in(record, booted_seconds)) is not None]
    timeless = "lines of the kernel log about full tables carry no time: write Y to /sys/module/printk/parameters/time"
    return KernelLog(tuple(lines[-LINES_KEPT:]), timeless if len(timed) < len(about) else "")


def full_line_in(record: str, booted_seconds: float) -> FullLine | None:
    """Return what one record of /dev/kmsg says about a full table, None when it says nothing of it.

    `booted_seconds` is the wall clock at boot, in seconds since 1970.
    """
    match = _RECORD.match(record)
    if match is None or int(match["priority"]) >> 3 != 0:
        return None
    namespace = int(match["namespace"]) if match["namespace"] else None
    return FullLine(booted_seconds + int(match["micros"]) / 1e6, namespace)


def _records(descriptor: int) -> "list[str]":
    """Return the records there are. Each read(2) is one record; a file in its place gives its lines."""
    records: list[str] = []
    kept = b""
    for _ in range(RECORDS_MAX):
        try:
            data = os.read(descriptor, RECORD_BYTES)
        except BlockingIOError:
            break
        except BrokenPipeError:
            continue  # overwritten before we came to it; the next read goes on behind it
        if not data:
            break
        if b"table full" in data:
            kept += data
    records.extend(kept.decode(errors="replace").splitlines())
    return records
