"""The agents' pods as last seen: on which nodes an agent is ready, and what ails the others.

They come with the watch of host-network pods. Where pods may not be looked at, or none was seen on a node, nothing is
known, and that is never taken for "not ready".
"""

import functools
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from conntrack_operator.cluster.objects import Listing
from conntrack_operator.decide.agent_trouble import AgentPod, Ailment, ailment_in

from .daemonset import CONTAINER, SELECTOR
from .shelf import Change, Shelf

STEADY_SECONDS = 60.0
"""How long an agent that crashed must run before it counts as well: between two crashes it looks ready each time."""


def agent_pod_in(document: dict[str, Any], namespace: str) -> AgentPod | None:
    """Return the agent's pod in `document`; None when it is none of the agents in `namespace`, or has ended."""
    metadata, spec, status = document["metadata"], document.get("spec") or {}, document.get("status") or {}
    labels = metadata.get("labels") or {}
    if metadata.get("namespace") != namespace or any(labels.get(key) != value for key, value in SELECTOR.items()):
        return None
    node = spec.get("nodeName") or _meant_for(spec)
    if not node or status.get("phase") in ("Succeeded", "Failed"):
        return None  # the DaemonSet replaces one that has ended
    ready = any(each.get("type") == "Ready" and each.get("status") == "True" for each in status.get("conditions") or ())
    images = [each.get("image") or "" for each in spec.get("containers") or () if each.get("name") == CONTAINER]
    return AgentPod(
        name=metadata["name"],
        node=node,
        is_bound=bool(spec.get("nodeName")),
        is_ready=ready,
        is_ending=bool(metadata.get("deletionTimestamp")),
        image=images[0] if images else "",
        ailment=None if metadata.get("deletionTimestamp") else ailment_in(document, CONTAINER),
    )


def _meant_for(spec: dict[str, Any]) -> str:
    """Return the node a DaemonSet made the pod for: it says so by an affinity (pkg/controller/daemon/util)."""
    affinity = (spec.get("affinity") or {}).get("nodeAffinity") or {}
    terms = (affinity.get("requiredDuringSchedulingIgnoredDuringExecution") or {}).get("nodeSelectorTerms") or ()
    for term in terms:
        for field in term.get("matchFields") or ():
            if field.get("key") == "metadata.name" and field.get("operator") == "In" and field.get("values"):
                return str(field["values"][0])
    return ""


class AgentPods:
    """The agents' pods by node, of the operator's `namespace`. Safe for threads."""

    def __init__(self, namespace: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._namespace = namespace
        self._clock = clock
        self._lock = threading.Lock()
        self._read = functools.partial(agent_pod_in, namespace=namespace)
        self._shelf: Shelf[AgentPod] = Shelf(self._read)
        self._on: dict[str, dict[str, AgentPod]] = {}
        self._ill: dict[str, AgentPod] = {}
        self._crashed: dict[str, tuple[float, AgentPod]] = {}
        """For a pod that crashed and runs again: until when that counts, and the pod with what it was."""

    def put(self, document: dict[str, Any], *, deleted: bool = False) -> set[str]:
        """Take in one sight of any pod; return the nodes of which something else is known now."""
        if not self._may_be_ours(document):
            return set()
        with self._lock:
            change = self._shelf.put(document, deleted=deleted)
            return self._take_in([change] if change else [])

    def replace(self, listing: Listing) -> set[str]:
        """Take in a full list of pods, those of others included; return the nodes as `put` does."""
        ours = Listing(listing.resource_version, tuple(filter(self._may_be_ours, listing.items)))
        with self._lock:
            return self._take_in(self._shelf.replace(ours))

    def clear(self) -> None:
        """Forget everything: pods may not be looked at any more."""
        with self._lock:
            self._shelf = Shelf(self._read)
            self._on.clear()
            self._ill.clear()
            self._crashed.clear()

    def ready(self, node: str) -> bool | None:
        """Tell whether an agent is ready on `node`; None when no pod of an agent has been seen there.

        One that is being deleted, or that crashed a moment ago, is not. One that is meant for the node and not there
        yet counts as not ready only if the scheduler has said that it has no room for it.
        """
        with self._lock:
            seen = {name: pod for name, pod in self._on.get(node, {}).items() if pod.is_bound or pod.ailment}
            return any(self._is_well(name, pod) for name, pod in seen.items()) if seen else None

    def ailing(self) -> tuple[list[AgentPod], float]:
        """Return the pods that something ails, and in how many seconds there may be fewer; 0 when not foreseen."""
        with self._lock:
            now = self._clock()
            held = [(until, pod) for until, pod in self._crashed.values() if until > now]
            pods = [*self._ill.values(), *(pod for _, pod in held)]
            return pods, min((until - now for until, _ in held), default=0.0)

    def _may_be_ours(self, document: dict[str, Any]) -> bool:
        # The shelf keeps a note of everything it is shown, and other namespaces have tens of thousands of pods.
        return bool(document["metadata"].get("namespace") == self._namespace)

    def _is_well(self, name: str, pod: AgentPod) -> bool:
        until, _ = self._crashed.get(name, (0.0, None))
        return pod.is_ready and not pod.is_ending and not pod.ailment and until <= self._clock()

    def _take_in(self, changes: Iterable[Change[AgentPod]]) -> set[str]:
        nodes = set()
        now = self._clock()
        self._crashed = {name: item for name, item in self._crashed.items() if item[0] > now}
        for change in changes:
            before, after = None, change.after
            if change.before is not None:
                nodes.add(change.before.node)
                before = self._on[change.before.node].pop(change.name)
                if not self._on[change.before.node]:
                    del self._on[change.before.node]
            self._ill.pop(change.name, None)
            if after is None or after.is_ending or after.ailment:
                self._crashed.pop(change.name, None)
            if after is None:
                continue
            nodes.add(after.node)
            was = before.ailment if before else None
            if was and after.ailment == Ailment(was.kind):
                after = replace(after, ailment=was)  # older kubelets say why only every other time
            elif was and was.kind == "Crash" and after.ailment is None and not after.is_ending:
                self._crashed[change.name] = (now + STEADY_SECONDS, replace(after, ailment=was))
            if after.ailment is not None:
                self._ill[change.name] = after
            self._on.setdefault(after.node, {})[change.name] = after
        return nodes
