"""Facts from a /proc of files: what is read, what is taken instead, and what is refused."""

import pytest

from conntrack_operator.errors import Unsupported
from conntrack_operator.kernel.facts import read_boot_id, read_facts
from conntrack_operator.kernel.roots import Roots
from conntrack_operator.kernel.sysctl import is_initial_namespace, read_sysctls, write_sysctl


@pytest.fixture
def roots(tmp_path):
    """Return a small /proc: 48 GiB, three CPUs, a table with 1000 entries."""
    proc = tmp_path / "proc"
    netfilter = proc / "sys/net/netfilter"
    netfilter.mkdir(parents=True)
    (proc / "meminfo").write_text("MemTotal:       50331648 kB\nMemFree: 1 kB\n")
    (proc / "stat").write_text("cpu  1 2 3\ncpu0 1\ncpu1 1\ncpu2 1\nintr 5\n")
    (proc / "slabinfo").write_text(
        "slabinfo - version: 2.1\nnf_conntrack_expect 0 0 208 19\nnf_conntrack 10 12 320 12 1 : tunables\n"
    )
    for name, value in {
        "count": 1000,
        "max": 262144,
        "buckets": 65536,
        "acct": 0,
        "tcp_timeout_established": 432000,
    }.items():
        (netfilter / f"nf_conntrack_{name}").write_text(f"{value}\n")
    (netfilter / "nf_conntrack_log_invalid").write_text("odd\n")
    return Roots(proc=proc, state=tmp_path / "state")


def test_facts(roots):
    """Everything a plan needs, in bytes and whole numbers."""
    facts = read_facts(roots)
    assert (facts.memory_bytes, facts.cpus, facts.entries, facts.entry_bytes) == (48 << 30, 3, 1000, 320)
    assert facts.sysctls["net.netfilter.nf_conntrack_max"] == 262144
    assert "net.netfilter.nf_conntrack_log_invalid" not in facts.sysctls
    assert facts.initial_namespace


def test_sizes_of_another_namespace(roots):
    """nf_conntrack_max that nobody may write means: not the initial network namespace."""
    (roots.netfilter / "nf_conntrack_max").chmod(0o444)
    assert not is_initial_namespace(roots)


def test_slab_unreadable(roots):
    """Without slabinfo the size tried on 6.18 is taken."""
    (roots.proc / "slabinfo").write_text("")
    assert read_facts(roots).entry_bytes == 256


def test_container_sees_the_machine(roots):
    """A root that holds sys/net alone is completed from the container's own /proc."""
    (roots.proc / "meminfo").unlink()
    assert read_facts(roots).memory_bytes > 0
    assert len(read_boot_id(roots)) == 36


def test_not_loaded(tmp_path):
    """No nf_conntrack is one sentence with the remedy."""
    with pytest.raises(Unsupported, match="modprobe nf_conntrack"):
        read_facts(Roots(proc=tmp_path))


def test_no_memtotal(roots):
    """A /proc that is none is named."""
    (roots.proc / "meminfo").write_text("nothing\n")
    with pytest.raises(Unsupported, match="MemTotal"):
        read_facts(roots)


def test_write(roots):
    """A value goes to its file; a key that is not there is named."""
    write_sysctl(roots, "net.netfilter.nf_conntrack_acct", 1)
    assert read_sysctls(roots, ["net.netfilter.nf_conntrack_acct"]) == {"net.netfilter.nf_conntrack_acct": 1}
    with pytest.raises(Unsupported, match="no such key"):
        write_sysctl(roots, "net.netfilter.nf_conntrack_timestamp", 1)
