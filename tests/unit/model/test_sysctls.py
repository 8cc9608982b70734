"""spec.sysctls: every key of every kind gets a sentence, or is taken. The corpus holds the same against CEL."""

import pytest

from conntrack_operator.model.catalogue import CATALOGUE, OTHER, Sysctl
from conntrack_operator.model.sysctls import MOST_KEYS, complaint_about, number_in


@pytest.mark.parametrize("entry", CATALOGUE, ids=lambda entry: entry.name)
def test_every_key_by_its_names(entry: Sysctl) -> None:
    """A key is taken, or its field is named; its old name leads to today's, its full name to the short one."""
    complaint = complaint_about(entry.name)
    old = complaint_about(entry.name.replace("nf_", "ip_", 1))
    assert (complaint == "") == (entry.name in OTHER)
    assert f"spec.{entry.field}" in complaint if entry.field else True
    assert old.startswith(f"{entry.name.replace('nf_', 'ip_', 1)} is an old name of {entry.name}; ")
    assert (f"spec.{entry.field}" if entry.field else entry.name) in old
    assert "last part of a name" in complaint_about(entry.dotted)


def test_unknown_keys_learn_what_there_is() -> None:
    """The sentence lists what living kernels have, not what is history."""
    complaint = complaint_about("nf_conntrack_nonsense")
    assert complaint.startswith("nf_conntrack_nonsense is no nf_conntrack sysctl this version knows; it takes ")
    assert "nf_conntrack_acct" in complaint
    assert "udplite" not in complaint


@pytest.mark.parametrize(
    ("written", "number"),
    [
        (1, 1),
        ("1", 1),
        ("0001", 1),
        (-1, -1),
        ("-1", None),
        ("", None),
        ("1.0", None),
        ("\u0661", None),
        (True, None),
        (1.0, None),
    ],
)
def test_numbers(written: object, number: int | None) -> None:
    """1 and "1" are the same; nothing else is a number."""
    assert number_in(written) == number


def test_there_is_room_for_every_key() -> None:
    """A policy may set all of them at once."""
    assert len(OTHER) <= MOST_KEYS
