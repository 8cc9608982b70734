"""Whose an address is: what objects say, and nothing that they do not."""

from typing import Any

import pytest

from conntrack_operator.cli.plugin.names import names_from
from conntrack_operator.cli.plugin.talkers import live_talkers, talkers_of


def pod(name: str, ip: str, *, owner: tuple[str, str] = ("", ""), template: str = "", **more: Any) -> dict[str, Any]:
    """Return a pod that runs."""
    owners = [{"kind": owner[0], "name": owner[1], "controller": True}] if owner[0] else []
    labels = {"pod-template-hash": template} if template else {}
    return {
        "metadata": {"namespace": "shop", "name": name, "ownerReferences": owners, "labels": labels},
        "spec": more.get("spec", {}),
        "status": {"phase": more.get("phase", "Running"), "podIP": ip, "podIPs": [{"ip": ip}, {"ip": "fd00::7"}]},
    }


NODE = {
    "metadata": {"name": "n1"},
    "spec": {"podCIDRs": ["10.244.1.0/24", "fd00:1::/64"]},
    "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}, {"type": "Hostname", "address": "n1"}]},
}


@pytest.mark.parametrize(
    ("owner", "template", "words"),
    [
        (("ReplicaSet", "web-5d8"), "5d8", "pod shop/p (Deployment web)"),
        (("ReplicaSet", "web-5d8"), "", "pod shop/p (ReplicaSet web-5d8)"),
        (("ReplicaSet", "web-5d8"), "other", "pod shop/p (ReplicaSet web-5d8)"),
        (("StatefulSet", "db"), "", "pod shop/p (StatefulSet db)"),
        (("", ""), "", "pod shop/p"),
    ],
)
def test_owners(owner: tuple[str, str], template: str, words: str) -> None:
    """A Deployment is named only where the ReplicaSet's name says that it is one's; both addresses of a pod count."""
    names = names_from([pod("p", "10.244.1.7", owner=owner, template=template)], [], [])
    assert names.of("10.244.1.7") == names.of("fd00::7") == words


def test_pods_that_have_no_address_of_their_own_give_none() -> None:
    """Host-network pods share the Node's; a finished pod's may be another's by now."""
    pods = [pod("h", "192.0.2.1", spec={"hostNetwork": True}), pod("done", "10.244.1.9", phase="Succeeded")]
    names = names_from(pods, [], [NODE])
    assert names.of("192.0.2.1") == "Node n1"
    assert names.of("10.244.1.9") == "no pod seen; in node n1's pod network"


def test_services_by_all_their_addresses() -> None:
    """ClusterIPs, external addresses and load balancers; a headless one has none."""
    service = {
        "metadata": {"namespace": "shop", "name": "web"},
        "spec": {"clusterIPs": ["10.96.0.9"], "externalIPs": ["198.51.100.1"]},
        "status": {"loadBalancer": {"ingress": [{"ip": "198.51.100.2"}, {"hostname": "x"}]}},
    }
    headless = {"metadata": {"namespace": "shop", "name": "h"}, "spec": {"clusterIP": "None"}}
    names = names_from([], [service, headless], [])
    assert {names.of(each) for each in ("10.96.0.9", "198.51.100.1", "198.51.100.2")} == {"Service shop/web"}
    assert names.of("None") == ""


def test_loopback_is_the_node() -> None:
    """A node's table holds what it says to itself, and on some nodes that is most of it."""
    names = names_from([], [], [NODE])
    assert names.of("127.0.0.1") == names.of("127.8.0.1") == names.of("::1") == "the node itself"


def test_strangers_have_no_name() -> None:
    """Neither has what is no address at all."""
    names = names_from([], [], [NODE])
    assert (names.of("203.0.113.9"), names.of("TCP/80")) == ("", "")


def test_talkers_of_many_nodes_add_up() -> None:
    """By one kind of key, the largest first; shares are of the nodes that told."""

    def told(entries: int, *talkers: tuple[str, str, int]) -> dict[str, Any]:
        rows = [{"by": by, "key": key, "entries": number, "percent": 0} for by, key, number in talkers]
        return {"metadata": {"name": "n"}, "status": {"usage": {"entries": entries}, "topTalkers": rows}}

    nodes = [
        told(100, ("source", "a", 10), ("source", "b", 30), ("port", "TCP/80", 90)),
        told(300, ("source", "a", 50)),
        told(1000, ("port", "TCP/80", 90)),
        {"metadata": {"name": "new"}},
    ]
    talkers = talkers_of(nodes, "source", 1)
    assert [(row.key, row.entries, row.share, row.nodes) for row in talkers.rows] == [("a", 60, 0.15, 2)]
    assert (talkers.entries, talkers.told, talkers.silent) == (400, 2, 2)
    assert talkers.addresses() == ["a"]
    assert talkers_of(nodes, "port", 5).addresses() == []


def test_a_live_look_keeps_its_error() -> None:
    """The agent's own numbers, as top -o json prints them."""
    document = {"sampled": 10, "entries": 20, "rows": [{"key": "a", "entries": 4, "share": 0.2, "error": 0.01}]}
    (row,) = live_talkers(document, "source").rows
    assert (row.key, row.entries, row.share, row.error) == ("a", 4, 0.2, 0.01)
