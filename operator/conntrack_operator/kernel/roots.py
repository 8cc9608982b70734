"""Where the machine's files are. Injected everywhere, so that tests and containers can point elsewhere."""

from dataclasses import dataclass
from pathlib import Path

DEFAULT_STATE = Path("/var/lib/conntrack-operator")


@dataclass(frozen=True)
class Roots:
    """`proc` is the host's /proc; in a container it may hold sys/net alone, then the rest is read from /proc itself.

    `state` is the one directory that is written: journal, confirmed settings, lock. Below `etc`, `usr`, `run` and `sys`
    are what other programs of the machine configured and left; they are only read.
    """

    proc: Path = Path("/proc")
    state: Path = DEFAULT_STATE
    etc: Path = Path("/etc")
    usr: Path = Path("/usr")
    run: Path = Path("/run")
    sys: Path = Path("/sys")

    @property
    def netfilter(self) -> Path:
        """The directory of the nf_conntrack_* keys. It shows the network namespace of the process that reads it."""
        return self.proc / "sys/net/netfilter"

    @property
    def shows_processes(self) -> bool:
        """Whether the machine's processes are to be seen here; where they are not, as in a pod, nor are its files."""
        return (self.proc / "1").exists()

    def file(self, name: str) -> Path:
        """Return the path of a machine-wide file such as `meminfo`."""
        path = self.proc / name
        return path if path.exists() else Path("/proc") / name
