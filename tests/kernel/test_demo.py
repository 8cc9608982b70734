"""The demo on this machine's kernel: it tells the truth, in time, and leaves nothing behind, however it ends."""

import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest
from tests.lab.command import PROGRAM, assert_one_sentence, conntrack_operator
from tests.lab.host import Host, missing, sysctls

from conntrack_operator.cli.demo.host import ROOM

pytestmark = pytest.mark.tunes_this_machine

LIMIT = 65_536
"""Of a demo that fills what is there."""
COLLECTED = 257
"""Entries that the kernel's collector throws out of a table that dropped packets, once a minute or so (Linux 6.18)."""
PROBES_ENTRIES = 3
"""At most so many of the probes' own connections are in the table at the end."""
FEW = 20_000
"""Entries of a demo that must lower this machine's limit."""


@pytest.fixture
def host() -> Iterator[Host]:
    """Give this machine, locked: its limit is part of the story, and must not change meanwhile."""
    if reason := missing():
        pytest.skip(reason)
    with Host() as host:
        # Namespaces of earlier tests are taken down by the kernel in its own time.
        wait_until(lambda: entries_of_all_namespaces() * ROOM < FEW)
        yield host


class Demo:
    """A demo with few entries, as a process. `namespaces` are those its packets were seen in."""

    def __init__(self, state: Path, *options: object) -> None:
        self.namespaces: set[str] = set()
        command = [*PROGRAM, "demo", "--state-dir", str(state), *map(str, options)]
        # A killed demo leaves its temporary folder behind; let that be ours.
        env = os.environ | {"TMPDIR": str(state.parent)}
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)

    def __enter__(self) -> Self:
        """Wait until its name server is at work."""
        wait_until(lambda: self._note_namespaces() or self.process.poll() is not None)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """End it, whatever the test came to."""
        self.process.kill()
        self.process.communicate()

    def end(self) -> tuple[int, str, str]:
        """Wait until it has ended; return its exit code and what it said."""
        out, errors = self.process.communicate(timeout=300)
        return self.process.returncode, out, errors

    def is_gone(self) -> bool:
        """Tell whether no process is left in its namespaces."""
        return not any(namespace in self.namespaces for _, namespace in processes())

    def _note_namespaces(self) -> bool:
        home = str(Path("/proc/self/ns/net").readlink())
        self.namespaces |= {
            namespace for parent, namespace in processes() if parent == self.process.pid and namespace != home
        }
        return bool(self.namespaces)


def processes() -> Iterator[tuple[int, str]]:
    """Yield every process by its parent's id and its network namespace."""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError):
            parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
            yield parent, str((process / "ns/net").readlink())


def entries_of_all_namespaces() -> int:
    """Return how many entries the machine has in all."""
    line = re.search(r"^nf_conntrack +(\d+) ", Path("/proc/slabinfo").read_text(), re.MULTILINE)
    return int(line[1]) if line else 0


def wait_until(holds: Callable[[], bool], seconds: float = 60) -> None:
    """Wait until `holds()`, or fail."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.05)


def limit() -> int:
    """Return the limit this machine has now."""
    return sysctls()["nf_conntrack_max"]


def numbers_of(row: str, text: str) -> list[int]:
    """Return the numbers in the last page's row that begins with `row`."""
    line = next(line for line in text.splitlines() if line.strip().startswith(row))
    return [int(number.replace(",", "")) for number in re.findall(r"[\d,]+", line.split(row)[1])]


def entries_in(text: str) -> list[int]:
    """Return the entries before and after; the probes' own connections are among them, and left out here."""
    before, after = numbers_of("entries in the table", text)
    assert after <= 200 + PROBES_ENTRIES
    return [before, min(after, 200)]


def assert_trials_told(text: str, entries: int) -> None:
    """Nothing fresh before the policy, all of it after; what does harm is refused, and undone when forced."""
    words = " ".join(text.split())
    assert "Asked before, DNS 198.19.0.2 and 198.19.0.2:8080 did not answer: the table is full." in words
    assert "DNS of a client that has an entry did, and must go on answering" in words
    confirmed = re.search(r"Confirmed after ([\d.]+) s", words)
    assert confirmed
    assert 1 <= float(confirmed[1]) < 60
    deleted = re.search(r"Then ([\d,]+) entries were deleted", words)
    assert deleted
    assert entries - PROBES_ENTRIES <= int(deleted[1].replace(",", "")) <= entries
    assert "Asked now, 3 of 3 answer" in words
    assert "refused notrack/web NATConflict port 80/TCP is translated by nftables ip demo_nat prerouting" in words
    assert "rolled back ProbeFailed 198.19.0.2:80 answered before the change and did not" in words
    back = re.search(r"Back after ([\d.]+) s, with nobody's help: 4 of 4 answer again", words)
    assert back
    assert float(back[1]) < 10
    assert "It did not come out as it should" not in words


def test_the_demo_tells_the_truth_and_leaves_nothing(host: Host, tmp_path: Path) -> None:
    """Up to the limit that is there: connections fail before and none after, in under 60 s, all as it was."""
    host.shrink(LIMIT)  # a busy machine fills this in time, too
    originals = sysctls()
    began = time.monotonic()
    with Demo(tmp_path / "state") as demo:
        code, text, errors = demo.end()
    assert time.monotonic() - began < 60
    assert (code, errors) == (0, ""), text
    came, *connections = numbers_of("new TCP connections to port 8080", text)
    answered, *queries = numbers_of("queries of new clients answered", text)
    assert (connections, queries) == ([200, 200, 200], [20_000, 20_000, 20_000])
    assert came + answered <= COLLECTED
    before, after = numbers_of("packets dropped: table full", text)
    assert before >= 20_000 + 200 - came - answered
    assert after == 0
    assert entries_in(text) == [LIMIT, 200]
    assert numbers_of("packets that bypassed the table", text)[1] > LIMIT
    assert "198.18.0.7" in text
    assert_trials_told(text, LIMIT)
    assert "none differs" in text
    assert sysctls() == originals
    assert demo.namespaces
    assert demo.is_gone()
    assert not (tmp_path / "state").exists(), "the limit was fine, so nothing had to be remembered"
    assert host.table() is None


def test_a_limit_too_high_is_lowered_and_put_back(host: Host, tmp_path: Path) -> None:
    """It is said, it is true while it lasts, and it is over when the demo is."""
    with Demo(tmp_path / "state", "--entries", FEW) as demo:
        wait_until(lambda: limit() == FEW)
        code, text, errors = demo.end()
    assert (code, errors) == (0, ""), text
    assert f"limit is {host.originals['nf_conntrack_max']:,}" in text
    assert entries_in(text) == [FEW, 200]
    assert sysctls() == host.originals
    assert not (tmp_path / "state" / "demo").exists()


@pytest.mark.parametrize(("number", "expected"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_leaves_nothing(host: Host, tmp_path: Path, number: signal.Signals, expected: int) -> None:
    """Ctrl-C, SIGTERM, a closed terminal: no traceback, the limit back, no namespace, no folder."""
    with Demo(tmp_path / "state", "--entries", FEW) as demo:
        wait_until(lambda: limit() == FEW)
        demo.process.send_signal(number)
        code, _, errors = demo.end()
    assert (code, errors) == (expected, "")
    assert sysctls() == host.originals
    assert not (tmp_path / "state" / "demo").exists()
    assert not list(tmp_path.glob("conntrack-operator-demo-*"))
    wait_until(demo.is_gone)


def test_the_next_demo_repairs_what_a_kill_left(host: Host, tmp_path: Path) -> None:
    """Nothing can be done after kill -9: the namespaces go by themselves, the limit by the next demo."""
    with Demo(tmp_path / "state", "--entries", FEW) as demo:
        wait_until(lambda: limit() == FEW)
        demo.process.kill()
        demo.end()
    assert limit() == FEW
    wait_until(demo.is_gone)
    wait_until(lambda: entries_of_all_namespaces() * ROOM < FEW)
    with Demo(tmp_path / "state", "--entries", FEW) as demo:
        code, text, _ = demo.end()
    assert code == 0, text
    assert f"the limit of this machine is {host.originals['nf_conntrack_max']:,} again" in text
    assert sysctls() == host.originals


def test_an_agent_at_work_is_not_fought(host: Host, tmp_path: Path) -> None:
    """Whoever holds the node's lock would raise the limit again: the demo does not begin."""
    lock = ["flock", str(tmp_path / "lock"), *PROGRAM, "demo", "--entries", str(FEW), "--state-dir", str(tmp_path)]
    done = subprocess.run(lock, capture_output=True, text=True, check=False, timeout=60)
    assert_one_sentence(done, "another conntrack-operator is at work")
    assert sysctls() == host.originals


def test_without_root() -> None:
    """One sentence."""
    assert_one_sentence(conntrack_operator("demo", wrapper=("unshare", "--user")), "demo", "root", "sudo")


def test_without_nft(tmp_path: Path) -> None:
    """One sentence that names the program and its package."""
    for program in ("ip", "env"):
        (tmp_path / program).symlink_to(f"/usr/bin/{program}")
    done = conntrack_operator("demo", wrapper=("env", f"PATH={tmp_path}"))
    assert_one_sentence(done, "nft is not installed", "nftables")
