"""The kernel log: which records tell of a full table, and what is said when it cannot be read."""

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


def test_a_log_that_cannot_be_read(tmp_path):
    """No log is not an empty log: the reason is said."""
    found = read_kernel_log(tmp_path / "absent")
    assert found.lines == ()
    assert found.problem == f"the kernel log cannot be read ({tmp_path / 'absent'}: No such file or directory)"
