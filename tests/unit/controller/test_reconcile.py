"""What the reconciler does when the API server knows an object better than we do."""

from typing import Any

import pytest

from conntrack_operator.cluster.objects import NODE_CONNTRACKS, Kind
from conntrack_operator.controller.reconcile import Reconciler
from conntrack_operator.controller.store import Store
from conntrack_operator.controller.touched import Key
from conntrack_operator.controller.workqueue import WorkQueue
from conntrack_operator.errors import LookAgain
from conntrack_operator.model.node import NodeConntrack


class Server:
    """An API server that has one NodeConntrack, or none."""

    def __init__(self, document: dict[str, Any] | None) -> None:
        self._document = document

    def get(self, kind: Kind, name: str) -> dict[str, Any] | None:
        """Return it."""
        assert (kind, name) == (NODE_CONNTRACKS, "n1")
        return self._document


def document(version: int, generation: int) -> dict[str, Any]:
    """Return a NodeConntrack at a version."""
    return {
        "metadata": {"name": "n1", "uid": "u", "generation": generation, "resourceVersion": str(version)},
        "spec": {"revision": "r", "mode": "Hold", "nodeUID": "node"},
    }


@pytest.mark.parametrize(
    ("there", "generation"), [(document(9, 4), 4), (None, 3)], ids=["changed, and no watch has told", "gone"]
)
def test_what_is_not_as_it_was_thought_to_be_is_looked_at(
    monkeypatch: pytest.MonkeyPatch, there: dict[str, Any] | None, generation: int
) -> None:
    """A write that did not fit is tried again on what is really there, also when the watches are silent."""
    store = Store("ns")
    store.put_node_conntrack(document(5, 3))
    reconciler: Any = Reconciler(Server(there), store, WorkQueue(), *[None] * 3)

    def write(_: Key) -> None:
        raise LookAgain("changed")

    monkeypatch.setattr(reconciler, "_put_right", write)
    with pytest.raises(LookAgain):
        reconciler.put_right(Key("node", "n1"))
    found = store.node_conntrack("n1")
    assert isinstance(found, NodeConntrack)
    assert found.metadata.generation == generation
