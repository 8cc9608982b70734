"""The way out of a cluster: policies first, wait for the nodes, then the rest; silence of the API server is no end."""

from typing import Any

import pytest

from conntrack_operator.cluster.objects import LEASES, NODE_CONNTRACKS, POLICIES, Kind, Listing
from conntrack_operator.controller.daemonset import LABELS
from conntrack_operator.controller.removal import EVENTS_MAX, LEADER_SECONDS, PAUSE_SECONDS, TRIES, Removal, Skipped
from conntrack_operator.errors import LookAgain, Refused, Retry
from conntrack_operator.model.base import API_VERSION


class Server:
    """An API server with names of objects by kind, on which a controller lets go of one node a second."""

    def __init__(self, **names: list[str]) -> None:
        self.names = {POLICIES.kind: ["web"], NODE_CONNTRACKS.kind: ["n1", "n2"], **names}
        self.dead: set[str] = set()
        self.now = 0.0
        self.silent_until = 0.0
        self.raises: Exception | None = None
        self.leads = True
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
        """Return an object of the agents, or the Lease, which whoever leads renews."""
        self._answer()
        if kind is LEASES:
            return {"metadata": {"resourceVersion": str(self.leads and self.now)}, "spec": {"holderIdentity": "c"}}
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
    return tuple(each.node for each in removal.run(limit)), said


def test_all_is_given_back() -> None:
    """Policies go first; nodes give back; the agents and the revisions go last."""
    server = Server(DaemonSet=["conntrack-operator-agent"], ControllerRevision=["web-1"])
    skipped, said = removed(server, 60)
    assert skipped == ()
    assert said == ["2 nodes still to be restored", "1 node still to be restored"]
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


def test_nodes_are_skipped_when_the_server_answers_too_late() -> None:
    """Nobody has heard that they were restored, and a policy that stayed would give them everything back."""
    server = Server()
    server.silent_until = 32
    skipped, _ = removed(server, 30)
    assert skipped == ("n1", "n2")
    assert server.log[0] == "ConntrackPolicy web"


def test_without_a_controller_nothing_is_deleted() -> None:
    """Nobody would give the nodes back; their agents, which can be asked to, are let alone."""
    server = Server(DaemonSet=["conntrack-operator-agent"])
    server.leads = False
    with pytest.raises(Refused, match=r"no controller leads in namespace ns, and 2 nodes would stay"):
        removed(server, 60)
    assert server.log == []
    assert server.now == pytest.approx(LEADER_SECONDS)


@pytest.mark.parametrize(("nodes", "limit"), [([], 60), (["n1"], 0)])
def test_without_a_controller_the_rest_is_deleted(nodes: list[str], limit: int) -> None:
    """Where no node is to be given back, or somebody gives no time for it."""
    server = Server(DaemonSet=["conntrack-operator-agent"], NodeConntrack=list(nodes))
    server.leads = False
    assert removed(server, limit)[0] == tuple(nodes)
    assert not any(server.names.values())


def use(name: str, canary: int, soak: int) -> dict[str, Any]:
    """Return a policy's share in a node's spec."""
    return {"name": name, "revision": "r", "fields": [], "rollout": {"canary": canary, "soakSeconds": soak}}


class Fleet(Server):
    """A server whose nodes' objects say how each policy there is to be withdrawn."""

    def __init__(
        self, *uses: dict[str, Any], mode: str = "Apply", phase: str = "Current", said_by: str = "u"
    ) -> None:  # fmt: skip
        super().__init__()
        self.uses, self.mode, self.phase, self.said_by = uses, mode, phase, said_by

    def list(self, kind: Kind, *, namespace: str = "", label_selector: str = "") -> Listing:
        """List a kind, nodes in full."""
        found = super().list(kind, namespace=namespace, label_selector=label_selector)
        if kind is NODE_CONNTRACKS:
            spec = {"revision": "1", "mode": self.mode, "nodeUID": "u", "policies": list(self.uses)}
            status = {"phase": self.phase, "observedRevision": "1", "nodeUID": self.said_by}
            for each in found.items:
                each |= {"apiVersion": API_VERSION, "kind": kind.kind, "spec": spec, "status": status}
        return found


def test_waves_that_cannot_end_in_time_are_not_begun() -> None:
    """Else all nodes but the canary would keep their settings, without an agent; what to do is said."""
    server = Fleet(use("web", 1, 600))
    with pytest.raises(Refused, match=r"nodes of policy web follow its canary 600 s later .* kubectl patch ctp web"):
        removed(server, 600)
    assert server.log == []


@pytest.mark.parametrize(
    ("uses", "limit"),
    [
        ([use("web", 1, 600)], 601),
        ([use("web", 1, 600)], 0),  # whoever gives no time wants no waves
        ([use("web", 0, 600)], 60),
        ([use("web", 2, 600)], 60),  # the canaries are all there is
        ([use("gone", 1, 600)], 60),  # under way already, nobody knows how far
    ],
)
def test_waves_that_may_end_in_time_are_begun(uses: Any, limit: int) -> None:
    """Whoever is not done then is skipped."""
    server = Fleet(*uses)
    removed(server, limit)
    assert server.log[0] == "ConntrackPolicy web"


def test_a_canary_that_was_restored_is_not_skipped() -> None:
    """Its object stays while it soaks; it has nothing of ours any more."""
    server = Fleet(mode="Restore", phase="Restored")
    server.dead = {"n1", "n2"}
    assert removed(server, 10)[0] == ()
    for other in ({"phase": "Refused"}, {"phase": "Restored", "said_by": "the node of this name before"}):
        server = Fleet(mode="Restore", **other)
        server.dead = {"n1", "n2"}
        assert removed(server, 10)[0] == ("n1", "n2")


class Board:
    """Takes Events."""

    def __init__(self, refuses: int = 1 << 30) -> None:
        self.taken: list[dict[str, Any]] = []
        self._refuses = refuses

    def get(self, _kind: Kind, _name: str, _namespace: str) -> None:
        """Return that there is none yet."""

    def create(self, _kind: Kind, document: dict[str, Any], _namespace: str) -> None:
        """Take one, until it refuses."""
        if len(self.taken) == self._refuses:
            raise Refused("Forbidden", "the API server said Forbidden")
        self.taken.append(document)


def noted(board: Board, *skipped: Skipped) -> list[str]:
    """Return what was said while Events were posted."""
    said: list[str] = []
    Removal(board, "ns", said.append).note(skipped)  # type: ignore[arg-type]
    return said


def test_a_skipped_node_has_an_event() -> None:
    """On the Node, which is what is looked at; it tells a dead node from one whose turn had not come."""
    board = Board()
    assert noted(board, Skipped("n1", "u1", "2026-11-28T01:02:03Z"), Skipped("n2", "u2", "")) == []
    assert [each["involvedObject"]["name"] for each in board.taken] == ["n1", "n2"]
    assert [each["involvedObject"]["uid"] for each in board.taken] == ["u1", "u2"]
    first, second = (each["message"] for each in board.taken)
    assert "last heard 2026-11-28T01:02:03Z" in first
    assert "conntrack-operator restore" in first
    assert "never heard" in second


def test_events_are_few() -> None:
    """A fleet that was given no time has some, and is not held up by them."""
    board = Board()
    said = noted(board, *(Skipped(f"n{number}", "u", "") for number in range(EVENTS_MAX + 5)))
    assert len(board.taken) == EVENTS_MAX
    assert said == [f"Events tell of the first {EVENTS_MAX} of them"]


def test_without_the_right_to_events_it_is_said() -> None:
    """The nodes were named already; that is no reason to fail."""
    said = noted(Board(refuses=0), Skipped("n1", "u", ""), Skipped("n2", "u", ""))
    assert said == ["no Event tells of it: the API server said Forbidden"]


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
