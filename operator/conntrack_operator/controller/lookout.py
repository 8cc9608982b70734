"""A short list of the policies every few seconds, which finds out when the watches have missed something.

kopf begins a watch anew when its line is dead or what it knows is too old, and tells nobody: listed anew, a kind that
has become empty makes no event at all. Policies are few, and the one thing that must not be missed for long.
"""

import logging
from dataclasses import dataclass

from conntrack_operator.cluster.objects import POLICIES, Listing, Objects

from .sights import Unreadable, slimmed
from .store import Store
from .touched import Key
from .workqueue import WorkQueue

log = logging.getLogger(__name__)

LOOK_SECONDS = 15.0
AGAIN_SECONDS = 2.0
"""How long an event may be on its way before it counts as missed."""


@dataclass
class Lookout:
    """Compares what is known of the policies with a list of them."""

    objects: Objects
    store: Store
    queue: WorkQueue[Key]
    _was_behind: bool = False

    def look(self) -> None:
        """Look once, and come again. Raises Retry or Refused, as Objects.list does."""
        behind = self._is_behind(self.objects.list(POLICIES, slimmed))
        if behind and self._was_behind:
            log.warning("the watches have missed a change of the policies; everything is read anew")
            self.queue.add(Key("list"))
        self._was_behind = behind and not self._was_behind
        self.queue.add(Key("look"), AGAIN_SECONDS if self._was_behind else LOOK_SECONDS)

    def _is_behind(self, listing: Listing) -> bool:
        listed = {each["metadata"]["name"]: _version(each["metadata"]) for each in listing.items}
        known = {each.metadata.name: (each.metadata.uid, each.metadata.generation) for each in self.store.policies()}
        for name in self.store.unreadable_policies():
            item = self.store.policy(name)
            if isinstance(item, Unreadable):
                known[name] = (item.uid, item.generation)
        return listed != known


def _version(metadata: dict[str, object]) -> tuple[object, object]:
    return metadata.get("uid"), metadata.get("generation")
