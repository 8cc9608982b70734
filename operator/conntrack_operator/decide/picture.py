"""What there is to see of one policy on all its nodes, as numbers: what its conditions are judged from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from conntrack_operator.model.policy import ConntrackPolicy
from conntrack_operator.model.status import FleetUsage, NodeCounts, NodeFailure, PolicyPreview

from .merge import Conflict
from .rollout import CANARY_SILENT, Verdict


@dataclass(frozen=True)
class Picture:
    """All that the conditions are judged from."""

    policy: ConntrackPolicy
    counts: NodeCounts
    usage: FleetUsage
    failures: Sequence[NodeFailure]
    conflicts: Mapping[Conflict, Sequence[str]]
    retrying: int = 0
    """Nodes that rolled back and will try again by themselves."""
    troubled: int = 0
    """Nodes in a trial, of which something failed before or is refused."""
    warned: Sequence[NodeFailure] = ()
    """The first warning of every node that has one."""
    waiting: int = 0
    """Pending nodes that could be given the change and have not been yet."""
    absent: int = 0
    """Pending nodes that are not Ready or have no working agent: nobody waits for them."""
    leaving: int = 0
    """Nodes that still have the policy and should not."""
    verdict: Verdict | None = None
    preview: PolicyPreview | None = None
    trouble: str = ""
    """What keeps the agents from running."""
    blind: str = ""
    """What the controller may not see."""
    guarded: str = ""
    """Why nothing is withdrawn from any node."""

    @property
    def is_held(self) -> bool:
        """Whether no further node is given the change."""
        return self.verdict is not None and self.verdict.is_held

    @property
    def is_stuck(self) -> bool:
        """Whether the rollout has halted and what is on its way will not end by itself: somebody must act."""
        if self.verdict is None or self.verdict.stage != "Halted":
            return False
        return self.verdict.reason == CANARY_SILENT or not self.moving

    @property
    def moving(self) -> int:
        """Nodes that are still on their way."""
        told = self.counts.pending - self.absent - self.waiting + self.counts.updating + self.retrying
        return told if self.is_held else told + self.waiting + self.leaving

    @property
    def failed(self) -> int:
        """Nodes that have said no."""
        return self.counts.refused + self.counts.rolled_back

    @property
    def first_failure(self) -> str:
        """The first failure as a clause, and how many more are listed; empty when there is none."""
        if not self.failures:
            return ""
        more = len(self.failures) - 1
        return f"{self.failures[0].node}: {self.failures[0].message}" + (f" ({more} more in failures)" if more else "")
