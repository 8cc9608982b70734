"""The two halves of the suite: neither can disturb the other, and together they tell what one run would."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.lab import side_by_side
from tests.lab.halves import BESIDE, ROOT
from tests.lab.host import Host
from tests.lab.namespaces import Lab
from tests.lab.programs import wait_until

PASSES = "def test_it():\n    pass\n"
FAILS = "def test_other():\n    assert 1 == 2, 'this is why'\n"
SKIPS = "import pytest\n\ndef test_third():\n    pytest.skip('no such thing here')\n"
WAITS = """
import os, pathlib, time

def test_wait(tmp_path):
    place = pathlib.Path(os.environ["PLACE"]) / "NAME"
    place.write_text("at work")
    try:
        time.sleep(60)
    finally:
        place.unlink()
"""
RUNNER = "import sys; from tests.lab.side_by_side import pytest_command as c, run;"


def test_nothing_in_this_half_touches_the_kernel() -> None:
    """Also in a run of everything in one process, where the kernel would let it."""
    for touch in (lambda: Lab().namespace(), lambda: Host().__enter__()):
        with pytest.raises(AssertionError, match="move it to tests/kernel"):
            touch()


def test_every_test_is_in_one_half() -> None:
    """The folders beside exist, so that none is left out by a slip of the pen; all others are the other half's."""
    assert all(list((ROOT / folder).rglob("test_*.py")) for folder in BESIDE)


def test_the_namespace_around_this_half_has_a_loopback_alone(tmp_path: Path) -> None:
    """What runs there finds loopback up, no other interface, and sizes of the table that nobody can write."""
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    script = (
        "import pathlib, socket; s = socket.create_server(('127.0.0.1', 0)); socket.create_connection(s.getsockname());"
        "size = pathlib.Path('/proc/sys/net/netfilter/nf_conntrack_max');"
        "print([name for _, name in socket.if_nameindex()], size.exists() and oct(size.stat().st_mode)[-3:])"
    )
    done = subprocess.run(
        side_by_side.in_a_namespace([sys.executable, "-W", "ignore", "-c", script]),
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    names, _, mode = done.stdout.partition("] ")
    assert "'lo'" in names
    assert not re.search(r"eth|ens|veth", names)
    assert mode.strip() in {"444", "False"}


def run_both(tmp_path: Path, **texts: str) -> "subprocess.Popen[str]":
    """Start the runner on one file of tests for each name."""
    for name, text in texts.items():
        (tmp_path / f"test_{name}.py").write_text(text.replace("NAME", name))
    command = f"c('-p', 'no:cacheprovider', '-c', {os.devnull!r}, '--rootdir', {str(tmp_path)!r}, "
    halves = ", ".join(f"{name!r}: {command}{str(tmp_path / f'test_{name}.py')!r})" for name in texts)
    return subprocess.Popen(
        [sys.executable, "-c", f"{RUNNER} sys.exit(run({{{halves}}}))"],
        cwd=ROOT, env=os.environ | {"PLACE": str(tmp_path)},
        text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def test_both_are_told_as_one(tmp_path: Path) -> None:
    """Failures stay in one piece, the closing lines of both and their sum come last, one failure fails the run."""
    process = run_both(tmp_path, good=PASSES + SKIPS, bad=FAILS + PASSES)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 1, out
    first, second, total = out.splitlines()[-3:]
    assert re.fullmatch(r"good: 1 passed, 1 skipped in [\d.]+s", first)
    assert re.fullmatch(r"bad: 1 failed, 1 passed in [\d.]+s", second)
    assert re.fullmatch(r"=+ 1 failed, 2 passed, 1 skipped in [\d.]+s =+", total)
    failure = out[out.index("= FAILURES =") : out.index("= short test summary info =", out.index("= FAILURES ="))]
    assert "this is why" in failure
    assert "test_good" not in failure


def test_a_half_without_a_result_fails_the_run(tmp_path: Path) -> None:
    """Tests that cannot be collected, none at all, a crash: never a pass."""
    process = run_both(tmp_path, good=PASSES, empty="", crash="import os\nos._exit(3)\n")
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 5, out
    assert "empty: ended without a result, exit code 5" in out
    assert "crash: ended without a result, exit code 3" in out
    assert "= 1 passed in" in out.splitlines()[-1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_both_end_when_the_run_is_ended(tmp_path: Path, number: signal.Signals) -> None:
    """A signal ends both in order: what tests clean up is cleaned up. Killed, the run takes its halves along."""
    process = run_both(tmp_path, one=WAITS, two=WAITS)
    try:
        wait_until(lambda: (tmp_path / "one").exists() and (tmp_path / "two").exists(), 30, "both are at work")
        process.send_signal(number)
        out, _ = process.communicate(timeout=30)
        wait_until(lambda: not list(tmp_path.glob("[ot][nw][eo]")), 30, "both have cleaned up")
    finally:
        process.kill()
        process.communicate()
    if number != signal.SIGKILL:
        assert process.returncode == side_by_side.INTERRUPTED
        assert out.count("KeyboardInterrupt") >= 2
