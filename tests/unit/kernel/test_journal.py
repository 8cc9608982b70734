"""The state directory: whole files or none, one holder, and nothing believed of another boot."""

import fcntl
import os
import stat
import subprocess
import threading
from types import SimpleNamespace

import pytest

from conntrack_operator.errors import Refused, Retry, Unsupported
from conntrack_operator.kernel import journal
from conntrack_operator.kernel.journal import StateDirectory
from conntrack_operator.kernel.roots import Roots
from conntrack_operator.model.journal import Confirmed, Journal, Original
from conntrack_operator.model.policy import Settings

JOURNAL = Journal(boot_id="boot", originals={"net.netfilter.nf_conntrack_max": Original(value=1, ours=[2])})


@pytest.fixture
def roots(tmp_path):
    """Return roots whose state directory does not exist yet."""
    return Roots(state=tmp_path / "deep" / "state")


def test_round_trip(roots):
    """What is written is read back, and directory and files are for root alone."""
    with StateDirectory(roots) as state:
        assert state.read_journal("boot") == Journal(boot_id="boot")
        assert state.read_confirmed() is None
        state.write_journal(JOURNAL)
        confirmed = Confirmed(revision="r", settings=Settings.model_validate({"timeouts": {"icmp": "30s"}}))
        state.write_confirmed(confirmed)
        assert state.read_journal("boot") == JOURNAL
        assert state.read_confirmed() == confirmed
        state.write_confirmed(None)
        state.write_confirmed(None)
        assert state.read_confirmed() is None
    assert stat.S_IMODE(roots.state.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in roots.state.iterdir()} == {0o600}


def test_another_boot(roots):
    """Originals of another boot say nothing about today's values."""
    with StateDirectory(roots) as state:
        state.write_journal(JOURNAL)
        assert state.read_journal("next boot") == Journal(boot_id="next boot")


def test_one_holder(roots, monkeypatch):
    """A second agent is told who is there, and the first is not disturbed."""
    monkeypatch.setattr("conntrack_operator.kernel.journal.LOCK_SECONDS", 0.1)
    with StateDirectory(roots), pytest.raises(Retry, match="another conntrack-operator is at work"):
        StateDirectory(roots).__enter__()
    with StateDirectory(roots) as state:
        state.write_journal(JOURNAL)


def test_lock_outlives_the_holder(roots, monkeypatch):
    """What a killed agent began keeps the lock until it has ended, and the next agent waits that long."""
    monkeypatch.setattr(journal, "LOCK_SECONDS", 60)
    entered = threading.Event()

    def enter():
        with StateDirectory(roots):
            entered.set()

    with StateDirectory(roots):
        child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, close_fds=False)
    following = threading.Thread(target=enter)
    following.start()
    waited = not entered.wait(0.3)
    child.communicate()  # it ends with its input
    assert entered.wait(60)
    following.join()
    assert waited


def test_a_long_sleep_is_no_other_agent(roots, monkeypatch):
    """Patience that ran out while this process was stopped: the lock is tried once more."""
    now, tries = [0.0], []
    real = fcntl.flock

    def stopped(descriptor, how):
        tries.append(how)
        if len(tries) == 1:
            now[0] += 100
            raise BlockingIOError
        real(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", stopped)
    monkeypatch.setattr(journal, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=lambda _: None))
    with StateDirectory(roots):
        assert len(tries) == 2


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b'{"version": 9, "bootID": "x"}', b"[]", b'{"version":1}'])
def test_damaged_journal(roots, content):
    """A journal that cannot be trusted stops everything and says which file it is; it is not overwritten."""
    roots.state.mkdir(parents=True)
    path = roots.state / "journal.json"
    path.write_bytes(content)
    with StateDirectory(roots) as state, pytest.raises(Refused, match=r"journal\.json is damaged") as raised:
        state.read_journal("boot")
    assert raised.value.reason == "JournalUnreadable"
    assert path.read_bytes() == content


def test_unchanged_is_not_written(roots):
    """The same content leaves the same file."""
    with StateDirectory(roots) as state:
        state.write_journal(JOURNAL)
        before = (roots.state / "journal.json").stat()
        state.write_journal(JOURNAL)
        after = (roots.state / "journal.json").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def test_killed_while_writing(roots, monkeypatch):
    """A write that ends before the rename leaves the old journal whole."""
    with StateDirectory(roots) as state:
        state.write_journal(JOURNAL)

        def killed(_fd):
            raise KeyboardInterrupt

        monkeypatch.setattr(os, "fsync", killed)
        with pytest.raises(KeyboardInterrupt):
            state.write_journal(Journal(boot_id="boot"))
        monkeypatch.undo()
        assert state.read_journal("boot") == JOURNAL


def test_state_directory_is_a_file(tmp_path):
    """One sentence with the remedy, no traceback."""
    (tmp_path / "state").write_text("")
    with pytest.raises(Unsupported, match="--state-dir"):
        StateDirectory(Roots(state=tmp_path / "state")).__enter__()
