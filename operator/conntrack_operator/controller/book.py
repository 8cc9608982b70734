"""The book of revisions: every version of a policy that some node has, or may have, as a ControllerRevision.

A revision is written down before any node is told of it. None has an owner: a policy that was deleted is still on its
nodes for a while, and what they have must be known as long. Whoever deletes the operator's namespace deletes the book.
"""

import logging
import threading
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

from conntrack_operator.cluster.objects import CONTROLLER_REVISIONS, Objects
from conntrack_operator.decide.holding import Lookup
from conntrack_operator.decide.revisions import (
    Revision,
    content_of,
    last_good,
    outdated,
    policy_at,
    revision_name,
)
from conntrack_operator.decide.standing import time_in
from conntrack_operator.errors import Retry
from conntrack_operator.model.policy import ConntrackPolicy

from .daemonset import MANAGED_BY

log = logging.getLogger(__name__)

COMPONENT = "revision"
LABELS = {
    "app.kubernetes.io/name": "conntrack-operator",
    "app.kubernetes.io/component": COMPONENT,
    "app.kubernetes.io/managed-by": MANAGED_BY,
}
POLICY = "conntrack-operator.io/policy"
GOOD_SINCE = "conntrack-operator.io/good-since"
CREATED = "conntrack-operator.io/created"
NAME_MAX = 230
READ_KEPT = 512


class Book:
    """All revisions, in memory and in `namespace`. Safe for threads. Methods that write raise Retry or Refused."""

    def __init__(self, objects: Objects, namespace: str) -> None:
        self._objects = objects
        self._namespace = namespace
        self._lock = threading.Lock()
        self._revisions: dict[str, dict[str, Revision]] = {}
        self._stored: set[tuple[str, str]] = set()
        self._names: dict[tuple[str, str | None, int | None], str] = {}
        self._read: dict[tuple[str, str, str, str | None, int | None], ConntrackPolicy | None] = {}

    def load(self) -> None:
        """Read the whole book. What is missing there and is still in use, `keep` writes down again."""
        label = ",".join(f"{key}={value}" for key, value in LABELS.items())
        listing = self._objects.list(CONTROLLER_REVISIONS, namespace=self._namespace, label_selector=label)
        found = [each for document in listing.items if (each := _revision_in(document)) is not None]
        with self._lock:
            for each in found:
                self._revisions.setdefault(each.policy, {})[each.name] = each
            self._stored = {(each.policy, each.name) for each in found}

    def names(self) -> set[str]:
        """Return the policies that have revisions."""
        with self._lock:
            return set(self._revisions)

    def good(self, policy: str) -> Revision | None:
        """Return the revision of `policy` that went well last."""
        with self._lock:
            return last_good(self._revisions.get(policy, {}).values())

    def revisions(self, policy: str) -> list[Revision]:
        """Return all revisions of `policy`."""
        with self._lock:
            return list(self._revisions.get(policy, {}).values())

    def contents(self) -> list[ConntrackPolicy]:
        """Return every policy at each of its revisions, as far as this version understands them."""
        with self._lock:
            known = [(each.policy, each.name) for revisions in self._revisions.values() for each in revisions.values()]
        look = self.lookup(())
        return [policy for policy in (look(*each) for each in known) if policy is not None]

    def with_rules(self, policies: Iterable[str], look: Lookup) -> list[ConntrackPolicy]:
        """Return these policies at each of their revisions that asks for NOTRACK rules, as `look` finds them."""
        with self._lock:
            known = [(name, revision) for name in sorted(policies) for revision in self._revisions.get(name, {})]
        found = (look(*each) for each in known)
        return [each for each in found if each and each.spec.mode == "Enforce" and each.spec.notrack]

    def knows(self, policy: str, revision: str) -> bool:
        """Tell whether the revision is in the book."""
        with self._lock:
            return revision in self._revisions.get(policy, {})

    def name_of(self, policy: ConntrackPolicy) -> str:
        """Return the name of the revision the policy is at, written down or not."""
        key = (policy.metadata.name, policy.metadata.uid, policy.metadata.generation)
        with self._lock:
            known = self._names.get(key)
        if known is None:
            known = revision_name(policy)
            with self._lock:
                if len(self._names) >= READ_KEPT:
                    self._names.clear()
                self._names[key] = known
        return known

    def write_down(self, policy: ConntrackPolicy) -> str:
        """Return the name of the revision the policy is at, having written it down if need be."""
        name, owner = self.name_of(policy), policy.metadata.name
        with self._lock:
            known = dict(self._revisions.get(owner, {}))
        created = policy.metadata.creation_timestamp or ""
        if name in known:
            if known[name].created != created:
                # Deleted and made again as it was: among equals it is the younger one now.
                self._store(replace(known[name], created=created))
            return name
        number = max((each.number for each in known.values()), default=0) + 1
        revision = Revision(owner, name, number, content_of(policy), created)
        self._store(revision)
        log.info("policy %s: revision %s, its number %d", owner, name, number)
        return name

    def mark_good(self, policy: str, name: str, now: datetime) -> None:
        """Note that the rollout of a revision has ended well at `now` (UTC)."""
        with self._lock:
            revision = self._revisions.get(policy, {}).get(name)
            good = last_good(self._revisions.get(policy, {}).values())
        if revision is None or (good is not None and good.name == name):
            return
        self._store(replace(revision, good_since=now.replace(microsecond=0)))
        log.info("policy %s: revision %s went well on all nodes that could take it", policy, name)

    def keep(self, present: Mapping[str, str], used: Iterable[tuple[str, str]]) -> None:
        """Drop what nobody needs any more, and write down again what somebody has deleted and is needed.

        `present` names the revision each policy is at, `used` policies and revisions that nodes have.
        """
        in_use: dict[str, set[str]] = {}
        for policy, name in used:
            in_use.setdefault(policy, set()).add(name)
        with self._lock:
            book = {policy: list(revisions.values()) for policy, revisions in self._revisions.items()}
            stored = set(self._stored)
        for policy, revisions in book.items():
            needless = outdated(revisions, present.get(policy), in_use.get(policy, ()))
            self._drop(needless, stored)
            for each in revisions:
                if each not in needless and (policy, each.name) not in stored:
                    self._store(each)

    def lookup(self, live: Collection[ConntrackPolicy]) -> Lookup:
        """Return what finds a policy at a revision, with the rollout and onDelete of those that are `live`."""
        policies = {policy.metadata.name: policy for policy in live}

        def look(name: str, revision: str) -> ConntrackPolicy | None:
            policy = policies.get(name)
            live_as = (policy.metadata.uid, policy.metadata.generation) if policy else (None, 0)
            with self._lock:
                found = self._revisions.get(name, {}).get(revision)
                if found is None:
                    return None
                key = (name, revision, found.created, *live_as)
                if key in self._read:
                    return self._read[key]
            read = policy_at(found, policy)
            with self._lock:
                if len(self._read) >= READ_KEPT:
                    self._read.clear()
                self._read[key] = read
            return read

        return look

    def _store(self, revision: Revision) -> None:
        """Write the revision down. By server-side apply, which may be repeated, and takes its content for the same."""
        annotations = {POLICY: revision.policy, CREATED: revision.created}
        if revision.good_since is not None:
            annotations[GOOD_SINCE] = revision.good_since.strftime("%Y-%m-%dT%H:%M:%SZ")
        document = {
            "metadata": {
                "name": _object_name(revision),
                "namespace": self._namespace,
                "labels": dict(LABELS),
                "annotations": annotations,
            },
            "revision": revision.number,
            "data": {"spec": revision.content},
        }
        if self._objects.apply(CONTROLLER_REVISIONS, document, self._namespace) is None:
            raise Retry(
                f"there is no place for the revisions of policies: namespace {self._namespace} does not exist;"
                f" kubectl create namespace {self._namespace}"
            )
        with self._lock:
            self._revisions.setdefault(revision.policy, {})[revision.name] = revision
            self._stored.add((revision.policy, revision.name))

    def _drop(self, revisions: Iterable[Revision], stored: Collection[tuple[str, str]]) -> None:
        for each in revisions:
            if (each.policy, each.name) in stored:
                self._objects.delete(CONTROLLER_REVISIONS, _object_name(each), self._namespace)
            with self._lock:
                self._revisions[each.policy].pop(each.name, None)
                self._stored.discard((each.policy, each.name))
                if not self._revisions[each.policy]:
                    del self._revisions[each.policy]


def _object_name(revision: Revision) -> str:
    return f"{revision.policy[:NAME_MAX].rstrip('.-')}-{revision.name}"


def _revision_in(document: dict[str, Any]) -> Revision | None:
    """Return the revision in `document`; None when it is not one of ours."""
    metadata, data = document["metadata"], document.get("data")
    annotations = metadata.get("annotations") or {}
    if POLICY not in annotations or not isinstance(data, dict) or not isinstance(data.get("spec"), dict):
        return None
    return Revision(
        policy=annotations[POLICY],
        name=metadata["name"].rpartition("-")[2],
        number=document.get("revision") or 0,
        content=data["spec"],
        created=annotations.get(CREATED, ""),
        good_since=time_in(annotations.get(GOOD_SINCE, "")),
    )
