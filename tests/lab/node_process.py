"""A process of a pod as the node sees it: what it may do, what is mounted for it, how much memory it has."""

import re
from dataclasses import dataclass

from tests.lab.place import Place


@dataclass(frozen=True)
class Process:
    """One process, by its number on the node."""

    place: Place
    pid: int

    def status(self, name: str) -> str:
        """Return a line of /proc/PID/status, such as CapEff (proc_pid_status(5))."""
        text = self.place.on_node("cat", f"/proc/{self.pid}/status").stdout
        found = re.search(rf"^{name}:\s*(.*)$", text, re.MULTILINE)
        assert found, name
        return found[1].strip()

    def mounts(self) -> dict[str, list[str]]:
        """Return the options of what is mounted for it, by path; `ro` or `rw` is one (proc_pid_mountinfo(5))."""
        lines = self.place.on_node("cat", f"/proc/{self.pid}/mountinfo").stdout.splitlines()
        fields = [line.split() for line in lines]
        return {each[4]: each[5].split(",") for each in fields}


def processes(place: Place, command: str) -> list[Process]:
    """Return the node's processes that run a command of ours, such as `controller`.

    A copy that one has just made of itself, to be another program in a moment, is none.
    """
    listed = place.on_node("ps", "-ww", "-eo", "pid=,ppid=,args=").stdout
    pattern = re.compile(rf" *(\d+) +(\d+) [^ ]*python[^ ]* [^ ]*conntrack-operator {command}")
    parents = {int(found[1]): int(found[2]) for found in map(pattern.match, listed.splitlines()) if found}
    return [Process(place, pid) for pid, parent in parents.items() if parent not in parents]
