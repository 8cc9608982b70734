"""The controller with other nerves: `python -m tests.lab.watchful SECONDS [POLICY] -- ARGUMENTS`.

A watch whose line is silent for SECONDS counts as dead, which takes 70 s in earnest. The first sight of POLICY, when
one is named, makes the handler raise, as a bug in it would.
"""

import sys
from typing import Any

import kopf

from conntrack_operator.cli.main import main
from conntrack_operator.controller.store import Store
from conntrack_operator.controller.touched import Key


def run_with(seconds: float) -> None:
    """Have kopf's watches end after `seconds` of silence."""
    run = kopf.run

    def changed(**arguments: Any) -> None:
        arguments["settings"].watching.inactivity_timeout = seconds
        run(**arguments)

    kopf.run = changed


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


if __name__ == "__main__":
    at = sys.argv.index("--")
    mine, arguments = sys.argv[1:at], sys.argv[at + 1 :]
    run_with(float(mine[0]))
    if mine[1:]:
        stumble_over(mine[1])
    sys.exit(main(arguments))
