"""The command `conntrack-operator`: finds the command's module, turns what goes wrong into a sentence and a code."""

import argparse
import errno
import importlib
import io
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from conntrack_operator import __version__
from conntrack_operator.errors import ConntrackOperatorError, Invalid, Problem

from .arguments import PROGRAM, Parser

ERROR = 1
INTERRUPTED = 130
PIPE_CLOSED = 141
"""128 + the signal's number, as a shell reports a program that a signal ended."""

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""How a file answers that takes no more; the state directory's own are told by what keeps it (kernel/journal.py)."""

COMMANDS = {
    "controller": "the half that runs once in a cluster: policies in, one object for each node out",
    "agent": "the half that runs on every node: tunes it, keeps it so, and reports what it sees",
    "plan": "what a policy would change on this machine, and what would be refused; changes nothing",
    "apply": "try a policy on this machine, keep it when all goes well, else take it back",
    "restore": "put every original value back and remove the rules; the way out when something is wrong",
    "status": "how full the table is, and what it threw away",
    "top": "who fills the table",
    "doctor": "why the table is full, and what to do about it",
    "check": "whether the operator in a cluster answers: a policy that means no node, judged and deleted again",
    "uninstall": "give every node back, in waves, and remove what the operator made in a cluster",
    "crds": "print the CustomResourceDefinitions",
    "demo": "the story in one minute, in network namespaces, no cluster",
}
"""Each command is the module of its name in this package, with `add_arguments(parser)` and `run(arguments)`."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (default: this process's) and return the exit code."""
    return guarded(PROGRAM, lambda: _run(list(sys.argv[1:] if argv is None else argv)))


def guarded(program: str, run: Callable[[], int]) -> int:
    """Return what `run` returns, or the code for how it ended; an error of ours is said by `program` in a sentence."""
    _prepare_streams()
    try:
        code = run()
        sys.stdout.flush()
    except ConntrackOperatorError as error:
        for line in str(error).splitlines():
            print(f"{program}: {line}", file=sys.stderr)
        return ERROR
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        _drop_output()
        return PIPE_CLOSED
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        _drop_output()
        print(f"{program}: the output cannot be written ({error.strerror}); make room for it", file=sys.stderr)
        return ERROR
    return code


def _prepare_streams() -> None:
    """Make the standard streams such that no output and no input is an error.

    Python has None for a stream that is closed: whoever closed it wants nothing of it, or gives nothing. What a locale
    other than UTF-8 cannot say becomes a question mark, as stderr's own way is to say it otherwise.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):  # in the order of their descriptors
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115 - it stays open
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def _drop_output() -> None:
    """Let go what was not written yet: Python flushes stdout once more at its end, and would complain then."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run(argv: list[str]) -> int:
    if argv and argv[0] in COMMANDS:
        command: Any = importlib.import_module(f"{__package__}.{argv[0]}")
        parser = Parser(prog=f"{PROGRAM} {argv[0]}", description=COMMANDS[argv[0]])
        command.add_arguments(parser)
        return int(command.run(parser.parse_args(argv[1:])))
    parser = Parser(
        prog=PROGRAM,
        usage=f"{PROGRAM} COMMAND ...",
        description="Sizes, spares and watches a node's connection-tracking table.",
        epilog="commands:\n"
        + "\n".join(f"  {name:12}{words}" for name, words in COMMANDS.items())
        + f"\n\n{PROGRAM} COMMAND --help shows a command's options.",
    )
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    parser.add_argument("command", metavar="COMMAND", help=argparse.SUPPRESS)
    unknown = parser.parse_args(argv[:1]).command
    raise Invalid(Problem("", f"there is no command {unknown!r}; there are {', '.join(COMMANDS)}"))
