"""The real kube-proxy on an agent's node, restarted with other conntrack flags: it is undone, named, and war ends."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.lab.cluster import Cluster
from tests.lab.kube_proxy import LEAVE_THE_TABLE, KubeProxy
from tests.lab.namespaces import missing
from tests.lab.operator import Operator, in_namespace, start_in_namespace
from tests.lab.programs import wait_until

REPAIR_SECONDS = 5 + 10
"""5 are promised (docs/beside.md); the others are for a machine that stands still meanwhile."""
PATIENCE = 60
PREFIX = "net.netfilter.nf_conntrack_tcp_timeout_"
ICMP = "net.netfilter.nf_conntrack_icmp_timeout"
WANTED = {"established": 21600, "close_wait": 90}


@pytest.fixture
def node(cluster: Cluster, crds: Path, tmp_path: Path) -> Iterator[Operator]:
    """Give an operator at work on a node in a namespace."""
    del crds
    if reason := missing():
        pytest.skip(reason)
    with in_namespace(cluster, tmp_path / "operator", "proxied") as operator:
        start_in_namespace(operator)
        yield operator


def flags(established: str, close_wait: str) -> tuple[str, ...]:
    """Return kube-proxy's flags for both timeouts."""
    return (
        *LEAVE_THE_TABLE,
        f"--conntrack-tcp-timeout-established={established}",
        f"--conntrack-tcp-timeout-close-wait={close_wait}",
    )


def timeouts(operator: Operator) -> dict[str, int]:
    """Return both timeouts as the kernel has them."""
    return {name: int(operator.host.sysctl(PREFIX + name)) for name in WANTED}


def said(operator: Operator, *words: str) -> list[str]:
    """Return the lines of the agent's log with all of `words`."""
    return [line for line in operator.agent.log.read_text().splitlines() if all(word in line for word in words)]


def result(operator: Operator, name: str) -> dict[str, Any]:
    """Return what the node reports of a timeout."""
    found = [each for each in operator.status().get("results", []) if each["setting"] == PREFIX + name]
    return found[0] if found else {}


def test_kube_proxy_is_restarted_with_other_flags(node: Operator, tmp_path: Path) -> None:
    """Its values last seconds and its key is named; the fourth time in an hour they stay, Contended, the rest holds.

    An agent that sees neither its process nor its flags, as in a pod, still names it, as far as its defaults go.
    """
    with KubeProxy(node.cluster, node.host, "proxied", flags=flags("24h", "1h")) as proxy:
        node.apply(
            "timeouts",
            timeouts={"tcp": {"established": WANTED["established"], "closeWait": WANTED["close_wait"]}, "icmp": 10},
            trial={"timeoutSeconds": 20, "soakSeconds": 0},
        )
        node.wait_ready("timeouts", 60)
        assert timeouts(node) == WANTED
        for turn in range(3):
            proxy.restart(flags(f"{turn + 2}h", "90s"))
            wait_until(lambda: timeouts(node) == WANTED, REPAIR_SECONDS, "our values are back", 0.05)
            wait_until(lambda turn=turn: len(said(node, "established was changed")) > turn, PATIENCE, "it is said")
        (line,) = said(node, "established was changed from 21600 to 7200")
        assert "likely by kube-proxy (conntrack.tcpEstablishedTimeout" in line
        wait_until(lambda: node.status().get("warnings"), PATIENCE, "the node's status says so too")
        (warning,) = (each for each in node.status()["warnings"] if each["setting"] == f"{PREFIX}established")
        assert warning["reason"] == "Repaired"
        assert "likely by kube-proxy (conntrack.tcpEstablishedTimeout" in warning["message"]

        proxy.restart(flags("9h", "90s"))
        wait_until(lambda: node.status().get("phase") == "Contended", PATIENCE, "the node says Contended")
        assert timeouts(node) == {"established": 32400, "close_wait": WANTED["close_wait"]}
        contended = result(node, "established")
        assert contended["reason"] == "Contended"
        assert "kube-proxy (conntrack.tcpEstablishedTimeout" in contended["message"]

        # From here on as in its pod: sysctls alone, neither processes nor the files they were started with.
        node.agent.stop()
        (tmp_path / "proc/sys").mkdir(parents=True)
        (tmp_path / "proc/sys/net").symlink_to("/proc/sys/net")
        node.agent.command.append(f"--proc-root={tmp_path / 'proc'}")
        node.agent.start()
        wait_until(lambda: timeouts(node) == WANTED, PATIENCE, "a new agent puts in force what is confirmed")
        proxy.restart(flags("24h", "1h30m"))
        wait_until(lambda: said(node, "established was changed from 21600 to 86400"), PATIENCE, "the value is seen")
        wait_until(lambda: said(node, "close_wait was changed from 90 to 5400"), PATIENCE, "the other one is seen too")
        (likely,) = said(node, "established was changed from 21600 to 86400")
        assert "likely by kube-proxy: its default is 86400 (conntrack.tcpEstablishedTimeout); set" in likely
        (perhaps,) = said(node, "close_wait was changed from 90 to 5400")
        assert "perhaps by kube-proxy: its rules are here, but its default is 3600" in perhaps
    node.host.sysctl(ICMP, 17)
    wait_until(lambda: said(node, "icmp_timeout was changed"), PATIENCE, "somebody else's change is seen")
    (unknown,) = said(node, "icmp_timeout was changed")
    assert "by somebody unknown: a pod sees neither the node's /etc nor its processes; on the node look" in unknown
