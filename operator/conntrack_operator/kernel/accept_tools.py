"""The programs that change other people's tables: nft, and iptables in both its kinds, by standard input alone."""

import os
import subprocess

from conntrack_operator.errors import Retry, Unsupported

from .nftables import ENDED_BY_OTHERS

TIMEOUT_SECONDS = 30

_LOCK_SECONDS = "10"
"""How long iptables-legacy waits for the xtables lock; others hold it for milliseconds."""

_PACKAGES = {"nft": "nftables"}
_NOT_PERMITTED = ("Operation not permitted", "you must be root", "Permission denied")
_NO_LOCK = "can't open lock file"
"""iptables-legacy's; 1.8.9 says so where /run/xtables.lock can be neither opened nor made (tried)."""
_PASSING = (
    "Device or resource busy", "Resource temporarily unavailable", "Interrupted system call", "No buffer space",
    "xtables lock",
    # Whoever's table it is has changed it since it was read.
    "No such file or directory", "Index of insertion too big", "Index of deletion too big", "No chain/target/match",
)  # fmt: skip


class Failed(Exception):
    """A program ended with an error; `complaint` is what it said."""

    def __init__(self, program: str, status: int, complaint: str) -> None:
        self.program = program
        self.status = status
        self.complaint = complaint
        super().__init__(complaint)

    def as_error(self, places: str) -> Retry | Unsupported:
        """Return the error to raise for it: `places` were to be changed."""
        where = f"change {places}"
        lines = [line.strip() for line in self.complaint.splitlines() if line.strip() and not line.startswith("#")]
        told = next((line for line in lines if "Error:" in line), lines[0] if lines else "it gave no reason")
        if -self.status in ENDED_BY_OTHERS:
            return Retry(f"{self.program} was ended by signal {-self.status} when it was to {where}")
        if self.status < 0:
            return Unsupported(f"{self.program} crashed (signal {-self.status}) when it was to {where}")
        if _NO_LOCK in self.complaint:
            # A pod has a read-only root, and a lock of its own would keep nobody else of the node out.
            return Unsupported(
                f"{self.program} may not {where} without the node's xtables lock ({told}); set agent.iptablesLegacy,"
                " which shares it with the agent, or run on the host"
            )
        if any(words in self.complaint for words in _NOT_PERMITTED):
            need = "NET_ADMIN and NET_RAW (agent.iptablesLegacy)" if "legacy" in self.program else "NET_ADMIN"
            return Unsupported(f"{self.program} may not {where}: {told}; run as root or with {need}")
        if any(words in self.complaint for words in _PASSING):
            return Retry(f"{self.program} could not {where} this time: {told}")
        return Unsupported(
            f"{self.program} cannot {where} on this kernel: {told}; load the module that is missing, or let that"
            " firewall accept untracked packets itself and set acceptUntracked: Never"
        )


def run_nft(text: str) -> None:
    """Carry out an nft script in one transaction. Raises Failed, Unsupported (not installed), Retry (too long)."""
    _run(["nft", "-f", "-"], text)


def restore(tool: str, family: str, text: str) -> None:
    """Carry out changes to one family's tables of iptables, a transaction each. Raises as `run_nft` does."""
    _run([f"{_program(tool, family)}-restore", "--wait", _LOCK_SECONDS, "--noflush"], text)


def _program(tool: str, family: str) -> str:
    return f"{'ip6tables' if family == 'ip6' else 'iptables'}-{tool.removeprefix('iptables-')}"


def _run(command: list[str], text: str) -> None:
    program = command[0]
    try:
        done = subprocess.run(
            command,
            input=text,
            capture_output=True,
            text=True,
            check=False,
            timeout=TIMEOUT_SECONDS,
            # It inherits the node's lock (kernel.journal): when we are killed, nobody else begins before it has ended.
            close_fds=False,
            # Messages are matched above, and a translated one would match nothing.
            env={**os.environ, "LANG": "C", "LC_ALL": "C"},
        )
    except FileNotFoundError as error:
        package = _PACKAGES.get(program, "iptables")
        raise Unsupported(f"{program} is not installed; install the {package} package") from error
    except PermissionError as error:
        raise Unsupported(f"{program} may not be run by this user; run as root or with NET_ADMIN") from error
    except OSError as error:
        raise Retry(f"{program} cannot be run this time: {error.strerror}") from error
    except subprocess.TimeoutExpired as error:
        raise Retry(f"{program} did not finish within {TIMEOUT_SECONDS} s; it will be tried again") from error
    if done.returncode != 0:
        raise Failed(program, done.returncode, done.stderr)
