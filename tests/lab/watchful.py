"""The controller with other nerves: `python -m tests.lab.watchful [NERVE=VALUE]... -- ARGUMENTS`.

`silence`: seconds after which a watch whose line is silent counts as dead, 70 in earnest. `confirm`: seconds between
two lists that confirm a loss, 10 in earnest, and at least between any two that are read for one, 5. `look`: seconds
after a list that counts for nothing, 30 in earnest, and between two looks at the rollouts when nothing happens, 60.
`pace`: seconds between two writes of a policy's status in a row, 5 in earnest. `stumbles`: a policy at whose first
sight the handler raises, as a bug in it would.
"""

import sys
from typing import Any

import kopf

from conntrack_operator.cli.main import main
from conntrack_operator.controller import guard, rollouts
from conntrack_operator.controller.pace import Pace
from conntrack_operator.controller.store import Store
from conntrack_operator.controller.touched import Key
from conntrack_operator.decide import absence


def end_silent_watches(value: str) -> None:
    """Have kopf's watches end after so many seconds of silence."""
    operator = kopf.operator

    async def changed(**arguments: Any) -> None:
        arguments["settings"].watching.inactivity_timeout = float(value)
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


def confirm_after(value: str) -> None:
    """Have losses confirmed so soon."""
    absence.CONFIRM_SECONDS = rollouts.LIST_SECONDS = float(value)


def look_every(value: str) -> None:
    """Have it look again so soon."""
    guard.TROUBLE_SECONDS = rollouts.LOOK_SECONDS = float(value)


def refill_every(value: str) -> None:
    """Have statuses written so soon after one another."""
    defaults = Pace.__init__.__kwdefaults__
    assert defaults
    defaults["refill_seconds"] = float(value)


NERVES = {
    "silence": end_silent_watches, "confirm": confirm_after, "look": look_every, "pace": refill_every,
    "stumbles": stumble_over,
}  # fmt: skip

if __name__ == "__main__":
    at = sys.argv.index("--")
    for argument in sys.argv[1:at]:
        nerve, _, its_value = argument.partition("=")
        NERVES[nerve](its_value)
    sys.exit(main(sys.argv[at + 1 :]))
