"""Which happenings become Events, and how many: thousands of nodes that fail make neither a storm of them nor of GETs.

A person reads the first ten of a kind and then wants to know how many more there are. So each policy has a bucket of
events for itself and one for its nodes, so that a wave of failing nodes never keeps back that the rollout has halted;
and all policies together have one, which bounds what an event store of one hour's life has to take: 1,260 of them. What
was left out is said with the next one that is told; the policy's status counts it all in any case.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import datetime

from conntrack_operator.cluster.events import Subject, post_event
from conntrack_operator.cluster.objects import NODES, Objects
from conntrack_operator.decide.happenings import Happening
from conntrack_operator.decide.targeting import Node
from conntrack_operator.errors import ConntrackOperatorError

from .figures import FAILED, LEFT_OUT, POSTED, Figures
from .pace import Pace

log = logging.getLogger(__name__)

POLICY_BURST, POLICY_REFILL_SECONDS = 10, 60.0
"""Events of one policy, and as many of its nodes: all that a status names at once, then one a minute."""
ALL_BURST, ALL_REFILL_SECONDS = 60, 3.0
"""Events of all policies; each costs a GET and a write, so this is less than one request a second."""
QUIET_SECONDS = 300.0
"""A node that fails and recovers in turn, or a policy that does, is told of once in this time for each reason."""

ALL = ""


class Telling:
    """Posts what happens to policies and their nodes. Safe for threads, as long as each policy is with one of them."""

    def __init__(
        self, objects: Objects, clock: Callable[[], float] = time.monotonic, figures: Figures | None = None
    ) -> None:
        self._objects = objects
        self._figures = figures or Figures()
        self._clock = clock
        self._of_policies = Pace(clock, burst=POLICY_BURST, refill_seconds=POLICY_REFILL_SECONDS)
        self._of_nodes = Pace(clock, burst=POLICY_BURST, refill_seconds=POLICY_REFILL_SECONDS)
        self._of_all = Pace(clock, burst=ALL_BURST, refill_seconds=ALL_REFILL_SECONDS)
        self._told: dict[str, dict[tuple[object, ...], float]] = {}
        self._left_out: dict[str, Counter[str]] = {}

    def tell(
        self,
        policy: Subject,
        generation: int,
        happenings: Iterable[Happening],
        node_named: Callable[[str], Node | None],
        now: datetime,
    ) -> None:
        """Post `happenings` of a policy in this generation. What cannot be posted is logged and not tried again."""
        for happening in happenings:
            key = (policy.uid, generation, happening.reason, happening.node)
            if not self._is_news(policy.name, key):
                continue
            pace = self._of_nodes if happening.node else self._of_policies
            if pace.wait_seconds(policy.name) > 0 or self._of_all.wait_seconds(ALL) > 0:
                self._left_out.setdefault(policy.name, Counter())[happening.reason] += 1
                self._figures.events.add(LEFT_OUT)
                continue
            pace.spend(policy.name)
            self._told[policy.name][key] = self._clock()
            try:
                self._post(policy, happening, node_named, now)
            except ConntrackOperatorError as error:
                self._figures.events.add(FAILED)
                log.warning("an event about %s could not be posted: %s", policy.name, error)

    def forget(self, policy: str) -> None:
        """Drop what was noted of a policy that is gone."""
        self._of_policies.forget(policy)
        self._of_nodes.forget(policy)
        self._told.pop(policy, None)
        self._left_out.pop(policy, None)

    def _post(
        self, policy: Subject, happening: Happening, node_named: Callable[[str], Node | None], now: datetime
    ) -> None:
        self._of_all.spend(ALL)
        post_event(self._objects, policy, happening, now, self._more(policy.name, happening.reason))
        self._figures.events.add(POSTED)
        node = node_named(happening.node) if happening.node else None
        if node is not None:
            # There it goes without saying which node, but not which policy.
            said = f"policy {policy.name}: {happening.message.removeprefix(f'{node.name}: ')}"
            self._of_all.spend(ALL)
            post_event(self._objects, Subject(NODES, node.name, node.uid), replace(happening, message=said), now)
            self._figures.events.add(POSTED)

    def _is_news(self, policy: str, key: tuple[object, ...]) -> bool:
        clock = self._clock()
        told = {key: at for key, at in self._told.get(policy, {}).items() if clock - at < QUIET_SECONDS}
        self._told[policy] = told
        return key not in told

    def _more(self, policy: str, reason: str) -> str:
        """Return what was left out since the last event of the policy, as something to end a sentence with."""
        left_out = self._left_out.pop(policy, Counter())
        alike, others = left_out.pop(reason, 0), left_out.total()
        parts = ([f"{alike} more like it"] if alike else []) + ([f"{others} of other kinds"] if others else [])
        return f" (and {', '.join(parts)})" if parts else ""
