"""The text that Prometheus reads, judged by Prometheus' own tool where that is installed."""

import shutil
import subprocess

import pytest

from conntrack_operator.metrics.exposition import counters, exposition, gauge, one_of
from conntrack_operator.metrics.process import process_families
from conntrack_operator.metrics.tally import Counts, Durations


def families() -> str:
    """Return an exposition with one metric of each kind."""
    durations, counts = Durations((0.1, 1.0)), Counts([("a",)])
    for seconds in (0.05, 0.1, 0.5, 7.25):
        durations.observe("node", seconds)
    counts.add('say "hi"\\\n')
    return exposition(
        [
            gauge("used_ratio", "Used.", 0.25),
            gauge("unknown", "Never seen.", None),
            counters("trials", "Trials.", ("outcome",), counts.values()),
            one_of("phase", "Phase.", "phase", ("Current", "Trial"), "Trial"),
            durations.family("took_seconds", "Took.", "work"),
            *process_families("agent"),
        ]
    )


def test_every_kind_is_written() -> None:
    """Unknown values are left out, labels are escaped, buckets add up."""
    text = families()
    assert text.startswith(
        "# HELP conntrack_operator_used_ratio Used.\n# TYPE conntrack_operator_used_ratio gauge\n"
        "conntrack_operator_used_ratio 0.25\n"
        "# HELP conntrack_operator_trials_total Trials.\n# TYPE conntrack_operator_trials_total counter\n"
        'conntrack_operator_trials_total{outcome="a"} 0\n'
        'conntrack_operator_trials_total{outcome="say \\"hi\\"\\\\\\n"} 1\n'
    )
    assert 'conntrack_operator_phase{phase="Current"} 0\nconntrack_operator_phase{phase="Trial"} 1\n' in text
    assert (
        'conntrack_operator_took_seconds_bucket{work="node",le="0.1"} 2\n'
        'conntrack_operator_took_seconds_bucket{work="node",le="1.0"} 3\n'
        'conntrack_operator_took_seconds_bucket{work="node",le="+Inf"} 4\n'
        'conntrack_operator_took_seconds_sum{work="node"} 7.9\n'
        'conntrack_operator_took_seconds_count{work="node"} 4\n'
    ) in text
    assert "unknown" not in text


def test_the_process_is_described() -> None:
    """Memory and CPU are plausible."""
    found = {family.name: family.samples[0].value for family in process_families("agent")}
    assert 5e6 < found["process_resident_memory_bytes"] < 1e10
    assert found["process_cpu_seconds_total"] > 0
    assert found["process_threads"] >= 1


@pytest.mark.skipif(not shutil.which("promtool"), reason="promtool is not installed")
def test_promtool_finds_nothing_to_object_to() -> None:
    """`promtool check metrics` reads all of it."""
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=families(), capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
