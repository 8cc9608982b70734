"""The corpus through the models. tests/control_plane/test_corpus.py puts the same files to a real API server."""

from pathlib import Path

import pytest
from tests.corpus.cases import BAD, GOOD, Case, largest_policy, name_of
from tests.lab.examples import EXAMPLES

from conntrack_operator.errors import Invalid
from conntrack_operator.model.reading import policy_from


@pytest.mark.parametrize("case", GOOD, ids=name_of)
def test_good_policies_are_read(case: Case) -> None:
    """Every good policy is read, and what it says goes out again to be read as the same policy."""
    policy = policy_from(case.document)
    assert policy.metadata.name == case.path.stem
    assert policy_from(policy.document()) == policy


@pytest.mark.parametrize("case", BAD, ids=name_of)
def test_bad_policies_are_refused_by_path_and_sentence(case: Case) -> None:
    """Every problem of a bad policy is named, with its path and the corpus' sentence, and no other."""
    with pytest.raises(Invalid) as refused:
        policy_from(case.document)
    said = [
        str(problem).partition("; did you mean")[0].partition("; known here")[0] for problem in refused.value.problems
    ]
    assert sorted(said) == sorted(case.refusals)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_are_good_policies(path: Path) -> None:
    """What the project shows to people is right by its own judgement."""
    policy_from(Case(path).document)


def test_the_largest_policy_is_read() -> None:
    """16 rules of 1,024 ports each, with every other list full too, are a good policy."""
    policy = policy_from(largest_policy())
    assert policy.spec.notrack
    assert [len(rule.ports or ()) for rule in policy.spec.notrack.rules or ()] == [1024] * 16
