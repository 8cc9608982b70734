"""The command line: what it is called, its exit codes, and one sentence for whatever a person types wrong."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.lab.command import PROGRAM, assert_one_sentence, conntrack_operator

from conntrack_operator import __version__
from conntrack_operator.cli import main as command_line

GOOD = """
apiVersion: conntrack-operator.io/v1alpha1
kind: ConntrackPolicy
metadata: {name: web}
spec: {mode: Enforce, nodeSelector: {matchLabels: {role: web}}, table: {size: {maxEntries: 1048576}}}
"""


def test_version() -> None:
    """--version is one line with the version, and no error."""
    done = conntrack_operator("--version")
    assert (done.returncode, done.stdout) == (0, f"conntrack-operator {__version__}\n")


def test_help_names_every_command() -> None:
    """A person who knows nothing finds all commands by --help, each with its own --help."""
    done = conntrack_operator("--help")
    assert done.returncode == 0
    assert all(f"\n  {name} " in done.stdout for name in command_line.COMMANDS)


@pytest.mark.parametrize("name", command_line.COMMANDS)
def test_every_command_explains_its_options(name: str) -> None:
    """Each command's module is there, and its help works."""
    done = conntrack_operator(name, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"usage: conntrack-operator {name} " in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), ["COMMAND", "--help"]),
        (("frobnicate",), ["'frobnicate'", "plan, apply, restore"]),
        (("--frobnicate",), ["--help"]),
        (("plan",), ["-f/--file", "conntrack-operator plan --help"]),
        (("plan", "-f", "x.yaml", "-o", "xml"), ["-o", "'xml'"]),
        (("plan", "-f", "x.yaml", "--stat", "y"), ["--stat"]),
        (("top", "-n", "0"), ["-n", "from 1 to 1000"]),
        (("top", "-n", "many"), ["-n", "'many'"]),
        (("top", "--by", "weather"), ["--by", "'weather'"]),
        (("apply", "-f", "x.yaml", "--trial", "9"), ["--trial", "'9' is not a whole number from 10 to 3600"]),
        (("apply", "-f", "x.yaml", "--soak", "-1"), ["--soak", "'-1' is not a whole number from 0 to 600"]),
        (("agent",), ["--node", "NODE_NAME", "--policy FILE"]),
        (("agent", "--policy", "x.yaml", "--node", "n"), ["--policy", "--node"]),
        (("agent", "--node", "n", "--metrics-address", "9464"), ["--metrics-address", "'9464' is not HOST:PORT"]),
        (("agent", "--node", "n", "--top-talkers", "-1"), ["--top-talkers", "from 0 to 20"]),
        (("agent", "--policy", "/nowhere/x.yaml"), ["/nowhere/x.yaml", "No such file"]),
        (("agent", "--node", "n", "--kubeconfig", "/nowhere/kubeconfig"), ["/nowhere/kubeconfig"]),
        (("controller", "--metrics-address", "::1:9464"), ["--metrics-address", "[::1]:9464"]),
        (("controller", "--kubeconfig", "/nowhere/kubeconfig"), ["/nowhere/kubeconfig"]),
        (("demo", "--entries", "7"), ["--entries", "from 5000"]),
    ],
)
def test_a_wrong_command_line_is_one_sentence(
    arguments: tuple[str, ...], words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit 1, never argparse's 2, which means changes here; one line that names the option; no traceback."""
    monkeypatch.delenv("NODE_NAME", raising=False)
    assert_one_sentence(conntrack_operator(*arguments), *words)


def test_a_closed_pipe_is_no_traceback() -> None:
    """`conntrack-operator crds | head -1` ends quietly."""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([*PROGRAM, "crds"], stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (command_line.PIPE_CLOSED, b"")


def test_a_full_disk_is_one_sentence() -> None:
    """`conntrack-operator crds > file` where there is no room left says so, once, and fails."""
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run([*PROGRAM, "crds"], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert "cannot be written (No space left on device)" in done.stderr


FACTS = '{"memoryBytes": 8589934592, "cpus": 4, "kernel": "6.1.0", "sysctls": {"nf_conntrack_max": 65536}}'


@pytest.fixture
def planning(tmp_path: Path) -> list[str]:
    """Return a command line that plans a change on a machine that is not this one."""
    (tmp_path / "policy.yaml").write_text(GOOD)
    (tmp_path / "facts.json").write_text(FACTS)
    return [*PROGRAM, "plan", "-f", f"{tmp_path}/policy.yaml", "--facts", f"{tmp_path}/facts.json"]


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_are_no_error(planning: list[str], closed: str) -> None:
    """Started without standard streams it does what it does, with the same exit code."""
    done = subprocess.run(["sh", "-c", f'"$@" {closed}', "sh", *planning], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "")
    assert ("1048576" in done.stdout) is (">&-" not in closed.split())


def test_a_closed_input_is_an_empty_file() -> None:
    """`-f -` without a standard input."""
    done = subprocess.run(
        ["sh", "-c", '"$@" <&-', "sh", *PROGRAM, "plan", "-f", "-"], capture_output=True, text=True, check=False
    )
    assert_one_sentence(done, "standard input: it is empty")


def test_an_encoding_without_lines_and_bars(planning: list[str]) -> None:
    """What a locale other than UTF-8 cannot say becomes question marks."""
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(planning, capture_output=True, text=True, check=False, env=environment)
    assert (done.returncode, done.stderr) == (2, "")
    assert "1048576" in done.stdout
    assert "????" in done.stdout


def test_an_interrupt_is_no_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Ctrl-C ends with 130, as a shell expects of it."""

    def interrupted(_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("conntrack_operator.cli.crds.run", interrupted)
    assert command_line.main(["crds"]) == command_line.INTERRUPTED
    assert capsys.readouterr() == ("", "")


def test_a_check_that_is_ended_deletes_its_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGTERM is an exception there, on whose way out the policy goes."""
    gone = []

    def judged(*_: object) -> float:
        try:
            signal.raise_signal(signal.SIGTERM)
            return 0.0
        finally:
            gone.append("the policy")

    monkeypatch.setattr("conntrack_operator.controller.removal.judged", judged)
    monkeypatch.setattr("conntrack_operator.cluster.connection.Connection", lambda _: None)
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as ended:
            command_line.main(["check"])
    finally:
        signal.signal(signal.SIGTERM, before)
    assert (ended.value.code, gone) == (143, ["the policy"])


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is no mistake of the person's must not look like one."""

    def broken(_: object) -> int:
        raise ZeroDivisionError

    monkeypatch.setattr("conntrack_operator.cli.crds.run", broken)
    with pytest.raises(ZeroDivisionError):
        command_line.main(["crds"])


def test_the_agent_imports_nothing_large() -> None:
    """Its memory is counted: no terminal library, no framework, no client library, no YAML without a policy file."""
    script = (
        "import sys; from conntrack_operator.cli.main import main\n"
        "assert main(['agent', '--node', 'n']) == 1\n"
        "large = {'rich', 'yaml', 'kopf', 'kubernetes', 'aiohttp', 'asyncio'}\n"
        "print(sorted(large & set(sys.modules)), file=sys.stderr)"
    )
    nowhere = {"PATH": os.environ["PATH"], "HOME": "/nowhere"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=nowhere)
    assert done.stderr.splitlines()[0].startswith("conntrack-operator: no way to the API server"), done.stderr
    assert done.stderr.splitlines()[1] == "[]"
