"""The corpus of policies, good and bad, which the models and a real API server must judge alike.

A bad file says in leading comments how it is refused, as `# refused: <path>: <sentence>`, one line for each problem;
what only a client without strict validation sees stands after `# refused unless strict:`. The file's name is the
policy's name, unless the name is what is wrong.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Case:
    """One file of the corpus."""

    path: Path

    @property
    def document(self) -> Any:
        """The policy as data."""
        return yaml.safe_load(self.path.read_text(encoding="utf-8"))

    @property
    def refusals(self) -> tuple[str, ...]:
        """What everybody must say of it, as `path: sentence`."""
        return self._said("# refused: ")

    @property
    def unstrict_refusals(self) -> tuple[str, ...]:
        """What the API server must say of it to a client that asks for no strict validation."""
        return self._said("# refused unless strict: ")

    def _said(self, marker: str) -> tuple[str, ...]:
        lines = self.path.read_text(encoding="utf-8").splitlines()
        return tuple(line.removeprefix(marker) for line in lines if line.startswith(marker))


GOOD = tuple(Case(path) for path in sorted((FOLDER / "good").glob("*.yaml")))
BAD = tuple(Case(path) for path in sorted((FOLDER / "bad").glob("*.yaml")))


def name_of(case: Case) -> str:
    """Return the case's name for a test id."""
    return case.path.stem


def largest_policy() -> dict[str, Any]:
    """Return a policy with every list as long as it may be: 16 rules of 1,024 ranges, 64 networks, 16 interfaces."""
    document = yaml.safe_load((FOLDER / "good" / "everything.yaml").read_text(encoding="utf-8"))
    rule = {
        "protocol": "TCP",
        "side": "Server",
        "ports": [f"{10_000 + first}-{10_000 + first + 10}" for first in range(0, 20_480, 20)],
        "addresses": [f"2001:db8:{index:x}:ffff:ffff:ffff:ffff:{index:x}" for index in range(64)],
        "peers": [f"192.168.{index}.0/24" for index in range(64)],
        "interfaces": [f"interface-{index:05}" for index in range(16)],
    }
    document["metadata"]["name"] = "largest"
    document["spec"]["notrack"]["rules"] = [{"name": f"{index:063}", **rule} for index in range(16)]
    return dict(json.loads(json.dumps(document)))
