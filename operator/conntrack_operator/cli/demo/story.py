"""The demo's story: a table fills up, connections fail, who did it, a policy, the same load, everything put back.

The policy is on trial before it is kept, and a rule that does harm is undone.
"""

import contextlib
import logging
import signal
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import FrameType

from conntrack_operator.cli.render import outcome_view, rolled_back_view
from conntrack_operator.cli.render_use import top_table
from conntrack_operator.decide.draft import MAX
from conntrack_operator.decide.outcome import APPLIED
from conntrack_operator.decide.talkers import By, top_of
from conntrack_operator.decide.trial import PROBE_FAILED
from conntrack_operator.errors import Unsupported
from conntrack_operator.kernel import flows
from conntrack_operator.kernel.roots import Roots

from . import policy
from .display import Display
from .host import limit_at_most, read_host_sysctls, repair
from .load import ATTEMPTS, NOISY_CLIENT, Load, Measured, queries_in
from .probes import translated_probe
from .stage import TCP_PORT, TRANSLATED_PORT, TRANSLATION, Stage, require_tools
from .trials import Trials
from .views import comparison, listed

STEPS = 7
PACKAGE = "conntrack_operator"
SIGNALLED = 128
"""Exit codes above this name the signal that ended the program, as in a shell."""
SECONDS_FOR_ONE_PASS = 4
"""Queries are sent in four long passes; with this much for each, the whole ends in a minute."""


def tell(roots: Roots, most_entries: int) -> int:
    """Tell the story on a limit of at most `most_entries`; return 0 when it came out as told, 1 when not.

    Raises Unsupported when this machine cannot show it. Leaves the machine as it was, on every way out.
    """
    require_tools()
    began = time.monotonic()
    with _termination_as_exit(), tempfile.TemporaryDirectory(prefix="conntrack-operator-demo-") as folder:
        display = Display(STEPS)
        if (limit := repair(roots)) is not None:
            display.say(f"An earlier demo was killed; the limit of this machine is {limit:,} again.")
        # What the agent logs, the story tells.
        logging.getLogger(PACKAGE).addHandler(logging.NullHandler())
        host_before = read_host_sysctls(roots)
        with Stage() as stage, Load(stage) as load:
            fits = int(load.queries_per_second() * SECONDS_FOR_ONE_PASS)
            with limit_at_most(roots, min(most_entries, fits)) as limit:
                story = _Story(display, stage, load, replace(roots, state=Path(folder)), limit)
                good = story.tell(host_before.get(MAX, limit))
        good &= _show_what_is_left(display, stage, host_before, read_host_sysctls(roots))
    display.say(f"That took {time.monotonic() - began:.0f} s.")
    return 0 if good else 1


def _show_what_is_left(display: Display, stage: Stage, before: dict[str, int], after: dict[str, int]) -> bool:
    held = stage.held_by()
    if held:
        display.say(f"The namespaces are still there: the processes {', '.join(held)} are in them.")
    else:
        display.say("The namespaces are gone, and with them the packets, the rules and the entries.")
    changed = sorted(name for name in before if before[name] != after.get(name))
    if changed:
        display.say(f"This machine is not as it was: {', '.join(changed)} changed meanwhile.")
    else:
        display.say(f"This machine is as it was: {len(before)} conntrack sysctls compared, none differs.")
    return not held and not changed


class _Story:
    """The steps, on a stage that is set."""

    def __init__(self, display: Display, stage: Stage, load: Load, roots: Roots, limit: int) -> None:
        self._display, self._stage, self._load, self._limit = display, stage, load, limit
        self._trials = Trials(display, stage, load.regular, roots)

    def tell(self, machine_limit: int) -> bool:
        say, step = self._display.say, self._display.step
        step("A name server with a stateful firewall, in a network namespace of its own")
        say(f"Its table holds {self._limit:,} entries; every query takes one, like a connection.")
        if self._limit < machine_limit:
            say(f"(This machine's limit is {machine_limit:,}: too many for a minute, so it is lowered meanwhile.)")
        self._load.settle_in()

        step("Clients ask; the table fills")
        many = self._limit - self._load.counters().entries
        before = self._run("asking", many)
        say(f"{before.answered:,} of {before.asked:,} queries answered, {before.entries:,} entries: the table is full.")
        say(f"Then {before.late_asked:,} queries of new clients came: {before.late_answered:,} were answered.")
        say(f"Then {ATTEMPTS} new TCP connections to port {TCP_PORT}: {before.connected} came about.")
        say(f"The kernel counts {before.dropped:,} packets dropped since the table was full.")

        step("Who filled it?   (conntrack-operator top)")
        self._show_top("source", 3)
        self._show_top("port", 1)
        say(f"One client, {NOISY_CLIENT}, holds a fifth of the table; all of it is DNS queries.")

        step(f"The policy of {policy.EXAMPLE} on trial, by the agent's own code")
        confirmed = self._confirm()

        step("The same load again")
        after = self._run("asking again", many)
        say(comparison(before, after, *self._trials.bypassed()))

        step("A rule that would cut clients off: refused, and when forced, undone by itself")
        undone = self._force()

        step("Everything back")
        outcome, gone = self._trials.restore()
        say(outcome_view(outcome.changes, outcome.results, outcome.facts))
        good = confirmed and undone and _as_told(before, after)
        if not good:
            say("It did not come out as it should: the numbers above are what this machine did.")
        return good and gone and outcome.phase == "Restored"

    def _run(self, words: str, many: int) -> Measured:
        before = self._load.counters()
        with self._display.bar(words, queries_in(many)) as move:

            def moved(sent: int) -> None:
                now = self._load.counters()
                move(sent, f"{now.entries:,} entries, {now.drop - before.drop:,} dropped")

            return self._load.run(many, moved)

    def _show_top(self, by: By, rows: int) -> None:
        counters = self._load.counters()
        with self._stage.server.inside():
            sample = flows.sample(by=(by,))
        self._display.say(top_table(top_of(sample, by, rows, counters.entries), by))
        self._display.say("")

    def _confirm(self) -> bool:
        """Try the policy; tell whether it was kept and all probes pass now."""
        say, trials = self._display.say, self._trials
        before = self._load.counters().entries
        tried = trials.attempt(policy.TEXT)
        if tried.outcome.phase != "Current":
            raise Unsupported(f"this machine did not take the policy: {tried.outcome.results[0].message}")
        say(f"Asked before, {listed(tried.unwatched)} did not answer: the table is full.")
        say(f"{listed(tried.watched)} did, and must go on answering, or the rules go again.")
        say(outcome_view(tried.outcome.changes, tried.outcome.results, tried.outcome.facts))
        say(f"Confirmed after {tried.soaked:.1f} s; had that not come, the kernel would have let the rules expire.")
        deleted = before - self._load.counters().entries
        say(f"Then {deleted:,} entries were deleted that no packet reaches any more.")
        passed = trials.answering()
        say(f"Asked now, {len(passed)} of {len(trials.probes)} answer: {listed(passed)}.")
        return len(passed) == len(trials.probes) and bool(tried.watched)

    def _force(self) -> bool:
        """Try a rule that does harm; tell whether it was refused, then undone when it was forced."""
        say, trials = self._display.say, self._trials
        self._stage.server.run("nft", "-f", "-", text=TRANSLATION)
        trials.probes.append(translated_probe(self._stage))
        say(
            f"Port {TRANSLATED_PORT} leads to {TCP_PORT} here. Who leaves port {TRANSLATED_PORT} untracked cuts it off:"
        )
        refused = trials.attempt(policy.TEXT, policy.HARMFUL).outcome
        problems = [result for result in refused.results if result.reason != APPLIED]
        say(outcome_view(refused.changes, problems, refused.facts))
        say("")
        say("With onConflict: Force, on trial for 10 s:")
        tried = trials.attempt(policy.TEXT, policy.FORCED)
        say(rolled_back_view(tried.outcome.results))
        passed = trials.answering()
        say(
            f"Back after {tried.seconds:.1f} s, with nobody's help: {len(passed)} of {len(trials.probes)} answer again."
        )
        return (
            [result.reason for result in problems] == ["NATConflict"]
            and tried.outcome.results[0].reason == PROBE_FAILED
            and len(passed) == len(trials.probes)
            and trials.stands(policy.TEXT)
        )


def _as_told(before: Measured, after: Measured) -> bool:
    return (
        before.dropped > 0
        and before.connected < before.tried
        and after.dropped == 0
        and after.connected == after.tried
        and after.late_answered == after.late_asked
    )


@contextlib.contextmanager
def _termination_as_exit() -> Iterator[None]:
    """Let SIGTERM and a closed terminal end the demo like an exception: everything is put back on the way out."""

    def leave(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - the signature is Python's
        raise SystemExit(SIGNALLED + number)

    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
