"""Who fills the table: our sample and our exact count beside the pipelines people use, over one injected table.

Run as root: python -m tests.bench.bench_top [ENTRIES]. It works in a network namespace. A number of entries above the
host's nf_conntrack_max raises that for the duration, under the test suite's lock, and puts it back.
"""

import contextlib
import fcntl
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.lab.entries import TIME_WAIT, UDP, Entry, inject_many
from tests.lab.namespaces import Lab, Namespace, missing

from conntrack_operator.decide.talkers import BY, top_of
from conntrack_operator.kernel.flows import sample

ENTRIES = 200_000
LIMIT = Path("/proc/sys/net/netfilter/nf_conntrack_max")
LOCK = Path("/run/lock/conntrack-operator-tests.lock")
SERVER4, SERVER6 = "192.0.2.1", "2001:db8::1"

CAT = "cat /proc/net/nf_conntrack | tr -s ' ' | sed 's/ dst=.*//; s/.*src=//' | sort | uniq -c | sort -rn | head"
COUNT_SOURCES = "awk '{match($0, /src=[^ ]*/); n[substr($0, RSTART, RLENGTH)]++} END {for (k in n) print n[k], k}'"
AWK = f"conntrack -L 2>/dev/null | {COUNT_SOURCES} | sort -rn | head"


@contextlib.contextmanager
def room_for(entries: int) -> Iterator[None]:
    """Make sure that a table may hold `entries`, and put the limit back."""
    with LOCK.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        before = LIMIT.read_text()
        try:
            if int(before) < entries + 1000:
                LIMIT.write_text(str(entries + 1000))
            yield
        finally:
            if LIMIT.read_text() != before:
                LIMIT.write_text(before)


def fill(namespace: Namespace, entries: int) -> None:
    """Write a table as nodes have it: mostly TCP, some DNS, a fifth IPv6, a few sources that stand out."""
    inject_many(namespace, Entry("10.1.0.1", SERVER4), entries * 4 // 10, sources=20)
    inject_many(namespace, Entry("10.2.0.1", SERVER4, state=TIME_WAIT), entries * 2 // 10, sources=2_000)
    inject_many(namespace, Entry("10.3.0.1", SERVER4, UDP, destination_port=53, status=0), entries * 2 // 10, 2_000)
    inject_many(namespace, Entry("fd00::1", SERVER6, destination_port=443), entries * 2 // 10, sources=2_000)


def cost_of(work: Callable[[], object]) -> tuple[float, float]:
    """Return (wall seconds, CPU seconds with children and kernel)."""

    def cpu() -> float:
        own, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime

    wall, busy = time.perf_counter(), cpu()
    work()
    return time.perf_counter() - wall, cpu() - busy


def shell(line: str) -> Callable[[], object]:
    """Return the work of running a pipeline."""
    return lambda: subprocess.run(["sh", "-c", line], capture_output=True, check=True)


def main() -> None:
    """Fill a table and print what each way of asking it costs."""
    entries = int(sys.argv[1]) if len(sys.argv) > 1 else ENTRIES
    if reason := missing():
        print(f"top: not measured, {reason}")
        return
    with room_for(entries), Lab() as lab:
        namespace = lab.namespace()
        fill(namespace, entries)
        with namespace.inside():
            rows: list[tuple[str, Callable[[], object]]] = [
                ("top (sample of 65,536)", lambda: top_of(sample(by=("source",)), "source", 10, entries)),
                ("status (sample, all questions)", lambda: sample(by=BY)),
                ("top --exact", lambda: top_of(sample(None, ("source",)), "source", 10, entries)),
                ("exact, all questions", lambda: sample(None, BY)),
            ]
            if shutil.which("conntrack"):
                rows.append(("conntrack -L | awk | sort", shell(AWK)))
            if Path("/proc/thread-self/net/nf_conntrack").exists():
                rows.append(("cat /proc/net/nf_conntrack | ... | sort", shell(CAT)))
            costs = [(name, *cost_of(work)) for name, work in rows]
    exact = next(cpu for name, _, cpu in costs if name == "top --exact")
    print(f"who fills a table of {entries:,} entries{'':14}    wall s   CPU s   CPU against --exact")
    for name, wall, cpu in costs:
        print(f"  {name:<45}{wall:10.2f}{cpu:8.2f}{cpu / exact:10.1f} x")


if __name__ == "__main__":
    main()
