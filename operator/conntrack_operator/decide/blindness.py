"""What the API server does not let the controller see, told to the policies it matters to.

Sizes and timeouts need no look at pods and Services. A rule that follows pods has no ports without them; other rules
are then checked against the node's own NAT alone, where most of what Services do can be seen too.
"""

from collections.abc import Mapping

from conntrack_operator.model.policy import Settings

from .pods import follows_pods


def blindness_of(settings: Settings, refused: Mapping[str, str]) -> str:
    """Return what is missing for `settings`, as a sentence with the remedy; empty when nothing is.

    `refused` has the API server's answers by kind: pods, services, endpointslices.
    """
    rules = settings.notrack.rules if settings.notrack else None
    if not rules or not refused:
        return ""
    kinds = [kind for kind in sorted(refused) if kind != "pods"]
    parts = []
    if "pods" in refused and follows_pods(settings):
        kinds = sorted([*kinds, "pods"])
        parts.append("rules that follow pods keep the ports they had")
    if len(kinds) > len(parts):
        parts.append("rules are checked against the NAT seen on each node alone")
    if not kinds:
        return ""
    named = " and ".join(kinds)
    return f"the controller may not list {named}: {', and '.join(parts)}; let it get, list and watch them"
