"""The controller over 200 simulated nodes: time from a policy's edit to 200 specs written, and its memory.

Beside it what the plainest program would do, on the same API server with the same agents at work: a process that lists
the objects with the official client and patches them one after another. Goals: not slower than that, 150 MB resident.
The agents run in processes of their own: two hundred in one are so slow to shake hands that the API server hangs up.
"""

import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from http.client import HTTPSConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.lab.cluster import Cluster
from tests.lab.controller import Controller
from tests.lab.fleet import NODE_CONNTRACKS, ROLE
from tests.lab.fleet_apart import fleet_apart
from tests.lab.policies import AT_ONCE, policy
from tests.lab.programs import wait_until

from conntrack_operator.cluster.access import Access, access_for

NODES, PROCESSES = 200, 4
EDITS = 3
ROOT = Path(__file__).parents[2]


def apply(cluster: Cluster, icmp: int) -> None:
    """Apply the policy with this timeout, for all nodes at once."""
    cluster.apply(policy("all", {"role": ROLE}, timeouts={"icmp": icmp}, rollout=AT_ONCE))


def settled(cluster: Cluster, icmp: int) -> bool:
    """Tell whether all nodes have this timeout, and have said so."""
    found = cluster.items("nodeconntracks")
    return len(found) == NODES and all(_has_settled(each, icmp) for each in found)


def _has_settled(found: dict[str, Any], icmp: int) -> bool:
    spec, status = found["spec"], found.get("status", {})
    wanted = spec.get("settings", {}).get("timeouts", {}).get("icmp") == icmp
    return wanted and (status.get("observedRevision"), status.get("phase")) == (spec["revision"], "Current")


def changes(access: Access, version: str) -> Generator[dict[str, Any]]:
    """Yield every NodeConntrack that changes after `version`."""
    server = urlsplit(access.server)
    connection = HTTPSConnection(server.hostname or "", server.port, timeout=120, context=access.tls)
    try:
        path = f"{NODE_CONNTRACKS}?watch=1&resourceVersion={version}"
        connection.request("GET", path, headers=access.headers())
        response = connection.getresponse()
        while line := response.readline():
            yield json.loads(line)["object"]
    finally:
        connection.close()


def seconds_to_all(access: Access, cluster: Cluster, icmp: int) -> tuple[float, float]:
    """Edit the policy; return the seconds until the first and the last spec was written."""
    version = cluster.api.request("GET", NODE_CONNTRACKS)["metadata"]["resourceVersion"]
    told: dict[str, float] = {}
    with contextlib.closing(changes(access, version)) as stream:
        began = time.perf_counter()
        apply(cluster, icmp)
        for item in stream:
            if item["spec"]["settings"].get("timeouts", {}).get("icmp") == icmp:
                told.setdefault(item["metadata"]["name"], time.perf_counter() - began)
                if len(told) == NODES:
                    break
    wait_until(lambda: settled(cluster, icmp), 60, "all nodes have it", every=0.5)
    return min(told.values()), max(told.values())


def plain(kubeconfig: str) -> None:
    """Patch every NodeConntrack's spec, one after another; print seconds and resident KiB."""
    from kubernetes import client, config  # noqa: PLC0415 - this process alone needs it

    config.load_kube_config(kubeconfig)
    api, kind = client.CustomObjectsApi(), ("conntrack-operator.io", "v1alpha1", "nodeconntracks")
    taken = []

    def has_settled(revision: str) -> bool:
        said = (item.get("status", {}) for item in api.list_cluster_custom_object(*kind)["items"])
        return all((each.get("observedRevision"), each.get("phase")) == (revision, "Current") for each in said)

    for number in range(EDITS):
        # Agents act on these as on the controller's.
        body = {"spec": {"revision": f"plain-{number}", "settings": {"timeouts": {"icmp": 61 + number}}}}
        began = time.perf_counter()
        for item in api.list_cluster_custom_object(*kind)["items"]:
            api.patch_cluster_custom_object(*kind, item["metadata"]["name"], body)
        taken.append(time.perf_counter() - began)
        wait_until(lambda number=number: has_settled(f"plain-{number}"), 120, "all nodes have it", every=0.5)
    text = Path("/proc/self/status").read_text()
    memory = int(next(line for line in text.splitlines() if line.startswith("VmRSS:")).split()[1])
    print(json.dumps({"seconds": taken, "memory": memory}))


def measure(cluster: Cluster, controller: Controller) -> None:
    """Edit the policy again and again; print times and memory beside those of the plain client."""
    access = access_for(str(cluster.kubeconfig))
    idle = controller.memory()
    first, last = zip(*(seconds_to_all(access, cluster, 31 + number) for number in range(EDITS)), strict=True)
    busy = controller.memory()
    controller.stop()
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.bench_fleet", str(cluster.kubeconfig)],
        capture_output=True, text=True, check=True, cwd=ROOT,
    )  # fmt: skip
    other = json.loads(done.stdout)
    ours, theirs = statistics.median(last), statistics.median(other["seconds"])
    print(
        f"edit -> {NODES} specs written, {EDITS} edits: median {ours:.2f} s, worst {max(last):.2f} s,"
        f" the first after {statistics.median(first) * 1000:.0f} ms"
    )
    print(
        f"a plain sequential client: median {theirs:.2f} s for {NODES} patches; ours takes {ours / theirs:.2f} times"
        f" that; {NODES} agents act on both"
    )
    print(
        f"controller's memory: {busy / 1024:.0f} MB resident after {EDITS} edits, goal 150, {idle / 1024:.0f} before"
        f" them; the plain client's {other['memory'] / 1024:.0f} MB"
    )


def main() -> None:
    """Print one line for each goal."""
    if len(sys.argv) > 1:
        plain(sys.argv[1])
        return
    with tempfile.TemporaryDirectory() as folder:
        cluster = Cluster(Path(folder), lambda line: print(line, file=sys.stderr))
        try:
            cluster.start()
            cluster.apply_crds(ROOT / "crds")
            cluster.clear()
            controller = Controller(cluster, Path(folder))
            controller.start()
            try:
                with fleet_apart(cluster, controller.agents_kubeconfig(), Path(folder), NODES, PROCESSES):
                    apply(cluster, 30)
                    wait_until(lambda: settled(cluster, 30), 60, "all nodes have the policy", every=0.5)
                    measure(cluster, controller)
            finally:
                controller.stop()
        finally:
            cluster.stop()


if __name__ == "__main__":
    main()
