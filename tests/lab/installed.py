"""The operator as a user has it: installed by helm, steered by kubectl, its agent a pod on the node."""

import re
from pathlib import Path
from typing import Any

import yaml
from tests.lab.helm import CHART, ROOT, Helm
from tests.lab.place import Place
from tests.lab.programs import wait_until

NAMESPACE = "conntrack-system"
RELEASE = "conntrack-operator"
AGENT = "conntrack-operator-agent"
AGENTS = "app.kubernetes.io/component=agent"
CONTROLLERS = "app.kubernetes.io/component=controller"


class Installed:
    """The operator on a cluster of tests.lab.place."""

    def __init__(self, place: Place, helm: Helm) -> None:
        self.place, self.helm = place, helm

    def install(self, *values: str, chart: Path = CHART) -> None:
        """Install the chart and wait until its controller is Ready."""
        self.helm(
            "install", RELEASE, str(chart), f"--namespace={NAMESPACE}", "--create-namespace", "--wait",
            "--timeout=240s", *values,
        )  # fmt: skip

    def example(self, name: str) -> dict[str, Any]:
        """Return an example policy, without the table's size where the place lets nobody write it."""
        document: dict[str, Any] = yaml.safe_load((ROOT / "manifests" / "examples" / f"{name}.yaml").read_text())
        if not self.place.can_size:
            document["spec"].pop("table", None)
        return document

    def apply(self, document: dict[str, Any]) -> None:
        """Apply a policy."""
        self.place.kubectl("apply", "-f", "-", input=document)

    def wait_ready(self, policy: str, seconds: float = 120) -> float:
        """Wait until a policy is Ready in its present version; return the seconds it took."""

        def holds() -> bool:
            found = self.place.get("conntrackpolicy", policy) or {}
            wanted = found.get("metadata", {}).get("generation")
            return any(
                each["type"] == "Ready" and each["status"] == "True" and each.get("observedGeneration") == wanted
                for each in found.get("status", {}).get("conditions", [])
            )

        return wait_until(holds, seconds, f"policy {policy} is Ready", every=0.3)

    def status(self) -> dict[str, Any]:
        """Return what the node's agent reported last."""
        return dict((self.place.get("nodeconntrack", self.place.node_name) or {}).get("status") or {})

    def pods(self, selector: str = AGENTS) -> list[dict[str, Any]]:
        """Return the agents' pods, or the controllers', which are not being deleted."""
        found = self.place.items("pods", "-n", NAMESPACE, "-l", selector)
        return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]

    def agent(self) -> dict[str, Any]:
        """Return the pod of the one agent."""
        (pod,) = self.pods()
        return pod

    def wait_agent(self, seconds: float = 120, besides: str = "") -> dict[str, Any]:
        """Wait until the agent's pod is Ready and is not the one called `besides`; return it."""

        def ready() -> list[dict[str, Any]]:
            return [
                pod for pod in self.pods()
                if pod["metadata"]["name"] != besides and any(
                    each["type"] == "Ready" and each["status"] == "True" for each in pod["status"].get("conditions", [])
                )
            ]  # fmt: skip

        found: list[dict[str, Any]] = []

        def is_ready() -> bool:
            found[:] = ready()
            return bool(found)

        wait_until(is_ready, seconds, "an agent's pod is Ready", every=0.2)
        return found[0]  # as it was seen: at another look it may be Ready no more

    def sysctl(self, name: str) -> int:
        """Return a conntrack sysctl of the node, by its file's name."""
        return int(self.place.on_node("cat", f"/proc/sys/net/netfilter/{name}").stdout)

    def table(self) -> str | None:
        """Return our nftables table on the node, None when there is none."""
        done = self.place.on_node("nft", "list", "table", "inet", "conntrack_operator", check=False)
        return done.stdout if done.returncode == 0 else None

    def withdraw(self) -> None:
        """Delete every policy and wait until the node is given back."""
        self.place.kubectl("delete", "conntrackpolicies", "--all")
        wait_until(lambda: not self.place.items("nodeconntracks"), 120, "every node is given back", every=0.5)

    def left(self) -> list[str]:
        """Return every object with conntrack in its name but pods, Events, the namespace, and what the CRDs bring."""
        kinds = self.place.kubectl("api-resources", "--verbs=list", "-o", "name").stdout.split()
        others = ("events", "pods", "customresourcedefinitions", "apiservices", "namespaces")
        wanted = ",".join(each for each in kinds if not each.startswith(others))
        names = self.place.kubectl("get", wanted, "-A", "-o", "name").stdout.split()
        return [name for name in names if "conntrack" in name]

    def complaints(self, pod: str) -> list[str]:
        """Return what a pod has logged that is no mere information.

        That the API server gave no answer in time is not counted: on a busy machine it may stand still for seconds.
        """
        said = self.place.kubectl("logs", "-n", NAMESPACE, pod).stdout
        slow = re.compile("the API server does not answer.*timed out")
        return [line for line in said.splitlines() if " INFO " not in line and not slow.search(line)]
