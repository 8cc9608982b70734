"""The controller's /metrics, /healthz and /readyz. A standby answers too, with little to tell.

Everything comes from the store and from what was counted; no scrape asks the API server anything.
"""

import socket
import time
from collections.abc import Iterator
from typing import get_args

from conntrack_operator.decide.rollout import Stage
from conntrack_operator.metrics.endpoint import Endpoint
from conntrack_operator.metrics.exposition import Family, counters, exposition, gauge, gauges
from conntrack_operator.metrics.process import process_families
from conntrack_operator.model.policy import ConntrackPolicy

from .figures import Figures
from .leadership import Leadership
from .work import Work

STUCK_SECONDS = 60.0
"""A loop that was not at work for so long hangs: its longest wait is a request to the API server, of seconds."""

_STATES = ("current", "updating", "pending", "refused", "rolled_back", "unknown")


class ControllerMetrics:
    """What is asked of one controller. `work` is None while it does not lead."""

    def __init__(self, leadership: Leadership, figures: Figures) -> None:
        self._leadership, self._figures = leadership, figures
        self.work: Work | None = None

    def serve(self, listening: socket.socket) -> None:
        """Answer on `listening` from now on."""
        Endpoint(listening, lambda: exposition(self.families()), live=self.live, ready=self.ready).start()

    def live(self) -> str:
        """Return why the controller should be started anew; empty when its loop is at work."""
        quiet = time.monotonic() - self._leadership.beat
        return f"the controller's loop has done nothing for {quiet:.0f} s" if quiet > STUCK_SECONDS else ""

    def ready(self) -> str:
        """Return why it neither leads nor waits for its turn; empty when it does one of them."""
        return self.live() or self._leadership.trouble

    def families(self) -> Iterator[Family]:
        """Yield all metrics."""
        leads = self._leadership.fence.left_seconds() > 0
        yield gauge("leader", "1 while this controller leads, 0 while it waits for its turn.", leads)
        if self.work is not None:
            yield from self._policies(self.work)
            yield gauge("queue_length", "Keys that are due and wait for a worker.", self.work.queue.due())
        figures = self._figures
        yield counters(
            "api_writes", "Writes to the API server, by resource, verb and result; not those of the Lease.",
            ("resource", "verb", "result"), figures.writes.values(),
        )  # fmt: skip
        yield figures.reconciles.family("reconcile_duration_seconds", "Time one piece of work took.", "work")
        yield counters("reconcile_failures", "Work that failed and comes again.", ("work",), figures.failures.values())
        yield counters("watch_restarts", "Times that the watches ended.", (), figures.watch_restarts.values())
        yield counters("full_lists", "Times that everything was read.", (), figures.full_lists.values())
        yield counters(
            "events", "Events: posted, left out for their number, or failed.", ("outcome",), figures.events.values()
        )
        yield from process_families("controller")

    def _policies(self, work: Work) -> Iterator[Family]:
        policies = sorted(work.store.policies(), key=lambda policy: policy.metadata.name)
        conditions: dict[tuple[str, ...], float] = {}
        nodes: dict[tuple[str, ...], float] = {}
        stages: dict[tuple[str, ...], float] = {}
        for policy in policies:
            name, status = policy.metadata.name, policy.status
            for condition in status.conditions if status else ():
                conditions[name, condition.type] = condition.status == "True"
            counts = status.nodes if status else None
            for state in _STATES if counts else ():
                nodes[name, state] = getattr(counts, state)
            stage = self._stage(work, policy)
            for each in get_args(Stage) if stage else ():
                stages[name, each] = each == stage
        yield gauge("policies", "Policies.", len(policies))
        yield gauges(
            "policy_condition",
            "1 for a condition of a policy that is True, else 0.",
            ("policy", "condition"),
            conditions,
        )
        yield gauges("nodes", "Nodes of a policy, by where they stand with it.", ("policy", "state"), nodes)
        yield gauges("rollout_stage", "1 for the stage that the change of a policy is in.", ("policy", "stage"), stages)

    @staticmethod
    def _stage(work: Work, policy: ConntrackPolicy) -> str | None:
        rollouts = work.reconciler.rollouts
        verdict = rollouts.verdict(policy.metadata.name, rollouts.book.name_of(policy))
        return verdict.stage if verdict else None
