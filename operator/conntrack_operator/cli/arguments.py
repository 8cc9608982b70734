"""Options that several commands share, and a parser whose complaints are like all our errors.

argparse exits 2 on a wrong option; here 2 means that a plan has changes, so a wrong option is an `Invalid` like any
other, one sentence and exit 1.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, Self

from conntrack_operator.errors import Invalid, Problem
from conntrack_operator.kernel.roots import DEFAULT_STATE, Roots

if TYPE_CHECKING:
    from socket import socket

    from conntrack_operator.agent.probes import Probe

PROGRAM = "conntrack-operator"


class Parser(argparse.ArgumentParser):
    """A parser that raises errors.Invalid, takes no abbreviated options and keeps the lines of its epilog."""

    def __init__(self, prog: str, description: str, epilog: str | None = None, usage: str | None = None) -> None:
        super().__init__(
            prog=prog,
            usage=usage,
            description=description,
            epilog=epilog,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    def error(self, message: str) -> NoReturn:
        """Raise Invalid with what argparse has to say."""
        raise Invalid(Problem("", f"{message}; see {self.prog} --help"))


def add_roots(parser: argparse.ArgumentParser, *, state: bool = True) -> None:
    """Declare where the machine's files are."""
    parser.add_argument(
        "--proc-root",
        type=Path,
        default=Path("/proc"),
        metavar="DIR",
        help="the machine's /proc (default: %(default)s)",
    )
    if state:
        parser.add_argument(
            "--state-dir",
            type=Path,
            default=DEFAULT_STATE,
            metavar="DIR",
            help="where the original values are kept (default: %(default)s)",
        )


def roots_of(arguments: argparse.Namespace) -> Roots:
    """Return the roots the options name."""
    return Roots(proc=arguments.proc_root, state=getattr(arguments, "state_dir", DEFAULT_STATE))


def add_output(parser: argparse.ArgumentParser) -> None:
    """Declare -o."""
    parser.add_argument(
        "-o",
        "--output",
        choices=("table", "json"),
        default="table",
        help="table for people, json for programs (default: table)",
    )


def add_policy_file(parser: argparse.ArgumentParser) -> None:
    """Declare -f."""
    parser.add_argument(
        "-f",
        "--file",
        required=True,
        metavar="FILE",
        help="one or more ConntrackPolicies in YAML or JSON, - for standard input; nodeSelector is not looked at, since"
        " the file is meant for this machine",
    )


def add_probes(parser: argparse.ArgumentParser, when: str = "") -> None:
    """Declare --probe; `when` ends its help."""
    parser.add_argument(
        "--probe",
        action="append",
        default=[],
        metavar="HOST:PORT",
        help=f"something that must still be reachable by TCP after a change; repeat it for more{when}",
    )


def probes_of(arguments: argparse.Namespace) -> "list[Probe]":
    """Return the probes the options name. Raises Invalid for what is no HOST:PORT."""
    from conntrack_operator.agent.probes import asked_for  # noqa: PLC0415 - other commands need none

    found = []
    for text in dict.fromkeys(arguments.probe):
        try:
            found.append(asked_for(text))
        except ValueError as error:
            raise Invalid(
                Problem("--probe", f"{text!r} is not HOST:PORT, such as 192.0.2.1:443 or [2001:db8::1]:443")
            ) from error
    return found


def whole_number(minimum: int, maximum: int) -> "type[int]":
    """Return a type for argparse: a whole number in this range."""

    class Number(int):
        def __new__(cls, text: str) -> Self:
            try:
                number = int(text)
            except ValueError:
                number = minimum - 1
            if not minimum <= number <= maximum:
                raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {minimum} to {maximum}")
            return super().__new__(cls, number)

    return Number


def add_metrics_address(parser: argparse.ArgumentParser) -> None:
    """Declare --metrics-address."""
    parser.add_argument(
        "--metrics-address",
        metavar="HOST:PORT",
        help="serve Prometheus metrics at /metrics, and /healthz and /readyz, there; without a host at every address"
        " (default: nowhere)",
    )


def listening_at(address: str | None) -> "socket | None":
    """Return a socket that listens at --metrics-address; None without one. Raises as `metrics.endpoint.listen` does."""
    if address is None:
        return None
    from conntrack_operator.metrics.endpoint import listen  # noqa: PLC0415 - other commands serve nothing

    return listen(address)
