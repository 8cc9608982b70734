"""status and top as a person types them, on a table with entries that are known."""

import fcntl
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.lab.command import PROGRAM, assert_one_sentence, conntrack_operator
from tests.lab.entries import Entry, inject_many
from tests.lab.host import LOCK
from tests.lab.namespaces import Lab, Namespace

BUSY = "10.7.0.1"


@pytest.fixture(autouse=True)
def _table_stands_still() -> Iterator[None]:
    """Keep out tests of other runs that resize the table or lower its limit: both are one for all namespaces."""
    with LOCK.open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        yield


@pytest.fixture
def node(netns: Lab) -> Namespace:
    """Give a namespace with 3,000 entries: a third from one address, the rest from 200 others."""
    made = netns.namespace()
    made.track()
    inject_many(made, Entry(BUSY, "10.7.9.9", destination_port=443), 1000, sources=1)
    inject_many(made, Entry("10.7.1.0", "10.7.9.9", destination_port=80), 1500, sources=100)
    inject_many(made, Entry("fd07::100", "fd07::9", protocol=17, destination_port=53), 500, sources=100)
    return made


def test_status_agrees_with_the_kernel(node: Namespace) -> None:
    """Every number is what /proc and the entries made here say."""
    done = conntrack_operator("status", "-o", "json", namespace=node)
    assert (done.returncode, done.stderr) == (0, "")
    document = json.loads(done.stdout)
    limit = int(node.sysctl("net.netfilter.nf_conntrack_max"))
    assert document["entries"] == 3000
    assert document["maxEntries"] == limit
    assert document["buckets"] == int(node.sysctl("net.netfilter.nf_conntrack_buckets"))
    assert document["usedPercent"] == pytest.approx(300_000 / limit, abs=0.01)
    assert document["memoryBytes"] == 3000 * document["entryBytes"] + 8 * document["buckets"]
    assert set(document["counters"]) >= {"drop", "earlyDrop", "insertFailed", "invalid", "found", "searchRestart"}
    assert document["notrack"] == []


def test_status_shows_what_bypassed_the_table(node: Namespace, tmp_path: Path) -> None:
    """The packets of a rule are counted beside it, for people and for programs."""
    policy = (
        "{apiVersion: conntrack-operator.io/v1alpha1, kind: ConntrackPolicy, metadata: {name: a}, spec: {mode: Enforce,"
        " nodeSelector: {matchLabels: {a: b}}, notrack: {rules: [{name: web, ports: [80]}]}}}"
    )
    done = conntrack_operator("apply", "-f", "-", "--state-dir", tmp_path, namespace=node, text=policy)
    assert done.returncode == 0, done
    document = json.loads(conntrack_operator("status", "-o", "json", namespace=node).stdout)
    parts = {(each["rule"], each["part"], each["packets"]) for each in document["notrack"]}
    assert parts >= {("tcp/server", "requests", 0), ("tcp/server", "replies", 0)}
    assert "tcp/server" in conntrack_operator("status", namespace=node).stdout


@pytest.mark.parametrize(
    ("by", "first"),
    [
        ("source", (BUSY, 1000)),
        ("destination", ("10.7.9.9", 2500)),
        ("port", ("80/TCP", 1500)),
        ("state", ("TCP ESTABLISHED", 2500)),
        ("zone", ("0", 3000)),
    ],
)
def test_top_names_who_fills_the_table(node: Namespace, by: str, first: tuple[str, int]) -> None:
    """Every question, as JSON: a table smaller than the sample is counted in full, without an error."""
    done = conntrack_operator("top", "--by", by, "-n", 3, "-o", "json", namespace=node)
    assert (done.returncode, done.stderr) == (0, "")
    document = json.loads(done.stdout)
    assert (document["sampled"], document["entries"]) == (3000, 3000)
    row = document["rows"][0]
    assert (row["key"], row["entries"], row["error"]) == (*first, 0)
    assert row["share"] == pytest.approx(first[1] / 3000, abs=1e-6)
    assert len(document["rows"]) <= 3


def test_top_by_default_shows_ten_sources(node: Namespace) -> None:
    """The first question everybody asks, and what is not in the answer."""
    lines = conntrack_operator("top", namespace=node).stdout.splitlines()
    assert lines[0].startswith("3,000 entries of at most ")
    assert lines[2].split() == ["SOURCE", "ENTRIES", "SHARE"]
    assert lines[4].split()[:3] == [BUSY, "1,000", "33.3%"]
    assert lines[-1] == "Entries of other network namespaces (pods' own tables) are not in it."
    assert len(lines) == 4 + 10 + 3


def test_exact_reads_all_of_a_large_table(netns: Lab) -> None:
    """A table beyond the sample: by default an estimate with its error, with --exact the truth."""
    node = netns.namespace()
    node.track()
    inject_many(node, Entry(BUSY, "10.7.9.9"), 20_000, sources=1)
    inject_many(node, Entry("10.7.1.0", "10.7.9.9"), 60_000, sources=200)
    sampled = json.loads(conntrack_operator("top", "-n", 1, "-o", "json", namespace=node).stdout)
    assert (sampled["sampled"], sampled["entries"]) == (65_536, 80_000)
    row = sampled["rows"][0]
    assert row["error"] > 0
    assert row["share"] == pytest.approx(0.25, abs=3 * row["error"])
    exact = json.loads(conntrack_operator("top", "-n", 1, "--exact", "-o", "json", namespace=node).stdout)
    assert exact == {
        "sampled": 80_000,
        "entries": 80_000,
        "rows": [{"key": BUSY, "entries": 20_000, "share": 0.25, "error": 0.0}],
    }
    assert "65,536 of 80,000 entries were read" in conntrack_operator("top", namespace=node).stdout


def test_watching_looks_again_until_ctrl_c(node: Namespace) -> None:
    """Documents, one a line, then Ctrl-C: exit 0, no traceback."""
    watching = node.start(*PROGRAM, "top", "--watch", "-n", "1", "-o", "json")
    assert watching.stdout
    seen = [json.loads(watching.stdout.readline())["entries"]]
    inject_many(node, Entry("10.8.0.1", "10.8.9.9"), 500, sources=1)
    # It looks every 2 s, be it before all of them are in, or in the middle.
    while seen[-1] < 3500 and len(seen) < 10:
        seen.append(json.loads(watching.stdout.readline())["entries"])
    assert (seen[0], seen[-1]) == (3000, 3500)
    assert seen == sorted(seen)
    os.kill(watching.pid, signal.SIGINT)
    assert watching.wait(60) == 0
    assert watching.stderr
    assert watching.stderr.read() == ""


@pytest.mark.parametrize("command", ["status", "top"])
def test_without_net_admin(node: Namespace, command: str) -> None:
    """ctnetlink needs a capability: one sentence that says so."""
    done = conntrack_operator(command, namespace=node, wrapper=("unshare", "--user"))
    assert_one_sentence(done, "NET_ADMIN")
