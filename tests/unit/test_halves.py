"""The processes of `make test`: neither can disturb the other, and together they run and tell what one would."""

import fcntl
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from tests.lab import side_by_side
from tests.lab.halves import FOLDER_WITHOUT_SIZES, FOLDERS_BESIDE, ROOT, Turn
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
    try:
        place.write_text("at work")
        time.sleep(600)
    finally:
        place.unlink(missing_ok=True)
"""
SHARES = """
import os, pathlib, time

def test_one():
    # Each of the two comes to its first module before either goes on.
    place = pathlib.Path(os.environ["PLACE"])
    (place / f"begun-{os.getpid()}").touch()
    deadline = time.monotonic() + 60
    while len(list(place.glob("begun-*"))) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)

def test_NAME():
    pass
"""
RUNNER = (
    "import sys; from pathlib import Path; from tests.lab.side_by_side import pytest_command as c, run, SHARING as S;"
)
OWN = ("machine", "beside")


def test_nothing_in_this_folder_touches_the_kernel() -> None:
    """Also in a run of everything in one process, where the kernel would let it."""
    with pytest.raises(AssertionError, match="move it to tests/kernel"):
        Lab().namespace()
    with pytest.raises(AssertionError, match=r"pytest\.mark\.tunes_this_machine"):
        Host().__enter__()


def test_the_folders_beside_are_there() -> None:
    """A folder that is renamed would make its tests wait for others, unseen."""
    assert all(list((ROOT / folder).rglob("test_*.py")) for folder in (*FOLDERS_BESIDE, FOLDER_WITHOUT_SIZES))


@pytest.fixture
def own_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have locks that nobody else holds."""
    monkeypatch.setattr("tests.lab.halves.run_folder", tmp_path)


@pytest.mark.usefixtures("own_locks")
def test_who_tunes_the_machine_is_alone_and_does_not_wait_for_ever(tmp_path: Path) -> None:
    """Two share; who wants to be alone waits for both, and who comes after that waits behind it."""
    order: list[str] = []

    def take(name: str, *, alone: bool) -> threading.Thread:
        def work() -> None:
            turn = Turn(alone=alone)
            order.append(name)
            time.sleep(0.2)
            order.append(f"{name} ends")
            turn.end()

        thread = threading.Thread(target=work)
        thread.start()
        return thread

    def has_its_turn() -> bool:
        with (tmp_path / "turn").open("a") as turn:
            try:
                fcntl.flock(turn, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    one, two = Turn(alone=False), Turn(alone=False)
    alone = take("alone", alone=True)
    wait_until(has_its_turn, 60, "it waits for the two")
    late = take("late", alone=False)
    one.end()
    time.sleep(0.2)
    assert order == []
    two.end()
    for thread in (alone, late):
        thread.join(60)
    assert order == ["alone", "alone ends", "late", "late ends"]


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


def run_both(tmp_path: Path, *folders: str, **texts: str) -> "subprocess.Popen[str]":
    """Start the runner on one file of tests for each name, or on these folders, shared."""
    for name, text in texts.items():
        (tmp_path / f"test_{name}.py").write_text(text.replace("NAME", name))
    options = (
        f"'-p', 'no:cacheprovider', '--import-mode=importlib', '-c', {os.devnull!r}, '--rootdir', {str(tmp_path)!r}"
    )
    halves = ", ".join(f"{name!r}: c({options}, {str(tmp_path / f'test_{name}.py')!r})" for name in texts)
    share = f"'--share', {str(tmp_path)!r}"
    halves += ", ".join(f"{own!r}: c({options}, *S, '--own', {own!r}, {share}, *{folders!r})" for own in OWN if folders)
    return subprocess.Popen(
        [sys.executable, "-c", f"{RUNNER} sys.exit(run({{{halves}}}, Path({str(tmp_path)!r})))"],
        cwd=ROOT, env=os.environ | {"PLACE": str(tmp_path), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def test_what_is_shared_is_run_once(tmp_path: Path) -> None:
    """Each module is run by one of the two, all of them by both together, also where folders have the same name."""
    for folder in ("a", "b", "b/a"):
        (tmp_path / folder).mkdir()
        for number in range(4):
            text = SHARES.replace("NAME", f"{folder[-1]}{number}")
            (tmp_path / folder / f"test_{number}.py").write_text(text)
    process = run_both(tmp_path, str(tmp_path / "a"), str(tmp_path / "b"))
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0, out
    first, second, total = out.splitlines()[-3:]
    assert " 24 passed in" in total
    counts = [int(re.search(r": (\d+) passed", line)[1]) for line in (first, second)]  # type: ignore[index]
    assert sum(counts) == 24
    assert min(counts) >= 2, "one did all the work"


def test_what_nobody_ran_fails_the_run(tmp_path: Path) -> None:
    """Were a test claimed by a process that never came to it, the run would say so."""
    (tmp_path / "test_lost.py").write_text(PASSES)
    (tmp_path / "test_found.py").write_text(PASSES)
    (tmp_path / "-".join((tmp_path / "test_lost.py").parts[1:])).touch()
    process = run_both(tmp_path, str(tmp_path))
    out, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "FAILED: not run, or run twice: test_lost.py::test_it" in out


def test_both_are_told_as_one(tmp_path: Path) -> None:
    """Failures stay in one piece, the closing lines of both and their sum come last, one failure fails the run."""
    process = run_both(tmp_path, good=PASSES + SKIPS, bad=FAILS + PASSES)
    out, _ = process.communicate(timeout=120)
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
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 5, out
    assert "empty: ended without a result, exit code 5" in out
    assert "crash: ended without a result, exit code 3" in out
    assert "= 1 passed in" in out.splitlines()[-1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_both_end_when_the_run_is_ended(tmp_path: Path, number: signal.Signals) -> None:
    """A signal ends both in order: what tests clean up is cleaned up. Killed, the run takes its halves along."""
    process = run_both(tmp_path, one=WAITS, two=WAITS)
    try:
        wait_until(lambda: (tmp_path / "one").exists() and (tmp_path / "two").exists(), 120, "both are at work")
        process.send_signal(number)
        out, _ = process.communicate(timeout=120)
        wait_until(lambda: not list(tmp_path.glob("[ot][nw][eo]")), 60, "both have cleaned up")
    finally:
        process.kill()
        process.communicate()
    if number != signal.SIGKILL:
        assert process.returncode == side_by_side.INTERRUPTED
        assert out.count("KeyboardInterrupt") >= 2
