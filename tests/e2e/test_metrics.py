"""A real Prometheus scrapes a real agent, in a namespace with traffic, and a real controller."""

import contextlib
import http.client
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import yaml
from tests.lab.cluster import Cluster
from tests.lab.entries import Entry, inject_many
from tests.lab.kube_proxy import Relay
from tests.lab.namespaces import missing
from tests.lab.operator import NEAR, Operator, in_namespace, start_in_namespace
from tests.lab.programs import Program, free_port, wait_until

FILES = Path(__file__).parents[2] / "charts" / "conntrack-operator" / "files"
DASHBOARD = json.loads((FILES / "dashboard.json").read_text())
QUERIES = {target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]}
METRICS_PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"
GROUPS = yaml.safe_load((FILES / "alerts.yaml").read_text())["groups"]
ALERTS = [rule["expr"] for group in GROUPS for rule in group["rules"]]
AGENT_PORT, PROMETHEUS_PORT = 9464, 9090
PATIENCE = 60
UDP = "net.netfilter.nf_conntrack_udp_timeout"


@dataclass
class Watched:
    """An operator at work on a node, and the Prometheus in that node's network that scrapes both halves."""

    operator: Operator
    controller_port: int
    sent: int = 0

    def get(self, port: int, path: str) -> tuple[int, str]:
        """Return status and body, asked in the node's network."""
        connection = http.client.HTTPConnection("127.0.0.1", port)
        connection.sock = self.operator.host.connect("127.0.0.1", port)
        connection.sock.settimeout(60)
        with contextlib.closing(connection):
            connection.request("GET", path)
            with connection.getresponse() as answer:
                return answer.status, answer.read().decode()

    def scrape(self, port: int) -> dict[str, float]:
        """Return every sample, by its name and labels."""
        status, text = self.get(port, "/metrics")
        assert status == 200, text
        samples = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
        return {key: float(value) for key, _, value in samples}

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Return what Prometheus answers."""
        expression = expression.replace("$__rate_interval", "1m")
        status, text = self.get(PROMETHEUS_PORT, f"/api/v1/query?query={quote(expression)}")
        assert status == 200, (expression, text)
        return list(json.loads(text)["data"]["result"])

    def fill(self) -> None:
        """Add entries to the node's table, always new ones."""
        self.sent += 1
        like = Entry(f"198.18.{self.sent}.0", f"198.19.{self.sent}.1", destination_port=9, timeout_seconds=600)
        inject_many(self.operator.host, like, 2_000)

    def is_ready(self) -> bool:
        """Tell whether Prometheus has scraped both halves at least twice."""
        try:
            if self.get(PROMETHEUS_PORT, "/-/ready")[0] != 200:
                return False
        except (OSError, http.client.HTTPException):
            return False
        return len(self.query('count_over_time(up{job="conntrack"}[1m]) >= 2 and up == 1')) == 2


@pytest.fixture(scope="module")
def watched(cluster: Cluster, crds: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """Give it with a policy in force, traffic that bypasses the table, entries in it, and a repair."""
    del crds
    reason = missing() or ("" if shutil.which("prometheus") else "prometheus is not installed")
    if reason:
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("metrics")
    with in_namespace(cluster, folder / "operator", "measured") as operator:
        controller_port = free_port()
        operator.controller.command.append(f"--metrics-address=127.0.0.1:{controller_port}")
        operator.agent.command.append(f"--metrics-address=127.0.0.1:{AGENT_PORT}")
        relay = Relay(operator.host, controller_port)
        prometheus = prometheus_in(operator, folder, controller_port)
        try:
            start_in_namespace(operator)
            prometheus.start()
            found = Watched(operator, controller_port)
            put_to_work(found)
            prometheus.wait_until(found.is_ready, 60, "Prometheus scrapes both")
            yield found
        finally:
            prometheus.stop()
            relay.close()


def prometheus_in(operator: Operator, folder: Path, controller_port: int) -> Program:
    """Return a Prometheus that scrapes both halves every second."""
    targets = [f"127.0.0.1:{port}" for port in (AGENT_PORT, controller_port)]
    configuration = {
        "global": {"scrape_interval": "1s"},
        "scrape_configs": [{"job_name": "conntrack", "static_configs": [{"targets": targets}]}],
    }
    (folder / "prometheus.yaml").write_text(json.dumps(configuration))
    command = [
        "prometheus", f"--config.file={folder / 'prometheus.yaml'}", f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{PROMETHEUS_PORT}",
    ]  # fmt: skip
    return Program("prometheus", command, folder / "prometheus.log", inside=operator.host.inside)


def put_to_work(found: Watched) -> None:
    """Have a policy in force, and everything happen that is counted."""
    operator = found.operator
    operator.apply(
        "measured",
        notrack={"rules": [{"name": "web", "ports": [80]}]},
        timeouts={"udp": {"unreplied": "20s"}},
        trial={"timeoutSeconds": 20, "soakSeconds": 0},
        rollout={"soakSeconds": 0},
    )
    operator.agent.wait_until(lambda: operator.host.sysctl(UDP) == "20", 60, "the policy is in force")
    operator.wait_ready("measured", 60)
    assert operator.neighbour
    with operator.host.listen(NEAR, 80) as server:
        for _ in range(20):
            with operator.neighbour.connect(NEAR, 80) as client:
                client.sendall(b"hello")
                server.accept()[0].close()
    operator.host.sysctl(UDP, 77)
    operator.agent.wait_until(lambda: operator.host.sysctl(UDP) == "20", 30, "the agent puts it right")


def test_both_halves_are_live_and_ready(watched: Watched) -> None:
    """And answer nothing else."""
    for port in (AGENT_PORT, watched.controller_port):
        for page, status in (("/healthz", 200), ("/readyz", 200), ("/", 404)):
            assert watched.get(port, page)[0] == status


def test_the_agent_tells_what_happened(watched: Watched) -> None:
    """The numbers are those of the kernel, the trial and the repair that were made here."""
    watched.fill()
    name = "conntrack_operator_{}".format
    wait_until(lambda: watched.scrape(AGENT_PORT)[name("entries")] >= 2_000, PATIENCE, "the entries are seen")
    wait_until(
        lambda: any(each.startswith(name("repairs_total")) for each in watched.scrape(AGENT_PORT)),
        PATIENCE, "the repair is counted",
    )  # fmt: skip
    found = watched.scrape(AGENT_PORT)
    assert found[name("used_ratio")] == found[name("entries")] / found[name("entries_limit")]
    assert found[name("buckets")] == int(watched.operator.host.sysctl("net.netfilter.nf_conntrack_buckets"))
    assert found[name("dropped_packets_total")] == 0
    assert found[name('trials_total{outcome="confirmed"}')] == 1
    assert found[name('trials_total{outcome="rolled_back"}')] == 0
    assert found[name('phase{phase="Current"}')] == 1
    assert sum(value for key, value in found.items() if key.startswith(name("phase{"))) == 1
    repairs = {key: value for key, value in found.items() if key.startswith(name("repairs_total"))}
    assert list(repairs.values()) == [1]
    assert f'setting="{UDP}"' in next(iter(repairs))
    assert found[name('bypassed_packets_total{rule="tcp/server"}')] >= 20 * 6
    assert found[name('bypassed_bytes_total{rule="tcp/server"}')] >= 20 * 6 * 40
    assert found[name('report_writes_total{result="success"}')] >= 2
    assert time.time() - 900 < found[name("last_report_timestamp_seconds")] <= time.time()


def test_the_controller_tells_what_happened(watched: Watched) -> None:
    """One leader; the node is current, the rollout done."""
    name = "conntrack_operator_{}".format
    done = name('rollout_stage{policy="measured",stage="Done"}')
    ready = name('policy_condition{policy="measured",condition="Ready"}')
    # It tells of the status that its watch has brought back to it.
    for each in (done, ready):
        wait_until(lambda each=each: watched.scrape(watched.controller_port).get(each) == 1, PATIENCE, "it is told")
    found = watched.scrape(watched.controller_port)
    assert found[name("leader")] == 1
    assert found[name('nodes{policy="measured",state="current"}')] == 1
    assert found[name('policy_condition{policy="measured",condition="Ready"}')] == 1
    assert found[name('api_writes_total{resource="nodeconntracks",verb="post",result="success"}')] == 1
    assert found[name("full_lists_total")] >= 1
    assert found[name('reconcile_duration_seconds_count{work="node"}')] >= 2


@pytest.mark.parametrize("half", ["agent", "controller"])
def test_it_is_as_prometheus_wants_it(watched: Watched, half: str) -> None:
    """promtool objects to nothing; no address and no node is in any label."""
    text = watched.get(AGENT_PORT if half == "agent" else watched.controller_port, "/metrics")[1]
    done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    assert not re.search(r"\d+\.\d+\.\d+\.\d+", text)
    named = set(re.findall(r"`(\w+)`", METRICS_PAGE.read_text()))
    found = set(re.findall(r"# TYPE (\w+)", text))
    assert {name.removeprefix("conntrack_operator_") for name in found} <= named
    assert watched.operator.name not in re.sub(r'policy="\w+"', "", text)


def test_a_port_in_use_is_one_sentence(watched: Watched, tmp_path: Path) -> None:
    """A second agent that is to answer at the same place says so and ends."""
    command = [
        sys.executable, "-m", "conntrack_operator", "agent", "--node=other", f"--state-dir={tmp_path}",
        f"--metrics-address=127.0.0.1:{AGENT_PORT}",
    ]  # fmt: skip
    with watched.operator.host.inside():
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == (
        f"conntrack-operator: --metrics-address: nothing can listen at 127.0.0.1:{AGENT_PORT} (Address already in use);"
        " name an address of this machine and a port that nobody has\n"
    )


def test_every_query_of_the_dashboard_finds_something(watched: Watched) -> None:
    """With a table that fills: otherwise nothing is said of the time it takes."""
    empty: list[str] = []

    def all_find_something() -> bool:
        watched.fill()
        empty[:] = [query for query in sorted(QUERIES) if not watched.query(query)]
        return not empty

    with contextlib.suppress(TimeoutError):
        wait_until(all_find_something, PATIENCE, "every query finds something", every=1)
    assert empty == []


def test_no_alert_fires_while_all_is_well(watched: Watched) -> None:
    """But that of a table which is being filled: each expression is asked of what is really scraped.

    For a moment one may: a scrape in vain is none yet, since alerts about such things wait for minutes.
    """
    firing: list[str] = []

    def none_fires() -> bool:
        firing[:] = [each for each in ALERTS if "time_to_full" not in each and watched.query(each)]
        return not firing

    with contextlib.suppress(TimeoutError):
        wait_until(none_fires, PATIENCE, "no alert fires", every=1)
    assert firing == []
