"""The process and its version, as Prometheus' client libraries name them: two small files of /proc a scrape."""

import os
from collections.abc import Iterator
from pathlib import Path

from conntrack_operator import __version__

from .exposition import PREFIX, Family, Sample

_STAT = Path("/proc/self/stat")


def process_families(component: str) -> Iterator[Family]:
    """Yield build, memory, CPU time and threads of this process. `component` is agent or controller."""
    labels = {"component": component, "version": __version__}
    yield Family(f"{PREFIX}build_info", "gauge", "The version that runs; always 1.", (Sample(1, labels),))
    # From the third field on; the second, the program's name, may hold spaces. Numbers as in proc_pid_stat(5).
    fields = _STAT.read_text().rpartition(") ")[2].split()
    ticks = int(fields[11]) + int(fields[12])  # utime, stime
    for name, kind, words, value in (
        ("resident_memory_bytes", "gauge", "Resident memory.", int(fields[21]) * os.sysconf("SC_PAGE_SIZE")),
        ("cpu_seconds_total", "counter", "CPU time, user and system.", ticks / os.sysconf("SC_CLK_TCK")),
        ("threads", "gauge", "Threads.", int(fields[17])),
    ):
        yield Family(f"process_{name}", kind, words, (Sample(value, {}),))  # type: ignore[arg-type]
