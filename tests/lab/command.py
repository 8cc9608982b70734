"""The real command as a process: what a person types, and what it prints and returns."""

import subprocess
import sys
from collections.abc import Sequence

from tests.lab.namespaces import Namespace

PROGRAM = (sys.executable, "-m", "conntrack_operator")


def conntrack_operator(
    *arguments: object, text: str = "", namespace: Namespace | None = None, wrapper: Sequence[str] = ()
) -> "subprocess.CompletedProcess[str]":
    """Run `conntrack-operator` with these arguments and `text` as its input, in `namespace`, below `wrapper`."""
    command = [*wrapper, *PROGRAM, *map(str, arguments)]
    if namespace is not None:
        return namespace.run(*command, text=text, check=False)
    return subprocess.run(command, input=text, capture_output=True, text=True, check=False, timeout=120)


def assert_one_sentence(done: "subprocess.CompletedProcess[str]", *words: str) -> None:
    """Fail unless the command said one line on stderr with all of `words`, nothing else, and exited 1."""
    assert done.returncode == 1, done
    assert not done.stdout, done
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("conntrack-operator: "), done.stderr
    assert all(word in lines[0] for word in words), done.stderr
