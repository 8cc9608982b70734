"""The `doctor` command: why is my table full, and what should I do? Looks at everything, changes nothing."""

import argparse
import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from rich.console import RenderableType

from conntrack_operator.agent.machine import Machine
from conntrack_operator.decide.diagnosis import Diagnosis, diagnose
from conntrack_operator.decide.draft import BUCKETS
from conntrack_operator.decide.finding import finding_documents, percent, time_words
from conntrack_operator.decide.sizing import bucket_bytes
from conntrack_operator.decide.symptoms import Elsewhere, Symptoms, TableUse, Traits
from conntrack_operator.decide.talkers import BY, top_of
from conntrack_operator.errors import ConntrackOperatorError
from conntrack_operator.kernel import flows
from conntrack_operator.kernel.addresses import local_addresses
from conntrack_operator.kernel.counters import Counters, read_counters
from conntrack_operator.kernel.elsewhere import read_elsewhere
from conntrack_operator.kernel.ethtool import read_allowances
from conntrack_operator.kernel.flow_traits import read_traits
from conntrack_operator.kernel.kernel_log import read_kernel_log
from conntrack_operator.kernel.other_namespaces import began_seconds, own_inode
from conntrack_operator.kernel.roots import Roots
from conntrack_operator.kernel.writers import read_writers

from . import terminal
from .arguments import add_output, add_roots, roots_of
from .render_doctor import doctor_view
from .render_use import top_document

WATCH_SECONDS = 1.0
"""Between the two looks at the counters that tell whether it happens now."""
TALKERS = 10
PAGE_COLUMNS = 80

Answer = TypeVar("Answer")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    add_output(parser)
    add_roots(parser)
    parser.epilog = "exit codes: 0 looked at everything there is, whatever was found; 1 error"


def run(arguments: argparse.Namespace) -> int:
    """Print the diagnosis; return 0, also when something is wrong."""
    symptoms = read_symptoms(roots_of(arguments))
    diagnosis = diagnose(symptoms)
    if arguments.output == "json":
        terminal.show_json(document_of(diagnosis, symptoms))
    else:
        _show(doctor_view(diagnosis, symptoms))
    return 0


def _show(view: RenderableType) -> None:
    """Print a page: 80 columns in a pipe too, since these are sentences and not rows for grep."""
    if sys.stdout.isatty():
        terminal.show(view)
    else:
        sys.stdout.write(terminal.plain(view, PAGE_COLUMNS))


def document_of(diagnosis: Diagnosis, symptoms: Symptoms) -> dict[str, Any]:
    """Return the diagnosis as `doctor -o json` prints it."""
    table, lines = symptoms.table, symptoms.log.lines
    return {
        "verdict": diagnosis.verdict,
        "findings": finding_documents(diagnosis.findings),
        "policy": diagnosis.policy,
        "usage": {
            **_use_document(symptoms),
            "lostToFull": table.lost_to_full,
            "droppedNow": table.dropped_now,
            "top": {by: top_document(top)["rows"] for by, top in symptoms.top.items()},
            "kernelLog": {
                "problem": symptoms.log.problem or None,
                "lines": [{"time": time_words(line.at_seconds), "namespace": line.namespace} for line in lines[-100:]],
            },
            "otherNamespaces": [
                {"name": each.name, "inode": each.inode, "entries": each.entries, "lostToFull": each.lost_to_full}
                for each in symptoms.elsewhere.namespaces
            ],
        },
        "unseen": list(symptoms.unseen),
    }


def read_symptoms(roots: Roots, watch_seconds: float = WATCH_SECONDS) -> Symptoms:
    """Look at this machine, for `watch_seconds` at least.

    Raises Unsupported where connection tracking is not loaded or may not be read; anything else that cannot be seen is
    a sentence in `unseen`.
    """
    facts = Machine(roots).facts()
    before, began = read_counters(), time.monotonic()
    unseen: list[str] = []

    def seen(look: Callable[[], Answer], otherwise: Answer, what: str) -> Answer:
        try:
            return look()
        except ConntrackOperatorError as error:
            unseen.append(f"{what}: {error}")
            return otherwise

    keepalive, inode = _keepalive(roots), own_inode()
    sample = seen(flows.sample, None, "who fills the table")
    top = {by: top_of(sample, by, TALKERS, before.entries) for by in BY} if sample else {}
    traits = seen(lambda: read_traits(local_addresses(), facts.sysctls, keepalive or 7200), Traits(), "idle entries")
    log = read_kernel_log()
    elsewhere, problems = read_elsewhere(roots)
    unseen.extend(problems)
    if log.problem:
        unseen.append(log.problem)
    writers = read_writers(roots, facts.cpus)
    time.sleep(max(0.0, watch_seconds - (time.monotonic() - began)))
    after = read_counters()
    return Symptoms(
        facts=facts,
        table=_table_of(before, after, time.monotonic() - began),
        top=top,
        traits=traits,
        log=log,
        own_inode=inode,
        # The host's namespace began with the machine, and its counters and log too.
        own_began_seconds=0.0 if facts.initial_namespace else began_seconds(roots, inode),
        keepalive_seconds=keepalive,
        writers=writers,
        elsewhere=_with_growth(elsewhere),
        node=os.environ.get("NODE_NAME") or os.uname().nodename,
        now_seconds=time.time(),
        unseen=tuple(unseen),
    )


def _table_of(before: Counters, after: Counters, seconds: float) -> TableUse:
    return TableUse(
        entries=after.entries,
        max_entries=after.max_entries,
        drop=after.drop,
        early_drop=after.early_drop,
        insert_failed=after.insert_failed,
        invalid=after.invalid,
        search_restart=after.search_restart,
        # Each CPU's counter is 32 bits wide: one that wrapped says nothing about this second.
        dropped_now=max(0, (after.drop - before.drop) - (after.insert_failed - before.insert_failed)),
        thrown_out_now=max(0, after.early_drop - before.early_drop),
        watched_seconds=seconds,
    )


def _with_growth(elsewhere: Elsewhere) -> Elsewhere:
    """Read EC2's counters once more, where there are any: what grew meanwhile is being lost now."""
    if not elsewhere.allowances:
        return elsewhere
    before = {each.interface: each.exceeded for each in elsewhere.allowances}
    grown = (
        replace(each, exceeded_now=max(0, each.exceeded - before.get(each.interface, each.exceeded)))
        for each in read_allowances()
    )
    return replace(elsewhere, allowances=tuple(grown))


def _keepalive(roots: Roots) -> int | None:
    try:
        return int(Path(roots.proc / "sys/net/ipv4/tcp_keepalive_time").read_text())
    except (OSError, ValueError):
        return None


def _use_document(symptoms: Symptoms) -> dict[str, Any]:
    """Return the use of the table under the names that `status -o json` has."""
    table, facts = symptoms.table, symptoms.facts
    buckets = facts.sysctls.get(BUCKETS, 0)
    return {
        "entries": table.entries,
        "maxEntries": table.max_entries,
        "buckets": buckets,
        "usedPercent": round(percent(table.entries, table.max_entries), 2),
        "counters": {
            "drop": table.drop,
            "earlyDrop": table.early_drop,
            "insertFailed": table.insert_failed,
            "invalid": table.invalid,
            "searchRestart": table.search_restart,
        },
        "entryBytes": facts.entry_bytes,
        "memoryBytes": table.entries * facts.entry_bytes + buckets * bucket_bytes(facts),
    }
