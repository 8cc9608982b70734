"""The documentation's links lead somewhere, every page is in the index, and every figure of the sizing page is ours."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.lab.helm import ROOT
from tests.lab.reference import anchor

from conntrack_operator.decide.memory import BUDGET_PERCENT, EXTENSION_BYTES
from conntrack_operator.decide.sizing import bucket_bytes, buckets_for, sizing_for
from conntrack_operator.model.facts import Facts
from conntrack_operator.model.table import Size

DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md")), ROOT / "charts" / "conntrack-operator" / "README.md"]
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^ *```.*?^ *```", re.MULTILINE | re.DOTALL)


def prose(page: Path) -> str:
    """Return a page without its blocks of output, in which brackets are no links."""
    return FENCE.sub("", page.read_text())


def anchors(page: Path) -> set[str]:
    """Return the names by which links find the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {anchor(re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)) for heading in headings}


def links(page: Path) -> list[str]:
    """Return the targets of a page's links within the repository."""
    text = re.sub(r"`[^`]*`", "code", prose(page))
    return [target for target in LINK.findall(text) if not re.match(r"[a-z]+:", target)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    """To a file that is there, and to a heading that it has."""
    broken = []
    for target in links(page):
        path, _, heading = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (heading and heading not in anchors(file)):
            broken.append(target)
    assert not broken


def test_every_page_is_in_the_index() -> None:
    """Folders of many pages of one kind, decisions and alerts, are linked as folders."""
    index = DOCS / "README.md"
    linked = {(DOCS / target.partition("#")[0]).resolve() for target in links(index)}
    pages = {page for page in DOCS.rglob("*.md") if page != index}
    assert not {page for page in pages if page not in linked and page.parent not in linked - {DOCS}}


def test_the_oldest_kubernetes_is_named_once() -> None:
    """Where people read it, and where Helm does."""
    chart = (ROOT / "charts" / "conntrack-operator" / "Chart.yaml").read_text()
    (oldest,) = re.findall(r'^kubeVersion: ">=(1\.\d+)\.0-0"$', chart, re.MULTILINE)
    assert f"Kubernetes {oldest} at the least" in (DOCS / "supported.md").read_text()
    assert f"Kubernetes {oldest} or newer" in (DOCS / "install.md").read_text()


GIB = 1 << 30
SIZING = (DOCS / "sizing.md").read_text()


def block(language: str) -> str:
    """Return the sizing page's one block of a language."""
    (text,) = re.findall(rf"^```{language}\n(.*?)^```", SIZING, re.MULTILINE | re.DOTALL)
    return str(text)


def row(*cells: str) -> str:
    """Return a row of a table."""
    return f"| {' | '.join(cells)} |"


def machine(gib: int, cpus: int = 4) -> Facts:
    """Return a machine of the page."""
    return Facts(memory_bytes=gib * GIB, cpus=cpus, kernel="6.18.0", sysctls={})


def entries_of(rule: dict[str, Any], facts: Facts) -> int:
    """Return how many entries a rule of table.size gives."""
    return sizing_for(Size.model_validate(rule), 1, facts).entries


def full_mib(entries: int, buckets: int, entry_bytes: int, facts: Facts) -> str:
    """Return the memory of a full table as the page writes it."""
    return f"{round((entries * entry_bytes + buckets * bucket_bytes(facts)) / (1 << 20)):,} MiB"


def test_rates_and_the_peak() -> None:
    """Entries divided by their timeout, and the rates of a peak five times as high by timeouts."""
    seen = {"TCP TIME_WAIT": (46_760, 120), "UDP REPLIED": (2_982, 30)}
    rates = {state: round(entries / seconds) for state, (entries, seconds) in seen.items()}
    for state, (entries, seconds) in seen.items():
        assert f"| {state} | {entries:,} | {seconds} s | {rates[state]}/s |" in SIZING
        assert re.search(rf"{state} +{entries:,} ", SIZING), "as top shows it"
    peak, opened = {state: 5 * rate for state, rate in rates.items()}, 5_000
    now = {state: rate * seen[state][1] for state, rate in peak.items()}
    shorter = {**now, "TCP TIME_WAIT": peak["TCP TIME_WAIT"] * 30}
    for state, seconds in (("TCP TIME_WAIT", 30), ("UDP REPLIED", 30)):
        cells = (f"{peak[state]:,}/s", f"{seen[state][1]} s", f"{now[state]:,}", f"{seconds} s", f"{shorter[state]:,}")
        assert row(state, *cells) in SIZING
    needed = [sum(entries.values()) + opened for entries in (now, shorter)]
    assert f"| together | | | {needed[0]:,} | | {needed[1]:,} |" in SIZING
    assert f"half empty | | | {2 * needed[0]:,} | | {2 * needed[1]:,} |" in SIZING
    assert 2 * needed[1] < 262_144 < 2 * needed[0] < 524_288


def test_memory_and_buckets() -> None:
    """What a full table takes, with and without extensions, and the budget's other bound."""
    facts, entries = machine(8), 524_288
    buckets = buckets_for(entries, 1, facts)
    assert (buckets, facts.entry_bytes, EXTENSION_BYTES, bucket_bytes(facts)) == (entries, 256, 128, 8)
    assert f"{buckets:,} x 8 bytes = {buckets * 8 >> 20} MiB" in SIZING
    for entry_bytes in (256, 384):
        assert f"{entries:,} x {entry_bytes} bytes = {entries * entry_bytes >> 20} MiB" in SIZING
    together = [full_mib(entries, buckets, each, facts) for each in (256, 384)]
    assert f"full, all together   {together[0]}, with NAT {together[1]}" in SIZING
    assert BUDGET_PERCENT == 50


def test_plan_of_the_page(tmp_path: Path) -> None:
    """The page's policy on the page's node gives the page's plan."""
    policy, facts = tmp_path / "policy.yaml", tmp_path / "node.json"
    policy.write_text(block("yaml"))
    facts.write_text(block("json"))
    done = subprocess.run(
        [sys.executable, "-m", "conntrack_operator", "plan", "-f", str(policy), "--facts", str(facts)],
        capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.stdout, done.stderr
    assert f"$ conntrack-operator plan -f policy.yaml --facts node.json\n{done.stdout.rstrip()}\n```" in SIZING


def test_a_share_of_ram() -> None:
    """Entries, buckets and memory of `memory.percent`, by the formula of the page and by the product's function."""
    rule = {"percent": 2, "floor": 262_144, "ceiling": 4_194_304}
    for gib in (4, 8, 16, 32, 64, 256):
        facts = machine(gib)
        entries = entries_of({"memory": rule}, facts)
        by_the_page = gib * GIB * 2 // 100 // (256 + 8)
        assert entries == min(max(by_the_page, rule["floor"]), rule["ceiling"])
        buckets = buckets_for(entries, 1, facts)
        full = [full_mib(entries, buckets, each, facts) for each in (256, 384)]
        assert row(f"{gib} GiB", f"{entries:,}", f"{buckets:,}", *full) in SIZING


@pytest.mark.parametrize(("gib", "cpus"), [(4, 2), (8, 4), (16, 4), (64, 16), (256, 64)])
def test_other_rules(gib: int, cpus: int) -> None:
    """By CPUs and by the old formula."""
    facts = machine(gib, cpus)
    rules = ({"perCore": {"entries": 32_768, "floor": 131_072}}, {"kernelFormula": {}})
    assert row(f"{gib} GiB, {cpus}", *(f"{entries_of(rule, facts):,}" for rule in rules)) in SIZING
