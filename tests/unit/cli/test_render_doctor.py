"""The page of doctor: fits 80 columns, begins with the verdict, ends with a policy that can be applied as it stands."""

from dataclasses import replace

import pytest
import yaml
from tests.unit.decide.test_diagnosis import CALM, FULL, POLICIES, full_of, logged, pod

from conntrack_operator.cli import terminal
from conntrack_operator.cli.render_doctor import doctor_view
from conntrack_operator.decide.diagnosis import diagnose
from conntrack_operator.decide.symptoms import KernelLog
from conntrack_operator.model.reading import policy_from


def page(symptoms):
    """Return the lines of the page at 80 columns."""
    return terminal.plain(doctor_view(diagnose(symptoms), symptoms), 80).splitlines()


@pytest.mark.parametrize(
    ("symptoms", "first"),
    [
        (CALM, "OK: Not full: 0% of 262,144 entries used, nothing lost. Nothing to do."),
        (FULL, "CRITICAL: The table is full: 262,144 of 262,144 entries, 51 packets lost in 1 s."),
        (pod(drop=5), "WARNING: The table of another network namespace was full: envoy (pid 7), 9 of"),
    ],
)
def test_the_verdict_is_the_first_line(symptoms, first):
    """Severity and answer, before anything else."""
    assert page(symptoms)[0] == first


def test_calm_is_short():
    """Nothing wrong: a verdict and three facts."""
    assert len(page(CALM)) == 5


@pytest.mark.parametrize(("symptoms", "_wanted"), POLICIES)
def test_the_policy_can_be_cut_out(symptoms, _wanted):
    """What stands below the last heading is the policy itself, in YAML; no line is wider than 80 columns."""
    lines = page(symptoms)
    assert max(map(len, lines)) <= 80
    at = next(number for number, line in enumerate(lines) if line.startswith("To mend it"))
    document = yaml.safe_load("\n".join(lines[at + 1 :]))
    assert document == diagnose(symptoms).policy
    policy_from(document)


def test_what_shows_it():
    """Counters, the log's times and who fills it stand below the verdict."""
    symptoms = logged(full_of(state={"TCP TIME_WAIT": 0.81, "UDP UNREPLIED": 0.04}, zone={"0": 1.0}), 90, 30)
    lines = page(symptoms)
    assert "lost       1,234 packets since boot, 51 just now; 0 entries thrown out" in lines
    assert 'log        "table full" 2 times since 2027-01-15T07:58:30Z, last 30 s ago' in lines
    assert "filled by  state   TCP TIME_WAIT 81%" in lines
    assert not any("zone" in line for line in lines)


def test_what_was_not_seen_is_said():
    """An unreadable log is not an empty one."""
    problem = "the kernel log may not be read (Operation not permitted): it needs root with CAP_SYSLOG"
    lines = page(replace(CALM, log=KernelLog(problem=problem), unseen=(problem,)))
    assert "log       not readable, see below" in lines
    assert any(line.startswith("not seen: the kernel log may not be read") for line in lines)
