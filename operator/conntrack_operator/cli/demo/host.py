"""What the demo may touch of the machine itself: the table's limit, which is one for all network namespaces.

A limit too high to be filled in a minute is lowered meanwhile. What it was is on the disk before it is written, and is
put back on every way out; after a kill -9 the next demo does it. Nothing is written where the limit is fine.
"""

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from conntrack_operator.decide.draft import MAX
from conntrack_operator.errors import Unsupported
from conntrack_operator.kernel.facts import COUNT, read_boot_id
from conntrack_operator.kernel.journal import StateDirectory
from conntrack_operator.kernel.roots import Roots
from conntrack_operator.kernel.sysctl import read_sysctls, write_sysctl
from conntrack_operator.model.journal import Journal, Original

ROOM = 4
"""The lowered limit leaves at least this many times the room that all entries of the machine need now."""


def read_host_sysctls(roots: Roots) -> dict[str, int]:
    """Return every conntrack sysctl of this machine but the number of entries, which changes by itself."""
    return {name: value for name, value in read_sysctls(roots).items() if name != COUNT}


def repair(roots: Roots) -> int | None:
    """Put back what a killed demo left behind; return the limit that was put back, None when there was nothing."""
    own = _own(roots)
    if not (own.state / "journal.json").exists():
        return None
    with StateDirectory(own) as state:
        back = _put_back(roots, state.read_journal(read_boot_id(roots)))
    shutil.rmtree(own.state)
    return back


@contextlib.contextmanager
def limit_at_most(roots: Roots, most: int) -> Iterator[int]:
    """Have a limit of at most `most` entries inside; yield the limit. Puts the machine's own back at the end.

    Raises Unsupported when it would have to be lowered and that is not safe, Retry when an agent works on this machine.
    """
    limit = read_sysctls(roots, (MAX,)).get(MAX)
    if limit is None:
        raise Unsupported("connection tracking is not loaded; run: modprobe nf_conntrack")
    if 0 < limit <= most:
        yield limit
        return
    _require_room(roots, limit, most)
    # The node's own lock: an agent at work here would raise the limit again, and be right.
    with StateDirectory(roots), StateDirectory(_own(roots)) as state:
        journal = Journal(boot_id=read_boot_id(roots), originals={MAX: Original(value=limit, ours=[most])})
        state.write_journal(journal)
        try:
            write_sysctl(roots, MAX, most)
            yield most
        finally:
            _put_back(roots, journal)
            shutil.rmtree(_own(roots).state)


def _put_back(roots: Roots, journal: Journal) -> int | None:
    """Put back what is still as we left it: another value is somebody else's."""
    original = journal.originals.get(MAX)
    ours = original is not None and read_sysctls(roots, (MAX,)).get(MAX) in original.ours
    if original is None or not ours:
        return None
    write_sysctl(roots, MAX, original.value)
    return original.value


def _require_room(roots: Roots, limit: int, most: int) -> None:
    if not os.access(roots.netfilter / "nf_conntrack_max", os.W_OK):
        why = "it can be lowered in the initial network namespace only"
    elif (entries := _entries_of_all_namespaces(roots)) is None:
        why = "how many entries the machine has in all cannot be read"
    elif entries * ROOM > most:
        why = f"the machine has {entries} entries, too many to lower it"
    else:
        return
    raise Unsupported(
        f"the table's limit here, {limit or 'none at all'}, is too high to be filled in a minute, and {why}; run the"
        " demo on another machine, or take more time with --entries"
    )


def _entries_of_all_namespaces(roots: Roots) -> int | None:
    # nf_conntrack_count speaks of one namespace; the slab holds the entries of all.
    try:
        text = Path(roots.file("slabinfo")).read_text()
    except OSError:
        return None
    match = re.search(r"^nf_conntrack +(\d+) ", text, re.MULTILINE)
    return int(match[1]) if match else None


def _own(roots: Roots) -> Roots:
    return Roots(proc=roots.proc, state=roots.state / "demo")
