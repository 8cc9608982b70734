"""nft, run as a program: our own table is read, replaced and removed, and nothing else is ever named.

Never an unscoped list or flush: other tables are other people's, and large. Scripts come from `decide.notrack` and
go in by standard input; the arguments are constants.
"""

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from conntrack_operator.decide.intervals import merged, without
from conntrack_operator.decide.notrack import TABLE, Bypassed, Installed, bypassed_from, installed_from, ruleset_for
from conntrack_operator.decide.notrack_exemptions import Exemption, elements_script
from conntrack_operator.errors import Refused, Retry, Unsupported
from conntrack_operator.model.notrack import NotrackRule

from .autoload import NF_TABLES, NotLoaded, about_to_ask
from .exemptions import live_exemptions
from .netlink import BODY, Netlink, attributes

TIMEOUT_SECONDS = 30

ENDED_BY_OTHERS = frozenset({signal.SIGHUP, signal.SIGINT, signal.SIGKILL, signal.SIGTERM})
"""Signals that say nothing about the program they end."""

SCRATCH_TABLE = f"{TABLE}_test"
"""Where `self_test` looks; it is there for a fraction of a second."""

_SCRATCH_SECONDS = 2
_SCRATCH = (
    f"add table inet {SCRATCH_TABLE}\ndelete table inet {SCRATCH_TABLE}\ntable inet {SCRATCH_TABLE} {{\n"
    "\tset timed {\n\t\ttype inet_service\n\t\tflags interval, timeout\n\t\telements = { 80 timeout 100ms }\n\t}\n}\n"
)

# include/uapi/linux/netfilter/nf_tables.h and nfnetlink.h
_NFTABLES = 10  # NFNL_SUBSYS_NFTABLES
_GETGEN = 16  # NFT_MSG_GETGEN
_GEN_ID = 1  # NFTA_GEN_ID

_NOT_INSTALLED = "nft is not installed; install the nftables package to use notrack rules"
_NOT_PERMITTED = ("Operation not permitted", "you must be root", "Permission denied")
_PASSING = ("Device or resource busy", "Resource temporarily unavailable", "Interrupted system call", "No buffer space")


def read_table() -> dict[str, Any] | None:
    """Return what `nft -j list table` prints of our table, or None when there is none, as without nf_tables.

    Raises Unsupported when nft is not installed, may not look or knows no JSON, Retry when it fails this time.
    """
    return _listing("-j")


def _listing(*options: str) -> dict[str, Any] | None:
    try:
        about_to_ask(NF_TABLES)
    except NotLoaded:
        if shutil.which("nft") is None:
            raise Unsupported(_NOT_INSTALLED) from None
        return None
    done = _nft(*options, "list", "table", "inet", TABLE)
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
    listing = _listing("-j", "-t")  # terse: without what the sets hold
    return bypassed_from(listing) if listing is not None else ()


def begin_trial(confirmed: Sequence[NotrackRule], wanted: Sequence[NotrackRule], seconds: float) -> None:
    """Put the table in place for a trial of `wanted` that ends by itself after `seconds`; `confirmed` stays in force.

    One transaction: what somebody changed is repaired and what an earlier trial left is gone by it too. Connections
    that go out from a port of the trial already are exempt. Nothing is tried when both are the same.

    Raises Unsupported and Retry as `run_script` does, Refused for a rule that can match nothing.
    """
    installed = _installed()
    lasting, during = ruleset_for(confirmed), ruleset_for(confirmed, wanted)
    script = lasting.edit(installed)
    ports = lasting.newly_exempting(installed)
    if during != lasting:
        script += during.beginning(seconds)
        ports = merged([*ports, *without(during.exempting_ports, lasting.exempting_ports)])
    if script:
        run_script(script + elements_script(TABLE, live_exemptions(ports)))


def confirm_trial(confirmed: Sequence[NotrackRule], wanted: Sequence[NotrackRule]) -> None:
    """Make the trial of `wanted` last, in one transaction, in which no confirmed port is missing for a moment.

    Raises Refused("TrialExpired") when the trial has ended already: the kernel judges, and nothing is changed then;
    Unsupported and Retry as `run_script` does.
    """
    during = ruleset_for(confirmed, wanted)
    if during.on_trial is None:
        write_rules(wanted)
        return
    installed = _installed()
    result = ruleset_for(wanted)
    for script in (result.edit(installed), result.script()):
        done = _nft("-f", "-", text=during.ending() + script)
        if done.returncode == 0:
            return
        if not during.is_running_in(_installed()):
            raise Refused(
                "TrialExpired",
                "the trial of the notrack rules ended before it was confirmed, and the kernel let them go; nothing was"
                " changed; try again, with a longer trial.timeoutSeconds if the node is slow",
            )
    raise _error_of("confirm the rules", done)


def write_rules(rules: Sequence[NotrackRule]) -> None:
    """Make our table what `rules` ask for, whatever is there; no rules, no table. Nothing is written if that is so.

    In place where it can be: counters and learned exemptions stay. A table that was damaged is replaced in one
    transaction. Raises as `run_script` does.
    """
    installed = _installed()
    ruleset = ruleset_for(rules)
    script = ruleset.edit(installed)
    if not script:
        return
    exempted = elements_script(TABLE, live_exemptions(ruleset.newly_exempting(installed)))
    try:
        run_script(script + exempted)
    except Unsupported:
        # What is listed need not be all there is: foreign hands can be in ways that no edit foresees.
        if script == ruleset.script():
            raise
        run_script(ruleset.script() + elements_script(TABLE, live_exemptions(ruleset.exempting_ports)))


def exempt(exemptions: Iterable[Exemption]) -> None:
    """Let the connections be tracked although a Server rule has their port. Raises as `run_script` does."""
    if script := elements_script(TABLE, exemptions):
        run_script(script)


def learn_existing(rules: Sequence[NotrackRule]) -> int:
    """Exempt the connections that go out from a port of `rules` already, and return how many there are.

    `begin_trial` and `write_rules` do this by themselves for the ports they add. Our table must be there. Raises as
    `run_script` and `live_exemptions` do.
    """
    found = live_exemptions(ruleset_for(rules).exempting_ports)
    exempt(found)
    return len(found)


def _installed() -> Installed | None:
    listing = read_table()
    return installed_from(listing) if listing is not None else None


def generation() -> int:
    """Return the number that changes with every change to any nftables rule of this network namespace.

    Elements that expire or that packets add do not change it. Kernel function nf_tables_getgen, Linux 3.19; 73 µs.
    Raises Unsupported without NET_ADMIN or nf_tables, Retry when the kernel does not answer this time.
    """
    try:
        with Netlink() as netlink:
            for answer in netlink.messages(_GETGEN, subsystem=_NFTABLES):
                for found in attributes(answer, BODY, len(answer)):
                    if found.type == _GEN_ID:
                        return int.from_bytes(answer[found.start : found.end], "big")
    except Unsupported as error:
        raise Unsupported(
            "the kernel does not tell its nftables generation; run as root or with NET_ADMIN, and check that nf_tables"
            " is there"
        ) from error
    raise Retry("the kernel did not tell its nftables generation; ask again")


def self_test() -> None:
    """Prove, in a scratch table that no packet meets, that a timed element expires on this kernel; about 0.2 s.

    Raises Unsupported when it does not within 2 s: trials could not end by themselves here.
    """
    run_script(_SCRATCH)
    try:
        deadline = time.monotonic() + _SCRATCH_SECONDS
        is_late = False  # by the time before a look: nft may take longer than all of it on a busy machine
        while _is_there(f"get element inet {SCRATCH_TABLE} timed {{ 80 }}"):
            if is_late:
                raise Unsupported(
                    "timed elements of nftables sets do not expire on this kernel, so that a trial of notrack rules"
                    " could not end by itself; use a newer kernel, or settings without notrack"
                )
            time.sleep(0.05)
            is_late = time.monotonic() > deadline
    finally:
        run_script(f"delete table inet {SCRATCH_TABLE}\n")


def _is_there(command: str) -> bool:
    done = _nft("-f", "-", text=f"{command}\n")
    if done.returncode == 0:
        return True
    if "No such file or directory" in done.stderr:
        return False
    raise _error_of("look for a set's element", done)


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
        raise Unsupported(_NOT_INSTALLED) from error
    except PermissionError as error:
        raise Unsupported("nft may not be run by this user; run as root or with NET_ADMIN") from error
    except OSError as error:
        raise Retry(f"nft cannot be run this time: {error.strerror}") from error
    except subprocess.TimeoutExpired as error:
        raise Retry(f"nft did not finish within {TIMEOUT_SECONDS} s; it will be tried again") from error


def _in_english(environment: Mapping[str, str]) -> dict[str, str]:
    # Messages are matched below, and a translated one would match nothing.
    return {**environment, "LANG": "C", "LC_ALL": "C"}


def _error_of(what: str, done: "subprocess.CompletedProcess[str]") -> Retry | Unsupported:
    if -done.returncode in ENDED_BY_OTHERS:
        return Retry(f"nft was ended by signal {-done.returncode} when it was to {what}: out of memory, or told to end")
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
