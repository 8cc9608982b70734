"""Which requests the controller's verbs become; a fake connection answers them and keeps them."""

from collections.abc import Mapping
from typing import Any

import pytest

from conntrack_operator.cluster.objects import (
    CONTROLLER_REVISIONS,
    CRDS,
    HOST_PODS,
    LEASES,
    NODE_CONNTRACKS,
    Kind,
    Objects,
)
from conntrack_operator.errors import Retry


class Answers:
    """A connection that gives the answers it was made with, one after the other; `asked` keeps what it was asked."""

    def __init__(self, *answers: dict[str, Any] | None) -> None:
        self._answers = list(answers)
        self.asked: list[tuple[str, str, dict[str, str], Any]] = []

    def request(
        self, method: str, path: str, *, body: Any = None, query: Mapping[str, str] | None = None, **_: Any
    ) -> dict[str, Any] | None:
        """Keep the question, give the next answer."""
        self.asked.append((method, path, dict(query or {}), body))
        return self._answers.pop(0)


def page(*names: str, version: str = "7", more: str = "") -> dict[str, Any]:
    """Return one page of a list."""
    metadata = {"resourceVersion": version, **({"continue": more} if more else {})}
    return {"metadata": metadata, "items": [{"metadata": {"name": name}} for name in names]}


def test_a_list_is_read_page_by_page_with_the_same_selectors() -> None:
    """Every page asks for the same objects; the resource version is the first page's, which all of them show."""
    connection = Answers(page("a", more="next"), page("b", version="9"))
    listing = Objects(connection).list(CONTROLLER_REVISIONS, namespace="ns", label_selector="app=x")
    assert (listing.resource_version, [item["metadata"]["name"] for item in listing.items]) == (7, ["a", "b"])
    path = "/apis/apps/v1/namespaces/ns/controllerrevisions"
    wanted = {"limit": "500", "labelSelector": "app=x"}
    assert connection.asked == [("GET", path, wanted, None), ("GET", path, {**wanted, "continue": "next"}, None)]


def test_a_list_of_everything_asks_for_everything() -> None:
    """Without a namespace a namespaced kind is listed everywhere; its own field selector is always asked for."""
    connection = Answers(page())
    assert Objects(connection).list(HOST_PODS).items == ()
    assert connection.asked == [
        ("GET", "/api/v1/pods", {"limit": "500", "fieldSelector": "spec.hostNetwork=true"}, None)
    ]


def test_a_kind_that_is_not_there_is_no_empty_list() -> None:
    """404 for a list means that the CRD is missing, never that there are no objects."""
    with pytest.raises(Retry, match="has no customresourcedefinitions"):
        Objects(Answers(None)).list(CRDS)


@pytest.mark.parametrize(
    ("kind", "path"),
    [
        (LEASES, "/apis/coordination.k8s.io/v1/namespaces/ns/leases/n"),
        (CRDS, "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/n"),
        (CONTROLLER_REVISIONS, "/apis/apps/v1/namespaces/ns/controllerrevisions/n"),
    ],
)
def test_where_the_kinds_are(kind: Kind, path: str) -> None:
    """A kind that has no namespaces takes none."""
    assert kind.path("ns", "n") == path


def test_a_patch_with_conditions() -> None:
    """What must hold is tested before anything is replaced, in the same request."""
    connection = Answers({})
    Objects(connection).replace_parts(
        NODE_CONNTRACKS, "n1", {"/spec": {"mode": "Hold"}}, only_if={"/metadata/generation": 3, "/metadata/uid": "u"}
    )
    [(method, path, _, body)] = connection.asked
    assert (method, path) == ("PATCH", "/apis/conntrack-operator.io/v1alpha1/nodeconntracks/n1")
    assert body == [
        {"op": "test", "path": "/metadata/generation", "value": 3},
        {"op": "test", "path": "/metadata/uid", "value": "u"},
        {"op": "add", "path": "/spec", "value": {"mode": "Hold"}},
    ]


def test_what_is_missing_for_a_new_object() -> None:
    """404 for a creation names what is missing, and the command that brings it."""
    with pytest.raises(Retry, match="namespace ns does not exist; kubectl create namespace ns"):
        Objects(Answers(None)).create(LEASES, {}, "ns")
    with pytest.raises(Retry, match="has no nodeconntracks; install them: conntrack-operator crds"):
        Objects(Answers(None)).create(NODE_CONNTRACKS, {})
