"""The alerts: each fires and clears, has a page that says what to do, and a group by which a chart can leave it out."""

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
ALERTS = ROOT / "charts" / "conntrack-operator" / "files" / "alerts.yaml"
CASES = ROOT / "tests" / "alerts" / "alerts_test.yaml"
RULES = [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]


@pytest.mark.skipif(not shutil.which("promtool"), reason="promtool is not installed")
def test_every_alert_fires_and_clears() -> None:
    """As the cases of promtool say."""
    done = subprocess.run(["promtool", "test", "rules", str(CASES)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_every_alert_is_tested_and_explained(rule: dict) -> None:
    """It is seen to fire and not to, and its page has the three parts."""
    name = rule["alert"]
    cases = [case for test in yaml.safe_load(CASES.read_text())["tests"] for case in test["alert_rule_test"]]
    fires = [bool(case["exp_alerts"]) for case in cases if case["alertname"] == name]
    assert fires[:3] == [False, True, False]
    assert rule["annotations"]["runbook"] == f"docs/alerts/{name}.md"
    page = (ROOT / "docs" / "alerts" / f"{name}.md").read_text()
    assert page.startswith(f"# {name}\n")
    for part in ("## What it means", "## What to look at", "## What to do"):
        assert f"\n{part}\n" in page, part
