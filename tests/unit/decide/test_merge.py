"""Merging: several policies on one node."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conntrack_operator.decide.hashing import hash_of
from conntrack_operator.decide.merge import RULES_MAX, Conflict, leaves_of, merged, settings_of
from conntrack_operator.model.policy import ConntrackPolicy, Rollout, Settings


def policy(name: str, spec: dict[str, Any], priority: int | None = None, created: str | None = None) -> ConntrackPolicy:
    """Return a policy that selects Linux nodes."""
    fields = {"mode": "Enforce", "nodeSelector": {"matchLabels": {"kubernetes.io/os": "linux"}}, **spec}
    if priority is not None:
        fields["priority"] = priority
    return ConntrackPolicy.model_validate(
        {"metadata": {"name": name, "uid": name, "creationTimestamp": created}, "spec": fields}
    )


def rules(*names: str, ports: int = 80) -> dict[str, Any]:
    """Return the part of a spec that has rules of these names."""
    return {"notrack": {"rules": [{"name": name, "ports": [ports]} for name in names]}}


def size(entries: int) -> dict[str, Any]:
    """Return the part of a spec that sets the size."""
    return {"table": {"size": {"maxEntries": entries}}}


OLD, NEW = "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"


@pytest.mark.parametrize(
    ("policies", "settings", "conflicts"),
    [
        pytest.param([], {}, [], id="no policy, nothing asked"),
        pytest.param(
            [policy("low", size(1), 1), policy("high", size(2), 2)],
            size(2),
            [Conflict("low", "table.size", "high")],
            id="higher priority wins",
        ),
        pytest.param(
            [policy("absent", size(1)), policy("below", size(2), -1)],
            size(1),
            [Conflict("below", "table.size", "absent")],
            id="an absent priority is 0",
        ),
        pytest.param(
            [policy("a", size(1), 5, NEW), policy("z", size(2), 5, OLD)],
            size(2),
            [Conflict("a", "table.size", "z", tied=True)],
            id="ties go to the older",
        ),
        pytest.param(
            [policy("b", size(1), 5, OLD), policy("a", size(2), 5, OLD)],
            size(2),
            [Conflict("b", "table.size", "a", tied=True)],
            id="then to the name",
        ),
        pytest.param(
            [policy("a", size(7), 2), policy("b", size(7), 1)], size(7), [], id="the same value is no conflict"
        ),
        pytest.param(
            [
                policy("a", {"table": {"size": {"memory": {"percent": 2, "floor": 9}}}}, 2),
                policy("b", {"table": {"size": {"memory": {"percent": 2, "ceiling": 99}}, "entriesPerBucket": 4}}, 1),
            ],
            {"table": {"size": {"memory": {"percent": 2, "floor": 9}}, "entriesPerBucket": 4}},
            [Conflict("b", "table.size", "a")],
            id="a size is taken whole, its neighbours are not",
        ),
        pytest.param(
            [
                policy("a", {"timeouts": {"tcp": {"established": 10}, "icmp": 3}, "tcp": {"loose": False}}, 2),
                policy("b", {"timeouts": {"tcp": {"established": 20, "close": 5}}, "tcp": {"beLiberal": True}}, 1),
            ],
            {
                "timeouts": {"tcp": {"established": 10, "close": 5}, "icmp": 3},
                "tcp": {"loose": False, "beLiberal": True},
            },
            [Conflict("b", "timeouts.tcp.established", "a")],
            id="every timeout and switch by itself",
        ),
        pytest.param(
            [
                policy("a", {"sysctls": {"nf_conntrack_acct": 1}, "trial": {"timeoutSeconds": 30}}, 2),
                policy(
                    "b",
                    {
                        "sysctls": {"nf_conntrack_acct": 0, "nf_conntrack_timestamp": 1},
                        "trial": {"timeoutSeconds": 60, "soakSeconds": 1},
                        "tracking": "Enabled",
                    },
                    1,
                ),
            ],
            {
                "sysctls": {"nf_conntrack_acct": 1, "nf_conntrack_timestamp": 1},
                "trial": {"timeoutSeconds": 30, "soakSeconds": 1},
                "tracking": "Enabled",
            },
            [Conflict("b", "sysctls.nf_conntrack_acct", "a"), Conflict("b", "trial.timeoutSeconds", "a")],
            id="every sysctl and trial field by itself",
        ),
        pytest.param(
            [
                policy("a", {"notrack": {"acceptUntracked": "Never", **rules("one")["notrack"]}}, 2),
                policy(
                    "b", {"notrack": {"acceptUntracked": "Both", "dropExisting": False, **rules("two")["notrack"]}}, 1
                ),
            ],
            {
                "notrack": {
                    "acceptUntracked": "Never",
                    "dropExisting": False,
                    "rules": [{"name": "one", "ports": [80]}, {"name": "two", "ports": [80]}],
                }
            },
            [Conflict("b", "notrack.acceptUntracked", "a")],
            id="rules add up, the fields beside them do not",
        ),
    ],
)
def test_merge(policies: list[ConntrackPolicy], settings: dict[str, Any], conflicts: list[Conflict]) -> None:
    """Each field comes from the policy that is ahead, and only who wanted another value lost."""
    merge = merged(policies)
    assert merge.settings == Settings.model_validate(settings)
    assert list(merge.conflicts) == conflicts


def test_uses_name_what_each_policy_decided() -> None:
    """The uses say, highest policy first, which fields are whose, with what must outlive the policy."""
    merge = merged(
        [
            policy("low", {**size(1), "timeouts": {"icmp": 3}, "onDelete": "Keep", "rollout": {"canary": 2}}, 1),
            policy("high", {**size(2), **rules("web")}, 2),
        ]
    )
    high, low = merge.uses
    assert (high.name, high.fields, high.on_delete) == ("high", ["notrack.rules[web]", "table.size"], "Restore")
    assert (low.name, low.fields, low.on_delete) == ("low", ["timeouts.icmp"], "Keep")
    assert low.rollout is not None
    assert low.rollout.canary == 2


def test_a_policy_s_revision_is_of_all_that_travels() -> None:
    """Whatever may change a node is a new revision; what acts at once, rollout and onDelete, is none."""
    first = merged([policy("a", size(1), 1)]).uses[0].revision
    for same in ({"rollout": {"paused": True}}, {"onDelete": "Keep"}):
        assert merged([policy("a", {**size(1), **same}, 1)]).uses[0].revision == first
    selector = {"nodeSelector": {"matchLabels": {"role": "web"}}}
    others = [policy("a", size(1), 2), policy("a", size(2), 1)]
    others += [policy("a", {**size(1), **other}, 1) for other in ({"mode": "Observe"}, selector)]
    assert len({merged([other]).uses[0].revision for other in others} - {first}) == 4


def test_a_tie_is_the_winner_s_concern_too() -> None:
    """Age or name has decided, which nobody wrote down: both policies are told. Of a plain loss only the loser is."""
    (tie,) = merged([policy("a", size(1)), policy("b", size(2))]).conflicts
    assert (tie.winner, tie.parties) == ("a", ("b", "a"))
    (loss,) = merged([policy("a", size(1), 1), policy("b", size(2))]).conflicts
    assert loss.parties == ("b",)


def test_what_lasts_of_a_rollout() -> None:
    """A pause and a retry end with the policy, since nobody could change them any more."""
    lasting = [
        merged([policy("a", {**size(1), "rollout": rollout})]).uses[0].rollout
        for rollout in ({"canary": 2, "paused": True, "retry": "1"}, {"paused": True}, {})
    ]
    assert lasting == [Rollout(canary=2), None, None]


def test_rules_of_one_name_are_told_apart() -> None:
    """A name that two policies use carries the policy's name, for both; other names stay as they are."""
    merge = merged([policy("team.a", rules("web", "dns"), 2), policy("b", rules("web", ports=81), 1)])
    assert merge.settings.notrack is not None
    assert [rule.name for rule in merge.settings.notrack.rules or ()] == ["team-a-web", "dns", "b-web"]
    assert merge.uses[0].fields == ["notrack.rules[dns]", "notrack.rules[team-a-web]"]


@pytest.mark.parametrize(
    "policies",
    [
        pytest.param(
            [policy("x" * 200, rules("web")), policy("y" * 63, rules("web"))], id="too long for a rule's name"
        ),
        pytest.param([policy("a.b", rules("web")), policy("a-b", rules("web"))], id="the same once dots are gone"),
        pytest.param([policy("a", rules("web")), policy("b", rules("web", "a-web"))], id="somebody else's own name"),
        pytest.param([policy("a", rules("b-web", "web")), policy("a-b", rules("web", "b-web"))], id="crosswise"),
    ],
)
def test_qualified_names_never_clash(policies: list[ConntrackPolicy]) -> None:
    """Whatever the names are, all rules are there, each under a valid name of its own."""
    count = sum(len(each.spec.notrack.rules or ()) for each in policies if each.spec.notrack)
    notrack = merged(policies).settings.notrack
    assert notrack is not None
    assert len({rule.name for rule in notrack.rules or ()}) == count
    Settings.model_validate(merged(policies).settings.document())


def test_more_rules_than_a_node_takes() -> None:
    """The lowest policies' rules are left out, and their policy is told which and why."""
    many = [policy(f"p{number:02}", rules(f"r{number:02}"), -number) for number in range(RULES_MAX + 2)]
    merge = merged(many)
    assert merge.settings.notrack is not None
    assert len(merge.settings.notrack.rules or ()) == RULES_MAX
    assert [(conflict.loser, conflict.field, conflict.winner) for conflict in merge.conflicts] == [
        ("p16", "notrack.rules[r16]", "p15"),
        ("p17", "notrack.rules[r17]", "p15"),
    ]
    assert "at most 16" in merge.conflicts[0].why


def test_the_hash_is_stable() -> None:
    """The hash is of the data and not of the order of its keys, and is the same in every process."""
    assert hash_of({"a": 1, "b": [1, 2]}) == hash_of({"b": [1, 2], "a": 1}) == "8baa73198470"
    assert hash_of({"a": 1}) != hash_of({"a": 2})


TIMEOUT = st.integers(1, 5)
SPECS = st.fixed_dictionaries(
    {},
    optional={
        "table": st.fixed_dictionaries(
            {},
            optional={
                "size": st.one_of(
                    st.builds(lambda number: {"maxEntries": number}, st.integers(1, 3)),
                    st.builds(lambda number: {"perCore": {"entries": number}}, st.integers(1, 3)),
                    st.just({"kernelFormula": {}}),
                ),
                "entriesPerBucket": st.integers(1, 3),
                "allowShrink": st.booleans(),
            },
        ),
        "timeouts": st.fixed_dictionaries(
            {}, optional={"tcp": st.fixed_dictionaries({}, optional={"close": TIMEOUT}), "icmp": TIMEOUT}
        ),
        "tcp": st.fixed_dictionaries({}, optional={"loose": st.booleans()}),
        "sysctls": st.dictionaries(st.sampled_from(["nf_conntrack_acct", "nf_conntrack_timestamp"]), st.integers(0, 1)),
        "tracking": st.sampled_from(["Enabled", "Disabled"]),
        "notrack": st.fixed_dictionaries(
            {},
            optional={
                "acceptUntracked": st.sampled_from(["Never", "Both"]),
                "rules": st.lists(
                    st.builds(
                        lambda name, port: {"name": name, "ports": [port]},
                        st.sampled_from(["web", "a-web", "dns", "b", "x1", "x2", "x3", "x4", "x5"]),
                        st.integers(1, 3),
                    ),
                    min_size=1,
                    max_size=8,
                    unique_by=lambda rule: rule["name"],
                ),
            },
        ),
    },
)
POLICIES = st.lists(
    st.builds(
        policy,
        st.sampled_from(["a", "b", "a.b", "a-b", "c"]),
        SPECS,
        st.one_of(st.none(), st.integers(-1, 1)),
        st.sampled_from([OLD, NEW, None]),
    ),
    max_size=5,
    unique_by=lambda each: each.metadata.name,
)


@given(POLICIES.flatmap(lambda policies: st.tuples(st.just(policies), st.permutations(policies))))
def test_the_order_of_arrival_plays_no_part(both: tuple[list[ConntrackPolicy], list[ConntrackPolicy]]) -> None:
    """Any order gives the same settings, uses and conflicts."""
    assert merged(both[0]) == merged(both[1])


@given(POLICIES)
def test_nothing_is_lost_and_nothing_invented(policies: list[ConntrackPolicy]) -> None:
    """Every merged field is some policy's own; every policy's field is in force or reported; all of it is valid."""
    merge = merged(policies)
    assert Settings.model_validate(merge.settings.document()) == merge.settings
    asked = {(each.metadata.name, path): value for each in policies for path, value in leaves_of(settings_of(each))}
    in_force = dict(leaves_of(merge.settings.document()))
    decided = {(use.name, path) for use in merge.uses for path in use.fields if not path.startswith("notrack.rules[")}
    assert {path for _, path in decided} == set(in_force)
    assert all(asked[pair] == in_force[pair[1]] for pair in decided)
    lost = {(each.loser, each.field) for each in merge.conflicts if not each.why}
    for (name, path), value in asked.items():
        assert ((name, path) in lost) == (value != in_force[path])
    asked_rules = sum(len(each.spec.notrack.rules or ()) for each in policies if each.spec.notrack)
    kept = merge.settings.notrack.rules or [] if merge.settings.notrack else []
    assert len(kept) + sum(bool(each.why) for each in merge.conflicts) == asked_rules
    assert len(kept) == min(asked_rules, RULES_MAX)


def test_a_soak_that_another_policys_timeout_has_no_room_for():
    """Each is right by itself; together the soak is cut, and its policy is told."""
    merge = merged(
        [policy("short", {"trial": {"timeoutSeconds": 20}}, 2), policy("long", {"trial": {"soakSeconds": 40}}, 1)]
    )
    assert merge.settings.trial is not None
    assert (merge.settings.trial.timeout_seconds, merge.settings.trial.soak_seconds) == (20, 10)
    assert [(each.loser, each.field, each.winner) for each in merge.conflicts] == [
        ("long", "trial.soakSeconds", "short")
    ]
    assert "cut to 10 s" in merge.conflicts[0].why
