"""What becomes of nft's answers: a listing, absence, or an error named for what to do about it.

The nft here is a stand-in that prints what the real one was seen to print; the real one is in tests/kernel.
"""

import contextlib
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from conntrack_operator.errors import ConntrackOperatorError, Retry, Unsupported
from conntrack_operator.kernel import nftables


@pytest.fixture
def nft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give the path of a program that is found as nft; write a shell script there."""
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    program = tmp_path / "nft"
    program.write_text("#!/bin/sh\nexit 0\n")
    program.chmod(0o755)
    return program


COMPLAINTS = (
    ("Error: Could not process rule: Operation not permitted", Unsupported, "NET_ADMIN"),
    ("Operation not permitted (you must be root)", Unsupported, "NET_ADMIN"),
    ("netlink: Error: cache initialization failed: Operation not permitted", Unsupported, "NET_ADMIN"),
    ("Error: Could not process rule: Device or resource busy", Retry, "Device or resource busy"),
    ("/dev/stdin:1:1-5: Error: Could not process rule: Operation not supported", Unsupported, "nft_fib"),
    ("Error: JSON support not compiled-in", Unsupported, "JSON support"),
    ("", Unsupported, "gave no reason"),
)


@pytest.mark.parametrize(("complaint", "kind", "words"), COMPLAINTS)
def test_complaints_become_one_sentence(
    nft: Path, complaint: str, kind: type[ConntrackOperatorError], words: str
) -> None:
    """Each failure is the error a caller can act on, in one line."""
    nft.write_text(f"#!/bin/sh\ncat >/dev/null\necho '{complaint}' >&2\nexit 1\n")
    for call in (nftables.read_table, lambda: nftables.run_script("add table inet x\n")):
        with pytest.raises(kind, match=words) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_no_table_is_a_value(nft: Path) -> None:
    """nft fails for a table that is not there; that is no error of ours."""
    nft.write_text("#!/bin/sh\necho 'Error: No such file or directory' >&2\nexit 1\n")
    assert nftables.read_table() is None
    assert nftables.read_bypassed() == ()


def test_a_missing_part_of_the_kernel_is_no_missing_table(nft: Path) -> None:
    """The same words while loading mean that the kernel lacks an expression."""
    nft.write_text("#!/bin/sh\ncat >/dev/null\necho 'Error: No such file or directory' >&2\nexit 1\n")
    with pytest.raises(Unsupported, match="nft_ct"):
        nftables.run_script("add table inet x\n")


def test_nft_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The remedy names the package."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Unsupported, match="install the nftables package"):
        nftables.read_table()


def test_a_broken_listing_is_read_again(nft: Path) -> None:
    """Half a document is a passing failure."""
    nft.write_text("#!/bin/sh\necho '{\"nftables\": ['\n")
    with pytest.raises(Retry):
        nftables.read_table()


def test_nft_that_hangs_is_given_up(nft: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The agent does not hang with it."""
    nft.write_text("#!/bin/sh\nexec sleep 20\n")
    monkeypatch.setattr(nftables, "TIMEOUT_SECONDS", 0.2)
    with pytest.raises(Retry, match="did not finish"):
        nftables.run_script("")


def test_only_our_table_is_ever_named(nft: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The arguments, and the language in which nft is made to answer."""
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    said = tmp_path / "said"
    nft.write_text(f'#!/bin/sh\necho "$LC_ALL $@ $(cat)" >>{said}\necho "{{}}"\n')
    nftables.read_table()
    nftables.run_script("some text")
    assert said.read_text().splitlines() == ["C -j list table inet conntrack_operator ", "C -f - some text"]


def test_a_crash_is_said(nft: Path) -> None:
    """An nft that cannot read a newer one's sets dies of a signal and says nothing; we say it (kubernetes #136786)."""
    nft.write_text("#!/bin/sh\nkill -SEGV $$\n")
    for call in (nftables.read_table, lambda: nftables.run_script("add table inet x\n")):
        with pytest.raises(Unsupported, match=r"crashed \(signal 11\).*newer nft"):
            call()


@pytest.mark.parametrize(("looks", "works"), [(1, True), (1 << 30, False)], ids=["one look took long", "it never goes"])
def test_a_slow_look_is_no_element_that_stays(monkeypatch: pytest.MonkeyPatch, looks: int, *, works: bool) -> None:
    """That timed elements expire is judged by a look that was begun when they must have, however long one takes."""
    now, left = [0.0], [looks]

    def there(_: str) -> bool:
        now[0] += 10
        left[0] -= 1
        return left[0] >= 0

    monkeypatch.setattr(nftables, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=lambda _: None))
    monkeypatch.setattr(nftables, "_is_there", there)
    monkeypatch.setattr(nftables, "run_script", lambda _: None)
    with contextlib.nullcontext() if works else pytest.raises(Unsupported, match="do not expire"):
        nftables.self_test()
