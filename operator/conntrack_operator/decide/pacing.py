"""How a rollout travels, as numbers: with its defaults in place, and percentages as the nodes they mean."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta

from conntrack_operator.model.node import PolicyUse
from conntrack_operator.model.policy import CANARY, MAX_FAILURES, MAX_UNAVAILABLE, ROLLOUT_SOAK_SECONDS, Rollout


def number_of(value: int | str, total: int, *, up: bool) -> int:
    """Return the number that `value`, a number or a percentage such as 10%, means among `total`, rounded up or down."""
    if isinstance(value, int):
        return value
    hundredths = int(value.removesuffix("%")) * total
    return -(-hundredths // 100) if up else hundredths // 100


@dataclass(frozen=True)
class Pace:
    """A rollout with its defaults in place."""

    canary: int
    max_unavailable: int | str
    max_failures: int | str
    soak: timedelta
    paused: bool

    @classmethod
    def of(cls, rollout: Rollout | None) -> "Pace":
        """Return the pace that `rollout` asks for."""
        asked = rollout or Rollout()
        soak = ROLLOUT_SOAK_SECONDS if asked.soak_seconds is None else asked.soak_seconds
        return cls(
            canary=CANARY if asked.canary is None else asked.canary,
            max_unavailable=MAX_UNAVAILABLE if asked.max_unavailable is None else asked.max_unavailable,
            max_failures=MAX_FAILURES if asked.max_failures is None else asked.max_failures,
            soak=timedelta(seconds=soak),
            paused=bool(asked.paused),
        )


def strictest(rollouts: Iterable[Rollout | None], total: int) -> Rollout:
    """Return the rollout that is as careful as the most careful of `rollouts` in each respect, among `total` nodes."""
    several = [Pace.of(each) for each in rollouts] or [Pace.of(None)]
    return Rollout(
        canary=max(each.canary for each in several),
        max_unavailable=min(number_of(each.max_unavailable, total, up=True) for each in several),
        max_failures=min(number_of(each.max_failures, total, up=False) for each in several),
        soak_seconds=int(max(each.soak for each in several).total_seconds()),
    )


def soak_past(uses: Iterable[PolicyUse], limit_seconds: float) -> tuple[str, int] | None:
    """Return a policy whose canary soaks until the limit or longer, and for how many seconds; None if there is none.

    `uses` are those of all nodes. A withdrawal that begins now reaches nodes beyond the canary only then.
    """
    by_policy: dict[str, list[PolicyUse]] = defaultdict(list)
    for use in uses:
        by_policy[use.name].append(use)
    for name, among in sorted(by_policy.items()):
        pace = Pace.of(strictest((use.rollout for use in among), len(among)))
        soak = int(pace.soak.total_seconds())
        if 0 < pace.canary < len(among) and soak >= limit_seconds:
            return name, soak
    return None
