"""Files people write: every mistake is one sentence with the file's name; what YAML makes of plain words is JSON's."""

import json
from pathlib import Path

import pytest
from tests.lab.command import assert_one_sentence, conntrack_operator

from conntrack_operator.cli import reading
from conntrack_operator.errors import Invalid

HEAD = "apiVersion: conntrack-operator.io/v1alpha1\nkind: ConntrackPolicy\n"
SPEC = "mode: Enforce, nodeSelector: {matchLabels: {role: web}}"


def policy(name: str = "web", rest: str = "timeouts: {icmp: 30s}") -> str:
    """Return a good policy as YAML, with `rest` in its spec."""
    return f"{HEAD}metadata: {{name: {name}}}\nspec: {{{SPEC}, {rest}}}\n"


LISTED = f"""\
apiVersion: v1
kind: List
items:
- apiVersion: conntrack-operator.io/v1alpha1
  kind: ConntrackPolicy
  metadata: {{name: a, creationTimestamp: 2026-01-01T00:00:00Z}}
  spec: {{{SPEC}}}
"""
FACTS = {"memoryBytes": 1 << 33, "cpus": 4, "kernel": "6.18.0", "sysctls": {}}

BAD_FILES: dict[str, tuple[bytes, list[str]]] = {
    "empty": (b"", ["it is empty"]),
    "only comments": (b"# nothing\n---\n# here\n", ["it is empty"]),
    "broken": (b"spec: {mode: [", ["line 1", "expected"]),
    "tab": (b"spec:\n\tmode: Enforce\n", ["line 2", "cannot start any token"]),
    "binary": (b"\x7fELF\x02\x01\x01\x00\xff\xfe", ["no text in UTF-8"]),
    "control characters": (b"a: \x01\n", ["no YAML"]),
    "words": (b"hello", ["string", "ConntrackPolicy"]),
    "a list": (b"[1, 2]", ["array", "ConntrackPolicy"]),
    "another kind": (HEAD.replace("ConntrackPolicy", "ConfigMap").encode(), ["ConfigMap"]),
    "python tag": (b"!!python/object/apply:os.system [id]\n", ["line 1", "could not determine a constructor"]),
    "key twice": ((policy() + "spec: {}\n").encode(), ["line 5", '"spec" stands twice']),
    "inner key twice": (policy(rest="timeouts: {icmp: 30s, icmp: 60s}").encode(), ["line 4", '"icmp" stands twice']),
    "list as key": (b"? [a]\n: b\n", ["line 1", "unhashable"]),
    "endless alias": (b"&a [*a]\n", ["expands to more than"]),
    "laughs": (
        b"".join(b"x%d: &x%d [%s]\n" % (n, n, b",".join([b"*x%d" % (n - 1)] * 9) if n else b"1") for n in range(12)),
        ["expands to more than"],
    ),
    "nested": (b"[" * 50_000, ["no YAML that makes sense"]),
    "too large": (b"#" * (reading.LARGEST_BYTES + 1), ["larger than"]),
    "same name": ((policy() + "---\n" + policy()).encode(), ["two policies are called web"]),
    "quoted number": (policy(rest='timeouts: {icmp: "30"}').encode(), ["spec.timeouts.icmp", "unit"]),
    "base 60": (policy(rest="timeouts: {icmp: 1:30}").encode(), ["spec.timeouts.icmp", "90s"]),
    "unknown field": (policy(rest="timeout: {icmp: 30s}").encode(), ["spec.timeout", "did you mean timeouts?"]),
    "second document": ((policy() + "---\n" + policy("b", "tracking: Off")).encode(), ["document 2", "spec.tracking"]),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_is_one_sentence(name: str, tmp_path: Path) -> None:
    """`plan -f` of the real command: exit 1, one line with the file's name and what is wrong, nothing on stdout."""
    content, words = BAD_FILES[name]
    file = tmp_path / "policy.yaml"
    file.write_bytes(content)
    assert_one_sentence(conntrack_operator("plan", "-f", file), str(file), *words)


def test_no_file_and_a_directory(tmp_path: Path) -> None:
    """What is no file is named, with the reason of the operating system."""
    assert_one_sentence(conntrack_operator("plan", "-f", tmp_path), str(tmp_path), "directory")
    assert_one_sentence(conntrack_operator("plan", "-f", tmp_path / "none"), "none", "No such file")


def test_standard_input() -> None:
    """`-f -` reads standard input, and calls it by that name when it is wrong."""
    assert_one_sentence(conntrack_operator("plan", "-f", "-", text=""), "standard input", "empty")


@pytest.mark.parametrize(
    ("text", "names"),
    [
        (policy(), ["web"]),
        (policy("a") + "---\n---\n" + policy("b") + "---\n", ["a", "b"]),
        (json.dumps({"apiVersion": "v1", "kind": "List", "items": []}), None),
        (LISTED, ["a"]),
        ("\ufeff" + policy(), ["web"]),
    ],
)
def test_documents(text: str, names: list[str] | None, tmp_path: Path) -> None:
    """Several documents, empty ones between, the List that kubectl prints, a byte order mark, an unquoted time."""
    file = tmp_path / "policies.yaml"
    file.write_text(text)
    if names is None:
        with pytest.raises(Invalid, match="empty"):
            reading.policies_in(str(file))
    else:
        assert [each.metadata.name for each in reading.policies_in(str(file))] == names


def test_every_problem_has_its_line(tmp_path: Path) -> None:
    """Two mistakes are two lines, so that both can be mended at once."""
    file = tmp_path / "policy.yaml"
    file.write_text(policy(rest="timeouts: {icmp: -1s}, tracking: Off"))
    done = conntrack_operator("plan", "-f", file)
    assert done.returncode == 1
    assert [line.split(": ")[2] for line in done.stderr.splitlines()] == ["spec.timeouts.icmp", "spec.tracking"]


def test_a_watched_file_parts_enforce_from_observe(tmp_path: Path) -> None:
    """`agent --policy`: what observes is previewed and not applied; the revision follows what is applied alone."""
    file = tmp_path / "policies.yaml"
    file.write_text(policy("a", "timeouts: {icmp: 10s}"))
    alone = reading.node_spec_in(file)
    observer = policy("b", "priority: 9, timeouts: {icmp: 20s}").replace("Enforce", "Observe")
    file.write_text(policy("a", "timeouts: {icmp: 10s}") + "---\n" + observer)
    spec = reading.node_spec_in(file)
    assert spec.settings.document() == {"timeouts": {"icmp": 10}}
    assert spec.preview is not None
    assert spec.preview.document() == {"timeouts": {"icmp": 20}}
    assert [use.name for use in spec.policies] == ["a"]
    assert (spec.revision, alone.preview) == (alone.revision, None)
    file.write_text(policy("a", "timeouts: {icmp: 10s}, rollout: {retry: again}"))
    again = reading.node_spec_in(file)
    assert (again.revision, alone.attempt) == (alone.revision, "")
    assert again.attempt, "a node that was parked tries once more"


def test_a_watched_file_that_only_observes(tmp_path: Path) -> None:
    """Enforce that was turned back to Observe puts back what was there, and goes on to preview."""
    file = tmp_path / "policies.yaml"
    file.write_text(policy("a", "timeouts: {icmp: 10s}").replace("Enforce", "Observe"))
    spec = reading.node_spec_in(file)
    assert (spec.mode, spec.settings.document()) == ("Restore", {})
    assert spec.preview is not None
    assert spec.preview.document() == {"timeouts": {"icmp": 10}}


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ("{", ["no JSON"]),
        ("[]", ["valid dictionary"]),
        (json.dumps({**FACTS, "cpus": 0}), ["cpus", "greater than or equal to 1"]),
        (json.dumps({key: value for key, value in FACTS.items() if key != "kernel"}), ["kernel", "required"]),
        (json.dumps({**FACTS, "cores": 4}), ["cores", "not permitted"]),
        (json.dumps({**FACTS, "sysctls": {"net.netfilter.nf_conntrack_max": "many"}}), ["sysctls", "nf_conntrack_max"]),
    ],
)
def test_bad_facts_are_one_sentence(facts: str, words: list[str], tmp_path: Path) -> None:
    """Facts are a file of a person's too."""
    (tmp_path / "facts.json").write_text(facts)
    (tmp_path / "policy.yaml").write_text(policy())
    done = conntrack_operator("plan", "-f", tmp_path / "policy.yaml", "--facts", tmp_path / "facts.json")
    assert_one_sentence(done, "facts.json", *words)


def test_plan_for_another_machine(tmp_path: Path) -> None:
    """`plan --facts` reads nothing of this machine; the JSON is as documented, and 2 means changes, 0 none."""
    (tmp_path / "policy.yaml").write_text(policy(rest="table: {size: {kernelFormula: {}}, entriesPerBucket: 8}"))
    now = {"net.netfilter.nf_conntrack_max": 262144, "nf_conntrack_buckets": "65536"}
    facts = {"memoryBytes": 48 << 30, "cpus": 8, "wordBits": 64, "kernel": "6.1.0", "entries": 9, "sysctls": now}
    (tmp_path / "facts.json").write_text(json.dumps(facts))
    plan = ("plan", "-f", tmp_path / "policy.yaml", "--facts", tmp_path / "facts.json", "--proc-root", tmp_path)
    done = conntrack_operator(*plan, "-o", "json")
    assert done.returncode == 2, done.stderr
    document = json.loads(done.stdout)
    assert list(document) == ["changes", "refused"]
    assert document["refused"] == []
    assert [list(change) for change in document["changes"]] == [["setting", "from", "to", "reason"]] * 2
    assert [(change["setting"], change["from"], change["to"]) for change in document["changes"]] == [
        ("net.netfilter.nf_conntrack_buckets", 65536, 196608),
        ("net.netfilter.nf_conntrack_max", 262144, 1572864),
    ]
    now |= {"net.netfilter.nf_conntrack_max": 1572864, "nf_conntrack_buckets": 196608}
    (tmp_path / "facts.json").write_text(json.dumps(facts))
    done = conntrack_operator(*plan)
    assert (done.returncode, done.stdout) == (0, "Nothing to change: the machine is as it should be.\n")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[]", ": Input should be"),
        ("", ": it is no JSON"),
        (None, ": it cannot be read (No such file or directory); name a file with the facts of a machine in it"),
    ],
)
def test_facts_that_are_none_are_one_sentence(tmp_path: Path, text: str | None, said: str) -> None:
    """The file is named, and what should be in it."""
    file = tmp_path / "facts.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(Invalid) as refused:
        reading.facts_in(str(file))
    assert str(refused.value).startswith(f"{file}{said}")


def test_an_agent_config_that_cannot_be_read_is_asked_for(tmp_path: Path) -> None:
    """And not a policy."""
    with pytest.raises(Invalid, match="name a file with an AgentConfig in it"):
        reading.agent_config_in(str(tmp_path / "none"))
    (tmp_path / "list").write_text("[]")
    with pytest.raises(Invalid, match="is an array; it must be an AgentConfig"):
        reading.agent_config_in(str(tmp_path / "list"))
