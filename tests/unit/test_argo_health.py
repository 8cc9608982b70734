"""What Argo CD says of a policy, by the script that the chart has for it, run by Lua itself (5.1, as Argo CD's is)."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

SCRIPT = Path(__file__).parents[2] / "charts" / "conntrack-operator" / "files" / "argocd-health.yaml"


def in_lua(value: Any) -> str:
    """Return plain data as Lua writes it."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"[{in_lua(key)}] = {in_lua(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list):
        return "{" + ", ".join(map(in_lua, value)) + "}"
    return f'"{value}"' if isinstance(value, str) else str(value)


def health(*conditions: tuple[str, str, str], observed: int = 2) -> str:
    """Return the health of a policy of generation 2 with these conditions (type, status, reason), and its message."""
    if shutil.which("lua5.1") is None:
        pytest.skip("not installed: lua5.1")
    fields = ("type", "status", "reason", "message")
    items = [dict(zip(fields, (*each, f"{each[0]} because"), strict=True)) for each in conditions]
    status = {"observedGeneration": observed, "conditions": items}
    policy = {"metadata": {"generation": 2}, **({"status": status} if conditions else {})}
    (script,) = yaml.safe_load(SCRIPT.read_text())["data"].values()
    text = f"local obj = {in_lua(policy)}\nlocal function judge()\n{script}\nend\n"
    text += 'local said = judge()\nprint(said.status .. ": " .. said.message)'
    done = subprocess.run(["lua5.1", "-"], input=text, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("conditions", "said"),
    [
        ((), "Progressing: not judged yet"),
        ((("Ready", "True", "AllNodesCurrent"),), "Healthy: Ready because"),
        # A node that is away makes a policy Degraded; it holds nobody up.
        ((("Ready", "True", "AllNodesCurrent"), ("Degraded", "True", "NodesAway")), "Healthy: Ready because"),
        ((("Ready", "False", "Progressing"), ("Reconciling", "True", "Progressing")), "Progressing: Ready because"),
        ((("Ready", "False", "Paused"), ("Reconciling", "False", "Paused")), "Suspended: Ready because"),
        ((("Ready", "False", "CanaryFailed"), ("Stalled", "True", "CanaryFailed")), "Degraded: Stalled because"),
        ((("Ready", "False", "NoNodeMatches"), ("Reconciling", "False", "Settled")), "Degraded: Ready because"),
    ],
)
def test_what_argo_cd_says(conditions: tuple[tuple[str, str, str], ...], said: str) -> None:
    """One word of Argo CD's, and our sentence."""
    assert health(*conditions) == said


def test_an_edit_is_judged_first() -> None:
    """What is said of the version before is not said of this one."""
    assert health(("Ready", "True", "AllNodesCurrent"), observed=1) == "Progressing: the edit is not judged yet"
