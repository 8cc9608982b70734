"""A short list of the policies every few seconds, which finds out when the watches have missed something.

kopf begins a watch anew when its line is dead or what it knows is too old, and tells nobody: listed anew, a kind that
has become empty makes no event at all. And a kind whose CRD is made anew it may never watch again: it looks for kinds
when a CRD changes, which may be just before the API server serves it (tried on kopf 1.45.2 and Kubernetes 1.37).

After a change of a CRD the API server may send an object or two by the schema before: a new field is missing in it, and
its generation is the new one all the same (tried on 1.37). So everything is read anew then, at this look and the next.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from conntrack_operator.cluster.objects import CRDS, NODE_CONNTRACKS, POLICIES, Listing, Objects
from conntrack_operator.errors import Refused
from conntrack_operator.model.base import GROUP

from .sights import Unreadable, slimmed
from .store import Store
from .touched import Key
from .workqueue import WorkQueue

log = logging.getLogger(__name__)

LOOK_SECONDS = 15.0
AGAIN_SECONDS = 2.0
"""How long an event may be on its way before it counts as missed, and a new CRD before the API server serves it."""
READS_OF_A_NEW_SCHEMA = 2
TWICE_SECONDS = 300.0
"""Watches that miss two changes within this time are begun anew: one may be late under load."""


def _nothing() -> None:
    """Stand in for watches that are not there."""


@dataclass
class Lookout:
    """Compares what is known of the policies with a list of them, and the CRDs with those of before."""

    objects: Objects
    store: Store
    queue: WorkQueue[Key]
    begin_watches_anew: Callable[[], None] = _nothing
    clock: Callable[[], float] = time.monotonic
    _was_behind: bool = False
    _missed_at: float = float("-inf")
    _uids: tuple[str, ...] = ()
    _next_uids: tuple[str, ...] = ()
    _schemas: tuple[int, ...] = ()
    _reads_due: int = 0

    def look(self) -> None:
        """Look once, and come again. Raises Retry or Refused, as Objects.list does."""
        is_new = self._has_new_crds()
        if self._reads_due:
            self._reads_due -= 1
            self.queue.add(Key("list"))
        behind = self._is_behind(self.objects.list(POLICIES, slimmed))
        if behind and self._was_behind:
            log.warning("the watches have missed a change of the policies; everything is read anew")
            self.queue.add(Key("list"))
            if self.clock() - self._missed_at < TWICE_SECONDS:
                self.begin_watches_anew()
            self._missed_at = self.clock()
        self._was_behind = behind and not self._was_behind
        self.queue.add(Key("look"), AGAIN_SECONDS if self._was_behind or is_new else LOOK_SECONDS)

    def distrust(self) -> None:
        """Take the CRDs for new: they may have come when the watches ran already."""
        self._uids = ("not known",)

    def _is_behind(self, listing: Listing) -> bool:
        listed = {each["metadata"]["name"]: _version(each["metadata"]) for each in listing.items}
        known = {each.metadata.name: (each.metadata.uid, each.metadata.generation) for each in self.store.policies()}
        for name in self.store.unreadable_policies():
            item = self.store.policy(name)
            if isinstance(item, Unreadable):
                known[name] = (item.uid, item.generation)
        return listed != known

    def _has_new_crds(self) -> bool:
        """Tell whether there are CRDs that are too new to be watched; seen a second time, they are."""
        try:
            found = [self.objects.get(CRDS, f"{kind.plural}.{GROUP}") for kind in (POLICIES, NODE_CONNTRACKS)]
        except Refused:
            return False  # the guard says so where it matters
        schemas = tuple(crd["metadata"]["generation"] for crd in found if crd is not None)
        if len(schemas) == len(found) and schemas != self._schemas:
            self._reads_due = READS_OF_A_NEW_SCHEMA if self._schemas else 0
            self._schemas = schemas
        uids = tuple(crd["metadata"]["uid"] for crd in found if crd is not None)
        if len(uids) < len(found) or uids == self._uids:
            return False
        if not self._uids:
            self._uids = uids
            return False
        if uids != self._next_uids:
            self._next_uids = uids
            return True
        log.info("a CRD was made anew; the watches begin anew")
        self._uids = uids
        self.begin_watches_anew()
        return False


def _version(metadata: dict[str, object]) -> tuple[object, object]:
    return metadata.get("uid"), metadata.get("generation")
