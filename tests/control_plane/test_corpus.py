"""The corpus through a real API server: what the CRD says must be what the models say, word for word.

kubectl judges a whole folder in one run, dry; its complaints are told apart by the file's name.
"""

import json
import re
from pathlib import Path

import pytest
from tests.corpus.cases import BAD, FOLDER, GOOD, Case, largest_policy, name_of
from tests.lab import examples
from tests.lab.cluster import Cluster
from tests.lab.programs import wait_until

_FILE = re.compile(r'^Error from server .*?/(?P<file>[^"/]+)\.yaml": (?P<said>.*)$', re.MULTILINE)
_NEXT_PROBLEM = re.compile(r", (?=(?:spec|metadata|<nil>)[^ ]*: )")
_UNCHECKED = "/apis/conntrack-operator.io/v1alpha1/conntrackpolicies?dryRun=All&fieldValidation=Ignore"


def _complaints(text: str) -> dict[str, list[str]]:
    """Return what kubectl wrote about each file, problem by problem: `path: what was wrong: sentence`."""
    return {
        line["file"]: _NEXT_PROBLEM.split(line["said"].partition(" is invalid: ")[2].strip("[]") or line["said"])
        for line in _FILE.finditer(text)
    }


def _says(problems: list[str], refusal: str) -> bool:
    """Tell whether a problem has the path and ends in the sentence; the API server puts the value between the two."""
    if refusal.startswith("unknown field"):
        return any(refusal in problem for problem in problems)
    path, _, sentence = refusal.partition(": ")
    return any(problem.startswith(f"{path}: ") and problem.endswith(sentence) for problem in problems)


@pytest.fixture(scope="module")
def judged(cluster: Cluster, crds: Path) -> dict[str, list[str]]:
    """Put every bad policy to the API server, dry and strictly; give its complaints by name."""
    assert crds
    done = cluster.kubectl("apply", "--dry-run=server", "-f", str(FOLDER / "bad"), check=False)
    assert done.returncode != 0
    assert not done.stdout, "the API server took a bad policy"
    return _complaints(done.stderr)


@pytest.mark.parametrize("case", BAD, ids=name_of)
def test_bad_policies_are_refused_by_path_and_sentence(judged: dict[str, list[str]], case: Case) -> None:
    """`kubectl apply` refuses every bad policy with the paths and sentences of the corpus."""
    problems = judged[case.path.stem]
    assert [refusal for refusal in case.refusals if not _says(problems, refusal)] == [], problems


def test_good_policies_are_taken(cluster: Cluster, crds: Path) -> None:
    """`kubectl apply` takes every good policy and every example, strictly validated."""
    assert crds
    done = cluster.kubectl("apply", "--dry-run=server", "-f", str(FOLDER / "good"), "-f", str(examples.FOLDER))
    assert len(done.stdout.splitlines()) == len(GOOD) + len(examples.EXAMPLES)


def test_the_largest_policy_is_within_the_cost_budget(cluster: Cluster, crds: Path) -> None:
    """A policy with every list full is judged and taken: its rules cost less than the API server allows."""
    assert crds
    cluster.kubectl("create", "--dry-run=server", "-f", "-", input=largest_policy())


@pytest.mark.parametrize("case", [case for case in BAD if case.unstrict_refusals], ids=name_of)
def test_a_client_without_strict_validation_is_refused_too(cluster: Cluster, crds: Path, case: Case) -> None:
    """A misspelt selector that pruning empties never means every node."""
    assert crds
    answer = cluster.kubectl("create", "--raw", _UNCHECKED, "-f", "-", input=json.dumps(case.document), check=False)
    assert answer.returncode != 0
    for refusal in case.unstrict_refusals:
        path, _, sentence = refusal.partition(": ")
        assert path in answer.stderr
        assert sentence in answer.stderr


def test_a_new_policy_is_not_taken_for_a_good_one(cluster: Cluster, crds: Path) -> None:
    """Until the controller has judged it, a policy shows Ready Unknown and an observedGeneration of -1."""
    assert crds
    case = next(case for case in GOOD if case.path.stem == "minimal")
    made = cluster.kubectl("create", "--dry-run=server", "-o", "json", "-f", str(case.path)).stdout
    status = json.loads(made)["status"]
    assert status["observedGeneration"] == -1
    assert [(item["type"], item["status"]) for item in status["conditions"]] == [("Ready", "Unknown")]


@pytest.mark.parametrize(
    ("field", "words"),
    [
        ("table.size", ["How many entries the table may hold", "maxEntries", "memory", "perCore", "kernelFormula"]),
        ("timeouts.tcp.established", ["Write 90s, 2m, 1h or 1h30m, or whole seconds as a bare number", "keepalive"]),
        ("nodeSelector", ["kubernetes.io/os: linux", "matchLabels"]),
        ("notrack.rules", ["Ports whose connections are not tracked", "addresses", "peers"]),
    ],
)
def test_explain_reads_like_documentation(cluster: Cluster, crds: Path, field: str, words: list[str]) -> None:
    """`kubectl explain` says what a field means and how to write it."""
    assert crds

    def explained() -> str:
        return " ".join(cluster.kubectl("explain", f"ctp.spec.{field}", check=False).stdout.split())

    # The API server publishes what a CRD says a moment after it serves it.
    wait_until(explained, 60, "there is an explanation")
    text = explained()
    assert [word for word in words if word not in text] == []


def test_the_columns_of_get(cluster: Cluster, crds: Path) -> None:
    """`kubectl get` shows the columns people look for first, for policies and nodes."""
    assert crds
    cluster.kubectl("create", "-f", str(FOLDER / "good" / "minimal.yaml"))
    node = {
        "apiVersion": "conntrack-operator.io/v1alpha1",
        "kind": "NodeConntrack",
        "metadata": {"name": "columns"},
        "spec": {"revision": "1", "mode": "Apply", "nodeUID": "none"},
    }
    cluster.kubectl("create", "-f", "-", input=node)
    try:
        policies = cluster.kubectl("get", "ctp").stdout.splitlines()[0].split()
        nodes = cluster.kubectl("get", "nct").stdout.splitlines()[0].split()
        wide = cluster.kubectl("get", "ctp,nct", "-o", "wide").stdout.splitlines()
    finally:
        cluster.kubectl("delete", "ctp/minimal", "nct/columns")
    assert policies == ["NAME", "MODE", "NODES", "CURRENT", "PEAK%", "HOTTEST", "DROPS/S", "READY", "AGE"]
    assert nodes == ["NAME", "MODE", "PHASE", "ENTRIES", "MAX", "USED%", "DROPS/S", "TOFULL", "AGE"]
    assert [line.split()[-2:] for line in wide if line.startswith("NAME")] == [["AGE", "WHY"]] * 2
