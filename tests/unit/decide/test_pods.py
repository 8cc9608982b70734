"""Ports that follow pods: which ports a rule gets on one node, and what becomes of a rule that gets none."""

from typing import Any

import pytest

from conntrack_operator.decide.pods import PORTS_MAX, HostPod, PodPort, follows_pods, resolved
from conntrack_operator.model.policy import Settings

HTTP, HTTPS, ADMIN, DNS = PodPort(80, "TCP", "http"), PodPort(443, "TCP", "https"), PodPort(9901), PodPort(53, "UDP")
ENVOY = HostPod("ingress", "envoy", "n", {"app": "envoy"}, (ADMIN, HTTPS, HTTP, DNS))
OTHERS = (
    HostPod("ingress", "other", "n", {"app": "other"}, (PodPort(1),)),
    HostPod("elsewhere", "envoy", "n", {"app": "envoy"}, (PodPort(2),)),
)


def settings(*rules: dict[str, Any], **notrack: Any) -> Settings:
    """Return settings with these rules and nothing else."""
    return Settings.model_validate({"notrack": {"rules": list(rules), **notrack}})


def following(name: str = "web", port_names: list[str] | None = None, **fields: Any) -> dict[str, Any]:
    """Return a rule that follows the pods of the app envoy in the namespace ingress."""
    pods: dict[str, Any] = {"namespace": "ingress", "selector": {"matchLabels": {"app": "envoy"}}}
    if port_names:
        pods["portNames"] = port_names
    return {"name": name, "pods": pods, **fields}


@pytest.mark.parametrize(
    ("rule", "pods", "ports"),
    [
        pytest.param(following(), [*OTHERS, ENVOY], [80, 443, 9901], id="every port of the protocol, sorted"),
        pytest.param(following(protocol="UDP"), [ENVOY], [53], id="another protocol"),
        pytest.param(following(port_names=["https", "admin"]), [ENVOY], [443], id="named ports"),
        pytest.param(
            following(),
            [ENVOY, HostPod("ingress", "envoy-2", "n", {"app": "envoy"}, (HTTP, PodPort(8080)))],
            [80, 443, 8080, 9901],
            id="two pods, each port once",
        ),
        pytest.param(following(port_names=["grpc"]), [ENVOY], None, id="no port of that name"),
        pytest.param(following(protocol="SCTP"), [ENVOY], None, id="no port of that protocol"),
        pytest.param(following(), OTHERS, None, id="no such pod"),
        pytest.param(following(), [], None, id="no pod at all"),
    ],
)
def test_the_ports_of_a_rule(rule: dict[str, Any], pods: list[HostPod], ports: list[int] | None) -> None:
    """A rule gets the ports its pods declare, in place of the pods; one that gets none is not there."""
    after = resolved(settings(rule), pods)
    rules = after.notrack.rules if after.notrack else None
    if ports is None:
        assert after == Settings()
    else:
        assert rules
        assert (rules[0].ports, rules[0].pods, rules[0].protocol) == (ports, None, rule.get("protocol"))


def test_other_rules_and_fields_stay() -> None:
    """Rules with ports of their own, and the fields beside the rules, are as they were and where they were."""
    before = settings({"name": "a", "ports": [1]}, following("b"), {"name": "c", "ports": ["5-9"]}, dropExisting=True)
    with_pod, without = resolved(before, [ENVOY]), resolved(before, [])
    assert with_pod.notrack
    assert without.notrack
    assert [rule.name for rule in with_pod.notrack.rules or ()] == ["a", "b", "c"]
    assert [rule.name for rule in without.notrack.rules or ()] == ["a", "c"]
    assert without.notrack.drop_existing is True
    assert resolved(settings({"name": "a", "ports": [1]}), []) == settings({"name": "a", "ports": [1]})


def test_what_goes_out_is_what_comes_back() -> None:
    """A spec read back from the API server equals the one that was made, or the controller would write for ever."""
    for pods in ([ENVOY], []):
        made = resolved(settings(following(), dropExisting=False), pods)
        assert Settings.model_validate(made.document()) == made


def test_pods_that_cannot_be_seen_have_not_gone() -> None:
    """Without a look at pods a rule keeps the ports it has on the node, and a new one waits."""
    asked = settings(following("old"), following("new"), {"name": "own", "ports": [1]})
    had = settings({"name": "old", "ports": [80]}, {"name": "own", "ports": [7]})
    after = resolved(asked, None, had)
    assert after.notrack
    assert [(rule.name, rule.ports) for rule in after.notrack.rules or ()] == [("old", [80]), ("own", [1])]


@pytest.mark.parametrize(
    ("numbers", "count"),
    [
        pytest.param(range(1, PORTS_MAX + 1), PORTS_MAX, id="as many as a rule takes"),
        pytest.param(range(1, PORTS_MAX + 2), 1, id="more, in a row"),
        pytest.param(range(1, 4 * PORTS_MAX, 2), PORTS_MAX, id="more, scattered"),
    ],
)
def test_a_rule_never_gets_more_ports_than_it_takes(numbers: range, count: int) -> None:
    """Very many ports become ranges, and the result is a rule the API server takes."""
    pod = HostPod("ingress", "envoy", "n", {"app": "envoy"}, tuple(PodPort(number) for number in numbers))
    after = resolved(settings(following()), [pod])
    assert after.notrack
    assert [len(rule.ports or ()) for rule in after.notrack.rules or ()] == [count]
    assert Settings.model_validate(after.document()) == after


def test_the_namespaces_that_are_followed() -> None:
    """Only pods there need a look."""
    assert follows_pods(settings(following(), {"name": "a", "ports": [1]})) == {"ingress"}
    assert follows_pods(Settings()) == frozenset()
