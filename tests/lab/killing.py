"""Run as a program: end a change by SIGKILL at every single step it makes, start anew each time, say what is left.

Steps are every sync and rename of the state directory's files, every write of a sysctl, every program run of nft and
every batch of edited entries: before it and after it. For the n-th step a child process is forked, brings the node to
its first state, begins with the second, and kills itself at step n; another child then starts as an agent does. One
line of JSON is printed for each n, until the change went through unkilled. It works in the network namespace it is
started in. Arguments: a folder for state directories, the first settings and the second as JSON.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from conntrack_operator.agent import way_back
from conntrack_operator.agent import writing as writing_module
from conntrack_operator.agent.duty import Duty
from conntrack_operator.agent.machine import Machine
from conntrack_operator.agent.sight import read_table_state
from conntrack_operator.agent.trial import begin, finished
from conntrack_operator.kernel import flow_editing, nftables
from conntrack_operator.kernel.journal import StateDirectory
from conntrack_operator.kernel.roots import Roots
from conntrack_operator.model.node import NodeSpec
from conntrack_operator.model.policy import Settings

STEPS_MAX = 400
KEYS = ("icmp_timeout", "generic_timeout", "udp_timeout", "tcp_be_liberal", "acct")


def wish(revision: str, text: str) -> NodeSpec:
    """Return the settings in `text` as a wish."""
    return NodeSpec(revision=revision, mode="Apply", node_uid="", settings=Settings.model_validate_json(text))


def snapshot() -> dict[str, Any]:
    """Return what the kernel has: the sysctls, and our table's sets and rules."""
    values = {key: int(Path(f"/proc/sys/net/netfilter/nf_conntrack_{key}").read_text()) for key in KEYS}
    installed = read_table_state().installed
    if installed is None:
        return {"values": values, "table": None}
    chains = {
        name: repr((chain.rules, chain.type, chain.hook, chain.priority, chain.policy))
        for name, chain in installed.chains.items()
    }
    return {"values": values, "table": {**chains, **{name: repr(each) for name, each in installed.sets.items()}}}


def obey(state_path: Path, spec: NodeSpec) -> str:
    """Make `spec` true with nothing to probe; return the phase."""
    roots = Roots(state=state_path)
    with StateDirectory(roots) as state:
        machine = Machine(roots)
        way_back.recover(machine, state)
        return finished(begin(machine, state, spec, list)).phase


def kill_at(limit: int) -> Callable[[], int]:
    """Patch every step so that the process kills itself at step `limit`; return a function that tells the count."""
    count = 0

    def step() -> None:
        nonlocal count
        count += 1
        if count == limit:
            os.kill(os.getpid(), signal.SIGKILL)

    def around(owner: Any, name: str) -> None:
        real = getattr(owner, name)

        def wrapped(*arguments: Any, **options: Any) -> Any:
            step()
            result = real(*arguments, **options)
            step()
            return result

        setattr(owner, name, wrapped)

    def found(command: str) -> bool:
        # The self-test looks until an element has expired: once or five times, that must be as many steps.
        step()
        while look(command):
            time.sleep(0.02)
        step()
        return False

    nft = nftables._nft

    def look(command: str) -> bool:
        return nft("-f", "-", text=f"{command}\n").returncode == 0

    nftables._is_there = found
    around(os, "fsync")
    around(Path, "rename")
    around(writing_module, "write_sysctl")
    around(nftables, "_nft")
    around(flow_editing, "_carry_out")
    return lambda: count


def in_child(work: Callable[[], Any]) -> Any:
    """Return what `work` returned in a forked child, None when the child was killed."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        code = 1
        try:
            os.write(writing, json.dumps(work()).encode())
            code = 0
        finally:
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading, "rb") as stream:
        data = stream.read()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return None
    assert os.WEXITSTATUS(status) == 0, "the child failed; see above"
    return json.loads(data)


def started_anew(state_path: Path) -> dict[str, Any]:
    """Start as an agent does that hears nothing of an API server; return what the node is then."""
    roots = Roots(state=state_path)
    with StateDirectory(roots) as state:
        duty = Duty(Machine(roots), state, list)
        duty.start()
        duty.resume()
        journal = duty.machine.journal(state)
    failures = journal.failures.count if journal.failures else 0
    return {**snapshot(), "trial": journal.trial is not None, "failures": failures}


def main(folder: str, first: str, second: str) -> None:
    """Print one line for each step, the last for a change that went through."""
    for number in range(1, STEPS_MAX):
        state_path = Path(folder) / str(number)

        def prepared(path: Path = state_path) -> dict[str, Any]:
            if first:
                obey(path, wish("first", first))
            return snapshot()

        def changed(path: Path = state_path, limit: int = number) -> int:
            steps = kill_at(limit)
            obey(path, wish("second", second))
            return steps()

        def restored(path: Path = state_path) -> str:
            roots = Roots(state=path)
            with StateDirectory(roots) as state:
                return way_back.restore(Machine(roots), state).phase

        before = in_child(prepared)
        through = in_child(changed)
        after = in_child(lambda path=state_path: started_anew(path))
        phase = in_child(restored)
        line = {"step": number, "killed": through is None, "before": before, "after": after, "restored": phase}
        print(json.dumps(line | {"end": in_child(snapshot)}), flush=True)
        if through is not None:
            return


if __name__ == "__main__":
    main(*sys.argv[1:])
