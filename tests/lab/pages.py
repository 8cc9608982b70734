"""Commands and documents as the pages of docs/ print them, so that a test runs what a reader would type."""

import re
from pathlib import Path

from tests.lab.helm import ROOT


def block(page: str, heading: str, number: int = 0) -> str:
    """Return one block of commands, or a document, from below a heading of the third level in a page of docs/."""
    _, found, section = (Path(ROOT) / "docs" / page).read_text().partition(f"\n### {heading}\n")
    assert found, f"docs/{page} has no section {heading}"
    section = re.split(r"\n##+ ", section)[0]
    return re.findall(r"^```\w*\n(.*?)^```", section, re.MULTILINE | re.DOTALL)[number]
