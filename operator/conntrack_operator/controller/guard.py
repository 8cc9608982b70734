"""The restore guard: it says which shares of policies may be withdrawn from nodes, and why none may.

Nothing here withdraws anything. Whoever does asks `confirmed` first.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from conntrack_operator.cluster.objects import CRDS, NAMESPACES, NODE_CONNTRACKS, POLICIES, Kind, Objects
from conntrack_operator.decide.absence import (
    Absences,
    Loss,
    lost_with_their_crd,
    trouble_with_crd,
    trouble_with_namespace,
)
from conntrack_operator.errors import ConntrackOperatorError
from conntrack_operator.model.base import GROUP

log = logging.getLogger(__name__)

NONE: Mapping[str, str] = {}

TROUBLE_SECONDS = 30.0
"""How long after a list that counted for nothing the next one should be taken: a full list of a large cluster is dear,
and a CRD or namespace that hangs in its deletion does so until somebody helps."""


@dataclass(frozen=True)
class _Surroundings:
    """What the API server says of itself: what is wrong, the uids of both CRDs, and since when policies can be."""

    trouble: str
    uids: tuple[str, ...] = ()
    policies_since: str = ""


class Guard:
    """Remembers what full lists have shown. Safe for threads; `saw` asks the API server and takes as long as that."""

    def __init__(self, objects: Objects, namespace: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._objects, self._namespace, self._clock = objects, namespace, clock
        self._lock = threading.Lock()
        self._absences = Absences()
        self._contradicted: set[Loss] = set()
        self._seen: dict[str, str] = {}
        self._held: frozenset[Loss] = frozenset()
        self._uids: tuple[str, ...] = ()
        self._trouble, self._retry_at = "", float("inf")

    @property
    def trouble(self) -> str:
        """Why nothing may be withdrawn now, or which policies nothing is withdrawn for; empty when all is well."""
        with self._lock:
            return self._trouble

    def confirmed(self) -> frozenset[Loss]:
        """Return the losses that two full lists agree on, taken in the right surroundings, 10 s apart or more."""
        with self._lock:
            return self._absences.confirmed

    def saw(
        self, losses: Iterable[Loss], policies: Iterable[dict[str, Any]] = (), *, began: float | None = None
    ) -> None:
        """Take in all losses that a full list shows; those it does not show are forgotten.

        `policies` are the policies in the list, as the API server sent them. `began` is when its first page was asked
        for, by the guard's clock; without it the list is taken for one that took no time. A list that failed halfway
        must not come here. An API server that does not answer is a trouble and raises nothing.
        """
        listed = frozenset(losses)
        created = {each["metadata"]["name"]: str(each["metadata"].get("creationTimestamp")) for each in policies}
        listed_at = self._clock()
        # After the list, so that a CRD or namespace that was on its way out when the list was taken is found so.
        around = self._look_around() if listed else None
        with self._lock:
            self._seen.update(created)
            lost: frozenset[Loss] = frozenset()
            if around is not None:
                if around.trouble or (self._uids and around.uids != self._uids):
                    # What was seen under a CRD of another uid does not count.
                    self._absences = Absences()
                self._uids = around.uids
                lost = lost_with_their_crd(listed, self._seen, around.policies_since)
            trouble = around.trouble if around is not None else ""
            counted = frozenset() if trouble else listed - lost - self._contradicted
            self._absences = self._absences.after_list(counted, listed_at if began is None else began, listed_at)
            self._contradicted.clear()
            self._held = lost
            self._retry_at = self._clock() + TROUBLE_SECONDS if trouble else float("inf")
            self._say(f"nothing is withdrawn from any node: {trouble}" if trouble else _about(lost))

    def compare(self, losses: frozenset[Loss], created: Mapping[str, str] = NONE) -> float:
        """Take in all losses as they are seen live; return in how many seconds a full list should be taken.

        `created` has the creation times of the policies that are there, by name.

        Losses that are none any more, the policy or the label being back, are forgotten, and do not count in the next
        list either, which may have been read before. It is 0 when there are some that no list has shown yet, and inf
        when a list would bring nothing.
        """
        with self._lock:
            self._seen.update(created)
            refuted = self._absences.first_listed.keys() - losses
            self._contradicted.update(refuted)
            self._absences = self._absences.without(refuted)
            self._held &= losses
            now = self._clock()
            if losses and self._retry_at < float("inf"):
                return max(0.0, self._retry_at - now)
            self._retry_at = float("inf")
            self._say(_about(self._held))
            if losses - self._absences.first_listed.keys() - self._held:
                return 0.0
            return self._absences.seconds_to_confirm(now)

    def _look_around(self) -> "_Surroundings":
        """Ask the API server. These are quorum reads, since they name no resource version."""
        try:
            crds = [self._objects.get(CRDS, _crd_name(kind)) for kind in (POLICIES, NODE_CONNTRACKS)]
            namespace = self._objects.get(NAMESPACES, self._namespace)
        except ConntrackOperatorError as error:
            return _Surroundings(str(error))
        found = [crd["metadata"] for crd in crds if crd is not None]
        troubles = [
            trouble_with_crd(_crd_name(kind), crd) for kind, crd in zip((POLICIES, NODE_CONNTRACKS), crds, strict=True)
        ]
        troubles.append(trouble_with_namespace(self._namespace, namespace))
        return _Surroundings(
            "; ".join(filter(None, troubles)),
            tuple(each["uid"] for each in found),
            found[0]["creationTimestamp"] if found else "",
        )

    def _say(self, trouble: str) -> None:
        if trouble != self._trouble:
            log.warning("%s", trouble or "nothing stands in the way of withdrawals any more")
        self._trouble = trouble


def _crd_name(kind: Kind) -> str:
    return f"{kind.plural}.{GROUP}"


def _about(lost: frozenset[Loss]) -> str:
    if not lost:
        return ""
    names = ", ".join(sorted({loss.policy for loss in lost}))
    return (
        f"nothing is withdrawn for {names}: gone with the CRD {_crd_name(POLICIES)}, which was made anew since;"
        " apply them again, and delete them then if the nodes are to let go of them"
    )
