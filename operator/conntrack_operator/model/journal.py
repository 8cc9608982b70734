"""The journal: what this node's values were before we touched them, so that they can be put back.

It is written and synced before the first write to the kernel (`kernel.journal`). Decisions read it as data. Sysctls and
rules do not outlive the kernel, so a journal of another boot id says nothing about today's values: of such a journal
only the failures count (`decide.remember.journal_of_next_boot`).
"""

from typing import Annotated, Literal

from pydantic import Field

from .base import Model
from .node import PolicyUse
from .notrack import NotrackRule
from .policy import Settings


class Original(Model):
    """One sysctl we wrote."""

    value: int
    """The value before our first write."""
    ours: list[int]
    """Values we wrote or were about to write, newest last; anything else in the kernel is somebody else's."""
    keep: bool = False
    """Leave it behind when no policy sets it any more (onDelete: Keep)."""


class AppliedRule(Model):
    """One NOTRACK rule we installed."""

    rule: NotrackRule
    keep: bool = False
    """Leave it behind when no policy has it any more (onDelete: Keep)."""


class TrialRecord(Model):
    """A change that is not confirmed yet: all that is needed to undo it, by whoever reads this next."""

    revision: str
    attempt: str = ""
    deadline: float
    """Seconds on CLOCK_BOOTTIME, which no change of the wall clock moves and which counts suspended time too."""
    before: dict[str, int]
    """The sysctls this trial writes, with their values before it."""
    written: dict[str, int]
    """The same sysctls with the values this trial gives them; any other value found there is somebody else's."""
    touches_rules: bool = False
    """Whether NOTRACK rules are on trial too. Those confirmed before are the journal's `applied_rules`."""
    new_rules: list[NotrackRule] = []
    """The rules on trial that were not confirmed before as they are now."""
    new_originals: list[str] = []
    """Sysctls we had not written before this trial: their originals are forgotten with it."""


class Failures(Model):
    """How often one wish failed on this node. Counted through reboots: a change may be what made the node reboot."""

    revision: str
    attempt: str = ""
    count: int
    at: float = 0
    """When it failed last, in seconds on CLOCK_BOOTTIME; 0 for a boot that is over."""
    reason: str
    """ProbeFailed, TrialExpired, AgentKilled, NodeRebooted and the like."""
    message: str
    """What happened, as a sentence."""


class Journal(Model):
    """Everything needed to undo what was done since this boot."""

    version: Literal[1] = 1
    boot_id: Annotated[str, Field(alias="bootID")]
    """/proc/sys/kernel/random/boot_id of the kernel these values belong to."""
    originals: dict[str, Original] = {}
    """By full dotted sysctl name."""
    applied_rules: dict[str, AppliedRule] = {}
    """By rule name: those confirmed. Rules on trial are not among them."""
    trial: TrialRecord | None = None
    """The change that is being tried, or was when the agent ended."""
    failures: Failures | None = None
    """Of the wish that failed last; gone when a wish is confirmed."""
    timed_elements: bool | None = None
    """Whether timed set elements expire on this kernel, once tested (kernel.nftables.self_test)."""
    accept_untracked: Literal["Replies", "Both", "Never"] | None = None
    """With which notrack.acceptUntracked the rules were put in force: what is kept of past policies keeps it."""
    unloaded: list[str] = []
    """Kernel modules that `tracking: Disabled` unloaded, in the order in which they went."""


class Confirmed(Model):
    """The settings last put in force here, kept across boots: a node that cannot reach the API server uses them."""

    version: Literal[1] = 1
    revision: str
    settings: Settings
    uses: list[PolicyUse] = []
    """The policies they came from."""
    sysctls: dict[str, int] = {}
    """Values they came to and were confirmed with: these need no second trial."""
    rules: list[NotrackRule] = []
    """Rules that were in force when they were confirmed: these need no second trial."""
