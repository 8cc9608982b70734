"""A running cluster without a kubelet, and what tests put into it and take out of it again."""

import functools
from pathlib import Path
from typing import Any

from tests.lab.control_plane import ControlPlane
from tests.lab.fleet_api import APPLY, MERGE, Api
from tests.lab.kinds import Kinds
from tests.lab.kubectl import NAMESPACE
from tests.lab.programs import wait_until

from conntrack_operator.cluster.access import access_for

# What tests and the operator put into its namespace, with the name that Kubernetes itself puts there.
_WITHIN = {
    "daemonsets": "", "pods": "", "controllerrevisions": "", "leases": "", "events": "", "secrets": "",
    "configmaps": "kube-root-ca.crt", "serviceaccounts": "default", "roles": "", "rolebindings": "",
}  # fmt: skip


class Cluster(ControlPlane):
    """A control plane and its objects, asked for and written without kubectl where that is quicker."""

    def stop(self) -> None:
        """End every process, the last one first."""
        if "api" in self.__dict__:
            self.api.close()
        super().stop()

    @functools.cached_property
    def api(self) -> Api:
        """An administrator's requests, without kubectl."""
        return Api(access_for(str(self.kubeconfig)))

    @functools.cached_property
    def _kinds(self) -> Kinds:
        return Kinds(self.api)

    def get(self, *arguments: str) -> dict[str, Any] | None:
        """Return what `kubectl get ARGUMENTS -o json` prints, None when there is no such object."""
        return self.api.request("GET", self._kinds.path(*arguments)) or None

    def items(self, *arguments: str) -> list[dict[str, Any]]:
        """Return the objects of a list, each with its kind, as kubectl does."""
        found = self.get(*arguments) or {"kind": "", "items": []}
        return [{"kind": found["kind"].removesuffix("List"), **item} for item in found["items"]]

    def apply(self, document: dict[str, Any]) -> None:
        """Apply an object that lies in no namespace, as `kubectl apply --server-side --force-conflicts` does."""
        kind, name = document["kind"].lower(), document["metadata"]["name"]
        query = "fieldManager=test&force=true&fieldValidation=Strict"
        path = f"{self._kinds.path(kind, name)}?{query}"
        # Not found is the kind: a CRD's, until the API server serves it.
        wait_until(lambda: self.api.request("PATCH", path, document, APPLY), 60, f"{kind} {name} is taken")

    def patch(self, body: dict[str, Any], *arguments: str, subresource: str = "") -> bool:
        """Merge `body` into the object that `kubectl get ARGUMENTS` means; tell whether it is there."""
        path = self._kinds.path(*arguments) + f"/{subresource}" * bool(subresource)
        return bool(self.api.request("PATCH", path, body, MERGE))

    def add_node(self, name: str, **labels: str) -> str:
        """Make a Node, ready, with labels (kubernetes.io/os=linux and its host name besides); return its uid."""
        labels = {"kubernetes.io/os": "linux", "kubernetes.io/hostname": name, **labels}
        node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels}, "status": _is(True)}
        return str(self.api.request("POST", "/api/v1/nodes", node)["metadata"]["uid"])

    def set_ready(self, name: str, *, ready: bool) -> None:
        """Write a Node's Ready condition, as its kubelet would."""
        assert self.patch({"status": _is(ready)}, "node", name, subresource="status")

    def delete_all(self, *wheres: tuple[str, ...] | str) -> None:
        """Delete all objects that these would list, as arguments of `items`; return when they are gone.

        Others may be writing some of them anew meanwhile.
        """
        paths = [self._kinds.path(*([where] if isinstance(where, str) else where)) for where in wheres]

        def are_gone() -> bool:
            for path in paths:
                self.api.request("DELETE", path, {"propagationPolicy": "Background"})
            return not any(self.api.items(path) for path in paths)

        wait_until(are_gone, 120, f"nothing is left of {', '.join(paths)}")

    def clear(self) -> None:
        """Delete what tests make: policies, node objects, Nodes, and all in the operator's namespace, which is there.

        That namespace stays, with nothing in it but what Kubernetes puts there: to delete one takes 5 s.
        """
        ours = ("-l", "app.kubernetes.io/name=conntrack-operator")
        kinds = ("conntrackpolicies", "nodeconntracks")
        self.delete_all(
            *(kind for kind in kinds if self.get("crd", f"{kind}.conntrack-operator.io")),
            "nodes", ("clusterrolebindings", *ours), ("clusterroles", *ours),
            *((kind, f"--field-selector=metadata.name!={kept}", "-n", NAMESPACE) for kind, kept in _WITHIN.items()),
        )  # fmt: skip
        self._have_namespace()

    def _have_namespace(self) -> None:
        wait_until(lambda: self._phase() != "Terminating", 120, f"namespace {NAMESPACE} is gone")
        found = self.get("namespace", NAMESPACE)
        if found is None:
            self.make_namespace(NAMESPACE)
        else:
            labels = {name: None for name in found["metadata"]["labels"] if name != "kubernetes.io/metadata.name"}
            self.patch({"metadata": {"labels": labels}}, "namespace", NAMESPACE)

    def _phase(self) -> str:
        return str((self.get("namespace", NAMESPACE) or {"status": {"phase": "gone"}})["status"]["phase"])

    def make_namespace(self, name: str) -> None:
        """Make a namespace; return when its ServiceAccount is there, which a pod needs."""
        self.kubectl("create", "namespace", name)
        account = ("serviceaccount", "default", "-n", name)
        self.controller_manager.wait_until(lambda: self.get(*account), 60, f"the ServiceAccount of namespace {name}")

    def apply_crds(self, folder: Path) -> None:
        """Apply the CRDs of a folder and wait until the API server serves them."""
        self.kubectl("apply", "--server-side", "-f", str(folder))
        self.kubectl("wait", "--for=condition=Established", "--timeout=60s", "-f", str(folder))
        wait_until(
            lambda: self.kubectl("get", "conntrackpolicies,nodeconntracks", check=False).returncode == 0,
            60, "the API server serves conntrackpolicies and nodeconntracks",
        )  # fmt: skip


def _is(ready: bool) -> dict[str, Any]:
    conditions = [{"type": "Ready", "status": "True" if ready else "False", "reason": "Test", "message": "test"}]
    return {"conditions": conditions}
