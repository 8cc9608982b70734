"""Events: one for what is the same, however often it is said."""

from conntrack_operator.cluster.events import MESSAGE_MAX, Subject, _document, event_name
from conntrack_operator.cluster.objects import NODES, POLICIES
from conntrack_operator.decide.happenings import Happening

WEB = Subject(POLICIES, "web", "uid-1")
REFUSAL = Happening("Warning", "BelowUse", "n1: too small")


def test_the_name_follows_from_what_is_said() -> None:
    """The same about the same object has the same name in every process; anything else another."""
    assert event_name(WEB, REFUSAL) == event_name(WEB, REFUSAL)
    others = [
        event_name(Subject(POLICIES, "web", "uid-2"), REFUSAL),
        event_name(Subject(NODES, "web", "uid-1"), REFUSAL),
        event_name(WEB, Happening("Warning", "BelowUse", "n2: too small")),
        event_name(WEB, Happening("Warning", "Other", "n1: too small")),
    ]
    assert len({event_name(WEB, REFUSAL), *others}) == 5


def test_names_stay_in_bounds() -> None:
    """The longest object's name makes an event's name the API server takes."""
    assert len(event_name(Subject(NODES, "n" * 253, "u"), REFUSAL)) <= 253


def test_long_messages_are_cut() -> None:
    """The API server refuses events with longer messages."""
    document = _document("e", WEB, Happening("Normal", "Long", "x" * 5000), "2026-01-01T00:00:00Z")
    assert len(document["message"]) == MESSAGE_MAX
    assert document["message"].endswith("...")
