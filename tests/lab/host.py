"""The initial network namespace, for the few tests that must tune this very machine: locked, and put back afterwards.

Sizes of the table can be written nowhere else. `Host` holds a lock for its whole life, so that two runs on one
machine do not tune it at once, and its end restores every conntrack sysctl and removes our table, whatever happened.
"""

import contextlib
import ctypes
import fcntl
import json
import os
import re
import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.lab.halves import Turn, may_tune_the_machine
from tests.lab.namespaces import Namespace
from tests.lab.programs import wait_until

LOCK = Path("/run/lock/conntrack-operator-tests.lock")
NOTED = LOCK.with_suffix(".json")
"""How the machine was, while a run tunes it: if that run is killed, the next one puts it back. A boot clears it."""
SYSCTLS = Path("/proc/sys/net/netfilter")
TABLE = ("inet", "conntrack_operator")
# Sizes first, as raising them goes: buckets, then the limit.
FIRST = ("nf_conntrack_buckets", "nf_conntrack_max")
SHARED = tuple(f"net.netfilter.nf_conntrack_{name}" for name in ("buckets", "count", "expect_max", "max"))
"""What is one for all network namespaces, so that other tests may write it meanwhile, and the entries in use."""
IN_MODIFY = 0x2  # include/uapi/linux/inotify.h


def missing() -> str:
    """Return why this machine cannot be tuned, found by looking, or an empty string."""
    if shutil.which("nft") is None:
        return "not installed: nft"
    if os.geteuid() != 0:
        return f"tuning this machine needs root, this is uid {os.geteuid()}"
    limit = SYSCTLS / "nf_conntrack_max"
    if not limit.exists():
        return "nf_conntrack is not loaded"
    if not os.access(limit, os.W_OK):
        return f"{limit} cannot be written: not in the initial network namespace, or mounted read-only"
    return ""


def sysctls() -> dict[str, int]:
    """Return every conntrack sysctl of this machine that can be written, by its file's name."""
    found = {}
    for path in sorted(SYSCTLS.glob("nf_conntrack_*"), key=lambda path: path.name not in FIRST):
        if path.stat().st_mode & 0o200:
            with contextlib.suppress(ValueError):
                found[path.name] = int(path.read_text())
    return found


def write_whole(path: Path, text: str) -> None:
    """Write a file that a killed run leaves as it was, or whole: the next one must be able to read it."""
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(text)
    unfinished.rename(path)


class Host(Namespace):
    """The network namespace this machine lives in. `originals` are the sysctls as they were."""

    def __init__(self) -> None:
        super().__init__("")
        self.originals: dict[str, int] = {}

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """Stay where we are."""
        yield

    def __enter__(self) -> Self:
        """Take the lock, waiting for whoever has it, and note how the machine is."""
        may_tune_the_machine()
        # In this order: a test of this run that holds its turn may take the machine's lock too.
        self._turn = Turn(alone=True)
        self._lock = LOCK.open("a")
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        if NOTED.exists():
            self.originals = json.loads(NOTED.read_text())
            self._put_back()
        assert self.table() is None, f"table {' '.join(TABLE)} is there already: is an operator at work here?"
        self.originals = sysctls()
        write_whole(NOTED, json.dumps(self.originals))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Put everything back, and let others in."""
        self.stop()
        try:
            self._put_back()
        finally:
            self._lock.close()
            self._turn.end()

    def _put_back(self) -> None:
        if self.table() is not None:
            self.run("nft", "delete", "table", *TABLE)
        for name in [*FIRST, *self.originals]:
            if sysctls()[name] != self.originals[name]:
                (SYSCTLS / name).write_text(f"{self.originals[name]}\n")
        left = {name: value for name, value in sysctls().items() if value != self.originals[name]}
        assert not left, f"could not be put back: {left}"
        NOTED.unlink()

    def shrink(self, entries: int) -> None:
        """Make the table small, so that what a test asks for is a change on a machine of any size."""
        in_use = self.value("nf_conntrack_count")
        assert in_use < entries // 2, f"{in_use} entries are in use on this machine: too busy to be tuned by a test"
        for name in reversed(FIRST):
            (SYSCTLS / name).write_text(f"{entries}\n")

    def value(self, name: str) -> int:
        """Return one conntrack sysctl by its file's name."""
        return int((SYSCTLS / name).read_text())

    def table(self) -> str | None:
        """Return our nftables table as nft prints it, None when there is none."""
        done = self.run("nft", "list", "table", *TABLE, check=False)
        return done.stdout if done.returncode == 0 else None


class Writes:
    """Counts writes to the conntrack sysctls and to nftables in this network namespace, whoever makes them.

    Those to sysctls are seen of one mount of /proc, that of `sysctls`: each has files of its own. Those to nftables are
    all that the kernel took since it was entered and until `seen`, however late `nft monitor` prints them: it is waited
    for until it tells of an empty table that is made, and gone, at these moments.
    """

    def __init__(self, sysctls: Path = SYSCTLS) -> None:
        self._sysctls = sysctls
        self._printed, self._marks = "", 0

    def __enter__(self) -> Self:
        """Begin to listen."""
        libc = ctypes.CDLL(None, use_errno=True)
        self._inotify = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        self._names = {}
        for path in self._sysctls.glob("nf_conntrack_*"):
            self._names[libc.inotify_add_watch(self._inotify, os.fsencode(path), IN_MODIFY)] = path.name
        assert min(self._names) > 0, os.strerror(ctypes.get_errno())
        self._monitor = subprocess.Popen(["nft", "monitor"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        assert self._monitor.stdout
        os.set_blocking(self._monitor.stdout.fileno(), False)
        try:
            wait_until(self._is_listening, 60, "nft monitor listens", every=0.02)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop listening."""
        os.close(self._inotify)
        self._monitor.kill()
        self._monitor.communicate()

    def seen(self) -> list[str]:
        """Return what was written since the last call: names of sysctls, and lines of `nft monitor`."""
        found = []
        with contextlib.suppress(BlockingIOError):
            events = os.read(self._inotify, 1 << 20)
            while events:
                watch, _, _, length = struct.unpack_from("=iIII", events)
                found.append(self._names[watch])
                events = events[16 + length :]
        mark = self._mark()
        wait_until(lambda: self._has_printed(mark), 60, "nft monitor has printed what was written", every=0.02)
        return found + self._taken_up_to(mark)

    def _is_listening(self) -> bool:
        """Make a mark, of which nothing is told while nobody listens; tell whether it was told, and forget it."""
        mark = self._mark()
        with contextlib.suppress(TimeoutError):
            wait_until(lambda: self._has_printed(mark), 0.5, "a mark", every=0.02)
            self._taken_up_to(mark)
            return True
        return False

    def _mark(self) -> re.Pattern[str]:
        """Make a table and delete it in one transaction; return what nft monitor says of that in the end."""
        self._marks += 1
        name = f"ctlab_mark_{os.getpid()}_{self._marks}"
        text = f"add table ip {name}; delete table ip {name}\n"
        subprocess.run(["nft", "-f", "-"], input=text, text=True, check=True, capture_output=True)
        told = rf"^add table ip {name}\n.*?^delete table ip {name}\n# new generation [^\n]*\n"
        return re.compile(told, re.MULTILINE | re.DOTALL)

    def _has_printed(self, mark: re.Pattern[str]) -> bool:
        assert self._monitor.stdout
        self._printed += (self._monitor.stdout.read() or b"").decode()
        return mark.search(self._printed) is not None

    def _taken_up_to(self, mark: re.Pattern[str]) -> list[str]:
        found = mark.search(self._printed)
        assert found
        before, self._printed = self._printed[: found.start()], self._printed[found.end() :]
        return before.splitlines()
