"""Diagnosis: from what was seen on a machine to what is wrong with it, in order, and the policy that mends it. Pure.

`doctor` shows it. Each question has a module of its own: is it full (diagnosis_fullness), who fills it
(diagnosis_fillers), which setting is wrong (diagnosis_settings), who else writes (diagnosis_writers), is it another
table (diagnosis_elsewhere); prescription makes the policy.
"""

from dataclasses import dataclass
from typing import Any

from .diagnosis_elsewhere import findings_of_elsewhere
from .diagnosis_fillers import Fillers, fillers_of
from .diagnosis_fullness import findings_of_fullness, fullness_of
from .diagnosis_settings import findings_of_settings
from .diagnosis_writers import findings_of_writers
from .finding import SEVERITIES, Finding, counted, percent
from .prescription import policy_for
from .symptoms import Symptoms


@dataclass(frozen=True)
class Diagnosis:
    """What is wrong, worst first, and a policy that mends what a policy can."""

    findings: tuple[Finding, ...]
    policy: dict[str, Any] | None
    """Document of a ConntrackPolicy, ready to apply; None when there is nothing to mend."""
    verdict: str
    """All of it in one line."""

    @property
    def severity(self) -> str:
        """Severity of the worst finding; `info` when there is none."""
        return self.findings[0].severity if self.findings else "info"


def diagnose(symptoms: Symptoms) -> Diagnosis:
    """Return what `symptoms` mean. Findings are ordered by severity, then as a person would ask."""
    fullness = fullness_of(symptoms)
    fillers = fillers_of(symptoms) if fullness.pressed else Fillers()
    found = [
        *findings_of_fullness(symptoms, fullness),
        *fillers.findings,
        *findings_of_settings(symptoms, fullness),
        *findings_of_elsewhere(symptoms),
        *findings_of_writers(symptoms),
    ]
    findings = tuple(sorted(found, key=lambda finding: SEVERITIES.index(finding.severity)))
    return Diagnosis(findings, policy_for(symptoms, fullness, fillers), _verdict(findings, symptoms))


def _verdict(findings: tuple[Finding, ...], symptoms: Symptoms) -> str:
    wrong = [finding for finding in findings if finding.severity != "info"]
    table = symptoms.table
    used = percent(table.entries, table.max_entries)
    if wrong and (wrong[0].severity == "critical" or wrong[0].reason in _ABOUT_A_TABLE):
        return wrong[0].summary
    calm = f"Not full: {used:.0f}% of {table.max_entries:,} entries used, nothing lost."
    if wrong:
        return f"{calm} But {counted(len(wrong), 'warning')}."
    return f"{calm} Nothing to do."


_ABOUT_A_TABLE = frozenset(
    {
        "TableWasFull",
        "TableFilling",
        "NoLimit",
        "OtherNamespaceFull",
        "EC2AllowanceExceeded",
        "CiliumMapFull",
        "ZoneFull",
    }
)
"""Reasons that answer the question doctor is asked; other warnings come after the answer."""
