"""Absence is not deletion: what two agreeing lists make of it, and what the surroundings say."""

import pytest

from conntrack_operator.decide.absence import (
    Absences,
    Loss,
    lost_with_their_crd,
    trouble_with_crd,
    trouble_with_namespace,
)

A, B = Loss("web", "n1"), Loss("web", "n2")
ESTABLISHED = {"conditions": [{"type": "NamesAccepted", "status": "True"}, {"type": "Established", "status": "True"}]}


def test_two_lists_ten_seconds_apart() -> None:
    """The second list must begin 10 s after the first has ended; a long list gains nothing by its length."""
    first = Absences().after_list([A], began=90.0, ended=100.0)
    assert not first.confirmed
    assert first.seconds_to_confirm(104.0) == 6.0
    assert not first.after_list([A], began=109.9, ended=130.0).confirmed
    second = first.after_list([A], began=110.0, ended=111.0)
    assert second.confirmed == {A}
    assert second.seconds_to_confirm(111.0) == float("inf")
    assert second.after_list([A], began=111.5, ended=112.0).confirmed == {A}


def test_what_a_list_does_not_show_begins_anew() -> None:
    """A loss that one list does not show is forgotten, confirmed or not; another one is not held up by it."""
    first = Absences().after_list([A, B], 0.0, 0.0)
    between = first.after_list([B], 5.0, 5.0)
    again = between.after_list([A, B], 11.0, 11.0)
    assert again.confirmed == {B}
    assert again.seconds_to_confirm(12.0) == 9.0
    assert not again.after_list([A], 12.0, 12.0).after_list([B], 13.0, 13.0).confirmed


def test_a_contradicted_loss_begins_anew() -> None:
    """What a live event refutes is forgotten, confirmed or not."""
    confirmed = Absences().after_list([A, B], 0.0, 0.0).after_list([A, B], 10.0, 10.0)
    left = confirmed.without([A])
    assert left.confirmed == {B}
    assert left.after_list([A, B], 11.0, 11.0).confirmed == {B}


def test_what_a_crd_must_be() -> None:
    """There, Established, and not being deleted, which leaves it Established."""
    assert trouble_with_crd("x", {"metadata": {}, "status": ESTABLISHED}) == ""
    assert "does not exist" in trouble_with_crd("x", None)
    deleted = {"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}, "status": ESTABLISHED}
    assert "being deleted" in trouble_with_crd("x", deleted)
    for status in (None, {}, {"conditions": [{"type": "Established", "status": "False"}]}):
        assert "not Established" in trouble_with_crd("x", {"metadata": {}, "status": status})


def test_what_the_namespace_must_be() -> None:
    """There, and not on its way out."""
    assert trouble_with_namespace("x", {"metadata": {}, "status": {"phase": "Active"}}) == ""
    assert "does not exist" in trouble_with_namespace("x", None)
    assert "being deleted" in trouble_with_namespace("x", {"metadata": {}, "status": {"phase": "Terminating"}})
    assert "being deleted" in trouble_with_namespace("x", {"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}})


@pytest.mark.parametrize(
    ("told", "seen", "lost"),
    [
        ("2026-01-01T00:00:00Z", None, True),  # told long before the CRD of today was made, by an earlier one's policy
        ("2026-03-01T00:00:00Z", None, False),  # told since
        ("", None, False),
        ("2026-01-01T00:00:00Z", "2026-01-01T00:00:00Z", True),  # seen, under the earlier CRD
        ("2026-01-01T00:00:00Z", "2026-02-01T00:00:00Z", False),  # applied again with the CRD, and then deleted
    ],
)
def test_a_policy_that_went_with_its_crd(told: str, seen: str | None, lost: bool) -> None:
    """A policy that never lived under the CRD of today was not deleted by anybody."""
    loss = Loss("web", "n1", told)
    found = lost_with_their_crd([loss], {"web": seen} if seen else {}, "2026-02-01T00:00:00Z")
    assert found == ({loss} if lost else set())
