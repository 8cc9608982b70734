"""Keeps the agents running while there is anything for them to do, and takes them away when there is not."""

import logging
from dataclasses import dataclass

from conntrack_operator.cluster.objects import BY_KIND, NODE_CONNTRACKS, POLICIES, Objects
from conntrack_operator.errors import ConntrackOperatorError, Refused, Retry

from .daemonset import MANAGED_BY, agent_documents

log = logging.getLogger(__name__)


@dataclass
class Agents:
    """The DaemonSet and its rights. `trouble` says why they cannot be had, with the remedy; empty while all is well."""

    objects: Objects
    namespace: str
    image: str
    trouble: str = ""

    def put_right(self, *, wanted: bool) -> None:
        """Create or repair the agents when they are `wanted`, else remove them. Raises Retry or Refused.

        What is right already is not written to.
        """
        try:
            if wanted:
                self._apply()
            elif self._is_needless():
                self._remove()
        except Refused as refusal:
            self.trouble = f"the agents cannot be started: {refusal}; see the controller's rights"
            raise
        except ConntrackOperatorError:
            raise
        self.trouble = ""

    def _apply(self) -> None:
        for document in agent_documents(self.namespace, self.image):
            kind = BY_KIND[document["kind"]]
            namespace = self.namespace if kind.namespaced else ""
            if self.objects.apply(kind, document, namespace) is None:
                self.trouble = (
                    f"the agents cannot be started: namespace {self.namespace} does not exist;"
                    f" kubectl create namespace {self.namespace}"
                )
                raise Retry(self.trouble)

    def _is_needless(self) -> bool:
        """Ask the API server itself before taking the agents from every node."""
        return not self.objects.list(POLICIES).items and not self.objects.list(NODE_CONNTRACKS).items

    def _remove(self) -> None:
        for document in reversed(agent_documents(self.namespace, self.image)):
            kind, name = BY_KIND[document["kind"]], document["metadata"]["name"]
            namespace = self.namespace if kind.namespaced else ""
            found = self.objects.get(kind, name, namespace)
            labels = (found or {}).get("metadata", {}).get("labels") or {}
            if found is not None and labels.get("app.kubernetes.io/managed-by") == MANAGED_BY:
                self.objects.delete(kind, name, namespace, uid=found["metadata"]["uid"])
                log.info("removed %s %s", kind.kind, name)
