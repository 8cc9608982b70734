"""The agent on this machine: memory, imports, and the time from a changed spec to the kernel.

Everything is real: an API server, the agent as a process, this machine's kernel (a timeout is changed and put back).
Goals: 45 MB resident with metrics served and scraped, 1 s from spec to kernel (99th percentile), 50 ms for the apply
step itself.
"""

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from tests.lab.cluster import Cluster
from tests.lab.host import Host
from tests.lab.programs import Program, free_port

CHANGES = 200
PORT = free_port()
SCRAPE = f"http://127.0.0.1:{PORT}/metrics"
NODE = "bench"
KEY = "nf_conntrack_tcp_timeout_time_wait"
ROOT = Path(__file__).parents[2]
IMPORTS = (
    "import sys; before = len(sys.modules); import conntrack_operator.agent.run, conntrack_operator.cluster.own_node;"
    "print(len(sys.modules) - before)"
)


def spec(seconds: int) -> dict[str, object]:
    """Return what the controller would write to have this timeout."""
    return {
        "revision": f"r{seconds}",
        "mode": "Apply",
        "nodeUID": "bench",
        "policies": [],
        "settings": {
            "timeouts": {"tcp": {"timeWait": seconds}},
            "notrack": {"rules": [{"name": "web", "ports": [80]}]},
        },
    }


def write(cluster: Cluster, seconds: int) -> None:
    """Change the node's object by one request of a warm client, as the controller does."""
    cluster.kubectl(
        "patch", "nct", NODE, "--type=merge", "-p", json.dumps({"spec": spec(seconds)}), "--request-timeout=5s"
    )


def memory(pid: int) -> dict[str, int]:
    """Return resident and proportional memory of a process, in KiB."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return {name: int(re.search(rf"^{name}:\s+(\d+)", text, re.MULTILINE)[1]) for name in ("Rss", "Pss")}  # type: ignore[index]


def quantile(values: list[float], share: float) -> float:
    """Return the value that `share` of the values are at most."""
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def measure(cluster: Cluster, host: Host, agent: Program) -> None:
    """Change the spec again and again; print times and memory."""
    times, scrapes = [], []
    for number in range(CHANGES):
        seconds = 31 + number % 40
        # kubectl takes longer than the agent: the clock starts when the API server has the change.
        write(cluster, seconds)
        began = time.perf_counter()
        while host.value(KEY) != seconds:
            time.sleep(0.0005)
            if time.perf_counter() - began > 10:
                raise TimeoutError(agent.tail())
        times.append((time.perf_counter() - began) * 1000)
        began = time.perf_counter()
        with urllib.request.urlopen(SCRAPE, timeout=10) as answer:
            answer.read()
        scrapes.append((time.perf_counter() - began) * 1000)
        if number == CHANGES // 10:
            early = memory(agent.process.pid)  # type: ignore[union-attr]
    late = memory(agent.process.pid)  # type: ignore[union-attr]
    steps = [float(found) for found in re.findall(r"changes in (\d+) ms", agent.log.read_text())][1:]
    print(
        f"spec in the API server -> kernel, {CHANGES} changes: median {statistics.median(times):.0f} ms,"
        f" p99 {quantile(times, 0.99):.0f} ms (goal 1000)"
    )
    print(
        f"apply step (facts, plan, journal, writes, read back): median {statistics.median(steps):.0f} ms,"
        f" p99 {quantile(steps, 0.99):.0f} ms (goal 50)"
    )
    print(f"a scrape: median {statistics.median(scrapes):.1f} ms, p99 {quantile(scrapes, 0.99):.1f} ms")
    print(
        f"memory: {late['Rss'] / 1024:.1f} MB resident (goal 45), {late['Pss'] / 1024:.1f} MB proportional;"
        f" after the first tenth {early['Rss'] / 1024:.1f} MB"
    )


def image_environment(folder: str) -> dict[str, str]:
    """Return the environment for programs whose modules were compiled before, as in the image.

    Compiling takes memory that is not given back.
    """
    environment = os.environ | {"PYTHONPYCACHEPREFIX": f"{folder}/compiled"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    return environment


def main() -> None:
    """Print one line for each goal."""
    with tempfile.TemporaryDirectory() as folder, Host() as host:
        environment = image_environment(folder)
        count = subprocess.run(
            [sys.executable, "-c", IMPORTS], capture_output=True, text=True, check=True, env=environment
        )
        print(f"agent imports: {count.stdout.strip()} modules beyond the interpreter's own")
        cluster = Cluster(Path(folder) / "cluster", lambda line: print(line, file=sys.stderr))
        agent = Program(
            "agent",
            [sys.executable, "-m", "conntrack_operator", "agent", f"--node={NODE}",
             f"--kubeconfig={cluster.kubeconfig}", f"--state-dir={folder}/state",
             f"--metrics-address=127.0.0.1:{PORT}"],
            Path(folder) / "agent.log",
            environment,
        )  # fmt: skip
        try:
            (Path(folder) / "cluster").mkdir(exist_ok=True)
            cluster.start()
            cluster.apply_crds(ROOT / "crds")
            cluster.kubectl("apply", "-f", "-", input={
                "apiVersion": "conntrack-operator.io/v1alpha1", "kind": "NodeConntrack", "metadata": {"name": NODE},
                "spec": spec(30),
            })  # fmt: skip
            agent.start()
            agent.wait_until(lambda: host.value(KEY) == 30, 20, "the agent is at work")
            measure(cluster, host, agent)
        finally:
            agent.stop()
            cluster.stop()


if __name__ == "__main__":
    main()
