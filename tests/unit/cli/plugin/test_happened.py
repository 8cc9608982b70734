"""History from objects: each source's line, and their order."""

from datetime import UTC, datetime

from conntrack_operator.cli.plugin.happened import Happened, in_order, of_events, of_node, of_policy, of_revisions
from conntrack_operator.decide.revisions import Revision


def at(minute: int) -> datetime:
    """Return a moment."""
    return datetime(2026, 3, 1, 12, minute, tzinfo=UTC)


def test_the_last_ones_in_order() -> None:
    """The newest last; what two sources say of the same moment is said once."""
    lines = [Happened(at(minute), "node/a", "Current") for minute in (3, 1, 2, 1)]
    assert [each.at.minute for each in in_order(lines, 0)] == [1, 2, 3]
    assert [each.at.minute for each in in_order(lines, 2)] == [2, 3]


def test_within_one_second_causes_come_first() -> None:
    """A trial before what came of it, as the node tells it; a revision before both, and its success after."""
    whats = ["Trial", "Current", "GoodEverywhere", "Revision"]
    ordered = in_order([Happened(at(1), "node/a", what) for what in whats], 0)
    assert [each.what for each in ordered] == ["Revision", "Trial", "Current", "GoodEverywhere"]


def test_a_policy_tells_who_wrote_it() -> None:
    """From managedFields, without those who write its status."""
    fields = {"f:spec": {"f:timeouts": {}, "f:mode": {}}}
    metadata = {
        "name": "web", "generation": 4, "creationTimestamp": "2026-03-01T12:00:00Z",
        "managedFields": [
            {"manager": "kubectl-edit", "time": "2026-03-01T12:05:00Z", "fieldsV1": fields},
            {"manager": "op", "subresource": "status", "time": "2026-03-01T12:06:00Z", "fieldsV1": fields},
            {"manager": "labeller", "time": "2026-03-01T12:07:00Z", "fieldsV1": {"f:metadata": {}}},
        ],
    }  # fmt: skip
    assert list(of_policy({"metadata": metadata})) == [
        Happened(at(0), "policy/web", "Created", "generation 4 now"),
        Happened(at(5), "policy/web", "SpecWritten", "last by kubectl-edit, which holds mode, timeouts"),
    ]


def test_revisions_tell_what_they_changed() -> None:
    """Each against the one before it of the same policy; the oldest that is kept has none to compare with."""
    first = Revision("web", "aa", 1, {"mode": "Enforce", "timeouts": {"icmp": 20}}, good_since=at(4))
    second = Revision("web", "bb", 2, {"mode": "Enforce", "timeouts": {"icmp": 25}, "tcp": {"loose": True}})
    assert [(each.at.minute, each.what, each.why) for each in of_revisions([(second, at(5)), (first, at(1))])] == [
        (1, "Revision", "aa (number 1): the oldest that is kept"),
        (4, "GoodEverywhere", "aa is on all its nodes"),
        (5, "Revision", "bb (number 2): tcp.loose absent -> true, timeouts.icmp 20 -> 25"),
    ]


def test_nodes_tell_their_transitions() -> None:
    """With reason, sentence and the spec it was about."""
    history = [
        {
            "time": "2026-03-01T12:02:00Z",
            "phase": "RolledBack",
            "reason": "ProbeFailed",
            "message": "dns",
            "revision": "r",
        },
        {"time": "yesterday", "phase": "Trial"},
    ]
    document = {"metadata": {"name": "n"}, "status": {"history": history}}
    assert list(of_node(document)) == [Happened(at(2), "node/n", "RolledBack", "ProbeFailed: dns (spec r)")]


def test_events_tell_how_often() -> None:
    """At their last time; those about other kinds of object are left out."""
    event = {
        "involvedObject": {"kind": "ConntrackPolicy", "name": "web"}, "reason": "Saturated", "message": "full",
        "count": 3, "firstTimestamp": "2026-03-01T12:01:00Z", "lastTimestamp": "2026-03-01T12:09:00Z",
    }  # fmt: skip
    other = {**event, "involvedObject": {"kind": "Pod", "name": "p"}}
    assert list(of_events([event, other])) == [
        Happened(at(9), "policy/web", "Saturated", "full (3 times since 2026-03-01T12:01:00Z)")
    ]
