"""Previews: what an Observe policy would do to all its nodes, and how it is said."""

import itertools
from typing import Any

import pytest

from conntrack_operator.decide.previewed import answers, part_of, preview_of, preview_revision, words_of
from conntrack_operator.decide.standing import Share, preview_for, standing_of
from conntrack_operator.decide.targeting import Node
from conntrack_operator.model.node import NodeConntrack, NodeSpec, NodeStatus, Preview
from conntrack_operator.model.policy import Settings
from conntrack_operator.model.status import PREVIEWED_MAX, PolicyPreview

MAX = "net.netfilter.nf_conntrack_max"
BUCKETS = "net.netfilter.nf_conntrack_buckets"
WEB = "notrack/web"


def preview(changes: dict[str, tuple[str, str]] | None = None, refused: dict[str, str] | None = None) -> Preview:
    """Return one node's preview: from and to by setting, and the reason of each refusal."""
    return Preview.model_validate(
        {
            "changes": [{"setting": key, "from": old, "to": new} for key, (old, new) in (changes or {}).items()],
            "refused": [{"setting": key, "reason": why, "message": "x"} for key, why in (refused or {}).items()],
        }
    )


GROWS = preview({MAX: ("262144", "1048576"), WEB: ("absent", "TCP 80 Server")})
REFUSES = preview({MAX: ("65536", "1048576")}, {WEB: "NATConflict"})


def test_counts_and_examples() -> None:
    """Every setting once, with how many nodes it is about and what the first of them would do."""
    found = preview_of([("n3", GROWS), ("n1", REFUSES), ("n2", GROWS), ("n4", preview())])
    assert found.document() == {
        "nodes": 4,
        "changing": 3,
        "refusing": 1,
        "unchanged": 1,
        "changes": [
            {"setting": MAX, "nodes": 3, "example": "n1", "what": "65536 -> 1048576"},
            {"setting": WEB, "nodes": 2, "example": "n2", "what": "absent -> TCP 80 Server"},
        ],
        "refused": [{"setting": WEB, "nodes": 1, "example": "n1", "what": "NATConflict: x"}],
    }


def test_the_order_they_come_in_does_not_matter() -> None:
    """The status of a policy must not change because its nodes were listed another way."""
    told = [
        ("n1", REFUSES),
        ("n2", GROWS),
        ("n3", GROWS),
        ("n4", preview(None, {WEB: "StatefulAccept", MAX: "BelowUse"})),
    ]
    assert len({preview_of(order).model_dump_json() for order in itertools.permutations(told)}) == 1


def test_a_rule_refused_twice_for_one_reason() -> None:
    """Nodes are counted, not sentences; the first sentence is the one that is shown."""
    twice = Preview.model_validate(
        {"refused": [{"setting": WEB, "reason": "NATConflict", "message": text} for text in ("one", "two")]}
    )
    (refusal,) = preview_of([("n1", twice)]).refused
    assert (refusal.nodes, refusal.what) == (1, "NATConflict: one")


def test_at_most_ten_with_the_most_nodes_first() -> None:
    """What concerns most nodes is what a person must see first."""
    told = [
        (f"n{number:02}", preview({f"s{setting:02}": ("1", "2") for setting in range(number, 15)}))
        for number in range(15)
    ]
    changes = preview_of(told).changes
    assert len(changes) == PREVIEWED_MAX
    assert [(each.setting, each.nodes) for each in changes[:2]] == [("s14", 15), ("s13", 14)]


@pytest.mark.parametrize(
    ("told", "matched", "words"),
    [
        ([], 3, "none of 3 nodes has said yet what would change; nothing is changed"),
        ([("n1", preview())], 1, "nothing would change on the one node"),
        ([("n1", preview()), ("n2", preview())], 2, "nothing would change on any of 2 nodes"),
        ([("n1", preview())], 3, "nothing would change on 1 of 3 nodes; 2 have not answered"),
        (
            [("n1", GROWS), ("n2", REFUSES), ("n3", preview())],
            3,
            "2 of 3 nodes would change 2 settings; 1 would refuse notrack/web (NATConflict)",
        ),
        (
            [("n1", preview({MAX: ("262144", "1048576")}))],
            2,
            f"1 of 2 nodes would change {MAX} (262144 -> 1048576 on n1); 1 has not answered",
        ),
        (
            [("n1", preview({f"s{number:02}": ("1", "2") for number in range(12)}))],
            1,
            "1 of 1 node would change 10 settings or more",
        ),
        (
            [("n1", preview(None, {"node": "Unsupported"}))],
            1,
            "nothing would change on the one node; 1 would refuse everything (Unsupported)",
        ),
        (
            [("n1", preview(None, {WEB: "NATConflict", MAX: "BelowUse", BUCKETS: "BelowUse"}))],
            1,
            f"nothing would change on the one node; 1 would refuse {BUCKETS} (BelowUse), {MAX} (BelowUse) and 1 more",
        ),
    ],
)
def test_words(told: list[tuple[str, Preview]], matched: int, words: str) -> None:
    """One sentence says what would happen, where, and who would not have it."""
    assert words_of(preview_of(told), matched) == words


def test_nothing_is_known_of_no_node() -> None:
    """An empty preview says that nobody has answered, and never that nothing would change."""
    assert preview_of([]) == PolicyPreview()


def test_the_part_of_one_policy() -> None:
    """Other policies' settings are left out; what concerns the node as a whole concerns everybody."""
    both = preview({MAX: ("1", "2"), WEB: ("absent", "x")}, {WEB: "NATConflict", "node": "Unsupported"})
    part = part_of(both, lambda setting: setting == MAX)
    assert [change.setting for change in part.changes] == [MAX]
    assert [refusal.setting for refusal in part.refused] == ["node"]


def test_a_preview_of_what_was_asked_before_is_no_answer() -> None:
    """An Observe policy that was edited changes no revision: the preview itself names what it was made for."""
    asked = Settings.model_validate({"timeouts": {"icmp": 10}})
    spec = NodeSpec(revision="r", mode="Hold", node_uid="", preview=asked)

    def status(revision: str) -> NodeStatus:
        return NodeStatus(observed_revision="r", preview=Preview(revision=revision))

    assert answers(spec, status(preview_revision(asked)))
    assert answers(spec, status(""))
    assert not answers(spec, status(preview_revision(Settings.model_validate({"timeouts": {"icmp": 11}}))))
    assert not answers(spec, NodeStatus(observed_revision="r"))
    assert not answers(spec.model_copy(update={"preview": None}), status(""))


def report(asked: dict[str, Any], preview: dict[str, Any]) -> NodeConntrack:
    """Return the object of a node that is asked for a preview, and has made one."""
    spec = {"revision": "s1", "mode": "Hold", "nodeUID": "uid-1", "preview": asked}
    said = {"observedRevision": "s1", "nodeUID": "uid-1", "phase": "Current", "heartbeatTime": "2026-01-31T11:59:00Z"}
    document = {"metadata": {"name": "n1"}, "spec": spec, "status": said | {"preview": preview}}
    return NodeConntrack.model_validate(document)


def test_a_preview_of_the_policy_before_its_edit_is_no_answer() -> None:
    """An Observe policy that is edited waits for a preview of what it says now, and shows no other meanwhile."""
    asked = {"timeouts": {"icmp": 10}}
    made_for = preview_revision(Settings.model_validate(asked))
    share = Share(fields=frozenset({"timeouts.icmp"}), all_fields=frozenset({"timeouts.icmp"}), observes=True)
    change = {"setting": "net.netfilter.nf_conntrack_icmp_timeout", "from": "30", "to": "10"}
    for revision, state in ((made_for, "current"), ("of before", "pending")):
        existing = report(asked, {"changes": [change], "revision": revision})
        assert standing_of(Node("n1", "uid-1", {}), share, existing).state == state
        assert (preview_for(share, existing) is not None) == (state == "current")


def test_the_preview_of_another_policy() -> None:
    """What other Observe policies would change is theirs to tell."""
    share = Share(
        fields=frozenset({"table.size"}), all_fields=frozenset({"table.size", "timeouts.icmp"}), observes=True
    )
    changes = [
        {"setting": setting, "from": "1", "to": "2"} for setting in (MAX, "net.netfilter.nf_conntrack_icmp_timeout")
    ]
    found = preview_for(share, report({}, {"changes": changes}))
    assert found is not None
    assert [change.setting for change in found.changes] == [MAX]
