"""Fields the API has and this version does not carry out yet.

They are accepted, so that a policy can be written for the next version, and refused here by name, so that nobody
believes they do anything. A field leaves this module with the change that makes it work.
"""

from collections.abc import Iterator, Sequence

from conntrack_operator.model.node import PolicyUse
from conntrack_operator.model.policy import Notrack, Rollout, Settings

from .refusal import Refusal

REASON = "Unsupported"
ROLLOUT = "rollout"
"""The setting under which a policy's rollout is refused."""


def refusals_of_later_fields(settings: Settings, uses: Sequence[PolicyUse] = ()) -> Iterator[Refusal]:
    """Yield one refusal for every field in `settings` and in the policies' rollouts that does nothing yet."""
    if settings.notrack is not None:
        yield from _of_notrack(settings.notrack)
    for use in uses:
        if fields := later_fields_of(use.rollout):
            named = ", ".join(f"rollout.{field}" for field in fields)
            yield Refusal(
                ROLLOUT, REASON, f"this version changes all nodes at once; remove {named} from policy {use.name}"
            )


def later_fields_of(rollout: Rollout | None) -> list[str]:
    """Return the fields of a policy's rollout that do nothing yet: all but retry, which starts a parked node again."""
    return [field for field in rollout.document() if field != "retry"] if rollout is not None else []


def _of_notrack(notrack: Notrack) -> Iterator[Refusal]:
    for rule in notrack.rules or ():
        if rule.pods is not None:
            # In a cluster the controller has put ports in its place.
            yield Refusal(
                f"notrack/{rule.name}",
                REASON,
                "pods can be followed in a cluster alone, and this policy comes from a file; write ports instead",
            )
