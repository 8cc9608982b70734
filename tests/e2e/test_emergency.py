"""A controller that is killed and stays dead: nodes keep what they have, and docs/uninstall.md says how to get it back.

The commands are those of the page, word for word but for what a reader puts in too.
"""

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.lab import kube
from tests.lab.cluster import Cluster
from tests.lab.namespaces import missing
from tests.lab.operator import AGENT, NAMESPACE, Operator, in_namespace, start_in_namespace
from tests.lab.pages import block
from tests.lab.programs import wait_until

from conntrack_operator.controller.daemonset import agent_documents

STATE = "/var/lib/conntrack-operator"
IMAGE = "registry.example/conntrack-operator:test"
NODE = "orphan"
TIMEOUTS = {"nf_conntrack_icmp_timeout": 17, "nf_conntrack_tcp_timeout_established": 7200}
POLICY: dict[str, Any] = {
    "timeouts": {"icmp": "17s", "tcp": {"established": "2h"}},
    "notrack": {"rules": [{"name": "web", "ports": [9000]}]},
    "trial": {"timeoutSeconds": 20, "soakSeconds": 0},
}
FIREWALL = """
table inet wall {
  chain input {
    type filter hook input priority filter; policy drop;
    ct state established,related accept
    tcp dport 9000 accept
  }
  chain output {
    type filter hook output priority filter; policy drop;
    ct state established,related accept
    tcp dport 6443 accept
  }
}
"""
"""It lets answers out by their state alone, so that the rule needs an accept of ours in there."""


def commands(heading: str, number: int = 0) -> str:
    """Return one block of commands from below a heading of the page."""
    return block("uninstall.md", heading, number)


def person(operator: Operator, text: str) -> str:
    """Run commands as somebody with kubectl would, the node's and the image's name put in; return what they print."""
    tools = Path(kube.kubectl()).parent
    script = f"export KUBECONFIG='{operator.cluster.kubeconfig}' PATH='{tools}':\"$PATH\" NO_PROXY=127.0.0.1\n"
    text = text.replace("NODE", NODE).replace("IMAGE", IMAGE)
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script + text], capture_output=True, text=True, check=False, timeout=150
    )
    assert done.returncode == 0, f"{text}\n{done.stdout}{done.stderr}"
    return done.stdout


def values(operator: Operator) -> dict[str, int]:
    """Return the sysctls the policy is about, as they are on the node."""
    return {name: int(operator.host.sysctl(f"net.netfilter.{name}")) for name in TIMEOUTS}


def rules(operator: Operator) -> str:
    """Return all nftables rules of the node."""
    return operator.host.run("nft", "list", "ruleset").stdout


Tuned = tuple[Operator, dict[str, int]]


@pytest.fixture(scope="module")
def orphan(cluster: Cluster, crds: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tuned]:
    """Give an operator with a policy in force, whose controller has been killed, and how the node was before."""
    del crds
    if reason := missing():
        pytest.skip(reason)
    with in_namespace(cluster, tmp_path_factory.mktemp("operator"), NODE) as operator:
        operator.host.nft(FIREWALL)
        before = values(operator)
        assert not set(before.items()) & set(TIMEOUTS.items())
        start_in_namespace(operator)
        operator.apply("web", **POLICY)
        operator.wait_ready("web", 60)
        operator.controller.send(signal.SIGKILL)
        operator.controller.stop()
        yield operator, before


@pytest.fixture
def tuned(orphan: Tuned) -> Tuned:
    """Have the policy in force on the node, with an agent at work there and no controller."""
    operator, before = orphan
    if not operator.agent.running:
        operator.agent.start()
    # What the controller once wrote, again: there is none to do it.
    operator.cluster.kubectl("patch", "nodeconntrack", NODE, "--type=merge", "-p", '{"spec":{"mode":"Apply"}}')
    wait_until((operator.state / "confirmed.json").exists, 60, "the policy is confirmed on the node")
    assert values(operator) == TIMEOUTS
    assert "jump conntrack_operator_output_replies" in rules(operator)
    assert not operator.controller.running
    return operator, before


def test_settings_and_agent_stay(tuned: Tuned) -> None:
    """Without a controller the agent goes on putting right what somebody changes, and deleted policies undo nothing."""
    operator, _ = tuned
    operator.cluster.kubectl("delete", "conntrackpolicies", "--all")
    operator.host.sysctl("net.netfilter.nf_conntrack_icmp_timeout", 99)
    operator.host.run("nft", "delete", "table", "inet", "conntrack_operator")
    wait_until(lambda: values(operator) == TIMEOUTS, 60, "the timeout is put right")
    wait_until(lambda: "table inet conntrack_operator" in rules(operator), 60, "the rules are put right")


def test_by_hand(tuned: Tuned) -> None:
    """With nft, sysctl and the journal alone; an agent that comes later brings nothing back."""
    operator, before = tuned
    operator.agent.send(signal.SIGKILL)
    operator.agent.stop()
    text = commands("Nothing of ours runs").replace(STATE, str(operator.state))
    operator.host.run("bash", "-euo", "pipefail", "-c", text)
    assert values(operator) == before
    assert "table inet conntrack_operator {" not in rules(operator)
    # What the page says may stay, and goes with restore.
    assert "conntrack_operator_output" in rules(operator)
    assert restore(operator, operator.state).returncode == 0
    assert "conntrack_operator" not in rules(operator)
    assert values(operator) == before


def restore(operator: Operator, state: object) -> "subprocess.CompletedProcess[str]":
    """Run the restore command on the node."""
    program = (sys.executable, "-m", "conntrack_operator", "restore", "--state-dir", str(state))
    return operator.host.run(*program, check=False)


def test_by_a_pod(tuned: Tuned) -> None:
    """The page's pod is taken by the API server, may do what an agent may, and its command gives the node back."""
    operator, before = tuned
    pod = yaml.safe_load(commands("The agent is gone").replace("NODE", NODE).replace("IMAGE", IMAGE))
    operator.cluster.kubectl("create", "--dry-run=server", "--warnings-as-errors", "-f", "-", input=pod)
    agents = agent_documents(NAMESPACE, IMAGE)[-1]["spec"]["template"]["spec"]
    (ours,), (theirs,) = pod["spec"]["containers"], agents["containers"]
    assert {**ours["securityContext"], "privileged": False} == theirs["securityContext"]
    assert ours["volumeMounts"] == theirs["volumeMounts"]
    arguments = [str(operator.state) if each == STATE else each.replace("/host/proc", "/proc") for each in ours["args"]]
    program = (sys.executable, "-m", "conntrack_operator", *arguments)
    operator.agent.send(signal.SIGKILL)
    operator.agent.stop()
    operator.host.run(*program)
    assert values(operator) == before
    assert "conntrack_operator" not in rules(operator)


def test_by_kubectl_debug(tuned: Tuned) -> None:
    """The page's kubectl debug makes a privileged pod of root with the host's files."""
    operator, _ = tuned
    person(operator, commands("The agent is gone", 1).replace(" -it ", " --attach=false "))
    (pod,) = operator.cluster.items("pods", "-n", "default")
    operator.cluster.kubectl("delete", "pod", pod["metadata"]["name"], "--grace-period=0", "--force")
    (container,) = pod["spec"]["containers"]
    assert container["securityContext"] == {"privileged": True, "runAsUser": 0}
    assert {"mountPath": "/host", "name": "host-root"} in container["volumeMounts"]
    assert container["command"][-2:] == ["--state-dir", f"/host{STATE}"]
    assert (pod["spec"]["nodeName"], pod["spec"]["hostNetwork"]) == (NODE, True)


def test_by_the_agent(tuned: Tuned) -> None:
    """Asked through its object the agent gives the node back; then the rest can go, and nothing is left in the API."""
    operator, before = tuned
    person(operator, commands("The agent is alive"))
    assert values(operator) == before
    assert "conntrack_operator" not in rules(operator)
    person(operator, commands("The agent is alive", 1))
    person(operator, commands("The agent is alive", 2))
    cluster = operator.cluster
    assert cluster.items("conntrackpolicies") == cluster.items("nodeconntracks") == []
    for kind in ("daemonset", "serviceaccount"):
        assert cluster.get(kind, AGENT, "-n", NAMESPACE) is None
    for kind in ("clusterrole", "clusterrolebinding"):
        assert cluster.get(kind, AGENT) is None
    assert values(operator) == before
