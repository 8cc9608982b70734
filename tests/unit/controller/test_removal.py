"""The way out of a cluster: policies first, wait for the nodes, then the rest; silence of the API server is no end."""

from typing import Any

import pytest

from conntrack_operator.cluster.objects import NODE_CONNTRACKS, POLICIES, Kind, Listing
from conntrack_operator.controller.daemonset import LABELS
from conntrack_operator.controller.removal import PAUSE_SECONDS, TRIES, Removal
from conntrack_operator.errors import LookAgain, Refused, Retry


class Server:
    """An API server with names of objects by kind, on which a controller lets go of one node a second."""

    def __init__(self, **names: list[str]) -> None:
        self.names = {POLICIES.kind: ["web"], NODE_CONNTRACKS.kind: ["n1", "n2"], **names}
        self.dead: set[str] = set()
        self.now = 0.0
        self.silent_until = 0.0
        self.raises: Exception | None = None
        self.log: list[str] = []

    def sleep(self, seconds: float) -> None:
        """Let time pass; a node without a policy is given back."""
        assert seconds <= PAUSE_SECONDS
        self.now += seconds
        nodes = self.names[NODE_CONNTRACKS.kind]
        alive = [each for each in nodes if each not in self.dead]
        if not self.names[POLICIES.kind] and alive:
            nodes.remove(alive[0])

    def _answer(self) -> None:
        if self.now < self.silent_until:
            raise Retry("the API server does not answer")
        if self.raises:
            raise self.raises

    def list(self, kind: Kind, *, namespace: str = "", label_selector: str = "") -> Listing:
        """List a kind."""
        self._answer()
        assert (namespace, bool(label_selector)) in (("", False), ("ns", True))
        return Listing(1, tuple({"metadata": {"name": name}} for name in self.names.get(kind.kind, [])))

    def get(self, kind: Kind, name: str, _namespace: str) -> dict[str, Any] | None:
        """Return an object of the agents."""
        self._answer()
        found = name in self.names.get(kind.kind, [])
        return {"metadata": {"name": name, "uid": "u", "labels": LABELS}} if found else None

    def delete(self, kind: Kind, name: str, _namespace: str = "", *, uid: str = "") -> None:
        """Delete an object."""
        del uid
        self._answer()
        self.log.append(f"{kind.kind} {name}")
        self.names[kind.kind].remove(name)


def removed(server: Server, limit: float) -> tuple[tuple[str, ...], list[str]]:
    """Return the nodes that were skipped, and what was said."""
    said: list[str] = []
    removal: Any = Removal(server, "ns", said.append, lambda: server.now, server.sleep)  # type: ignore[arg-type]
    return removal.run(limit), said


def test_all_is_given_back() -> None:
    """Policies go first; nodes give back; the agents and the revisions go last."""
    server = Server(DaemonSet=["conntrack-operator-agent"], ControllerRevision=["web-1"])
    skipped, said = removed(server, 60)
    assert skipped == ()
    assert said == ["2 nodes still to be restored", "1 nodes still to be restored"]
    assert server.log == ["ConntrackPolicy web", "DaemonSet conntrack-operator-agent", "ControllerRevision web-1"]
    assert not any(server.names.values())


def test_a_dead_node_is_named_and_skipped() -> None:
    """After the limit its object goes all the same."""
    server = Server()
    server.dead = {"n2"}
    skipped, _ = removed(server, 30)
    assert skipped == ("n2",)
    assert server.now == pytest.approx(30)
    assert server.names[NODE_CONNTRACKS.kind] == []


def test_a_policy_that_is_applied_meanwhile_goes_too() -> None:
    """Somebody's pipeline may apply it again."""
    server = Server()
    real = server.sleep

    def sleep(seconds: float) -> None:
        real(seconds)
        if server.now == PAUSE_SECONDS:
            server.names[POLICIES.kind].append("again")

    server.sleep = sleep  # type: ignore[method-assign]
    assert removed(server, 60)[0] == ()
    assert server.log == ["ConntrackPolicy web", "ConntrackPolicy again"]


def test_silence_is_waited_out() -> None:
    """An API server that does not answer has not said that nothing is left."""
    server = Server()
    server.silent_until = 10
    skipped, said = removed(server, 60)
    assert skipped == ()
    assert said[0] == "the API server does not answer"


def test_silence_to_the_end_is_said() -> None:
    """Then nothing is known of any node, and the command fails."""
    server = Server()
    server.silent_until = 1e9
    with pytest.raises(Retry):
        removed(server, 10)
    assert server.now <= 10 + TRIES * PAUSE_SECONDS


def test_a_missing_right_is_said_at_once() -> None:
    """Waiting would not bring it."""
    server = Server()
    server.raises = Refused("Forbidden", "the API server said Forbidden")
    with pytest.raises(Refused):
        removed(server, 60)
    assert server.now == 0


def test_what_the_controller_deleted_first_is_no_error() -> None:
    """Both remove the agents."""
    server = Server(DaemonSet=["conntrack-operator-agent"])
    real = server.delete

    def delete(kind: Kind, name: str, namespace: str = "", *, uid: str = "") -> None:
        real(kind, name, namespace, uid=uid)
        if kind.kind == "DaemonSet":
            raise LookAgain("it is another one")

    server.delete = delete  # type: ignore[method-assign]
    assert removed(server, 60)[0] == ()
