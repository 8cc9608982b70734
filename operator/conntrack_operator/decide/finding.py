"""A finding: one thing that is wrong, or worth knowing, with what to do about it. The words a diagnosis is made of."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

Severity = Literal["critical", "warning", "info"]
SEVERITIES: tuple[Severity, ...] = ("critical", "warning", "info")
"""Critical: connections are lost, or about to be. Warning: it was so or will be. Info: worth knowing, nothing to do."""


@dataclass(frozen=True)
class Finding:
    """One thing found."""

    severity: Severity
    reason: str
    """CamelCase, as in a condition."""
    summary: str
    """One sentence: what is so."""
    detail: str = ""
    """What shows it, and what it usually means."""
    remedy: str = ""
    """What to do. Empty when there is nothing to be done."""

    def document(self) -> dict[str, str]:
        """Return it as `doctor -o json` prints it."""
        return {
            "severity": self.severity,
            "reason": self.reason,
            "summary": self.summary,
            "detail": self.detail,
            "remedy": self.remedy,
        }


def percent(part: int, whole: int) -> float:
    """Return part of whole in percent; 0 when there is no whole."""
    return part * 100 / whole if whole > 0 else 0.0


def counted(number: int, one: str, more: str = "") -> str:
    """Return `1 packet` or `1,234 packets`."""
    return f"{number:,} {one if number == 1 else more or one + 's'}"


def time_words(seconds: float) -> str:
    """Return seconds since 1970 as UTC to the second, such as 2026-03-01T02:55:10Z."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def ago_words(seconds: float) -> str:
    """Return how long ago that is, in its largest unit: `40 s ago`, `3 h ago`."""
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds // size:.0f} {unit} ago"
    return f"{max(0, seconds):.0f} s ago"


def finding_documents(findings: tuple[Finding, ...]) -> list[dict[str, Any]]:
    """Return the findings as a JSON document holds them."""
    return [finding.document() for finding in findings]
