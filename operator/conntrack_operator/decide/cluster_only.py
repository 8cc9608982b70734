"""What a policy may ask for in a cluster alone, refused by name where it comes from a file."""

from collections.abc import Iterator

from conntrack_operator.model.policy import Settings

from .refusal import Refusal

REASON = "Unsupported"


def refusals_of_cluster_fields(settings: Settings) -> Iterator[Refusal]:
    """Yield one refusal for every rule that follows pods: in a cluster the controller has put ports in its place."""
    for rule in (settings.notrack.rules if settings.notrack is not None else None) or ():
        if rule.pods is not None:
            yield Refusal(
                f"notrack/{rule.name}",
                REASON,
                "pods can be followed in a cluster alone, and this policy comes from a file; write ports instead",
            )
