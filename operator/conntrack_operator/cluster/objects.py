"""The kinds of object the controller reads and writes, and the few verbs it needs for them."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from conntrack_operator.errors import LookAgain, Refused, Retry, StandBack
from conntrack_operator.model.base import GROUP, VERSION

from .connection import JSON_PATCH, Connection

FIELD_MANAGER = "conntrack-operator-controller"
PAGE_OBJECTS = 500


@dataclass(frozen=True)
class Kind:
    """One kind of object and where the API server keeps it."""

    kind: str
    api_version: str
    plural: str
    namespaced: bool = False
    field_selector: str = ""
    """Which of them are listed and watched; empty for all."""

    def path(self, namespace: str = "", name: str = "", subresource: str = "") -> str:
        """Return the path of all objects, or of the one named `name`."""
        root = "/apis/" if "/" in self.api_version else "/api/"
        parts = [root + self.api_version]
        if self.namespaced and namespace:
            parts += ["namespaces", namespace]
        return "/".join([*parts, self.plural, *filter(None, (name, subresource))])


POLICIES = Kind("ConntrackPolicy", f"{GROUP}/{VERSION}", "conntrackpolicies")
NODE_CONNTRACKS = Kind("NodeConntrack", f"{GROUP}/{VERSION}", "nodeconntracks")
NODES = Kind("Node", "v1", "nodes")
NAMESPACES = Kind("Namespace", "v1", "namespaces")
SERVICES = Kind("Service", "v1", "services", namespaced=True)
ENDPOINT_SLICES = Kind("EndpointSlice", "discovery.k8s.io/v1", "endpointslices", namespaced=True)
HOST_PODS = Kind("Pod", "v1", "pods", namespaced=True, field_selector="spec.hostNetwork=true")
"""The pods on their nodes' own network: a few per node, picked by the API server (since 1.28, kubernetes
#110477; tried on 1.37), however many pods there are."""
EVENTS = Kind("Event", "v1", "events", namespaced=True)
SERVICE_ACCOUNTS = Kind("ServiceAccount", "v1", "serviceaccounts", namespaced=True)
DAEMON_SETS = Kind("DaemonSet", "apps/v1", "daemonsets", namespaced=True)
CLUSTER_ROLES = Kind("ClusterRole", "rbac.authorization.k8s.io/v1", "clusterroles")
CLUSTER_ROLE_BINDINGS = Kind("ClusterRoleBinding", "rbac.authorization.k8s.io/v1", "clusterrolebindings")
LEASES = Kind("Lease", "coordination.k8s.io/v1", "leases", namespaced=True)
CRDS = Kind("CustomResourceDefinition", "apiextensions.k8s.io/v1", "customresourcedefinitions")
CONTROLLER_REVISIONS = Kind("ControllerRevision", "apps/v1", "controllerrevisions", namespaced=True)

BY_KIND = {kind.kind: kind for kind in (SERVICE_ACCOUNTS, DAEMON_SETS, CLUSTER_ROLES, CLUSTER_ROLE_BINDINGS)}
"""The kinds the agents are made of."""


@dataclass(frozen=True)
class Listing:
    """All objects of a kind at one moment, and the resource version of that moment."""

    resource_version: int
    items: tuple[dict[str, Any], ...]


class Objects:
    """Reads and writes objects. Every method raises Retry or Refused, as Connection.request does.

    `tally` is told of every write: the resource, the verb, and one word for how it ended.
    """

    def __init__(self, connection: Connection, tally: Callable[[str, str, str], object] = lambda *_: None) -> None:
        self._connection, self._tally = connection, tally

    def _write(self, kind: Kind, method: str, path: str, **request: Any) -> dict[str, Any] | None:
        """Request a write, and count it by resource, verb and result."""
        result = "error"
        try:
            answer = self._connection.request(method, path, **request)
            result = "success" if answer is not None else "gone"
        except LookAgain:
            result = "conflict"
            raise
        except StandBack:
            result = "withheld"
            raise
        except Refused:
            result = "refused"
            raise
        finally:
            self._tally(kind.plural, method.lower(), result)
        return answer

    def list(
        self,
        kind: Kind,
        slim: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
        *,
        namespace: str = "",
        label_selector: str = "",
    ) -> Listing:
        """Return all objects of a kind. A kind that is not there (404) is a Retry: never "none".

        They come from every namespace, or from `namespace` alone, and are those that `label_selector` picks. `slim`
        makes each document smaller as soon as its page is read.
        """
        version = ""
        items: list[dict[str, Any]] = []
        for page in self._pages(kind, namespace, label_selector):
            # All pages show the moment of the first one.
            version = version or page["metadata"]["resourceVersion"]
            items.extend(map(slim, page["items"]) if slim else page["items"])
        return Listing(int(version), tuple(items))

    def _pages(self, kind: Kind, namespace: str, label_selector: str) -> Iterator[dict[str, Any]]:
        wanted = {"fieldSelector": kind.field_selector, "labelSelector": label_selector}
        query = {"limit": str(PAGE_OBJECTS), **{key: value for key, value in wanted.items() if value}}
        while True:
            page = self._connection.request("GET", kind.path(namespace), query=query)
            if page is None:
                raise Retry(_missing(kind))
            yield page
            more = page["metadata"].get("continue")
            if not more:
                return
            query["continue"] = more

    def get(self, kind: Kind, name: str, namespace: str = "") -> dict[str, Any] | None:
        """Return one object, or None."""
        return self._connection.request("GET", kind.path(namespace, name))

    def create(self, kind: Kind, document: dict[str, Any], namespace: str = "") -> dict[str, Any]:
        """Create the object and return it as stored. One that exists already is a Retry."""
        stored = self._write(
            kind,
            "POST",
            kind.path(namespace),
            body={"apiVersion": kind.api_version, "kind": kind.kind, **document},
            query={"fieldManager": FIELD_MANAGER},
        )
        if stored is None and namespace:
            raise Retry(f"namespace {namespace} does not exist; kubectl create namespace {namespace}")
        if stored is None:
            raise Retry(_missing(kind))
        return stored

    def replace_parts(  # noqa: PLR0913 - each is one thing that a patch says
        self,
        kind: Kind,
        name: str,
        parts: Mapping[str, Any],
        *,
        subresource: str = "",
        namespace: str = "",
        only_if: Mapping[str, Any] | None = None,
    ) -> dict[str, Any] | None:
        """Replace whole parts of an object (`/spec`, `/status`) and return it, None when it is gone.

        A JSON patch: a merge patch would leave behind what the new part no longer has. Raises LookAgain, and nothing
        is written, unless each path in `only_if` has its value there (`{"/metadata/generation": 3}`): so a request that
        is carried out late does no harm to what others have written since.
        """
        tests = [{"op": "test", "path": path, "value": value} for path, value in (only_if or {}).items()]
        return self._write(
            kind,
            "PATCH",
            kind.path(namespace, name, subresource),
            body=[*tests, *({"op": "add", "path": path, "value": value} for path, value in parts.items())],
            query={"fieldManager": FIELD_MANAGER},
            content_type=JSON_PATCH,
        )

    def apply(self, kind: Kind, document: dict[str, Any], namespace: str = "") -> dict[str, Any] | None:
        """Make the object's fields as in `document` by server-side apply; None when its namespace is missing.

        Writes nothing when they are so already.
        """
        return self._write(
            kind,
            "PATCH",
            kind.path(namespace, document["metadata"]["name"]),
            body={"apiVersion": kind.api_version, "kind": kind.kind, **document},
            query={"fieldManager": FIELD_MANAGER, "force": "true"},
            content_type="application/apply-patch+yaml",
        )

    def delete(self, kind: Kind, name: str, namespace: str = "", *, uid: str = "", resource_version: str = "") -> None:
        """Delete the object in the background; when given, only this very one, in this very version."""
        conditions = {"uid": uid, "resourceVersion": resource_version}
        self._write(
            kind,
            "DELETE",
            kind.path(namespace, name),
            body={
                "propagationPolicy": "Background",
                "preconditions": {key: value for key, value in conditions.items() if value},
            },
        )


def _missing(kind: Kind) -> str:
    return f"the API server has no {kind.plural}; install them: conntrack-operator crds | kubectl apply -f -"
