"""Fields the API has and this version does not carry out yet.

They are accepted, so that a policy can be written for the next version, and refused here by name, so that nobody
believes they do anything. A field leaves this module with the change that makes it work.
"""

from collections.abc import Iterator, Sequence

from conntrack_operator.model.node import PolicyUse
from conntrack_operator.model.policy import Notrack, Rollout, Settings

from .refusal import Refusal

REASON = "Unsupported"


def refusals_of_later_fields(settings: Settings, uses: Sequence[PolicyUse] = ()) -> Iterator[Refusal]:
    """Yield one refusal for every field in `settings` and in the policies' rollouts that does nothing yet."""
    if settings.notrack is not None:
        yield from _of_notrack(settings.notrack)
    for use in uses:
        if use.rollout is not None and asks_for_waves(use.rollout):
            yield Refusal(
                "rollout",
                REASON,
                f"this version changes all nodes at once; leave nothing but retry in the rollout of policy {use.name}",
            )


def asks_for_waves(rollout: Rollout) -> bool:
    """Tell whether `rollout` asks for more than another try of what nodes gave up, which they do carry out."""
    return bool(rollout.document().keys() - {"retry"})


def _of_notrack(notrack: Notrack) -> Iterator[Refusal]:
    for rule in notrack.rules or ():
        if rule.pods is not None:
            # In a cluster the controller has put ports in its place.
            yield Refusal(
                f"notrack/{rule.name}",
                REASON,
                "pods can be followed in a cluster alone, and this policy comes from a file; write ports instead",
            )
