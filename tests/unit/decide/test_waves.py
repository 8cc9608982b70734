"""All changes of a fleet together: several policies, edits, deletions, and a controller that forgets everything."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conntrack_operator.decide.absence import Loss
from conntrack_operator.decide.holding import GONE, Target, attempt_of, holding_of, newcomers_share
from conntrack_operator.decide.merge import precedence
from conntrack_operator.decide.revisions import Revision, content_of, last_good, policy_at, revision_name
from conntrack_operator.decide.rollout import ANSWER_SECONDS
from conntrack_operator.decide.seen import Seen
from conntrack_operator.decide.targeting import Node, selects
from conntrack_operator.decide.targets import Remove, Wish, Write, owner_of, step_for
from conntrack_operator.decide.waves import Fleet, fleet_at
from conntrack_operator.model.node import NodeConntrack, NodeSpec
from conntrack_operator.model.policy import ConntrackPolicy

BEGAN = datetime(2026, 1, 31, 12, 0, 0, tzinfo=UTC)


def policy(name: str = "p", entries: int = 1000, *, role: str = "web", **spec: Any) -> ConntrackPolicy:
    """Return a policy for the nodes of one role."""
    fields = {"mode": "Enforce", "nodeSelector": {"matchLabels": {"role": role}}, **spec}
    fields.setdefault("table", {"size": {"maxEntries": entries}})
    return ConntrackPolicy.model_validate({"metadata": {"name": name, "uid": f"uid-{name}"}, "spec": fields})


class World:
    """A cluster without an API server: what is stored, what time it is, and the parts of a controller.

    `forget` is what a controller knows that was just started: all that is stored, and nothing else.
    """

    def __init__(self, nodes: int, *policies: ConntrackPolicy) -> None:
        self.now = BEGAN
        self.nodes = {
            f"n{number:02}": Node(f"n{number:02}", f"uid-{number}", {"role": "web"}) for number in range(nodes)
        }
        self.policies = {each.metadata.name: each for each in policies}
        self.book: dict[tuple[str, str], Revision] = {}
        self.objects: dict[str, NodeConntrack] = {}
        self.told: dict[str, datetime] = {}
        self.answered: dict[str, datetime] = {}
        self.confirmed: frozenset[Loss] = frozenset()
        self.fleet = Fleet()
        self.is_judged = False

    def targets(self) -> list[Target]:
        """Return every policy as it is wanted; what is new is written down."""
        found = []
        for each in sorted(self.policies.values(), key=precedence):
            name, revision = each.metadata.name, revision_name(each)
            self.book.setdefault((name, revision), Revision(name, revision, len(self.book), content_of(each)))
            good = last_good(kept for kept in self.book.values() if kept.policy == name)
            found.append(Target(name, each, revision, good))
        gone = {use.name for each in self.objects.values() if each.spec.mode == "Apply" for use in each.spec.policies}
        gone |= {each.name for found_one in self.objects.values() for each in found_one.spec.withdrawn}
        return found + [Target(name, None, GONE) for name in sorted(gone - self.policies.keys())]

    def lookup(self, name: str, revision: str) -> ConntrackPolicy | None:
        """Return a policy at a revision."""
        kept = self.book.get((name, revision))
        return policy_at(kept, self.policies.get(name)) if kept else None

    def seen(self) -> list[Seen]:
        """Return all nodes with what is known of them."""
        return [
            Seen(
                node,
                self.objects.get(name),
                heard_at=self.now,
                told_at=self.told.get(name),
                answered_at=self.answered.get(name),
            )
            for name, node in self.nodes.items()
        ]

    def judge(self) -> Fleet:
        """Judge all rollouts, and note what went well."""
        targets = self.targets()
        self.fleet = fleet_at(self.seen(), targets, self.now, granted=self.fleet.grants, confirmed=self.confirmed)
        self.is_judged = True
        for target in targets:
            if self.fleet.verdicts[target.name].is_good and target.policy is not None:
                key = (target.name, target.revision)
                self.book[key] = replace(self.book[key], good_since=self.book[key].good_since or self.now)
        return self.fleet

    def write(self, name: str) -> None:
        """Do what a worker does for one node."""
        node, existing = self.nodes[name], self.objects.get(name)
        granted = dict(self.fleet.grants.get(name, {}))
        share = {**({} if existing else newcomers_share(node, self.targets(), self.lookup)), **granted}
        travelling = self.fleet.travelling if self.is_judged else None
        holding = holding_of(node, existing, share, travelling, self.lookup)
        mine = [each for each in self.policies.values() if selects(each.spec.node_selector, node.labels)]
        told = existing.spec if existing else None
        attempt = told.attempt if told and told.mode == "Apply" and not share else attempt_of(holding.policies)
        observed = [each for each in mine if each.spec.mode == "Observe"]
        wish = Wish(holding, observed, attempt, is_meant=bool(mine), may_restore=Loss("", name) in self.confirmed)
        step = step_for(node, wish, existing)
        if isinstance(step, Remove):
            del self.objects[name]
        elif isinstance(step, Write):
            self._store(node, step.spec, existing)
        grants = {each: dict(granted) for each, granted in self.fleet.grants.items() if each != name}
        self.fleet = replace(self.fleet, grants=grants)

    def _store(self, node: Node, spec: NodeSpec, existing: NodeConntrack | None) -> None:
        meta = {"name": node.name, "ownerReferences": [owner_of(node)]}
        generation = (existing.metadata.generation or 0) + 1 if existing else 1
        status = existing.status.document() if existing and existing.status else None
        document = {"metadata": {**meta, "generation": generation}, "spec": spec.document(), "status": status}
        self.objects[node.name] = NodeConntrack.model_validate(document)
        self.told[node.name] = self.now

    def write_all(self) -> None:
        """Have every node's worker run."""
        for name in self.nodes:
            self.write(name)

    def answer(self, name: str, phase: str = "Current", **status: Any) -> None:
        """Have the node's agent say that it has done what it was told, or what became of it."""
        found = self.objects[name]
        if found.spec.mode == "Restore" and phase == "Current":
            phase = "Restored"
        status = {
            "nodeUID": found.spec.node_uid,
            "observedRevision": found.spec.revision,
            "observedAttempt": found.spec.attempt,
            "phase": phase,
            **status,
        }
        changed = found.status is None or not self.has_answered(name) or found.status.phase != phase
        self.objects[name] = NodeConntrack.model_validate({**found.document(), "status": status})
        if changed:
            self.answered[name] = self.now

    def has_answered(self, name: str) -> bool:
        """Tell whether the node's status is about what it was told last."""
        return Seen(self.nodes[name], self.objects.get(name)).has_answered

    def answer_all(self) -> None:
        """Have every node that has something to answer say that it has done it."""
        for name in self.nodes:
            if name in self.objects and not self.has_answered(name):
                self.answer(name)

    def forget(self) -> None:
        """End the controller and start another."""
        self.fleet, self.is_judged, self.confirmed = Fleet(), False, frozenset()

    def turn(self, seconds: float = 31) -> Fleet:
        """Judge, write, answer, and let time pass; what is lost has been confirmed by then."""
        fleet = self.judge()
        self.write_all()
        self.answer_all()
        self.confirmed = fleet.losses
        self.now += timedelta(seconds=seconds)
        return fleet

    def settle(self) -> None:
        """Turn until nothing is granted, nothing leaves, and nothing is waited for."""
        for _ in range(20 * len(self.nodes) + 40):
            before = dict(self.objects)
            fleet = self.turn()
            ended = all(each.stage == "Done" for each in fleet.verdicts.values())
            if before == self.objects and ended and not fleet.grants and not fleet.losses:
                return
        raise AssertionError(f"no end: {self.fleet.verdicts}")

    def held(self) -> dict[str, dict[str, str]]:
        """Return what every node has, by its spec."""
        return {each.node.name: dict(each.held) for each in self.seen()}


def everywhere(world: World) -> dict[str, dict[str, str]]:
    """Return what every node should have."""
    return {
        name: {target.name: wanted for target in world.targets() if (wanted := target.wanted_at(node)) != GONE}
        for name, node in world.nodes.items()
    }


def settled(nodes: int, *policies: ConntrackPolicy) -> World:
    """Return a world in which every policy is where it should be."""
    world = World(nodes, *policies)
    world.settle()
    assert world.held() == everywhere(world)
    assert all(each.good_since for each in world.book.values() if world.policies[each.policy].spec.mode == "Enforce")
    return world


def released(fleet: Fleet, name: str = "p") -> list[str]:
    """Return the nodes to which the policy is released, or from which it is taken."""
    return list(fleet.verdicts[name].release)


def test_nobody_is_given_anything_before_it_was_heard() -> None:
    """Each node has its object at once, asked for nothing; its answer shows that its agent is there."""
    world = World(3, policy())
    assert world.judge().grants == {}
    world.write_all()
    assert {each.spec.mode for each in world.objects.values()} == {"Hold"}
    assert world.judge().grants == {}, "told, and not heard"
    world.answer("n01")
    assert released(world.judge()) == ["n01"], "the first that is heard"


def test_an_edit_goes_the_same_way() -> None:
    """One, its soak, then at most a tenth at a time; a node that is not released keeps what it has."""
    world = settled(20, policy())
    old = world.held()["n00"]
    world.policies["p"] = policy(entries=2000)
    assert released(world.turn()) == ["n00"]
    assert world.held()["n01"] == old
    assert released(world.turn()) == ["n01", "n02"]
    world.settle()
    assert world.held() == everywhere(world)


def test_a_failed_canary_stops_the_edit_and_the_next_edit_goes_there_first() -> None:
    """Exactly one node is touched, however often and by whom it is judged anew; the repair begins with it."""
    world = settled(20, policy())
    old = world.held()["n00"]
    world.nodes["n00"] = replace(world.nodes["n00"], ready=False)
    world.policies["p"] = policy(entries=2000)
    world.judge()
    world.write_all()
    world.answer("n01", "RolledBack")
    world.nodes["n00"] = replace(world.nodes["n00"], ready=True)
    for _ in range(3):
        world.forget()
        world.now += timedelta(seconds=99)
        fleet = world.turn()
        assert (fleet.verdicts["p"].reason, fleet.grants) == ("CanaryFailed", {})
    assert [name for name, held in world.held().items() if held != old] == ["n01"]
    world.policies["p"] = policy(entries=3000)
    assert released(world.turn()) == ["n01"]
    world.settle()
    assert world.held() == everywhere(world)


def test_retry_tries_the_one_that_gave_up() -> None:
    """It is the same revision, another attempt, and when that goes well the others follow."""
    world = settled(5, policy())
    world.policies["p"] = policy(entries=2000)
    world.judge()
    world.write_all()
    world.answer("n00", "RolledBack")
    assert world.judge().verdicts["p"].reason == "CanaryFailed"
    world.policies["p"] = policy(entries=2000, rollout={"retry": "again"})
    before = world.objects["n00"].spec
    assert released(world.judge()) == ["n00"]
    world.write_all()
    after = world.objects["n00"].spec
    assert (before.revision, before.attempt) != (after.revision, after.attempt)
    assert before.revision == after.revision
    world.settle()
    assert world.held() == everywhere(world)


def test_a_canary_that_refuses_a_part_soaks_with_the_rest() -> None:
    """What it took of the change is tried like any other; one that took nothing proves nothing, and another follows."""
    size = {"setting": "net.netfilter.nf_conntrack_max", "wanted": "2000", "observed": "2000", "reason": "Applied"}
    icmp = {"setting": "net.netfilter.nf_conntrack_icmp_timeout", "wanted": "", "observed": "", "reason": "Unsupported"}
    world = settled(20, policy())
    world.policies["p"] = policy(entries=2000, timeouts={"icmp": 5})
    world.judge()
    world.write_all()
    world.answer("n00", "Refused", results=[icmp, size])
    verdict = world.judge().verdicts["p"]
    assert (verdict.stage, verdict.release) == ("Soak", ())
    world.answer("n00", "Refused", results=[icmp])
    assert released(world.judge()) == ["n01"]
    world.write_all()
    world.answer("n01", "Refused", results=[icmp, size])
    world.now += timedelta(seconds=31)
    assert released(world.judge()) == ["n02", "n03"]


@pytest.mark.parametrize("reason", ["ProbeFailed", "AgentKilled", "AgentFailed", "NodeRebooted"])
def test_what_is_tried_again_goes_on_holding_up_the_others(reason: str) -> None:
    """A halt is not lifted while a node that rolled back is in its next trial, whichever controller looks."""
    world = settled(10, policy())
    world.policies["p"] = policy(entries=2000, rollout={"maxUnavailable": 3})
    world.turn()
    assert released(world.judge()) == ["n01", "n02", "n03"]
    world.write_all()
    world.answer("n02")
    tries_again = [{"type": "Stalled", "status": "False", "reason": "NotStalled", "lastTransitionTime": "x"}]
    failed = [{"setting": "node", "wanted": "", "observed": "", "reason": reason}]
    for phase in ("RolledBack", "Trial", "RolledBack", "Trial"):
        world.answer("n01", phase, conditions=tries_again, results=failed)
        verdict = world.judge().verdicts["p"]
        assert (verdict.reason, verdict.release) == ("TooManyFailures", ()), phase
        world.forget()
        world.now += timedelta(seconds=9)
    world.answer("n01")
    assert released(world.judge()) == ["n04", "n05"]


def test_losses_are_granted_only_when_they_are_confirmed() -> None:
    """All that is seen is said, by node; until two lists have agreed nothing is withdrawn, and the rollout waits."""
    world = settled(3, policy())
    del world.policies["p"]
    fleet = world.judge()
    assert fleet.losses == {Loss("p", name) for name in world.nodes}
    assert (fleet.grants, fleet.leaving) == ({}, {"p": 3})
    world.confirmed = frozenset({Loss("p", "n01")})
    assert world.judge().grants == {"n01": {"p": GONE}}
    world.confirmed = frozenset()
    assert world.judge().grants == {}, "one that turned out to be none is taken back while it is not written"
    world.settle()
    assert world.objects == {}


def test_a_removal_goes_in_waves_and_its_evidence_outlives_the_controller() -> None:
    """Who has given the policy up already is in the specs: a controller that was just started touches nobody else."""
    world = settled(20, policy(rollout={"soakSeconds": 600}))
    del world.policies["p"]
    world.confirmed = world.judge().losses
    assert released(world.judge()) == ["n00"]
    world.write_all()
    world.answer_all()
    for _ in range(4):
        world.forget()
        world.write_all()  # the workers may run before anything has been judged
        world.confirmed = world.judge().losses
        fleet = world.judge()
        assert (fleet.verdicts["p"].stage, fleet.grants) == ("Soak", {})
        world.write_all()
        world.now += timedelta(seconds=100)
    assert [name for name, held in world.held().items() if not held] == ["n00"]
    world.now += timedelta(seconds=600)
    assert len(released(world.judge())) == 2
    world.settle()
    assert world.objects == {}


def test_a_grant_is_overtaken_by_an_edit() -> None:
    """What was released and is not written yet is dropped when the policy has changed again."""
    world = settled(20, policy())
    world.policies["p"] = policy(entries=2000)
    first = world.judge().grants
    world.policies["p"] = policy(entries=3000)
    second = world.judge().grants
    assert first.keys() == second.keys()
    assert first != second
    world.policies["p"] = policy()
    assert world.judge().grants == {}, "back where everybody is"


def test_a_grant_that_is_not_written_yet_ends_with_a_pause_or_a_halt() -> None:
    """While the API server does not answer, a person pauses, or others roll back: what is not written is spared."""
    everybody = {"canary": 0, "maxUnavailable": "100%"}
    world = settled(10, policy(rollout=everybody))
    world.policies["p"] = policy(entries=2000, rollout=everybody)
    assert len(world.judge().grants) == 10
    world.policies["p"] = policy(entries=2000, rollout={**everybody, "paused": True})
    assert world.judge().grants == {}
    world.policies["p"] = policy(entries=2000, rollout=everybody)
    assert len(world.judge().grants) == 10
    world.write("n00")
    world.answer("n00", "RolledBack")
    fleet = world.judge()
    assert (fleet.verdicts["p"].reason, fleet.grants) == ("TooManyFailures", {})
    assert "9 more were spared" in fleet.verdicts["p"].message
    assert world.judge().grants == {}


def test_a_grant_is_of_the_node_that_was_there() -> None:
    """A node that was made anew before its grant was written has nothing granted: its agent was not heard yet."""
    world = settled(3, policy())
    world.policies["p"] = policy(entries=2000)
    assert world.judge().grants.keys() == {"n00"}
    world.nodes["n00"] = replace(world.nodes["n00"], uid="another")
    assert world.judge().grants.keys() == {"n01"}


def test_what_one_policy_released_counts_for_the_next() -> None:
    """Two edits at once do not meet on one node, nor does the second find the room that the first has taken."""
    two, three = ({"canary": 0, "maxUnavailable": number} for number in (2, 3))
    world = settled(10, policy("p", rollout=two), policy("q", table={"entriesPerBucket": 1}, rollout=three))
    world.policies["p"] = policy("p", 2000, rollout=two)
    world.policies["q"] = policy("q", table={"entriesPerBucket": 2}, rollout=three)
    fleet = world.judge()
    assert released(fleet, "p") == ["n00", "n01"]
    assert released(fleet, "q") == ["n02"]
    world.settle()
    assert world.held() == everywhere(world)


def test_another_policy_s_failure_is_not_ours_to_begin_with() -> None:
    """A node that has our last good revision, and gave up another's change, is no better place to begin than others."""
    world = settled(5, policy(), policy("q", table={"entriesPerBucket": 1}))
    world.nodes["n00"] = world.nodes["n01"] = replace(world.nodes["n01"], ready=False)
    world.nodes = {name: replace(node, name=name, uid=f"uid-{name[2:]}") for name, node in world.nodes.items()}
    world.policies["q"] = policy("q", table={"entriesPerBucket": 2})
    world.judge()
    world.write_all()
    world.answer("n02", "RolledBack")
    world.nodes = {name: replace(node, ready=True) for name, node in world.nodes.items()}
    world.policies["p"] = policy(entries=2000)
    assert released(world.judge(), "p") == ["n00"]


def test_another_policy_s_failure_halts_nobody_else() -> None:
    """What was well everywhere before is not what was taken back: it goes on to nodes that it means since."""
    world = settled(5, policy(), policy("q", table={"entriesPerBucket": 1}))
    world.policies["q"] = policy("q", table={"entriesPerBucket": 2})
    world.judge()
    world.write_all()
    world.answer("n00", "RolledBack")
    world.nodes["x"] = Node("x", "uid-x", {"role": "web"})
    fleet = world.turn()
    assert fleet.verdicts["q"].reason == "CanaryFailed"
    assert fleet.verdicts["p"].stage == "Done", "the newcomer has not been heard yet"
    assert released(world.judge(), "p") == ["x"]
    world.policies["p"] = policy(entries=2000)
    assert world.judge().verdicts["p"].stage == "Canary"


def test_a_former_node_s_status_is_not_believed() -> None:
    """A node that was deleted and made anew, of the same name, has nothing and has said nothing."""
    world = settled(3, policy())
    world.nodes["n01"] = replace(world.nodes["n01"], uid="another")
    fleet = world.judge()
    assert world.held()["n01"] == {}
    assert fleet.grants == {}
    world.write_all()
    assert world.objects["n01"].spec.mode == "Hold"
    assert world.objects["n01"].spec.node_uid == "another"
    assert world.judge().grants == {}, "its status is of the former node"
    world.settle()
    assert world.held() == everywhere(world)


def test_newcomers_during_a_halt_get_what_went_well() -> None:
    """Fifty nodes that join while a bad edit is halted get the last good revision at once, and the halt stays."""
    world = settled(10, policy())
    good = world.held()["n00"]
    world.policies["p"] = policy(entries=2000)
    world.judge()
    world.write_all()
    world.answer("n00", "RolledBack")
    world.now += timedelta(seconds=60)
    newcomers = [f"x{number:02}" for number in range(50)]
    for name in newcomers:
        world.nodes[name] = Node(name, f"uid-{name}", {"role": "web"}, created=world.now)
    assert world.judge().verdicts["p"].reason == "CanaryFailed"
    for name in newcomers:
        world.write(name)
        assert world.held()[name] == good
        world.answer(name)
    assert world.judge().grants == {}


def test_a_label_that_flips_during_a_halt_changes_nothing() -> None:
    """A node that was there and is selected again, while the change is halted, waits like the others."""
    world = settled(5, policy())
    world.policies["p"] = policy(entries=2000)
    world.judge()
    world.write_all()
    world.answer("n00", "RolledBack")
    before = world.held()
    world.nodes["n03"] = replace(world.nodes["n03"], labels={})
    assert Loss("p", "n03") in world.judge().losses
    world.write_all()
    world.nodes["n03"] = replace(world.nodes["n03"], labels={"role": "web"})
    fleet = world.judge()
    assert (fleet.losses, fleet.grants) == (frozenset(), {})
    world.write_all()
    assert world.held() == before


def test_enforce_observe_enforce() -> None:
    """Turned to Observe it is withdrawn; turned back on the way, those that still have it are as they should be."""
    world = settled(20, policy())
    world.policies["p"] = policy(mode="Observe")
    for _ in range(3):
        world.turn()
    lost = [name for name, held in world.held().items() if not held]
    assert 0 < len(lost) < 20
    assert world.objects[lost[0]].spec.preview is not None
    world.policies["p"] = policy()
    world.settle()
    assert world.held() == everywhere(world)
    assert not any(each.spec.withdrawn for each in world.objects.values())


def test_a_policy_made_anew_under_the_same_name() -> None:
    """With the same content nothing happens; with another it is an edit, whatever was confirmed before."""
    world = settled(20, policy())
    del world.policies["p"]
    world.confirmed = world.judge().losses
    world.policies["p"] = policy()
    fleet = world.judge()
    assert (fleet.grants, fleet.losses) == ({}, frozenset())
    world.policies["p"] = policy(entries=2000)
    assert world.judge().grants.keys() == {"n00"}


def test_what_nobody_can_put_together_holds_up_nobody() -> None:
    """A node that has another policy at a revision nobody knows is left out: what it has can only be left as it is."""
    world = settled(3, policy(), policy("q", table={"entriesPerBucket": 1}))
    world.policies["p"] = policy(entries=2000)
    targets = world.targets()
    seen = [replace(each, unknown=frozenset({"q"} if each.node.name == "n00" else ())) for each in world.seen()]
    fleet = fleet_at(seen, targets, world.now, granted={}, confirmed=())
    assert fleet.grants.keys() == {"n01"}
    mine = [replace(each, unknown=frozenset({"p"})) for each in seen]
    assert fleet_at(mine, targets, world.now, granted={}, confirmed=()).grants.keys() == {"n00"}, "its own is replaced"


def test_a_node_that_is_away_leaves_when_it_is_back() -> None:
    """It is no part of what is on its way, and its policy's status does not wait for it."""
    world = settled(3, policy())
    world.nodes["n02"] = replace(world.nodes["n02"], ready=False)
    del world.policies["p"]
    for _ in range(6):
        fleet = world.turn()
    assert world.objects.keys() == {"n02"}
    assert fleet.leaving == {}
    assert fleet.losses == {Loss("p", "n02")}
    world.nodes["n02"] = replace(world.nodes["n02"], ready=True)
    world.settle()
    assert world.objects == {}


SPECS = st.sampled_from(
    [
        {"entries": 1000},
        {"entries": 2000},
        {"entries": 3000, "mode": "Observe"},
        {"entries": 1000, "role": "db"},
        {"entries": 1000, "rollout": {"canary": 0, "maxUnavailable": "50%", "maxFailures": "100%"}},
        {"entries": 2000, "rollout": {"canary": 3, "maxUnavailable": 2, "soakSeconds": 0}},
        {"entries": 4000, "priority": 5, "onDelete": "Keep"},
    ]
)


def check(world: World, fleet: Fleet, before: dict[str, dict[str, str]]) -> None:
    """Check what must hold of every judgement."""
    for name, granted in fleet.grants.items():
        for target, revision in granted.items():
            if revision == GONE:
                assert Loss(target, name) in world.confirmed
    again = fleet_at(world.seen(), world.targets(), world.now, granted={}, confirmed=world.confirmed)
    fresh = fleet_at(world.seen(), world.targets(), world.now, granted={}, confirmed=world.confirmed)
    assert again == fresh, "judged from scratch it is the same"
    for verdict in fleet.verdicts.values():
        if verdict.stage in ("Halted", "Paused"):
            assert not verdict.release
    assert before == world.held(), "judging writes nothing"


def happen(world: World, draw: Any) -> None:
    """Let one thing happen that people or machines do."""
    name, node = draw(st.sampled_from("pqr")), draw(st.sampled_from(sorted(world.nodes)))
    found = world.nodes[node]
    match draw(st.sampled_from(["edit", "delete", "label", "ready", "anew", "forget"])):
        case "edit":
            world.policies[name] = policy(name, **draw(SPECS))
        case "delete":
            world.policies.pop(name, None)
        case "label":
            world.nodes[node] = replace(found, labels={"role": draw(st.sampled_from(["web", "db"]))})
        case "ready":
            world.nodes[node] = replace(found, ready=not found.ready)
        case "anew":
            world.nodes[node] = replace(found, uid=f"{found.uid}x", created=world.now)
            world.objects.pop(node, None)
        case "forget":
            world.forget()


def work(world: World, draw: Any) -> None:
    """Let the controller and the agents do some of their work, and time pass."""
    before, had = world.held(), world.confirmed
    fleet = world.judge()
    check(world, fleet, before)
    some = st.sets(st.sampled_from(sorted(world.nodes)))
    for each in draw(some):
        world.write(each)
        lost = before[each].keys() - world.held()[each].keys()
        assert all(Loss(one, each) in had for one in lost), "nothing goes that was not confirmed"
    for each in draw(some):
        if each in world.objects and not world.has_answered(each):
            world.answer(each)
    world.confirmed = fleet.losses if draw(st.booleans()) else frozenset()
    world.now += timedelta(seconds=draw(st.sampled_from([1, 31, ANSWER_SECONDS + 100])))


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_any_fleet_comes_to_rest(data: Any) -> None:
    """Policies come, change and go, nodes come, go and change their labels, controllers end: it ends as it should."""
    world = World(data.draw(st.integers(1, 7)), policy("p"))
    for _ in range(data.draw(st.integers(1, 20))):
        (happen if data.draw(st.booleans()) else work)(world, data.draw)
    world.nodes = {name: replace(node, ready=True) for name, node in world.nodes.items()}
    world.answer_all()
    world.settle()
    assert world.held() == everywhere(world)
    meant = {
        name
        for name, node in world.nodes.items()
        if any(selects(each.spec.node_selector, node.labels) for each in world.policies.values())
    }
    assert meant == world.objects.keys()
    assert not any(each.spec.withdrawn for each in world.objects.values())
