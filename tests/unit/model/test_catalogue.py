"""The catalogue as a table: complete in itself. tests/kernel/test_catalogue.py holds it against a kernel."""

import re

from conntrack_operator.model.catalogue import BY_FIELD, BY_NAME, CATALOGUE, OTHER


def test_every_key_and_field_stands_once() -> None:
    """Two entries of one name, or two for one field, would make the plan depend on their order."""
    assert len(BY_NAME) == len(CATALOGUE)
    assert len(BY_FIELD) == len([entry for entry in CATALOGUE if entry.field])


def test_entries_are_whole() -> None:
    """Every entry has a range, a meaning in a sentence, a release and a file of the kernel."""
    for entry in CATALOGUE:
        assert re.fullmatch(r"nf_conntrack_[a-z0-9_]+", entry.name)
        assert 0 <= entry.minimum < entry.maximum, entry.name
        assert entry.meaning.endswith("."), entry.name
        assert re.fullmatch(r"\d+\.\d+(\.\d+)?", entry.since), entry.name
        assert re.fullmatch(r"(\d+\.\d+)?", entry.until), entry.name
        assert re.fullmatch(r"net/[a-z0-9/_]+\.c", entry.source), entry.name


def test_sizes_alone_belong_to_the_initial_namespace() -> None:
    """These are the three the kernel makes read-only everywhere else."""
    initial = {entry.name for entry in CATALOGUE if entry.scope == "Initial"}
    assert initial == {"nf_conntrack_max", "nf_conntrack_buckets", "nf_conntrack_expect_max"}


def test_a_key_is_set_in_one_place() -> None:
    """What has a field is not taken under spec.sysctls, and what cannot be written nowhere."""
    assert not {entry.name for entry in BY_FIELD.values()} & set(OTHER)
    assert "nf_conntrack_count" not in OTHER
