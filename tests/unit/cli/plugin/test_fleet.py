"""The fleet as rows: what each node's object comes to, and who comes first."""

from datetime import UTC, datetime
from typing import Any

import pytest

from conntrack_operator.cli.plugin.fleet import node_row, node_rows, policy_row
from conntrack_operator.cli.plugin.render_fleet import duration_words, fleet_view, totals
from conntrack_operator.cli.terminal import plain

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


def node(name: str = "n", spec: dict[str, Any] | None = None, **status: Any) -> dict[str, Any]:
    """Return a NodeConntrack that is Current."""
    told = {"revision": "r", "mode": "Apply", "nodeUID": "u", "policies": [{"name": "web", "revision": "aa"}]}
    said = {
        "observedRevision": "r", "nodeUID": "u", "phase": "Current", "heartbeatTime": "2026-03-01T11:58:00Z",
        "usage": {"entries": 100, "maxEntries": 1000, "percent": 10},
        "history": [{"time": "2026-03-01T11:00:00Z", "phase": "Current", "reason": "Confirmed", "revision": "r"}],
    }  # fmt: skip
    return {"metadata": {"name": name}, "spec": {**told, **(spec or {})}, "status": {**said, **status}}


def usage(percent: int, **more: int) -> dict[str, int]:
    """Return a use of a table of 1000."""
    return {"entries": percent * 10, "maxEntries": 1000, "percent": percent, **more}


def test_pressure_goes_by_drops_then_time_to_full_then_use() -> None:
    """A node that fills up in a minute comes before a full one that does not move; equal ones go by name."""
    nodes = [
        node("b", usage=usage(10)), node("a", usage=usage(10)), node("full", usage=usage(99)),
        node("soon", usage=usage(60, secondsToFull=60)), node("later", usage=usage(90, secondsToFull=600)),
        node("drops", usage=usage(20, dropsPerSecond=1)), node("drops-more", usage=usage(20, dropsPerSecond=2)),
    ]  # fmt: skip
    names = [row.node for row in node_rows(nodes, NOW)]
    assert names == ["drops-more", "drops", "soon", "later", "full", "a", "b"]


def test_a_current_node() -> None:
    """Its policies at their revisions, since when, and the reason of its last transition."""
    row = node_row(node(), NOW)
    assert (row.phase, row.policies, row.since) == ("Current", ("web@aa",), "2026-03-01T11:00:00Z")
    assert (row.used_percent, row.drops_per_second, row.seconds_to_full, row.why) == (10, 0, None, "Confirmed")


@pytest.mark.parametrize(
    ("document", "phase", "words"),
    [
        ({"metadata": {"name": "n"}, "spec": {"nodeUID": "u"}}, "Pending", "not answered yet"),
        (node(nodeUID="of the node before"), "Pending", "not answered yet"),
        (node(observedRevision="old"), "Pending", "last spec"),
        (node(observedRevision="old", phase="Trial"), "Trial", "last spec"),
        (node(heartbeatTime="2026-03-01T11:45:00Z"), "Unknown", "15 min ago"),
        (node(spec={"mode": "Hold"}), "Held", "not released yet"),
        (node(spec={"mode": "Hold", "preview": {}}), "Held", "no preview yet"),
        (
            node(spec={"mode": "Hold", "preview": {}}, preview={"changes": [{}, {}], "refused": [{}], "omitted": 1}),
            "Held", "at least 2 would change, 1 refused",
        ),
        (
            node(phase="Refused", results=[
                {"setting": "tracking", "reason": "Applied"},
                {"setting": "notrack/web", "reason": "NATConflict", "message": "port 80"},
                {"setting": "notrack/dns", "reason": "NATConflict", "message": "port 53"},
            ]),
            "Refused", "notrack/web: NATConflict: port 80 (and 1 more)",
        ),
    ],
)  # fmt: skip
def test_phases(document: dict[str, Any], phase: str, words: str) -> None:
    """What a node says is believed only of this very node, its last spec, and as long as it is heard."""
    row = node_row(document, NOW)
    assert row.phase == phase
    assert words in row.why


def test_nothing_is_said_of_the_use_of_a_silent_node() -> None:
    """Numbers of a quarter of an hour ago would push it up or down a list of now."""
    row = node_row(node(heartbeatTime="2026-03-01T11:00:00Z"), NOW)
    assert (row.used_percent, row.entries, row.drops_per_second) == (None, None, None)


@pytest.mark.parametrize(
    ("status", "paused", "rollout"),
    [
        ({"observedGeneration": 2}, False, "NotJudged"),
        ({"observedGeneration": 3, "conditions": [{"type": "Ready", "reason": "Fine"}]}, False, "Fine"),
        ({"observedGeneration": 3, "conditions": [{"type": "Ready", "reason": "Fine"}]}, True, "Paused"),
        (
            {"observedGeneration": 3, "conditions": [
                {"type": "Reconciling", "status": "True", "reason": "Progressing"},
                {"type": "Stalled", "status": "True", "reason": "CanaryFailed"},
            ]}, False, "CanaryFailed",
        ),
        (
            {"observedGeneration": 3, "conditions": [
                {"type": "Reconciling", "status": "True", "reason": "Progressing"},
                {"type": "Stalled", "status": "False", "reason": "Moving"},
            ]}, False, "Progressing",
        ),
    ],
)  # fmt: skip
def test_where_a_rollout_stands(status: dict[str, Any], paused: bool, rollout: str) -> None:
    """What stalls it comes before what moves it, and nothing old is shown of a policy that nobody has judged."""
    document = {"metadata": {"name": "p", "generation": 3}, "spec": {"rollout": {"paused": paused}}, "status": status}
    assert policy_row(document).rollout == rollout


def test_the_page_ends_with_the_whole_fleet() -> None:
    """Rows that are not shown are counted, and are in the last line's sums."""
    rows = node_rows([node(f"n{number}") for number in range(5)], NOW)
    text = plain(fleet_view([], rows, ["mind this"], most=2), 200)
    assert "and 3 more, under less pressure; --all shows them" in text
    assert text.endswith("5 nodes (5 Current); 500 of 5,000 entries; 0 dropped/s\nmind this\n")
    assert totals([]) == "0 nodes; 0 of 0 entries; 0 dropped/s"


def test_a_narrow_terminal_has_sentences_below() -> None:
    """Of nodes in trouble alone, and no cell is folded into a tower of letters at 100 columns."""
    refused = [{"setting": "notrack/web", "reason": "NATConflict", "message": "port 30080 is a NodePort"}]
    rows = node_rows([node("bad", phase="Refused", results=refused), node("good")], NOW)
    lines = plain(fleet_view([], rows, [], most=0, narrow=True), 100).splitlines()
    assert "bad: notrack/web: NATConflict: port 30080 is a NodePort" in lines
    assert [line.split()[0] for line in lines if line.startswith(("bad ", "good "))] == ["bad", "good"]
    assert not any(line.startswith("good:") for line in lines)


@pytest.mark.parametrize(
    ("seconds", "words"), [(None, "-"), (0, "0s"), (59, "59s"), (410, "6m50s"), (3600, "1h"), (90061, "1d1h")]
)
def test_times_to_come(seconds: int | None, words: str) -> None:
    """The two largest units."""
    assert duration_words(seconds) == words
