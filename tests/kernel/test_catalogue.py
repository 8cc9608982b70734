"""The catalogue against the running kernel, in a fresh network namespace: names, scopes and ranges."""

import os
import stat
from pathlib import Path

import pytest
from tests.lab.namespaces import Lab, Namespace

from conntrack_operator.model.catalogue import BY_NAME, CATALOGUE, Sysctl
from conntrack_operator.model.values import DURATION_MAX_SECONDS, INT_MAX

FOLDER = Path("/proc/sys/net/netfilter")
FRAGMENT_MEMORY = {"nf_conntrack_frag6_low_thresh", "nf_conntrack_frag6_high_thresh"}
"""The kernel holds low below high, so each one's range depends on the other; they have a test of their own."""

SETTABLE = [
    entry
    for entry in CATALOGUE
    if entry.scope == "Namespace" and entry.writable and not entry.until and entry.name not in FRAGMENT_MEMORY
]


@pytest.fixture
def fresh(netns: Lab) -> Namespace:
    """Give a namespace nobody has written to."""
    return netns.namespace()


def _modes(namespace: Namespace) -> dict[str, int]:
    with namespace.inside():
        return {path.name: stat.S_IMODE(path.stat().st_mode) for path in FOLDER.glob("nf_conntrack_*")}


def _taken(namespace: Namespace, entry: Sysctl, value: int) -> bool:
    """Tell whether the kernel takes `value` and shows it unchanged; what was there before is put back."""
    before = namespace.sysctl(entry.dotted)
    try:
        return namespace.sysctl(entry.dotted, value) == str(value)
    except OSError:
        return False
    finally:
        namespace.sysctl(entry.dotted, before)


def _is_newer(release: str) -> bool:
    """Tell whether `release` is newer than the running kernel."""
    running = os.uname().release.split("-")[0].split(".")
    return [int(part) for part in release.split(".")[:2]] > [int(part) for part in running[:2]]


def test_every_key_of_this_kernel_is_in_the_catalogue(fresh: Namespace) -> None:
    """No nf_conntrack_* key of a fresh namespace is missing from the table."""
    modes = _modes(fresh)
    assert len(modes) > 30
    assert sorted(set(modes) - set(BY_NAME)) == []


def test_no_key_here_is_said_to_be_gone_or_to_come(fresh: Namespace) -> None:
    """What this kernel has, the catalogue does not call removed already or new in a later release."""
    present = [BY_NAME[name] for name in _modes(fresh)]
    assert [entry.name for entry in present if entry.until and not _is_newer(entry.until)] == []
    assert [entry.name for entry in present if _is_newer(entry.since)] == []


def test_scope_is_what_the_file_mode_says(fresh: Namespace) -> None:
    """Initial keys cannot be written here, nor can what is read-only; every other key can."""
    for name, mode in _modes(fresh).items():
        entry = BY_NAME[name]
        writable = entry.scope == "Namespace" and entry.writable
        assert mode == (0o644 if writable else 0o444), name


@pytest.mark.parametrize("entry", SETTABLE, ids=lambda entry: entry.name)
def test_range_is_what_the_kernel_takes(fresh: Namespace, entry: Sysctl) -> None:
    """Both bounds are taken and read back; beyond them the kernel refuses, or the catalogue is stricter on purpose."""
    if entry.name not in _modes(fresh):
        pytest.skip(f"this kernel has no {entry.name}")
    assert _taken(fresh, entry, entry.minimum)
    assert _taken(fresh, entry, entry.maximum)
    if entry.unit == "seconds":
        # Zero is taken and forgets flows at once; where seconds end depends on HZ, and all kernels end before INT_MAX.
        assert _taken(fresh, entry, 0)
        assert entry.maximum == DURATION_MAX_SECONDS
        assert not _taken(fresh, entry, INT_MAX)
    else:
        assert not _taken(fresh, entry, entry.minimum - 1)
        assert not _taken(fresh, entry, entry.maximum + 1)


def test_fragment_memory_holds_low_below_high(fresh: Namespace) -> None:
    """Both bounds are taken while low stays below high; the other way round the kernel refuses."""
    low, high = BY_NAME["nf_conntrack_frag6_low_thresh"], BY_NAME["nf_conntrack_frag6_high_thresh"]
    assert _taken(fresh, low, low.minimum)
    assert _taken(fresh, high, high.maximum)
    assert not _taken(fresh, low, int(fresh.sysctl(high.dotted)) + 1)
    assert not _taken(fresh, high, int(fresh.sysctl(low.dotted)) - 1)
    fresh.sysctl(low.dotted, 0)
    assert _taken(fresh, high, high.minimum)
    fresh.sysctl(high.dotted, high.maximum)
    assert _taken(fresh, low, low.maximum)


def test_kernel_defaults_are_what_the_timeouts_say(fresh: Namespace) -> None:
    """The defaults that `kubectl explain` tells are those of a fresh namespace of a current kernel."""
    if _is_newer("5.17"):
        pytest.skip("SCTP's defaults changed in 5.17, this kernel is older")
    defaults = {
        "tcp_timeout_syn_sent": 120, "tcp_timeout_syn_recv": 60, "tcp_timeout_established": 432_000,
        "tcp_timeout_fin_wait": 120, "tcp_timeout_close_wait": 60, "tcp_timeout_last_ack": 30,
        "tcp_timeout_time_wait": 120, "tcp_timeout_close": 10, "tcp_timeout_max_retrans": 300,
        "tcp_timeout_unacknowledged": 300, "udp_timeout": 30, "udp_timeout_stream": 120, "icmp_timeout": 30,
        "icmpv6_timeout": 30, "generic_timeout": 600, "gre_timeout": 30, "gre_timeout_stream": 180,
        "sctp_timeout_closed": 10, "sctp_timeout_cookie_wait": 3, "sctp_timeout_cookie_echoed": 3,
        "sctp_timeout_established": 210, "sctp_timeout_shutdown_sent": 3, "sctp_timeout_shutdown_recd": 3,
        "sctp_timeout_shutdown_ack_sent": 3, "sctp_timeout_heartbeat_sent": 30, "tcp_loose": 1, "tcp_be_liberal": 0,
    }  # fmt: skip
    present = _modes(fresh)
    read = {
        name: int(fresh.sysctl(f"net.netfilter.nf_conntrack_{name}"))
        for name in defaults
        if f"nf_conntrack_{name}" in present
    }
    assert read == {name: value for name, value in defaults.items() if name in read}
    assert len(read) > 15
