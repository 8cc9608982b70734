"""Which pod is asked for its node."""

from typing import Any

import pytest

from conntrack_operator.cli.plugin.access import ask_agent
from conntrack_operator.errors import Invalid


class Somebody:
    """Sees some pods, and gets the name of the pod that he runs something in as the answer."""

    def __init__(self, *pods: tuple[str, str, bool]) -> None:
        self._pods = pods

    def all(self, *_: Any, **__: Any) -> list[dict[str, Any]]:
        """Return the pods."""
        ending = {True: {"deletionTimestamp": "2026-11-28T01:02:03Z"}, False: {}}
        return [{"metadata": {"name": name, **ending[ends]}, "status": {"phase": phase}}
                for name, phase, ends in self._pods]  # fmt: skip

    def run_in_pod(self, _namespace: str, pod: str, _container: str, _command: list[str]) -> str:
        """Return the pod's name."""
        return pod


def asked(*pods: tuple[str, str, bool]) -> str:
    """Return which of these pods is asked: name, phase, and whether it is being deleted."""
    return ask_agent(Somebody(*pods), "ns", "n1", ["top"])  # type: ignore[arg-type]


def test_not_the_one_that_ends() -> None:
    """Its container may be gone before kubectl comes."""
    assert asked(("old", "Running", True), ("new", "Running", False)) == "new"


@pytest.mark.parametrize(
    ("pods", "words"),
    [
        ([("old", "Running", True)], "n1 is ending and the next is not there yet: try again in a moment; see kubectl"),
        ([("new", "Pending", False)], "the agent's pod on node n1 is Pending; see kubectl"),
        ([], "no agent's pod is on node n1; see kubectl"),
    ],
)
def test_none_that_could_be_asked(pods: list[tuple[str, str, bool]], words: str) -> None:
    """It is said which of three things that is."""
    with pytest.raises(Invalid, match=words):
        asked(*pods)
