"""Services and rules: which translation meets which rule, and what a node is told of them."""

from typing import Any

import pytest

from conntrack_operator.decide.services import ADDRESSES_MAX, Translation, changed_between, concern_of, reach_of
from conntrack_operator.model.node import SERVICES_MAX
from conntrack_operator.model.notrack import NotrackRule

MINE = ("192.0.2.11", "2001:db8::11")
NODE_PORT = Translation("TCP", 30080, "NodePort", "shop/web")
CLUSTER_IP = Translation("TCP", 80, "ClusterIP", "shop/web", ("10.96.0.7",))
BALANCER = Translation("TCP", 80, "LoadBalancer", "shop/web", ("203.0.113.5",))
EXTERNAL = Translation("TCP", 80, "ExternalIP", "shop/web", ("198.51.100.5",))
TARGET = Translation("TCP", 8080, "TargetPort", "shop/web", ("10.1.2.3", MINE[0]))
ALL = (NODE_PORT, CLUSTER_IP, BALANCER, EXTERNAL, TARGET)


def rule(*ports: int | str, **fields: Any) -> NotrackRule:
    """Return a rule on these ports."""
    return NotrackRule.model_validate({"name": "web", "ports": list(ports), **fields})


def told(
    *rules: NotrackRule, translations: Any = ALL, addresses: tuple[str, ...] = MINE
) -> list[tuple[str, list[str]]]:
    """Return kind and addresses of what a node with these rules and addresses is told."""
    concern = concern_of([reach_of(each) for each in rules], translations)
    return [(service.kind, service.addresses) for service in concern.on(addresses)]


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        pytest.param(rule(30080), [("NodePort", [])], id="a NodePort"),
        pytest.param(rule("30000-32767", addresses=["192.0.2.11"]), [("NodePort", [])], id="on every address"),
        pytest.param(rule(30080, protocol="UDP"), [], id="another protocol"),
        pytest.param(rule(30081), [], id="another port"),
        pytest.param(
            rule(80),
            [("ExternalIP", ["198.51.100.5"]), ("LoadBalancer", ["203.0.113.5"])],
            id="a server's port, but no ClusterIP",
        ),
        pytest.param(rule(80, addresses=["198.51.100.0/24"]), [("ExternalIP", ["198.51.100.5"])], id="one address"),
        pytest.param(rule(8080), [("TargetPort", ["192.0.2.11"])], id="a target at the node's own address"),
        pytest.param(rule(8080, addresses=["192.0.2.12"]), [], id="a target at an address the rule leaves out"),
        pytest.param(
            rule(80, 8080, 30080, side="Client", addresses=["10.96.0.0/16"]),
            [("ClusterIP", ["10.96.0.7"])],
            id="a client of a ClusterIP",
        ),
        pytest.param(
            rule(80, side="Client", addresses=["203.0.113.0/24", "fd00::/8"]),
            [("LoadBalancer", ["203.0.113.5"])],
            id="a client of a load balancer",
        ),
        pytest.param(rule(80, side="Client", addresses=["192.0.2.0/24"]), [], id="a client of somebody else"),
        pytest.param(
            rule("1-65535", side="Forward"),
            [
                ("ClusterIP", ["10.96.0.7"]),
                ("ExternalIP", ["198.51.100.5"]),
                ("LoadBalancer", ["203.0.113.5"]),
                ("TargetPort", []),
                ("NodePort", []),
            ],
            id="a router sees all of them",
        ),
        pytest.param(
            rule("1-65535", side="Forward", addresses=["10.1.0.0/16"]),
            [("TargetPort", []), ("NodePort", [])],
            id="a router between some addresses",
        ),
    ],
)
def test_what_meets_a_rule(asked: NotrackRule, expected: list[tuple[str, list[str]]]) -> None:
    """A side meets only what can break it, at the addresses it is about."""
    assert told(asked) == expected


def test_a_target_concerns_the_node_that_has_its_address() -> None:
    """Another node is told nothing of it, by either family."""
    other = Translation("TCP", 8080, "TargetPort", "shop/zebra", (MINE[1],))
    assert told(rule(8080), translations=[TARGET, other]) == [("TargetPort", [MINE[0]]), ("TargetPort", [MINE[1]])]
    assert told(rule(8080), translations=[TARGET, other], addresses=("192.0.2.12",)) == []


def test_the_order_plays_no_part() -> None:
    """However Services and rules come, the node is told the same, each thing once."""
    rules = [rule("1-65535"), rule(80, side="Forward"), rule(30080)]
    assert told(*rules) == told(*reversed(rules), translations=[*reversed(ALL), NODE_PORT])


def test_there_is_room_for_every_rule() -> None:
    """A thousand Services on one rule's port do not hide the one on another's, nor the node's own."""
    many = [Translation("TCP", 80, "LoadBalancer", f"a/{number:04}", ("203.0.113.5",)) for number in range(1000)]
    concern = concern_of([reach_of(rule(80)), reach_of(rule(30080)), reach_of(rule(8080))], [*many, *ALL])
    services = concern.on(MINE)
    assert len(services) == SERVICES_MAX
    locals_ = [Translation("TCP", 80, "TargetPort", f"a/{number:04}", MINE) for number in range(1000)]
    crowded = concern_of([reach_of(rule(80)), reach_of(rule(8080))], [*locals_, TARGET]).on(MINE)
    assert {service.port for service in crowded} == {80, 8080}
    assert {"NodePort", "TargetPort"} < {service.kind for service in services}


def test_many_addresses_are_cut() -> None:
    """A Service with very many addresses names some of them."""
    wide = Translation("TCP", 80, "ExternalIP", "a/b", tuple(f"198.51.100.{number}" for number in range(100)))
    assert [len(addresses) for _, addresses in told(rule(80), translations=[wide])] == [ADDRESSES_MAX]


def test_what_changed() -> None:
    """A Service's change is what came and went; of endpoints only the addresses that differ are told."""
    moved = Translation("TCP", 8080, "TargetPort", "shop/web", ("10.1.2.3", "10.1.2.4"))
    difference = Translation("TCP", 8080, "TargetPort", "shop/web", ("10.1.2.4", MINE[0]))
    assert list(changed_between([NODE_PORT, TARGET], [NODE_PORT, moved])) == [difference]
    assert set(changed_between([NODE_PORT], [CLUSTER_IP])) == {NODE_PORT, CLUSTER_IP}
    assert list(changed_between(ALL, ALL)) == []
