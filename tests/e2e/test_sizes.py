"""Sizes that this machine will not have, or that its kernel rounds: results with a remedy, and nothing else is lost."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.lab.command import conntrack_operator
from tests.lab.entries import Entry, inject_many
from tests.lab.host import Host, Writes, sysctls
from tests.lab.trials import policy

from conntrack_operator.agent.writing import write_sysctls
from conntrack_operator.decide.plan import BUCKETS, Change
from conntrack_operator.errors import Refused
from conntrack_operator.kernel.roots import Roots

pytestmark = pytest.mark.tunes_this_machine

ENTRIES = 20_000
ICMP = "nf_conntrack_icmp_timeout"
BUCKETS_A_PAGE = 512
TRIAL = {"timeoutSeconds": 20, "soakSeconds": 0}


@pytest.fixture
def state(host: Host, tmp_path: Path) -> Iterator[Path]:
    """Give a state directory; what was applied with it is restored."""
    folder = tmp_path / "state"
    before = sysctls()
    yield folder
    done = conntrack_operator("restore", "--state-dir", folder)
    assert done.returncode == 0, done.stderr
    assert sysctls() == before
    assert host.table() is None


@pytest.fixture
def used(host: Host) -> Iterator[int]:
    """Fill the table with so many entries of nobody's traffic; return how many are in it at least."""
    entry = Entry("198.18.0.0", "198.19.255.2", destination_port=9, timeout_seconds=900)  # RFC 2544: benchmarks only
    inject_many(host, entry, ENTRIES)
    yield ENTRIES
    host.run("conntrack", "-D", "-d", entry.destination, check=False)


def applied(state: Path, **spec: Any) -> str:
    """Apply a policy once, and return what was said; it may be refused, but it may not break."""
    file = policy(state.parent / "policy.json", **{"trial": TRIAL, **spec})
    done = conntrack_operator("apply", "-f", file, "--state-dir", state)
    assert done.returncode in {0, 1}, done.stderr
    said = done.stdout + done.stderr
    assert "Traceback" not in said
    print(said)
    return said


def test_a_size_below_use(host: Host, state: Path, used: int) -> None:
    """Fewer than 1.25 times the entries in use are refused with a number that would do; the timeout is made."""
    before = host.value("nf_conntrack_max")
    said = applied(state, table={"size": {"maxEntries": used // 2}, "allowShrink": True}, timeouts={"icmp": 21})
    assert "BelowUse" in said
    least = int(re.search(r"ask for\s+at\s+least\s+(\d+)", said)[1])  # type: ignore[index]
    assert used * 5 // 4 <= least <= used * 2
    assert host.value("nf_conntrack_max") == before
    assert host.value(ICMP) == 21
    assert host.value("nf_conntrack_count") >= used


def test_an_absurd_size(host: Host, state: Path) -> None:
    """More entries than the machine has memory for are refused; the timeout of the same policy is made."""
    before = {name: host.value(name) for name in ("nf_conntrack_max", "nf_conntrack_buckets")}
    said = applied(state, table={"size": {"maxEntries": 2_000_000_000}}, timeouts={"icmp": 22})
    assert "MemoryBudget" in said
    assert {name: host.value(name) for name in before} == before
    assert host.value(ICMP) == 22


def test_what_the_kernel_refuses_is_a_result(host: Host, state: Path) -> None:
    """Buckets that no kernel has memory for, past preflight: an error of that setting, and the next one is written."""
    del state
    before = host.value("nf_conntrack_buckets")
    absurd = [0, 1 << 31, 1 << 62]
    memory = int(re.search(r"MemTotal:\s+(\d+) kB", Path("/proc/meminfo").read_text())[1]) * 1024  # type: ignore[index]
    if memory < 8 << 31:
        absurd.append((1 << 31) - 1)  # 16 GiB of buckets; a machine that has them would give them
    icmp = host.value(ICMP)
    for buckets in absurd:
        changes = [
            Change(BUCKETS, before, buckets, "a test"),
            Change(f"net.netfilter.{ICMP}", icmp, 23, "a test"),
        ]
        failed = write_sysctls(Roots(), changes)
        assert list(failed) == [BUCKETS]
        assert isinstance(failed[BUCKETS], Refused)
        assert failed[BUCKETS].reason == "WriteFailed"
        assert re.search(rf"the kernel refused {buckets} \(.+\); ask for less", str(failed[BUCKETS]))
        assert host.value("nf_conntrack_buckets") == before
        assert host.value(ICMP) == 23
        (Path("/proc/sys/net/netfilter") / ICMP).write_text(f"{icmp}\n")


def test_buckets_that_are_no_whole_page(host: Host, state: Path) -> None:
    """The kernel rounds up; that is what was wanted: applied again and planned again, nothing is written."""
    size = {"size": {"maxEntries": 300_001}, "entriesPerBucket": 1}
    said = applied(state, table=size)
    assert "refused" not in said.lower()
    assert host.value("nf_conntrack_max") == 300_001
    buckets = host.value("nf_conntrack_buckets")
    assert buckets == -(-300_001 // BUCKETS_A_PAGE) * BUCKETS_A_PAGE
    journal = json.loads((state / "journal.json").read_text())
    with Writes() as writes:
        applied(state, table=size)
        assert writes.seen() == []
    assert json.loads((state / "journal.json").read_text()) == journal
    done = conntrack_operator("plan", "-f", state.parent / "policy.json", "--state-dir", state)
    assert done.returncode == 0, done.stdout
