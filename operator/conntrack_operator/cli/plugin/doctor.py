"""`kubectl conntrack doctor NODE`: why that node's table is full, asked of the agent on it."""

import argparse
import sys

from conntrack_operator.cli import terminal
from conntrack_operator.cli.arguments import add_output
from conntrack_operator.controller.daemonset import PROC_ROOT, STATE

from .access import ask_agent, person_of
from .naming import names_for
from .render_diagnosis import addresses_in, diagnosis_view
from .top import json_said

PAGE_COLUMNS = 100
COMMAND = ["conntrack-operator", "doctor", "-o", "json", "--proc-root", PROC_ROOT, "--state-dir", STATE]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("node", metavar="NODE", help="name of the node")
    add_output(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print the diagnosis; return 0, also when something is wrong."""
    person = person_of(arguments)
    document = json_said(ask_agent(person, arguments.namespace, arguments.node, COMMAND), arguments.node)
    addresses = addresses_in(document)
    names = names_for(person, addresses)
    if arguments.output == "json":
        named = {address: name for address in addresses if (name := names.of(address))}
        terminal.show_json({**document, "names": named, "namesUnseen": list(names.unseen)})
        return 0
    view = diagnosis_view(document, names, arguments.node)
    if sys.stdout.isatty():
        terminal.show(view)
    else:
        sys.stdout.write(terminal.plain(view, PAGE_COLUMNS))
    return 0
