"""The objects of one kind as last seen.

Three streams fill a shelf: watches, full lists, and the answers to our own writes. They may overtake one another, so
each object carries its resource version and an older sight never replaces a newer one, a deletion included. (Kubernetes
lets versions of one kind be compared since 1.35, KEP-5504; every API server on etcd has always counted them up.)

One version has one content, with an exception: just after a CRD has changed, a watch may show an object by the schema
before, without its new fields (tried on 1.37). So of two sights of one version that of a list counts.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from conntrack_operator.cluster.objects import Listing

T = TypeVar("T")


@dataclass(frozen=True)
class Change(Generic[T]):
    """One object before and after; None where it was not there."""

    name: str
    before: T | None
    after: T | None


class Shelf(Generic[T]):
    """The objects of one kind by name. Not safe for threads by itself; the store's lock is.

    `read` makes of a document what is kept of it: None when it is of no interest to us.
    """

    def __init__(self, read: Callable[[dict[str, Any]], T | None]) -> None:
        self._read = read
        self._seen: dict[str, tuple[int, T | None]] = {}

    def get(self, name: str) -> T | None:
        """Return the object, or None. A namespaced one goes by namespace/name."""
        return self._seen.get(name, (0, None))[1]

    def values(self) -> list[T]:
        """Return all objects."""
        return [item for _, item in self._seen.values() if item is not None]

    def names(self) -> list[str]:
        """Return the names of all objects."""
        return [name for name, (_, item) in self._seen.items() if item is not None]

    def put(self, document: dict[str, Any], *, deleted: bool = False, listed: bool = False) -> Change[T] | None:
        """Take in one sight of an object; None when it tells nothing new."""
        name, version = _name_of(document), int(document["metadata"]["resourceVersion"])
        known, before = self._seen.get(name, (0, None))
        if version < known or (version == known and not deleted and not listed):
            return None
        after = None if deleted else self._read(document)
        self._seen[name] = (version, after)
        return Change(name, before, after) if before != after else None

    def replace(self, listing: Listing) -> list[Change[T]]:
        """Take in a full list; what it lacks is gone, unless it was seen later than the list was made."""
        changes = [change for document in listing.items if (change := self.put(document, listed=True))]
        listed = {_name_of(document) for document in listing.items}
        for name, (version, item) in list(self._seen.items()):
            if name not in listed and version <= listing.resource_version:
                del self._seen[name]
                if item is not None:
                    changes.append(Change(name, item, None))
        return changes


def _name_of(document: dict[str, Any]) -> str:
    metadata = document["metadata"]
    namespace = metadata.get("namespace")
    return f"{namespace}/{metadata['name']}" if namespace else str(metadata["name"])
