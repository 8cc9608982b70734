"""From `kubectl apply` to this machine's kernel and back, with every part real but the container around the agent."""

import re
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.lab import examples
from tests.lab.cluster import NAMESPACE
from tests.lab.controller import AGENT
from tests.lab.entries import Entry, inject_many
from tests.lab.host import Host, Writes, sysctls
from tests.lab.operator import NODE, Operator
from tests.lab.programs import wait_until

pytestmark = pytest.mark.tunes_this_machine

WEB, TIMEOUTS = examples.FOLDER / "web.yaml", examples.FOLDER / "timeouts.yaml"
STALL_SECONDS = 10
"""What a machine that stands still meanwhile may add to what is promised."""
SECONDS_TO_KERNEL = 5 + STALL_SECONDS
SECONDS_TO_READY = 30 + STALL_SECONDS
STARTS = 50
QUICK = {"timeoutSeconds": 20, "soakSeconds": 0}


def example(path: Path) -> dict[str, Any]:
    """Return the policy of an example."""
    document = yaml.safe_load(path.read_text())
    assert isinstance(document, dict)
    return document


def ports_of(policy: dict[str, Any]) -> set[str]:
    """Return the ports of a policy's rules, as written."""
    return {str(port) for rule in policy["spec"]["notrack"]["rules"] for port in rule["ports"]}


def timeouts_of(policy: dict[str, Any]) -> dict[str, int]:
    """Return the sysctls a policy's timeouts mean, with their seconds: worked out here, not by the package."""
    found = {}
    for protocol, value in policy["spec"]["timeouts"].items():
        for state, wanted in value.items() if isinstance(value, dict) else [("", value)]:
            name = re.sub("[A-Z]", lambda capital: f"_{capital[0].lower()}", state)
            name = "" if name in {"", "unreplied"} else f"_{name}"
            found[f"nf_conntrack_{protocol}_timeout{name}"] = seconds_in(wanted)
    return found


def seconds_in(text: str | int) -> int:
    """Return the seconds of 90s, 2m, 1h30m or of a bare number."""
    if isinstance(text, int):
        return text
    return sum(int(number) * {"h": 3600, "m": 60, "s": 1}[unit] for number, unit in re.findall(r"(\d+)([hms])", text))


def table_of(text: str) -> dict[str, str]:
    """Return the first row kubectl printed, by column."""
    head, row = text.splitlines()[:2]
    starts = [match.start() for match in re.finditer(r"\S+", head)]
    ends = [*starts[1:], None]
    return {head[start:end].strip(): row[start:end].strip() for start, end in zip(starts, ends, strict=True)}


def size_of(host: Host) -> tuple[int, int]:
    """Return entries and buckets this machine's table may hold."""
    return host.value("nf_conntrack_max"), host.value("nf_conntrack_buckets")


@pytest.fixture
def entries(host: Host) -> Iterator[int]:
    """Fill this machine's table with entries of nobody's traffic, to some percent of 2 % of RAM."""
    memory = int(re.search(r"MemTotal:\s+(\d+) kB", Path("/proc/meminfo").read_text())[1]) * 1024  # type: ignore[index]
    entry = Entry("198.18.0.0", "198.19.255.1", destination_port=9, timeout_seconds=900)  # RFC 2544: benchmarks only
    number = min(memory // 50 // 264 * 6 // 100, 100_000)
    inject_many(host, entry, number)
    try:
        yield number
    finally:
        host.run("conntrack", "-D", "-d", entry.destination, check=False)


def test_web_example_reaches_the_kernel_is_reported_and_goes_without_trace(
    operator: Operator, host: Host, entries: int
) -> None:
    """Apply the first example: size and rules within seconds, true numbers in kubectl. Delete it: nothing is left."""
    cluster, policy = operator.cluster, example(WEB)
    name = policy["metadata"]["name"]
    before = sysctls()

    began = time.monotonic()
    cluster.kubectl("apply", "-f", str(WEB))
    wait_until(
        lambda: (host.table() or "").count("notrack") and size_of(host)[0] != before["nf_conntrack_max"],
        SECONDS_TO_KERNEL - (time.monotonic() - began), "new nf_conntrack_max and NOTRACK rules in the kernel", 0.02,
    )  # fmt: skip
    took = time.monotonic() - began
    print(f"kubectl apply to kernel: {took:.2f} s")
    assert took < SECONDS_TO_KERNEL

    maximum, buckets = size_of(host)
    per_bucket = policy["spec"]["table"].get("entriesPerBucket", 1)
    assert maximum > before["nf_conntrack_max"]
    assert 0 <= buckets - maximum / per_bucket < 512  # the kernel rounds up to a page of buckets
    table = host.table() or ""
    assert ports_of(policy) <= set(re.findall(r"\d+(?:-\d+)?", table))
    assert {"prerouting", "output"} <= set(re.findall(r"hook (\w+)", table))
    untouched = set(before) - {"nf_conntrack_max", "nf_conntrack_buckets"}
    assert {key: sysctls()[key] for key in untouched} == {key: before[key] for key in untouched}

    operator.wait_ready(name)
    # By the default rollout: a canary that is the only node has nobody to soak for.
    print(f"kubectl apply to Ready: {time.monotonic() - began:.2f} s")
    assert time.monotonic() - began < SECONDS_TO_READY
    count = host.value("nf_conntrack_count")
    assert count >= entries
    shown = table_of(cluster.kubectl("get", "ctp", name).stdout)
    assert (shown["NODES"], shown["CURRENT"], shown["READY"]) == ("1", "1", "True")
    percent = count * 100 // maximum
    assert abs(int(shown["PEAK%"]) - percent) <= 1 <= percent
    assert shown["HOTTEST"] == NODE
    node = table_of(cluster.kubectl("get", "nct").stdout)
    assert node["NAME"] == NODE
    assert node["PHASE"] == "Current"
    assert int(node["MAX"]) == maximum
    assert abs(int(node["ENTRIES"]) - count) <= count // 100
    assert cluster.get("daemonset", AGENT, "-n", NAMESPACE)

    cluster.kubectl("delete", "-f", str(WEB), "--timeout=90s")
    cluster.kubectl("delete", "ctp", "elsewhere", "--timeout=90s")
    wait_until(lambda: operator.node() is None, 90, "the NodeConntrack goes")
    assert host.table() is None
    assert sysctls() == before
    wait_until(lambda: cluster.get("daemonset", AGENT, "-n", NAMESPACE) is None, 90, "the DaemonSet goes")
    assert not cluster.items("conntrackpolicies")


def test_timeouts_example_reaches_the_kernel_and_goes(operator: Operator, host: Host) -> None:
    """Every timeout of the example is in the kernel within seconds, no other key changes, and all come back."""
    before, wanted = sysctls(), timeouts_of(example(TIMEOUTS))
    assert any(before[key] != value for key, value in wanted.items()), "the example would change nothing here"
    began = time.monotonic()
    operator.cluster.kubectl("apply", "-f", str(TIMEOUTS))
    wait_until(
        lambda: {key: host.value(key) for key in wanted} == wanted,
        SECONDS_TO_KERNEL - (time.monotonic() - began), f"timeouts {wanted}", 0.02,
    )  # fmt: skip
    others = set(before) - set(wanted)
    assert {key: sysctls()[key] for key in others} == {key: before[key] for key in others}
    operator.wait_ready(example(TIMEOUTS)["metadata"]["name"])
    operator.withdraw()
    assert sysctls() == before


@pytest.mark.parametrize("first", ["higher", "lower"])
def test_of_two_policies_the_loser_names_field_winner_and_node(operator: Operator, host: Host, first: str) -> None:
    """Whichever comes first, the higher priority sizes the table; the other keeps the rest and says Conflicted."""
    base = host.value("nf_conntrack_max")
    policies = {
        "higher": {"priority": 50, "table": {"size": {"maxEntries": base + 70_000}}},
        "lower": {"table": {"size": {"maxEntries": base + 10_000}}, "timeouts": {"icmp": "17s"}},
    }
    second = "lower" if first == "higher" else "higher"
    for name in (first, second):
        operator.apply(name, trial=QUICK, **policies[name])
        operator.wait_ready(name)
    wait_until(lambda: host.value("nf_conntrack_max") == base + 70_000, 90, "the higher priority sizes the table")
    wait_until(lambda: host.value("nf_conntrack_icmp_timeout") == 17, 90, "the lower priority's timeout is kept")
    wait_until(lambda: operator.condition("lower", "Conflicted").get("status") == "True", 90, "lower is Conflicted")
    message = operator.condition("lower", "Conflicted")["message"]
    assert all(part in message for part in ("table.size", "higher", NODE)), message
    assert operator.condition("higher", "Conflicted").get("status") != "True"


def test_an_agent_started_again_and_again_writes_nothing(operator: Operator, host: Host) -> None:
    """Fifty starts against an unchanged object: no write to a sysctl, to nftables, to the API, or to the state."""
    operator.cluster.kubectl("apply", "-f", str(WEB))
    operator.wait_ready(example(WEB)["metadata"]["name"])
    operator.agent.stop()
    node = operator.node()
    assert node
    state = {path.name: path.stat().st_mtime_ns for path in operator.state.iterdir()}
    acted = operator.acts()
    with Writes() as writes:
        (Path("/proc/sys/net/netfilter/nf_conntrack_acct")).write_text(f"{host.value('nf_conntrack_acct')}\n")
        wait_until(lambda: writes.seen() == ["nf_conntrack_acct"], 30, "the test sees a write of its own")
        for number in range(1, STARTS + 1):
            operator.agent.start()
            # Bound now: each start waits for its own line in the log.
            has_acted = partial(operator.has_acted, acted + number)
            operator.agent.wait_until(has_acted, 60, f"start {number}: the agent has acted on its object")
            assert operator.agent.stop(seconds=60) == 0
        assert writes.seen() == []
    after = operator.node()
    assert after
    assert after["metadata"]["resourceVersion"] == node["metadata"]["resourceVersion"]
    assert {path.name: path.stat().st_mtime_ns for path in operator.state.iterdir()} == state


def test_explain_reads_like_documentation(operator: Operator) -> None:
    """`kubectl explain` describes the field and each of its keys in words."""
    text = operator.cluster.kubectl("explain", "ctp.spec.table.size").stdout
    assert "no description" not in text
    assert {"maxEntries", "perCore", "memory", "kernelFormula"} <= set(re.findall(r"^  (\w+)\t", text, re.MULTILINE))
    assert "Exactly one" in text
