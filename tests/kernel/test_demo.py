"""The demo on this machine's kernel: it tells the truth, in time, and leaves nothing behind, however it ends."""

import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.lab.command import PROGRAM, assert_one_sentence, conntrack_operator
from tests.lab.host import Host, missing, sysctls

FEW = 20_000
"""Entries of a demo that must lower this machine's limit."""


@pytest.fixture
def host() -> Iterator[Host]:
    """Give this machine, locked: its limit is part of the story, and must not change meanwhile."""
    if reason := missing():
        pytest.skip(reason)
    with Host() as host:
        yield host


def network_namespaces() -> set[str]:
    """Return every network namespace that a process is in, and every one that has a name."""
    found = {f"name:{path.name}" for path in Path("/run/netns").glob("*")}
    for link in Path("/proc").glob("[0-9]*/ns/net"):
        try:
            found.add(str(link.readlink()))
        except OSError:
            continue
    return found


def wait_until(holds: Callable[[], bool], seconds: float = 10) -> None:
    """Wait until `holds()`, or fail."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.05)


def start(state: Path) -> "subprocess.Popen[str]":
    """Start a demo that lowers the limit."""
    command = [*PROGRAM, "demo", "--entries", str(FEW), "--state-dir", str(state)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def limit() -> int:
    """Return the limit this machine has now."""
    return sysctls()["nf_conntrack_max"]


def numbers_of(row: str, text: str) -> list[int]:
    """Return the numbers in the last page's row that begins with `row`."""
    line = next(line for line in text.splitlines() if line.strip().startswith(row))
    return [int(number.replace(",", "")) for number in re.findall(r"[\d,]+", line.split(row)[1])]


def test_the_demo_tells_the_truth_and_leaves_nothing(host: Host, tmp_path: Path) -> None:
    """Up to the limit that is there: connections fail before and none after, in under 60 s, all as it was."""
    namespaces, began = network_namespaces(), time.monotonic()
    done = conntrack_operator("demo", "--state-dir", tmp_path / "state")
    assert time.monotonic() - began < 60
    assert (done.returncode, done.stderr) == (0, "")
    text = done.stdout
    assert numbers_of("new TCP connections to port 8080", text) == [0, 200, 200, 200]
    assert numbers_of("queries of new clients answered", text) == [0, 20_000, 20_000, 20_000]
    before, after = numbers_of("packets dropped: table full", text)
    assert before >= 20_000 + 200
    assert after == 0
    assert numbers_of("entries in the table", text) == [host.originals["nf_conntrack_max"], 200]
    assert numbers_of("packets that bypassed the table", text)[1] > host.originals["nf_conntrack_max"]
    assert "198.18.0.7" in text
    assert "none differs" in text
    assert sysctls() == host.originals
    assert network_namespaces() == namespaces
    assert not (tmp_path / "state").exists(), "the limit was fine, so nothing had to be remembered"
    assert host.table() is None


def test_a_limit_too_high_is_lowered_and_put_back(host: Host, tmp_path: Path) -> None:
    """It is said, it is true while it lasts, and it is over when the demo is."""
    demo = start(tmp_path)
    wait_until(lambda: limit() == FEW)
    out, errors = demo.communicate(timeout=60)
    assert (demo.returncode, errors) == (0, "")
    assert f"limit is {host.originals['nf_conntrack_max']:,}" in out
    assert numbers_of("entries in the table", out) == [FEW, 200]
    assert sysctls() == host.originals
    assert not (tmp_path / "demo").exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_nothing(host: Host, tmp_path: Path, number: signal.Signals, code: int) -> None:
    """Ctrl-C and SIGTERM in the middle of it: no traceback, the limit back, no namespace."""
    namespaces = network_namespaces()
    demo = start(tmp_path)
    wait_until(lambda: limit() == FEW)
    demo.send_signal(number)
    _, errors = demo.communicate(timeout=20)
    assert (demo.returncode, errors) == (code, "")
    assert sysctls() == host.originals
    assert not (tmp_path / "demo").exists()
    wait_until(lambda: network_namespaces() == namespaces)


def test_the_next_demo_repairs_what_a_kill_left(host: Host, tmp_path: Path) -> None:
    """Nothing can be done after kill -9: the namespaces go by themselves, the limit by the next demo."""
    namespaces = network_namespaces()
    demo = start(tmp_path)
    wait_until(lambda: limit() == FEW)
    demo.kill()
    demo.communicate(timeout=20)
    assert limit() == FEW
    wait_until(lambda: network_namespaces() == namespaces)
    demo = start(tmp_path)
    out, _ = demo.communicate(timeout=60)
    assert demo.returncode == 0
    assert f"the limit of this machine is {host.originals['nf_conntrack_max']:,} again" in out
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
