"""The demo's story: a table fills up, connections fail, who did it, a policy, the same load, everything put back."""

import contextlib
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import yaml

from conntrack_operator.agent.machine import Machine
from conntrack_operator.agent.trial import begin, finished
from conntrack_operator.cli.render import outcome_view
from conntrack_operator.cli.render_use import top_table
from conntrack_operator.decide.draft import MAX
from conntrack_operator.decide.merge import Merge, merged
from conntrack_operator.decide.talkers import By, top_of
from conntrack_operator.errors import Unsupported
from conntrack_operator.kernel import flows
from conntrack_operator.kernel.journal import StateDirectory
from conntrack_operator.kernel.nftables import read_bypassed, read_table
from conntrack_operator.kernel.roots import Roots
from conntrack_operator.model.node import NodeSpec
from conntrack_operator.model.reading import policy_from

from . import policy
from .display import Display
from .host import limit_at_most, read_host_sysctls, repair
from .load import ATTEMPTS, NOISY_CLIENT, TCP_PORT, Load, Measured, queries_in
from .stage import Stage, require_tools
from .views import comparison

STEPS = 6
SIGNALLED = 128
"""Exit codes above this name the signal that ended the program, as in a shell."""
SECONDS_FOR_ONE_PASS = 9
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
        host_before = read_host_sysctls(roots)
        with Stage() as stage, Load(stage) as load:
            fits = int(load.queries_per_second() * SECONDS_FOR_ONE_PASS)
            with limit_at_most(roots, min(most_entries, fits)) as limit:
                story = _Story(display, stage, load, Roots(roots.proc, Path(folder)), limit)
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
        self._machine = Machine(roots)
        self._roots = roots

    def tell(self, machine_limit: int) -> bool:
        say, step = self._display.say, self._display.step
        step("A name server with a stateful firewall, in a network namespace of its own")
        say(f"Its table holds {self._limit:,} entries; every query takes one, like a connection.")
        if self._limit < machine_limit:
            say(f"(This machine's limit is {machine_limit:,}: too many for a minute, so it is lowered meanwhile.)")

        step("Clients ask; the table fills")
        before = self._run("asking")
        say(f"{before.answered:,} of {before.asked:,} queries answered, {before.entries:,} entries: the table is full.")
        say(f"Then {before.late_asked:,} queries of new clients came: {before.late_answered:,} were answered.")
        say(f"Then {ATTEMPTS} new TCP connections to port {TCP_PORT}: {before.connected} came about.")
        say(f"The kernel counts {before.dropped:,} packets dropped since the table was full.")

        step("Who filled it?   (conntrack-operator top)")
        self._show_top("source", 3)
        self._show_top("port", 1)
        say(f"One client, {NOISY_CLIENT}, holds a fifth of the table; all of it is DNS queries.")

        step(f"The policy of {policy.EXAMPLE}, by the agent's own code")
        merge = merged([policy_from(yaml.safe_load(policy.TEXT))])
        self._apply(merge)
        say("Old entries would stay until they time out; the demo deletes them now.")
        self._load.forget_entries()

        step("The same load again")
        after = self._run("asking again")
        with self._stage.server.inside():
            bypassed = sum(each.packets for each in read_bypassed())
            entry_bytes = self._machine.facts().entry_bytes
        self._display.say(comparison(before, after, entry_bytes, bypassed))

        step("Everything back")
        restored = self._restore()
        if not _as_told(before, after):
            say("It did not come out as it should: the numbers above are what this machine did.")
        return restored and _as_told(before, after)

    def _run(self, words: str) -> Measured:
        before = self._load.counters()
        flows = self._limit - before.entries
        with self._display.bar(words, queries_in(flows)) as move:

            def moved(sent: int) -> None:
                now = self._load.counters()
                move(sent, f"{now.entries:,} entries, {now.drop - before.drop:,} dropped")

            return self._load.run(flows, moved)

    def _show_top(self, by: By, rows: int) -> None:
        counters = self._load.counters()
        with self._stage.server.inside():
            sample = flows.sample(by=(by,))
        self._display.say(top_table(top_of(sample, by, rows, counters.entries), by))
        self._display.say("")

    def _apply(self, merge: Merge) -> None:
        with self._stage.server.inside(), StateDirectory(self._roots) as state:
            outcome = finished(begin(self._machine, state, _wish(merge), list))
        if outcome.phase != "Current":
            raise Unsupported(f"this machine did not take the policy: {outcome.results[0].message}")
        self._display.say(outcome_view(outcome.changes, outcome.results, outcome.facts))

    def _restore(self) -> bool:
        with self._stage.server.inside():
            with StateDirectory(self._roots) as state:
                outcome = self._machine.restore(state)
            left = read_table()
        self._display.say(outcome_view(outcome.changes, outcome.results, outcome.facts))
        return outcome.phase == "Restored" and left is None


def _wish(merge: Merge) -> NodeSpec:
    return NodeSpec(revision="demo", mode="Apply", node_uid="", policies=list(merge.uses), settings=merge.settings)


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
