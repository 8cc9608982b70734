"""The journal: what this node's values were before we touched them, so that they can be put back.

It is written and synced before the first write to the kernel (`kernel.journal`). Decisions read it as data. Sysctls and
rules do not outlive the kernel, so a journal of another boot id says nothing about today's values.
"""

from typing import Annotated, Literal

from pydantic import Field

from .base import Model
from .node import PolicyUse
from .policy import NotrackRule, Settings


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


class Journal(Model):
    """Everything needed to undo what was done since this boot."""

    version: Literal[1] = 1
    boot_id: Annotated[str, Field(alias="bootID")]
    """/proc/sys/kernel/random/boot_id of the kernel these values belong to."""
    originals: dict[str, Original] = {}
    """By full dotted sysctl name."""
    applied_rules: dict[str, AppliedRule] = {}
    """By rule name."""
    unloaded: list[str] = []
    """Kernel modules that `tracking: Disabled` unloaded, in the order in which they went."""


class Confirmed(Model):
    """The settings last put in force here, kept across boots: a node that cannot reach the API server uses them."""

    version: Literal[1] = 1
    revision: str
    settings: Settings
    uses: list[PolicyUse] = []
    """The policies they came from."""
