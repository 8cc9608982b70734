"""Run the suite in four processes at once, and tell of them as of one run. This is what `make test` does.

One begins with the tests that tune this machine, the others with those that touch no conntrack; then all share the rest
(tests/lab/sharing.py). Most tests wait: three processes left two cores half idle. All but the first run in network
namespaces of their own, in which the kernel refuses to change sizes.

Lines of progress come as they are printed, each names its file. What a process says of failures comes in one piece when
it ends; the last lines are the closing line of each and the sum of all. The exit code is 0 when all passed and every
test was run by one of them. Ctrl-C, SIGTERM and SIGHUP end all, each in order: nothing is left of what tests made.
"""

import os
import re
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tests.lab.halves import ROOT, Kind
from tests.lab.sharing import left_out

_COUNT = re.compile(r"(\d+) (passed|failed|skipped|deselected|xfailed|xpassed|warning|error)s?\b")
_COLOUR = re.compile(r"\x1b\[[\d;]*m")
_ORDER = ("failed", "passed", "skipped", "deselected", "xfailed", "xpassed", "warning", "error")  # pytest's own
SHARING = ("-p", "tests.lab.sharing", "-o", "console_output_style=classic")
INTERRUPTED = 130
"""What a shell says of a program that Ctrl-C ended."""


def pytest_command(*arguments: str) -> list[str]:
    """Return the command of one half."""
    colour = ["--color=yes"] if sys.stdout.isatty() else []
    return [sys.executable, "-m", "pytest", *colour, *arguments]


def in_a_namespace(command: Sequence[str]) -> list[str]:
    """Return the command with a network namespace of its own around it: loopback, and sizes that nobody can write.

    Where none can be made, tests that make some are skipped.
    """
    if subprocess.run(["unshare", "--net", "true"], capture_output=True, check=False).returncode != 0:
        return list(command)
    return ["unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh", *command]


def say(*parts: str) -> None:
    """Print at once."""
    sys.stdout.write("".join(parts))
    sys.stdout.flush()


class Half:
    """One half at work: its progress is printed as it comes, the rest in one piece at its end."""

    def __init__(self, name: str, command: Sequence[str]) -> None:
        self.name = name
        self._begun, self._headings = b"", 0
        self._rest: list[str] = []
        self._closing = ""
        self.process = subprocess.Popen(
            # Should this process be killed, the half ends as by Ctrl-C. setpriv replaces itself by the program.
            ["setpriv", "--pdeathsig", "INT", *command],
            cwd=ROOT, env=os.environ | {"COLUMNS": str(shutil.get_terminal_size().columns)},
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            start_new_session=True,  # the terminal's Ctrl-C comes by way of us: twice would end it out of order
        )  # fmt: skip
        assert self.process.stdout
        self.output = self.process.stdout.fileno()

    def pass_on(self) -> bool:
        """Take what it has printed, and say what can be said; return whether more may come."""
        read = os.read(self.output, 65536)
        *lines, self._begun = (self._begun + read).split(b"\n")
        if not read and self._begun:
            lines.append(self._begun)
        for line in lines:
            self._take(line.decode(errors="replace"))
        if not read:
            say(f"\n--- {self.name} ---\n", *self._rest)
        return bool(read)

    def _take(self, line: str) -> None:
        plain = _COLOUR.sub("", line)
        self._headings += plain.startswith("=====")
        if self._headings < 2:  # the first one begins the run, the second one ends its progress
            say(f"{line}\n")
            return
        self._rest.append(f"{line}\n")
        if plain.startswith("=") and _COUNT.search(plain):
            self._closing = plain.strip("= ")

    def interrupt(self) -> None:
        """End it, as Ctrl-C does."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)

    @property
    def closing(self) -> str:
        """What pytest said at the end: counts and time."""
        return self._closing or f"ended without a result, exit code {self.process.returncode}"

    @property
    def counts(self) -> Counter[str]:
        """How many tests passed, failed and so on."""
        return Counter({word: int(number) for number, word in _COUNT.findall(self._closing)})


def pass_on(halves: Sequence[Half]) -> None:
    """Print what these have to say, to their end.

    In one thread: the kernel tells children of the end of each thread that they may belong to (forget_original_parent),
    and a half that is told twice is interrupted while it cleans up.
    """
    with selectors.DefaultSelector() as waiting:
        for half in halves:
            waiting.register(half.output, selectors.EVENT_READ, half)
        while waiting.get_map():
            for key, _ in waiting.select():
                if not key.data.pass_on():
                    waiting.unregister(key.fd)


def in_words(counts: Counter[str]) -> str:
    """Return counts in pytest's words and order."""
    plural = {word: word + "s" * (word in {"warning", "error"} and counts[word] != 1) for word in _ORDER}
    return ", ".join(f"{counts[word]} {plural[word]}" for word in _ORDER if counts[word]) or "no tests ran"


def run(commands: dict[str, Sequence[str]], folder: Path) -> int:
    """Run these halves, by name, who tell in `folder` what they ran; return the exit code of all."""
    began = time.monotonic()
    halves: list[Half] = []
    ended_by: list[int] = []

    def end(number: int, _frame: object) -> None:
        ended_by.append(number)
        for half in halves:
            half.interrupt()

    # Before the first half: what a program finds ignored it does not hear, what is handled here it hears as ever.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, end)
    for name, command in commands.items():
        if not ended_by:
            halves.append(Half(name, command))
    if ended_by:  # perhaps just before the last one was in the list
        end(ended_by[0], None)
    pass_on(halves)
    codes = [half.process.wait() for half in halves]
    missing = [] if ended_by else left_out(folder)
    print(*(f"FAILED: not run, or run twice: {test}" for test in missing), sep="\n")
    for half in halves:
        print(f"{half.name}: {half.closing}")
    if ended_by:
        print(f"ended by {signal.Signals(ended_by[0]).name}")
    total = sum((half.counts for half in halves), Counter[str]())
    print(f" {in_words(total)} in {time.monotonic() - began:.2f}s ".center(80, "="), flush=True)
    if ended_by:
        return INTERRUPTED
    return max(int(bool(missing)), *(abs(code) for code in codes))


def main() -> int:
    """Run the suite."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        own = {
            kind: pytest_command(*SHARING, f"--own={kind.value}", f"--share={folder}")
            for kind in (Kind.MACHINE, Kind.BESIDE)
        }
        beside = in_a_namespace(own[Kind.BESIDE])
        return run({"first": own[Kind.MACHINE], "second": beside, "third": beside, "fourth": beside}, folder)


if __name__ == "__main__":
    sys.exit(main())
