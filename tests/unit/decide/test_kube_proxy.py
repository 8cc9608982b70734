"""kube-proxy's configuration: which keys are found in it, and what it will write because of them."""

import pytest

from conntrack_operator.decide.kube_proxy import config_file_in, keys_in_arguments, keys_in_config, writes_of

MAX, ESTABLISHED, CLOSE_WAIT = (
    f"net.netfilter.nf_conntrack_{name}" for name in ("max", "tcp_timeout_established", "tcp_timeout_close_wait")
)

KUBEADM = """\
apiVersion: kubeproxy.config.k8s.io/v1alpha1
bindAddress: 0.0.0.0
clientConnection:
  kubeconfig: /var/lib/kube-proxy/kubeconfig.conf
conntrack:
  maxPerCore: null
  min: 262144   # more than the default
  tcpBeLiberal: true
  tcpCloseWaitTimeout: 30m0s
  tcpEstablishedTimeout: null
detectLocal:
  min: 7
mode: ""
"""


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        (KUBEADM, {"min": "262144", "tcpBeLiberal": "true", "tcpCloseWaitTimeout": "30m0s"}),
        ("conntrack: {maxPerCore: 0, min: 0}\nmode: nftables\n", {"maxPerCore": "0", "min": "0"}),
        ('{"conntrack": {"maxPerCore": 1000, "min": null}}', {"maxPerCore": "1000"}),
        ("conntrack: null\n", {}),
        ("mode: iptables\n", {}),
        ("{ not json", {}),
        ("", {}),
    ],
)
def test_keys_in_config(text, keys):
    """Block and flow style and JSON are read; nulls, comments and other blocks are left out."""
    assert keys_in_config(text) == keys


def test_arguments():
    """Flags count in both spellings; --config names the file."""
    arguments = [
        "/usr/bin/kube-proxy",
        "--conntrack-min",
        "0",
        "--conntrack-max-per-core=100",
        "--v=2",
        "--masquerade-all",
    ]
    assert keys_in_arguments(arguments) == {"min": "0", "maxPerCore": "100"}
    assert config_file_in(arguments) == ""
    assert (
        config_file_in(["kube-proxy", "--config=/var/lib/kube-proxy/config.conf"]) == "/var/lib/kube-proxy/config.conf"
    )
    assert config_file_in(["kube-proxy", "--config", "a.conf"]) == "a.conf"


@pytest.mark.parametrize(
    ("keys", "cpus", "limit"),
    [
        ({}, 2, (131072, "conntrack.min")),
        ({}, 8, (262144, "conntrack.maxPerCore")),
        ({"min": "500000"}, 8, (500000, "conntrack.min")),
        ({"maxPerCore": "0", "min": "500000"}, 8, None),
        ({"maxPerCore": "32768"}, 64, (None, "conntrack.maxPerCore")),
    ],
)
def test_the_limit_it_wants(keys, cpus, limit):
    """maxPerCore times CPUs, at least min; nothing with maxPerCore 0; unknown where versions differ."""
    writes = {setting: (value, key) for setting, value, key in writes_of(keys, cpus)}
    assert writes.get(MAX) == limit
    assert writes[ESTABLISHED] == (86400, "conntrack.tcpEstablishedTimeout")
    assert writes[CLOSE_WAIT] == (3600, "conntrack.tcpCloseWaitTimeout")


def test_zero_leaves_a_timeout_alone():
    """A timeout of 0s is not written, and be-liberal only when it is true."""
    keys = {"tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "1m30s", "udpTimeout": "20s", "maxPerCore": "0"}
    assert writes_of(keys, 4) == [
        (CLOSE_WAIT, 90, "conntrack.tcpCloseWaitTimeout"),
        ("net.netfilter.nf_conntrack_udp_timeout", 20, "conntrack.udpTimeout"),
    ]
    assert writes_of({"tcpBeLiberal": "true"}, 4)[-1][0] == "net.netfilter.nf_conntrack_tcp_be_liberal"
