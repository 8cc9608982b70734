"""What Observe policies would change on this node, told when they are and again while the machine moves on.

Nothing is loaded, written or tried for it (`Machine.preview`).
"""

import logging
import time
from dataclasses import dataclass, replace

from conntrack_operator.decide.outcome import NODE
from conntrack_operator.decide.plan import Plan
from conntrack_operator.decide.previewed import preview_revision
from conntrack_operator.decide.refusal import Refusal
from conntrack_operator.decide.report import Deed
from conntrack_operator.errors import FAILURES, Refused, Unsupported
from conntrack_operator.model.node import NodeSpec

from .machine import Machine

log = logging.getLogger(__name__)

PREVIEW_SECONDS = 60.0
"""Between two previews: firewalls, Services and tables move meanwhile."""
PREVIEW_SHARE = 50
"""One that took long, on a node with thousands of Services, is not made again for so many times as long."""
AGAIN_SECONDS = 5.0
"""Until one that could not be made this time is made again."""


def reason_of(error: Exception) -> str:
    """Return why something failed, as one word for programs."""
    return error.reason if isinstance(error, Refused) else type(error).__name__


@dataclass
class Foresight:
    """Makes the previews of one machine. `due` is when the next is to be made, in seconds of time.monotonic."""

    machine: Machine
    due: float = float("inf")
    _said: str = ""
    _took: float = 0.0

    def of(self, spec: NodeSpec) -> Plan | None:
        """Return what `spec.preview` would change; what it would be refused for as a whole is a refusal in it.

        None when nothing is to be previewed, or when that cannot be told this time: it is looked at again soon.
        """
        if spec.preview is None:
            return None
        began = time.monotonic()
        try:
            plan = self.machine.preview(spec.preview, spec.services)
        except (Refused, Unsupported) as error:
            return Plan((), (Refusal(NODE, reason_of(error), str(error)),), {}, ())
        except FAILURES as error:
            if str(error) != self._said:
                log.warning("the preview waits: %s", error)
            self._said = str(error)
            return None
        finally:
            self._took = time.monotonic() - began
        self._said = ""
        return plan

    def told(self, spec: NodeSpec, deed: Deed) -> Deed:
        """Return `deed`, which is about to be reported for `spec`, with what its preview was made for."""
        if spec.preview is None:
            self.due = float("inf")
            return deed
        usual = AGAIN_SECONDS if deed.preview is None else PREVIEW_SECONDS
        self.due = time.monotonic() + max(usual, PREVIEW_SHARE * self._took)
        return replace(deed, previewed=preview_revision(spec.preview))

    def again(self, spec: NodeSpec | None, deed: Deed | None) -> Deed | None:
        """Preview anew; return `deed` with what would change now, None when that is as it was."""
        if spec is None or deed is None:
            self.due = float("inf")
            return None
        preview = self.of(spec)
        fresh = self.told(spec, replace(deed, preview=preview))
        return fresh if preview is not None and preview != deed.preview else None
