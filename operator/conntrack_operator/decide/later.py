"""Fields the API has and this version does not carry out yet.

They are accepted, so that a policy can be written for the next version, and refused here by name, so that nobody
believes they do anything. A field leaves this module with the change that makes it work.
"""

from collections.abc import Iterator, Sequence

from conntrack_operator.model.node import PolicyUse
from conntrack_operator.model.policy import Notrack, Settings

from .refusal import Refusal

REASON = "Unsupported"


def refusals_of_later_fields(settings: Settings, uses: Sequence[PolicyUse] = ()) -> Iterator[Refusal]:
    """Yield one refusal for every field in `settings` and in the policies' rollouts that does nothing yet."""
    if settings.tracking == "Disabled":
        yield Refusal("tracking", REASON, "this version cannot switch tracking off; remove tracking, or write Enabled")
    if settings.trial is not None:
        yield Refusal("trial", REASON, "this version makes changes without a trial; remove trial")
    if settings.notrack is not None:
        yield from _of_notrack(settings.notrack)
    for use in uses:
        if use.rollout is not None:
            yield Refusal(
                "rollout", REASON, f"this version changes all nodes at once; remove rollout from policy {use.name}"
            )


def _of_notrack(notrack: Notrack) -> Iterator[Refusal]:
    if notrack.accept_untracked in ("Replies", "Both"):
        yield Refusal(
            "notrack.acceptUntracked",
            REASON,
            "this version adds no accept rules to firewalls; write Never, and let the firewall accept untracked packets"
            " of these ports itself",
        )
    if notrack.on_conflict is not None:
        yield Refusal(
            "notrack.onConflict", REASON, "this version does not look for NAT on the ports of rules; remove onConflict"
        )
    if notrack.drop_existing:
        yield Refusal(
            "notrack.dropExisting",
            REASON,
            "this version leaves existing entries to their timeouts; write dropExisting: false",
        )
    for rule in notrack.rules or ():
        if rule.pods is not None:
            # In a cluster the controller has put ports in its place.
            yield Refusal(
                f"notrack/{rule.name}",
                REASON,
                "pods can be followed in a cluster alone, and this policy comes from a file; write ports instead",
            )
