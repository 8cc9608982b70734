"""The controller with other nerves: `python -m tests.lab.watchful [NERVE=VALUE]... -- ARGUMENTS`.

`silence`: seconds after which a watch whose line is silent counts as dead, 70 in earnest. `confirm`: seconds between
two lists that confirm a loss, 10 in earnest, after a list that counts for nothing, 30, and between two looks at the
rollouts when nothing happens, 60. `stumbles`: a policy at whose first sight the handler raises, as a bug in it would.
"""

import sys
from typing import Any

import kopf

from conntrack_operator.cli.main import main
from conntrack_operator.controller import guard, rollouts
from conntrack_operator.controller.store import Store
from conntrack_operator.controller.touched import Key
from conntrack_operator.decide import absence


def run_with(seconds: float) -> None:
    """Have kopf's watches end after `seconds` of silence."""
    operator = kopf.operator

    async def changed(**arguments: Any) -> None:
        arguments["settings"].watching.inactivity_timeout = seconds
        await operator(**arguments)

    kopf.operator = changed


def stumble_over(policy: str) -> None:
    """Have the store raise at the first event about `policy`."""
    put = Store.put_policy
    stumbled = False

    def stumbling(store: Store, document: dict[str, Any], *, deleted: bool = False) -> set[Key]:
        nonlocal stumbled
        if document["metadata"]["name"] == policy and not stumbled:
            stumbled = True
            raise KeyError("stumbled")
        return put(store, document, deleted=deleted)

    Store.put_policy = stumbling  # type: ignore[method-assign]


def confirm_after(seconds: float) -> None:
    """Have losses confirmed so soon."""
    absence.CONFIRM_SECONDS = guard.TROUBLE_SECONDS = rollouts.LOOK_SECONDS = seconds


if __name__ == "__main__":
    at = sys.argv.index("--")
    nerves = dict(nerve.split("=") for nerve in sys.argv[1:at])
    if "silence" in nerves:
        run_with(float(nerves["silence"]))
    if "confirm" in nerves:
        confirm_after(float(nerves["confirm"]))
    if "stumbles" in nerves:
        stumble_over(nerves["stumbles"])
    sys.exit(main(sys.argv[at + 1 :]))
