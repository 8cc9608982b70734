"""The lookout: what it compares, and when it has everything read anew or the watches begin anew."""

from typing import Any

from conntrack_operator.cluster.objects import Kind, Listing
from conntrack_operator.controller.lookout import AGAIN_SECONDS, LOOK_SECONDS, TWICE_SECONDS, Lookout
from conntrack_operator.controller.store import Store
from conntrack_operator.controller.touched import Key
from conntrack_operator.controller.workqueue import WorkQueue


def policy(name: str, uid: str = "1", generation: int = 1, **spec: Any) -> dict[str, Any]:
    """Return a policy as the API server sends it."""
    return {
        "apiVersion": "conntrack-operator.io/v1alpha1",
        "kind": "ConntrackPolicy",
        "metadata": {"name": name, "uid": uid, "generation": generation, "resourceVersion": "5"},
        "spec": {"mode": "Enforce", "nodeSelector": {"matchLabels": {"role": "web"}}, **spec},
    }


class Cluster:
    """What the lookout is told."""

    def __init__(self) -> None:
        self.policies: list[dict[str, Any]] = []
        self.uids = ["p", "n"]
        self.schemas = 1

    def list(self, kind: Kind, slim: Any) -> Listing:
        """Answer as Objects.list does."""
        assert kind.plural == "conntrackpolicies"
        assert slim
        return Listing(9, tuple(self.policies))

    def get(self, kind: Kind, name: str) -> dict[str, Any] | None:
        """Answer as Objects.get does."""
        assert kind.plural == "customresourcedefinitions"
        uid = self.uids[name == "nodeconntracks.conntrack-operator.io"]
        return {"metadata": {"uid": uid, "generation": self.schemas}} if uid else None


class Scene:
    """A lookout, a cluster, and the time."""

    def __init__(self) -> None:
        self.now, self.begun = 1000.0, 0
        self.cluster, self.store = Cluster(), Store("ns")
        self.queue: WorkQueue[Key] = WorkQueue(lambda: self.now)
        self.lookout = Lookout(
            self.cluster,  # type: ignore[arg-type]
            self.store,
            self.queue,
            self.begin,
            lambda: self.now,
        )

    def begin(self) -> None:
        """Count a new beginning of the watches."""
        self.begun += 1

    def look(self) -> tuple[bool, float]:
        """Look; return whether a list is due, and in how many seconds it looks again."""
        self.lookout.look()
        listed = False
        began = self.now
        while True:
            key = self.queue.take(0)
            if key is None:
                self.now += 0.5
                continue
            self.queue.done(key)
            if key.kind == "look":
                return listed, self.now - began
            listed = True


def test_nothing_differs() -> None:
    """What is known is what there is, also of a policy that cannot be read."""
    scene = Scene()
    scene.cluster.policies = [policy("a"), policy("b", mode="Nonsense")]
    for each in scene.cluster.policies:
        scene.store.put_policy(each)
    assert scene.store.unreadable_policies() == {"b"}
    assert scene.look() == (False, LOOK_SECONDS)


def test_a_difference_that_lasts() -> None:
    """An event may be on its way: what differs twice was missed. Edits and policies made anew differ too."""
    for there in ([], [policy("a", generation=2)], [policy("a", uid="2")], [policy("a"), policy("b")]):
        scene = Scene()
        scene.store.put_policy(policy("a"))
        scene.cluster.policies = there
        assert scene.look() == (False, AGAIN_SECONDS)
        assert scene.look() == (True, LOOK_SECONDS)
        assert scene.begun == 0


def test_a_difference_that_does_not_last() -> None:
    """An event that was on its way has come."""
    scene = Scene()
    scene.store.put_policy(policy("a"))
    assert scene.look() == (False, AGAIN_SECONDS)
    scene.cluster.policies = [policy("a")]
    assert scene.look() == (False, LOOK_SECONDS)
    scene.cluster.policies = []
    assert scene.look() == (False, AGAIN_SECONDS)


def test_two_misses_in_a_short_time() -> None:
    """The watches begin anew; after a long time without one, a miss is one miss."""
    scene = Scene()
    scene.store.put_policy(policy("a"))
    scene.look()
    scene.look()
    scene.now += TWICE_SECONDS
    scene.look()
    scene.look()
    assert scene.begun == 0
    scene.look()
    scene.look()
    assert scene.begun == 1


def test_a_crd_made_anew() -> None:
    """Seen twice, so that it is served, the watches begin anew, once; one that is away is waited for."""
    scene = Scene()
    assert scene.look() == (False, LOOK_SECONDS)
    scene.cluster.uids[1] = ""
    assert scene.look() == (False, LOOK_SECONDS)
    scene.cluster.uids[1] = "another"
    assert scene.look() == (False, AGAIN_SECONDS)
    assert scene.begun == 0
    assert scene.look() == (False, LOOK_SECONDS)
    assert scene.look() == (False, LOOK_SECONDS)
    assert scene.begun == 1


def test_crds_that_came_late() -> None:
    """When the first lists failed, the watches may have begun before there was anything to watch."""
    scene = Scene()
    scene.lookout.distrust()
    assert scene.look() == (False, AGAIN_SECONDS)
    scene.look()
    assert scene.begun == 1


def test_a_crd_that_has_changed() -> None:
    """Objects may have come by the schema before: everything is read twice, a look apart, and the watches go on."""
    scene = Scene()
    assert scene.look() == (False, LOOK_SECONDS)
    scene.cluster.schemas = 2
    assert scene.look() == (True, LOOK_SECONDS)
    assert scene.look() == (True, LOOK_SECONDS)
    assert scene.look() == (False, LOOK_SECONDS)
    assert scene.begun == 0
