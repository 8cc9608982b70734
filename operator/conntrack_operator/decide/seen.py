"""One node as the controller sees it: whether it can be given something, whether it has answered, and since when."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property

from conntrack_operator.model.node import NodeConntrack, NodeSpec, NodeStatus

from .holding import held_by
from .rollout import ANSWER_SECONDS
from .standing import SILENT_AFTER, speaks_of
from .targeting import Node
from .trial import ROLLED_BACK_BY


@dataclass(frozen=True)
class Seen:
    """One node and what is known of it. Times are those of the controller, as far as it was there to see."""

    node: Node
    existing: NodeConntrack | None = None
    heard_at: datetime | None = None
    """When its agent was heard last."""
    told_at: datetime | None = None
    """Since when its spec is as it is."""
    answered_at: datetime | None = None
    """Since when its answer is what it is."""
    agent_ready: bool | None = None
    """Whether the agent's pod on it is Ready; None where none can be seen."""
    unknown: frozenset[str] = frozenset()
    """Policies that it has at a revision nobody knows: until those are settled, nothing else can be added."""

    def is_able(self, now: datetime) -> bool:
        """Tell whether the node can be given something: Ready, with an agent that is well and heard of lately.

        For an agent that has not been heard yet its pod speaks, where that is Ready.
        """
        if not self.node.ready or self.agent_ready is False:
            return False
        if self.status is None:
            return self.agent_ready is True
        return self.heard_at is not None and now - self.heard_at < SILENT_AFTER

    def is_new(self, now: datetime) -> bool:
        """Tell whether the node has just joined: nothing speaks for an agent there yet."""
        return self.status is None and not self.is_able(now)

    def is_awaited(self, now: datetime) -> bool:
        """Tell whether it cannot be given anything only because its agent, told a moment ago, has not answered yet."""
        if not self.node.ready or self.agent_ready is False or self.status is not None:
            return False
        return self.told_at is None or now - self.told_at < timedelta(seconds=ANSWER_SECONDS)

    @property
    def spec(self) -> NodeSpec | None:
        """What the node was told, if it was this very node."""
        found = self.existing
        return found.spec if found is not None and found.spec.node_uid == self.node.uid else None

    @cached_property
    def status(self) -> NodeStatus | None:
        """What this very node says of itself."""
        found = self.existing
        return found.status if found is not None and speaks_of(self.node, found) else None

    @cached_property
    def held(self) -> Mapping[str, str]:
        """The revisions it has, by policy."""
        return held_by(self.node, self.spec)

    @property
    def has_answered(self) -> bool:
        """Whether its status is about what it was told last."""
        spec, status = self.spec, self.status
        return (
            spec is not None
            and status is not None
            and (status.observed_revision, status.observed_attempt) == (spec.revision, spec.attempt)
        )

    @property
    def is_moving(self) -> bool:
        """Whether a change is on its way there."""
        spec, status = self.spec, self.status
        if spec is None or spec.mode == "Hold":
            return False
        return not self.has_answered or (status is not None and status.phase == "Trial")

    @property
    def is_tried_again(self) -> bool:
        """Whether what is on trial there has been rolled back before: the node says so until it goes well."""
        status = self.status
        if status is None or status.phase != "Trial" or not self.has_answered:
            return False
        return any(result.reason in ROLLED_BACK_BY for result in status.results)

    def since(self, now: datetime) -> datetime:
        """Return since when it has been moving, or has said what it says."""
        if not self.has_answered:
            return self.told_at or now
        return self.answered_at or now
