"""The `apply` command: tries a policy on this machine, keeps it when all goes well, and says what came of it.

By the agent's own code, in the foreground. Whoever interrupts it gets everything back as it was.
"""

import argparse
import logging
import signal
import sys
import threading
from collections.abc import Sequence

from conntrack_operator.agent import way_back
from conntrack_operator.agent.machine import Machine, Outcome
from conntrack_operator.agent.probes import Probe, gateway_probes
from conntrack_operator.agent.trial import Trial, begin
from conntrack_operator.decide.hashing import hash_of
from conntrack_operator.decide.merge import Merge, merged
from conntrack_operator.errors import Invalid, Problem, Refused
from conntrack_operator.kernel.clock import read_boottime
from conntrack_operator.kernel.journal import StateDirectory
from conntrack_operator.model.node import NodeSpec
from conntrack_operator.model.policy import TRIAL_MARGIN_SECONDS, TRIAL_SECONDS, Settings
from conntrack_operator.model.policy import Trial as TrialTerms

from . import reading, terminal
from .arguments import add_policy_file, add_probes, add_roots, probes_of, roots_of, whole_number
from .render import outcome_view, rolled_back_view
from .rights import require_root, require_writable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    add_policy_file(parser)
    parser.add_argument(
        "--trial",
        type=whole_number(10, 3600),
        metavar="SECONDS",
        help=f"undo everything unless it is confirmed by then (default: the policy's trial, else {TRIAL_SECONDS})",
    )
    parser.add_argument(
        "--soak",
        type=whole_number(0, 600),
        metavar="SECONDS",
        help="how long the probes must keep passing before it is confirmed (default: the policy's trial, else 5)",
    )
    add_probes(parser)
    add_roots(parser)
    parser.epilog = (
        "What was never confirmed on this machine is on trial first: what answered before\n"
        "the change must answer after it, or all is put back. That is the default gateway\n"
        "and every --probe. Ctrl-C takes everything back.\n"
        "The file is the whole wish: what an earlier one set and this one does not goes\n"
        "back to its original value.\n"
        "exit codes: 0 all is as the policy says, 1 refused, rolled back, or an error"
    )


def run(arguments: argparse.Namespace) -> int:
    """Apply and print the outcome; return 0 when everything is as the policies say, else 1."""
    policies = reading.policies_in(arguments.file)
    observers = [policy.metadata.name for policy in policies if policy.spec.mode == "Observe"]
    if observers:
        raise Invalid(
            Problem(
                arguments.file,
                f"policy {observers[0]} only observes; look at it with plan, or write mode: Enforce",
            )
        )
    merge = merged(policies)
    settings = _with_terms(merge.settings, arguments.trial, arguments.soak)
    probes = probes_of(arguments)
    require_root("apply")
    roots = roots_of(arguments)
    machine = Machine(roots)
    require_writable(roots, (change.setting for change in machine.plan(settings, merge.uses).changes))
    with StateDirectory(roots) as state:
        outcome = _tried(machine, state, _wish(settings, merge), probes)
    if outcome.phase == "RolledBack":
        terminal.show(rolled_back_view(outcome.results))
    else:
        terminal.show(outcome_view(outcome.changes, outcome.results, outcome.facts, merge.conflicts, outcome.warnings))
    return 0 if outcome.phase == "Current" else 1


def _with_terms(settings: Settings, timeout: int | None, soak: int | None) -> Settings:
    """Return `settings` with the terms of the trial that the options ask for. Raises Invalid when they do not fit."""
    terms = settings.trial or TrialTerms()
    timeout = terms.timeout_seconds if timeout is None else timeout
    room = (TRIAL_SECONDS if timeout is None else timeout) - TRIAL_MARGIN_SECONDS
    if soak is None:
        soak = None if terms.soak_seconds is None else min(terms.soak_seconds, room)
    elif soak > room:
        raise Invalid(
            Problem("--soak", f"{soak} s do not fit into a trial of {room + TRIAL_MARGIN_SECONDS} s; at most {room} do")
        )
    if timeout is None and soak is None:
        return settings
    return settings.model_copy(update={"trial": TrialTerms(timeout_seconds=timeout, soak_seconds=soak)})


def _wish(settings: Settings, merge: Merge) -> NodeSpec:
    return NodeSpec(
        revision=hash_of({"mode": "Apply", "settings": settings.document()}),
        # Whoever types it wants it tried, however often it failed before.
        attempt=f"typed at {read_boottime():.3f}",
        mode="Apply",
        node_uid="",
        policies=list(merge.uses),
        settings=settings,
    )


def _tried(machine: Machine, state: StateDirectory, spec: NodeSpec, probes: Sequence[Probe]) -> Outcome:
    """Begin, and tick the trial until it ends or a signal asks for it to be taken back."""
    undone = way_back.recover(machine, state)
    if undone is not None and machine.journal(state).trial is not None:
        raise Refused("NotRestored", undone.message)
    interrupted = threading.Event()
    handlers = {
        number: signal.signal(number, lambda *_: interrupted.set()) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        begun = begin(machine, state, spec, lambda: [*gateway_probes(), *probes])
        if isinstance(begun, Outcome):
            return begun
        _say_what_is_watched(begun)
        # An undo is told on stdout; what the machine logs of it would stand there twice.
        _undoing.addFilter(_is_no_undo)
        while not interrupted.is_set():
            if (outcome := begun.tick()) is not None:
                return outcome
            _progress(begun)
            interrupted.wait(min(begun.seconds_to_tick, 1.0))
        return begun.abort("interrupted")
    finally:
        _undoing.removeFilter(_is_no_undo)
        _progress(None)
        for number, handler in handlers.items():
            signal.signal(number, handler)


_undoing = logging.getLogger(way_back.__name__)


def _is_no_undo(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith("rolled back")


def _say_what_is_watched(trial: Trial) -> None:
    for name in trial.unwatched:
        print(f"not watched: {name} did not answer before the change either", file=sys.stderr)


def _progress(trial: Trial | None) -> None:
    """Show on a terminal how far the trial is; nothing in a pipe."""
    if not sys.stderr.isatty():
        return
    line = ""
    if trial is not None:
        passed = len(trial.probes) - (len(trial.rounds[-1].failed) if trial.rounds else 0)
        line = f"trial: {trial.elapsed:.0f} s, {passed} of {len(trial.probes)} probes pass"
    print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)
