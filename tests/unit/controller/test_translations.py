"""Services and EndpointSlices as they come, and what they translate."""

from typing import Any

import pytest

from conntrack_operator.cluster.objects import Listing
from conntrack_operator.controller.sights import service_in, slice_in, slimmed
from conntrack_operator.controller.translations import Translations
from conntrack_operator.model.notrack import NotrackRule

RULES = [NotrackRule.model_validate({"name": "all", "ports": ["1-65535"]})]


def service(version: int = 1, name: str = "web", **spec: Any) -> dict[str, Any]:
    """Return a Service as the API server sends it; `status` is its load balancer's ingress."""
    ingress = spec.pop("ingress", [])
    return {
        "metadata": {"name": name, "namespace": "shop", "resourceVersion": str(version)},
        "spec": {"type": "ClusterIP", "clusterIPs": ["10.96.0.7"], "ports": [{"port": 80}], **spec},
        "status": {"loadBalancer": {"ingress": ingress} if ingress else {}},
    }


def endpoints(version: int = 1, *addresses: str, **fields: Any) -> dict[str, Any]:
    """Return an EndpointSlice of the Service web."""
    labels = {"kubernetes.io/service-name": "web"}
    return {
        "metadata": {"name": "web-x", "namespace": "shop", "resourceVersion": str(version), "labels": labels},
        "addressType": "IPv4",
        "endpoints": [{"addresses": [address]} for address in addresses],
        "ports": [{"port": 8080, "protocol": "TCP"}],
        **fields,
    }


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        pytest.param(service(), [("ClusterIP", "TCP", 80, ("10.96.0.7",))], id="a ClusterIP"),
        pytest.param(service(clusterIPs=["None"]), None, id="headless"),
        pytest.param(service(type="ExternalName", clusterIPs=None), None, id="a mere name"),
        pytest.param(
            service(clusterIPs=["10.96.0.7", "fd00::7"], ports=[{"port": 53, "protocol": "UDP", "nodePort": 30053}]),
            [("ClusterIP", "UDP", 53, ("10.96.0.7", "fd00::7")), ("NodePort", "UDP", 30053, ())],
            id="a NodePort of either family",
        ),
        pytest.param(
            service(externalIPs=["198.51.100.5"], healthCheckNodePort=30111, type="LoadBalancer", ingress=[
                {"ip": "203.0.113.5", "ipMode": "VIP"}, {"ip": "203.0.113.6", "ipMode": "Proxy"},
                {"hostname": "x.example"},
            ]),
            [
                ("ClusterIP", "TCP", 80, ("10.96.0.7",)),
                ("ExternalIP", "TCP", 80, ("198.51.100.5",)),
                ("LoadBalancer", "TCP", 80, ("203.0.113.5",)),
            ],
            id="a load balancer without node ports",
        ),
    ],
)  # fmt: skip
def test_what_a_service_translates(document: dict[str, Any], expected: list[Any] | None) -> None:
    """Every way into a Service is known with its addresses; what kube-proxy does not translate is left out."""
    found = service_in(document)
    said = found and [(each.kind, each.protocol, each.port, each.addresses) for each in found.translations]
    assert (said and sorted(said)) == expected


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        pytest.param(endpoints(1, "10.1.2.4", "10.1.2.3"), [(8080, ("10.1.2.3", "10.1.2.4"))], id="addresses"),
        pytest.param(endpoints(1), None, id="empty"),
        pytest.param(endpoints(1, "x.example", addressType="FQDN"), None, id="names"),
        pytest.param(endpoints(1, "10.1.2.3", ports=[{"port": None}]), None, id="without a port"),
        pytest.param(endpoints(1, "10.1.2.3", ports=None), None, id="without ports"),
    ],
)
def test_what_a_slice_says(document: dict[str, Any], expected: list[Any] | None) -> None:
    """The ports and addresses where packets to a Service end; the same when a long list was made smaller."""
    for each in (document, slimmed(document)):
        found = slice_in(each)
        assert (found and [(one.port, one.addresses) for one in found.translations]) == expected


def kinds(translations: Translations) -> list[str]:
    """Return the kinds of everything that meets all ports of a node whose address is 10.1.2.3."""
    return [each.kind for each in translations.concern(RULES).on(["10.1.2.3"])]


def test_a_slice_is_nothing_without_its_service() -> None:
    """Whichever comes first, the endpoint counts when both are there, and each time that is told as a change."""
    translations = Translations()
    translations.put_slice(endpoints(1, "10.1.2.3"))
    assert kinds(translations) == []
    assert {each.kind for each in translations.put_service(service(2))} == {"ClusterIP", "TargetPort"}
    assert kinds(translations) == ["TargetPort"]
    assert {each.kind for each in translations.put_service(service(3, clusterIPs=["None"]))} == {
        "ClusterIP",
        "TargetPort",
    }
    assert kinds(translations) == []


def test_what_changes_and_what_does_not() -> None:
    """An edit takes the old port away; a new version that says the same is no change, and what went is gone."""
    translations = Translations()
    translations.put_service(service(1, type="NodePort", ports=[{"port": 80, "nodePort": 30080}]))
    assert kinds(translations) == ["NodePort"]
    assert translations.put_service(service(2, type="NodePort", ports=[{"port": 80, "nodePort": 30080}])) == []
    changed = translations.put_service(service(3, type="NodePort", ports=[{"port": 80, "nodePort": 30081}]))
    assert sorted(each.port for each in changed) == [30080, 30081]
    assert [each.port for each in translations.concern(RULES).on([])] == [30081]
    translations.put_service(service(4), deleted=True)
    assert kinds(translations) == []


def test_several_kinds_on_one_port() -> None:
    """A Service with an address of its own and others beside it changes, and goes, as a whole."""
    translations = Translations()
    translations.put_service(service(1, externalIPs=["198.51.100.5"], ports=[{"port": 80, "nodePort": 30080}]))
    assert sorted(kinds(translations)) == ["ExternalIP", "NodePort"]
    changed = translations.put_service(service(2, externalIPs=["198.51.100.6"]))
    assert {(each.kind, each.addresses) for each in changed} == {
        ("ExternalIP", ("198.51.100.5",)),
        ("ExternalIP", ("198.51.100.6",)),
        ("NodePort", ()),
    }
    assert kinds(translations) == ["ExternalIP"]
    assert {each.kind for each in translations.put_service(service(3), deleted=True)} == {"ClusterIP", "ExternalIP"}
    assert kinds(translations) == []


def test_full_lists() -> None:
    """A list brings what was missed and takes what has gone; where there is none, what is known stays."""
    translations = Translations()
    translations.put_slice(endpoints(1, "10.1.2.3"))
    translations.replace(Listing(9, (service(2),)), None)
    assert kinds(translations) == ["TargetPort"]
    translations.replace(None, Listing(9, ()))
    assert kinds(translations) == []
