"""What Kubernetes translates, by port: made of Services and EndpointSlices as they come, asked for every node.

A cluster may have 5,000 nodes and thousands of Services that change all day. A change costs a look at the ports it is
about; what meets a set of rules is worked out once for all nodes that have the same rules, and again only when a
Service or an endpoint has changed.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from conntrack_operator.cluster.objects import Listing
from conntrack_operator.decide.services import (
    Concern,
    PortKey,
    Reach,
    Translation,
    changed_between,
    concern_of,
    reach_of,
)
from conntrack_operator.model.notrack import NotrackRule

from .shelf import Change, Shelf
from .sights import Translator, service_in, slice_in

CONCERNS_KEPT = 256


@dataclass(frozen=True)
class _Place:
    kind: str
    name: str


class Translations:
    """All translations, and what they concern. Not safe for threads by itself; the store's lock is."""

    def __init__(self) -> None:
        self._services: Shelf[Translator] = Shelf(service_in)
        self._slices: Shelf[Translator] = Shelf(slice_in)
        self._by_port: dict[PortKey, dict[_Place, list[Translation]]] = {}
        self._concerns: dict[tuple[Reach, ...], Concern] = {}

    def put_service(self, document: dict[str, Any], *, deleted: bool = False) -> list[Translation]:
        """Take in a sight of a Service; return what became different."""
        change = self._services.put(document, deleted=deleted)
        return self._services_changed([change] if change else [])

    def put_slice(self, document: dict[str, Any], *, deleted: bool = False) -> list[Translation]:
        """Take in a sight of an EndpointSlice; return what became different."""
        change = self._slices.put(document, deleted=deleted)
        return self._changed("slice", [change] if change else [])

    def replace(self, services: Listing | None, slices: Listing | None) -> None:
        """Take in full lists; None leaves what is known as it is."""
        if services is not None:
            self._services_changed(self._services.replace(services))
        if slices is not None:
            self._changed("slice", self._slices.replace(slices))

    def concern(self, rules: Sequence[NotrackRule]) -> Concern:
        """Return what meets `rules`, on every node."""
        reaches = tuple(reach_of(rule) for rule in rules)
        known = self._concerns.get(reaches)
        if known is None:
            known = concern_of(reaches, self._within(reaches))
            if len(self._concerns) >= CONCERNS_KEPT:
                self._concerns.clear()
            self._concerns[reaches] = known
        return known

    def _within(self, reaches: Sequence[Reach]) -> Iterator[Translation]:
        for key, by_place in self._by_port.items():
            if not any(reach.has(key) for reach in reaches):
                continue
            for translations in by_place.values():
                # An EndpointSlice whose Service is not there, or is headless, is nobody's.
                yield from (
                    each for each in translations if each.kind != "TargetPort" or self._services.get(each.service)
                )

    def _services_changed(self, changes: Sequence[Change[Translator]]) -> list[Translation]:
        changed = self._changed("service", changes)
        turned = {change.name for change in changes if (change.before is None) != (change.after is None)}
        if turned:
            slices = (each for each in self._slices.values() if each.service in turned)
            changed += [each for slice_ in slices for each in slice_.translations]
        return changed

    def _changed(self, kind: str, changes: Iterable[Change[Translator]]) -> list[Translation]:
        changed: list[Translation] = []
        for change in changes:
            self._concerns.clear()
            place = _Place(kind, change.name)
            before = change.before.translations if change.before else ()
            after = change.after.translations if change.after else ()
            for key in {each.key for each in before}:  # several may be on one port: a ClusterIP, a LoadBalancer
                self._by_port[key].pop(place, None)
                if not self._by_port[key]:
                    del self._by_port[key]
            for each in after:
                self._by_port.setdefault(each.key, {}).setdefault(place, []).append(each)
            changed += changed_between(before, after)
        return changed
