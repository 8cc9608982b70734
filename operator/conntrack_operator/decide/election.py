"""Who leads: what a Lease says, when it may be taken, and what is written into it.

Times in a Lease are other people's wall clocks: they are written for people to read, and never compared. Whether a
holder is alive is told by its Lease changing, within a time that whoever looks measures by a clock of its own.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Self

DURATION_SECONDS = 15.0
"""How long a holder leads after it last asked for a renewal that was granted."""


@dataclass(frozen=True)
class Lease:
    """One sight of the Lease. Two sights are equal when nobody wrote it in between."""

    holder: str
    """Empty when it was given up."""
    duration_seconds: float
    transitions: int
    acquired: str
    renewed: str
    uid: str
    resource_version: str

    @classmethod
    def read(cls, document: dict[str, Any]) -> Self:
        """Return what the object says; somebody's hand may have left anything out."""
        spec, metadata = document.get("spec") or {}, document["metadata"]
        return cls(
            holder=spec.get("holderIdentity") or "",
            duration_seconds=float(spec.get("leaseDurationSeconds") or DURATION_SECONDS),
            transitions=spec.get("leaseTransitions") or 0,
            acquired=spec.get("acquireTime") or "",
            renewed=spec.get("renewTime") or "",
            uid=metadata.get("uid", ""),
            resource_version=metadata.get("resourceVersion", ""),
        )


@dataclass(frozen=True)
class Sighting:
    """The Lease as it was last seen, and the moment from which it has been seen so. None: there was no Lease."""

    lease: Lease | None
    since: float
    """Seconds on the clock of whoever looks, read after the answer: its holder asked for it earlier than that."""
    hold_seconds: float = 0.0
    """How long whoever held it may still lead, from `since`; 0 when it was given up, or never seen held."""


def sighting_after(before: Sighting | None, lease: Lease | None, now: float) -> Sighting:
    """Return the sighting after one more look at `now`: a Lease that nobody wrote is seen since the first look at it.

    A Lease that has vanished may still be trusted by its holder, for as long as it said.
    """
    if before is not None and lease == before.lease:
        return before
    if lease is not None:
        return Sighting(lease, now, lease.duration_seconds if lease.holder else 0.0)
    return Sighting(None, now, before.hold_seconds if before else 0.0)


def wait_before_taking(sighting: Sighting, identity: str, now: float) -> float:
    """Return the seconds after which `identity` may take the Lease, if nobody writes it until then; 0 for now.

    A Lease that names `identity` is its own: the API server granted it, and the answer came late or never.
    """
    if sighting.lease is not None and sighting.lease.holder == identity:
        return 0.0
    return max(0.0, sighting.since + sighting.hold_seconds - now)


def taken(before: Lease | None, identity: str, wall: datetime) -> dict[str, Any]:
    """Return the Lease's spec with `identity` as its holder since now."""
    transitions = 0 if before is None else before.transitions + (before.holder != identity)
    return _spec(identity, transitions, acquired=_micro_time(wall), renewed=_micro_time(wall))


def renewed(before: Lease, identity: str, wall: datetime) -> dict[str, Any]:
    """Return the spec by which its holder renews it."""
    return _spec(identity, before.transitions, acquired=before.acquired or _micro_time(wall), renewed=_micro_time(wall))


def given_up(before: Lease, wall: datetime) -> dict[str, Any]:
    """Return the spec by which its holder gives it up, for anybody to take at once."""
    return _spec("", before.transitions, acquired=before.acquired or _micro_time(wall), renewed=_micro_time(wall))


def _spec(holder: str, transitions: int, *, acquired: str, renewed: str) -> dict[str, Any]:
    return {
        "holderIdentity": holder,
        "leaseDurationSeconds": int(DURATION_SECONDS),
        "leaseTransitions": transitions,
        "acquireTime": acquired,
        "renewTime": renewed,
    }


def _micro_time(moment: datetime) -> str:
    """Write a moment as Kubernetes' MicroTime, which takes six digits behind the point, always."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
