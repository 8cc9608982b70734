"""The kernel log: which records tell of a full table, and what is said when it cannot be read."""

import errno
import os

import pytest

from conntrack_operator.decide.symptoms import FullLine
from conntrack_operator.kernel.kernel_log import full_line_in, read_kernel_log

BOOTED = 1_800_000_000.0


@pytest.mark.parametrize(
    ("record", "line"),
    [
        ("4,1338,5567285902,-;nf_conntrack: nf_conntrack: table full, dropping packet", FullLine(BOOTED + 5567.285902)),
        ("4,1,2500000,-;nf_conntrack: table full, dropping packet.", FullLine(BOOTED + 2.5)),
        ("4,1,2500000,-;ip_conntrack: table full, dropping packet.", FullLine(BOOTED + 2.5)),
        (
            "4,2,2500000,-;nf_conntrack: nf_conntrack: table full in netns 4026532421, dropping packet",
            FullLine(BOOTED + 2.5, 4026532421),
        ),
        ("4,3,2500000,-,caller=T12;nf_conntrack: table full, dropping packet", FullLine(BOOTED + 2.5)),
        ("12,4,2500000,-;nf_conntrack: table full, dropping packet", None),
        ("4,5,2500000,-;nf_conntrack: expectation table full", None),
        ("4,6,2500000,-;net_ratelimit: 41 callbacks suppressed", None),
        ("6,7,2500000,-;somebody says nf_conntrack: table full, dropping packet", None),
        (" SUBSYSTEM=net", None),
        ("", None),
    ],
)
def test_records(record, line):
    """Every wording kernels had counts, with time and namespace; what a program wrote to the log does not."""
    assert full_line_in(record, BOOTED) == line


def test_a_file_of_records(tmp_path):
    """Lines come oldest first; the rest is left out."""
    log = tmp_path / "kmsg"
    log.write_text(
        "6,1,1000000,-;booted\n"
        "4,2,2000000,-;nf_conntrack: nf_conntrack: table full in netns 7, dropping packet\n"
        "4,3,3000000,-;nf_conntrack: nf_conntrack: table full, dropping packet\n"
    )
    found = read_kernel_log(log)
    assert found.problem == ""
    assert [line.namespace for line in found.lines] == [7, None]
    assert found.lines[1].at_seconds - found.lines[0].at_seconds == pytest.approx(1)


TEXT = """\
<6>[    1.000000] booted
<4>[    2.000000] nf_conntrack: nf_conntrack: table full in netns 7, dropping packet
<4>[12345.500000][   T12] nf_conntrack: nf_conntrack: table full, dropping packet
<12>[12346.000000] nf_conntrack: nf_conntrack: table full, dropping packet
"""


def test_a_container_s_way(tmp_path):
    """Without /dev/kmsg the whole text is asked for; what a program wrote is left out there too."""
    found = read_kernel_log(tmp_path / "absent", lambda: TEXT)
    assert found.problem == ""
    assert [line.namespace for line in found.lines] == [7, None]
    assert found.lines[1].at_seconds - found.lines[0].at_seconds == pytest.approx(12343.5)


def test_a_log_without_times(tmp_path):
    """When a table was full cannot be told then; that is said, with the remedy."""
    found = read_kernel_log(tmp_path / "absent", lambda: TEXT + "<4>nf_conntrack: table full, dropping packet\n")
    assert len(found.lines) == 2
    assert "printk" in found.problem


@pytest.mark.parametrize(
    ("number", "problem"),
    [
        (errno.EPERM, "the kernel log may not be read (Operation not permitted): it needs root with CAP_SYSLOG"),
        (errno.ENOSYS, "the kernel log cannot be read (/dev/kmsg and syslog(2): Function not implemented)"),
    ],
)
def test_a_log_that_cannot_be_read(tmp_path, number, problem):
    """No log is not an empty log: the reason is said, and the switch."""

    def refused():
        raise OSError(number, os.strerror(number))

    found = read_kernel_log(tmp_path / "absent", refused)
    assert found.lines == ()
    assert found.problem.startswith(problem)
    assert ("agent.kernelLog" in found.problem) == (number == errno.EPERM)
