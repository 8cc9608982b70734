"""The plugin's command line, what it asks kubectl for, and what must never load it."""

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from conntrack_operator.cli.plugin import main as plugin
from conntrack_operator.cli.plugin.names import Names
from conntrack_operator.cli.plugin.render_diagnosis import addresses_in, diagnosis_view
from conntrack_operator.cli.terminal import plain
from conntrack_operator.cluster.person import Person, Way
from conntrack_operator.errors import Unsupported

KUBECONFIG = {
    "apiVersion": "v1", "kind": "Config", "current-context": "a",
    "clusters": [{"name": "a", "cluster": {"server": "http://127.0.0.1:1"}}],
    "contexts": [{"name": "a", "context": {"cluster": "a", "user": "a"}}], "users": [{"name": "a", "user": {}}],
}  # fmt: skip


def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run the plugin as a process."""
    command = [sys.executable, "-m", "conntrack_operator.cli.plugin.main", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_help_names_every_command() -> None:
    """A person who knows nothing finds all of them, under the name they type."""
    done = run("--help")
    assert done.returncode == 0
    assert "usage: kubectl conntrack COMMAND" in done.stdout
    assert all(f"\n  {name} " in done.stdout for name in plugin.COMMANDS)


@pytest.mark.parametrize("name", plugin.COMMANDS)
def test_every_command_explains_its_options(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each has the ways to a cluster that kubectl has."""
    with pytest.raises(SystemExit, match="0"):
        plugin.main([name, "--help"])
    text = capsys.readouterr().out
    assert all(option in text for option in ("--kubeconfig", "--context", "--namespace"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["frobnicate"], "there is no command 'frobnicate'; there are status, top"),
        ([], "see kubectl conntrack --help"),
        (["pause"], "see kubectl conntrack pause --help"),
        (["top", "--live"], "kubectl conntrack top NODE --live"),
        (["plan"], "name either a policy in the cluster or a file"),
        (["status", "--kubeconfig", "/nowhere/x"], "name a kubeconfig with --kubeconfig"),
    ],
)
def test_what_is_typed_wrong_is_one_sentence(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit 1, nothing on standard output."""
    assert plugin.main(arguments) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("kubectl conntrack: ")
    assert err.count("\n") == 1
    assert words in err


def test_the_agent_never_loads_it() -> None:
    """Nor does the command line that agents and controllers are started by."""
    code = "import sys, conntrack_operator.agent.run, conntrack_operator.cli.main; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert "conntrack_operator.cli.main" in done.stdout.split()
    assert not [name for name in done.stdout.split() if "cli.plugin" in name or name.endswith("cluster.person")]


@pytest.fixture
def person(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Person:
    """Give a person whose kubectl is `tmp_path`/bin/kubectl, to be written by the test."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "config").write_text(json.dumps(KUBECONFIG))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    return Person(Way(str(tmp_path / "config"), "a"))


def _kubectl(tmp_path: Path, script: str) -> None:
    path = tmp_path / "bin" / "kubectl"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def test_kubectl_is_asked_to_run_what_runs_in_a_pod(tmp_path: Path, person: Person) -> None:
    """With the same cluster and context, and the container named; what the program prints comes back."""
    _kubectl(tmp_path, 'echo "$@"')
    said = person.run_in_pod("conntrack-system", "agent-x", "agent", ["conntrack-operator", "top"])
    assert said.split() == [
        "exec", f"--kubeconfig={tmp_path / 'config'}", "--context=a", "--namespace=conntrack-system",
        "--container=agent", "agent-x", "--", "conntrack-operator", "top",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("error: unable to upgrade connection", "unable to upgrade connection; see kubectl -n ns describe pod agent-x"),
        (
            'Error from server (Forbidden): pods "x" is forbidden',
            "ask for the rights to get pods and create pods/exec in ns",
        ),
    ],
)
def test_what_kubectl_could_not_do_is_said(tmp_path: Path, person: Person, said: str, words: str) -> None:
    """Its last line, and what to do."""
    _kubectl(tmp_path, f"echo noise >&2; echo '{said}' >&2; exit 1")
    with pytest.raises(Unsupported) as caught:
        person.run_in_pod("ns", "agent-x", "agent", ["true"])
    assert words in str(caught.value)


def test_a_diagnosis_names_who_fills_the_table() -> None:
    """As doctor -o json has it, with names beside addresses and findings with what to do."""
    document = {
        "verdict": "the table is full",
        "findings": [{"severity": "critical", "reason": "TableFull", "summary": "full", "remedy": "grow"}],
        "policy": {"kind": "ConntrackPolicy"},
        "usage": {
            "entries": 990, "maxEntries": 1000, "usedPercent": 99.0, "lostToFull": 5, "droppedNow": 1,
            "top": {"source": [{"key": "10.0.0.1", "share": 0.5}], "port": [{"key": "TCP/80", "share": 0.9}]},
        },
        "unseen": ["the log"],
    }  # fmt: skip
    assert addresses_in(document) == ["10.0.0.1"]
    text = plain(diagnosis_view(document, Names({"10.0.0.1": "pod a/b"}, unseen=("names of Nodes: no",)), "n1"), 100)
    lines = text.splitlines()
    assert lines[0] == "n1: CRITICAL: the table is full"
    for words in (
        "10.0.0.1 50%  pod a/b",
        "TCP/80 90%",
        "Do: grow",
        "kind: ConntrackPolicy",
        "not seen: names of Nodes: no",
    ):
        assert words in text


class _WithoutKinds(BaseHTTPRequestHandler):
    """An API server that knows none of our kinds."""

    def do_GET(self) -> None:
        """Say so."""
        self.send_response(404)
        self.end_headers()
        self.wfile.write(b'{"kind": "Status", "reason": "NotFound"}')

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def test_a_cluster_without_the_kinds_is_told_how_to_get_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One sentence with the command that installs them, and no empty fleet."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _WithoutKinds) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        cluster = {"name": "a", "cluster": {"server": f"http://127.0.0.1:{server.server_port}"}}
        (tmp_path / "config").write_text(json.dumps({**KUBECONFIG, "clusters": [cluster]}))
        code = plugin.main(["status", "--kubeconfig", str(tmp_path / "config")])
        server.shutdown()
    assert code == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert "has no conntrackpolicies; install them: conntrack-operator crds | kubectl apply -f -" in err
