"""nft, run as a program: our own table is read, replaced and removed, and nothing else is ever named.

Never an unscoped list or flush: other tables are other people's, and large. Scripts come from `decide.notrack` and
go in by standard input; the arguments are constants.
"""

import json
import os
import subprocess
from collections.abc import Mapping
from typing import Any

from conntrack_operator.decide.notrack import TABLE, Bypassed, bypassed_from
from conntrack_operator.errors import Retry, Unsupported

TIMEOUT_SECONDS = 30

_NOT_PERMITTED = ("Operation not permitted", "you must be root", "Permission denied")
_PASSING = ("Device or resource busy", "Resource temporarily unavailable", "Interrupted system call", "No buffer space")


def read_table() -> dict[str, Any] | None:
    """Return what `nft -j list table` prints of our table, or None when there is none.

    Raises Unsupported when nft is not installed, may not look or knows no JSON, Retry when it fails this time.
    """
    done = _nft("-j", "list", "table", "inet", TABLE)
    if done.returncode == 0:
        try:
            listing: dict[str, Any] = json.loads(done.stdout)
        except ValueError as error:
            raise Retry("nft printed a listing of our table that is no JSON; it will be read again") from error
        return listing
    if "No such file or directory" in done.stderr:
        return None
    raise _error_of("list the table", done)


def run_script(text: str) -> None:
    """Carry out an nft script in one transaction: all of it or nothing.

    Raises Unsupported when nft is not installed or not permitted, or this kernel refuses the script; Retry when
    another try may do.
    """
    done = _nft("-f", "-", text=text)
    if done.returncode != 0:
        raise _error_of("load the rules", done)


def read_bypassed() -> tuple[Bypassed, ...]:
    """Return what each of our rules has let by untracked since it was loaded; nothing when there is no table."""
    listing = read_table()
    return bypassed_from(listing) if listing is not None else ()


def _nft(*arguments: str, text: str = "") -> "subprocess.CompletedProcess[str]":
    try:
        return subprocess.run(
            ["nft", *arguments],  # noqa: S607  where nft lies differs between distributions
            input=text,
            capture_output=True,
            text=True,
            check=False,
            timeout=TIMEOUT_SECONDS,
            # It inherits the node's lock (kernel.journal): when we are killed, nobody else begins before nft has ended.
            close_fds=False,
            env=_in_english(os.environ),
        )
    except FileNotFoundError as error:
        raise Unsupported("nft is not installed; install the nftables package to use notrack rules") from error
    except PermissionError as error:
        raise Unsupported("nft may not be run by this user; run as root or with NET_ADMIN") from error
    except subprocess.TimeoutExpired as error:
        raise Retry(f"nft did not finish within {TIMEOUT_SECONDS} s; it will be tried again") from error


def _in_english(environment: Mapping[str, str]) -> dict[str, str]:
    # Messages are matched below, and a translated one would match nothing.
    return {**environment, "LANG": "C", "LC_ALL": "C"}


def _error_of(what: str, done: "subprocess.CompletedProcess[str]") -> Retry | Unsupported:
    if done.returncode < 0:
        # Tried: 1.0.6 ends by SIGSEGV on sets that 1.1.3 wrote, whoever's they are (kubernetes #136786).
        return Unsupported(
            f"nft crashed (signal {-done.returncode}) when it was to {what}: a newer nft may have written sets that"
            " this one cannot read; use the same version as the host's other programs"
        )
    complaint = done.stderr
    said = _first_sentence(complaint)
    if any(words in complaint for words in _NOT_PERMITTED):
        return Unsupported(f"nft may not {what}: {said}; run as root or with NET_ADMIN")
    if any(words in complaint for words in _PASSING):
        return Retry(f"nft could not {what} this time: {said}")
    return Unsupported(f"nft cannot {what} on this kernel: {said}; check that nf_tables, nft_ct and nft_fib are there")


def _first_sentence(complaint: str) -> str:
    lines = [line.strip() for line in complaint.splitlines() if line.strip()]
    told = next((line for line in lines if "Error:" in line), lines[0] if lines else "it gave no reason")
    return told.partition("Error: ")[2] or told
