"""Lines of iptables-save, as versions and variants print them, by what they mean."""

from typing import Any

import pytest

from conntrack_operator.kernel.firewall_iptables_rules import rule_of
from conntrack_operator.model.surroundings import Match

TCP = frozenset({"tcp"})
LINES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    # kube-proxy's iptables mode
    ('-A KUBE-SERVICES -d 10.96.0.9/32 -p tcp -m comment --comment "shop/web:http VIP" -m tcp --dport 80 -j KUBE-SVC-A',
     {"destinations": ("10.96.0.9/32",), "protocols": TCP, "destination_ports": ((80, 80),)},
     {"verdict": "jump", "target": "KUBE-SVC-A", "comment": "shop/web:http VIP"}),
    ('-A KUBE-SEP-A -p tcp -m comment --comment "shop/web:http" -m tcp -j DNAT --to-destination 10.1.0.2:8080',
     {"protocols": TCP},
     {"verdict": "dnat", "to_ports": ((8080, 8080),), "to_addresses": ("10.1.0.2/32",), "tracks": True,
      "comment": "shop/web:http"}),
    ("-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS",
     {"other": True}, {"verdict": "jump", "target": "KUBE-NODEPORTS"}),
    ("-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000", {}, {"verdict": "none"}),
    ("-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP",
     {"states": frozenset({"invalid"})}, {"verdict": "drop", "tracks": True}),
    ("-A KUBE-SVC-A -m statistic --mode random --probability 0.50000000000 -j KUBE-SEP-A",
     {"other": True}, {"verdict": "jump", "target": "KUBE-SEP-A"}),
    # CNI's portmap
    ("-A CNI-DN-1 -p udp -m udp --dport 8053 -j DNAT --to-destination 10.1.0.3:53",
     {"protocols": frozenset({"udp"}), "destination_ports": ((8053, 8053),)},
     {"verdict": "dnat", "to_ports": ((53, 53),), "to_addresses": ("10.1.0.3/32",), "tracks": True}),
    ("-A CNI-HOSTPORT-DNAT -p tcp -m multiport --dports 8080,8443 -j CNI-DN-1",
     {"protocols": TCP, "destination_ports": ((8080, 8080), (8443, 8443))}, {"verdict": "jump", "target": "CNI-DN-1"}),
    # others
    ("-A INPUT ! -p tcp -j DROP", {"other": True}, {"verdict": "drop"}),
    ("-A INPUT -p 58 -j ACCEPT", {"protocols": frozenset({"icmpv6"})}, {"verdict": "accept"}),
    ("-A INPUT -s 10.0.0.0/255.0.255.0 -j ACCEPT", {"other": True}, {"verdict": "accept"}),
    ("-A INPUT -m iprange --src-range 10.0.0.1-10.0.0.2 -j ACCEPT",
     {"sources": ("10.0.0.1/32", "10.0.0.2/32")}, {"verdict": "accept"}),
    ("-A INPUT -m conntrack ! --ctstate INVALID -j ACCEPT",
     {"states": frozenset({"new", "established", "related", "untracked"})}, {"verdict": "accept", "tracks": True}),
    ("-A INPUT -m conntrack --ctstatus ASSURED -j ACCEPT", {"other": True}, {"verdict": "accept", "tracks": True}),
    ("-A INPUT -m connmark --mark 0x1 -j ACCEPT", {"other": True}, {"verdict": "accept", "tracks": True}),
    ("-A INPUT -p tcp -m tcp --dport 1024:65535", {"protocols": TCP, "destination_ports": ((1024, 65535),)},
     {"verdict": "none"}),
    ("-A PREROUTING -j CT --zone 3", {}, {"verdict": "none", "tracks": True}),
    ("-A PREROUTING -d 192.0.2.0/24 -j NETMAP --to 10.0.0.0/24",
     {"destinations": ("192.0.2.0/24",)}, {"verdict": "dnat", "tracks": True}),
    ("-A POSTROUTING -p tcp -j MASQUERADE --to-ports 1024-65535 --random-fully",
     {"protocols": TCP},
     {"verdict": "masquerade", "to_ports": ((1024, 65535),), "fully_random": True, "tracks": True}),
    ("-A PREROUTING -p tcp -j DNAT --to-destination :8080",
     {"protocols": TCP}, {"verdict": "dnat", "to_ports": ((8080, 8080),), "tracks": True}),
    ("-A PREROUTING -p tcp -j DNAT --to-destination 10.0.0.1:80-90/8000",
     {"protocols": TCP},
     {"verdict": "dnat", "to_ports": ((80, 90),), "to_addresses": ("10.0.0.1/32",), "tracks": True}),
    ('-A INPUT -m comment --comment "-j ACCEPT" -j DROP', {}, {"verdict": "drop", "comment": "-j ACCEPT"}),
    ('-A INPUT -m string --string "x y" --algo bm --to 65535 -j DROP', {"other": True}, {"verdict": "drop"}),
    ("-A INPUT -g MINE", {}, {"verdict": "goto", "target": "MINE"}),
]  # fmt: skip


@pytest.mark.parametrize(("line", "match", "rule"), LINES, ids=[line for line, *_ in LINES])
def test_a_line_is_what_it_does(line: str, match: dict[str, Any], rule: dict[str, Any]) -> None:
    """Conditions, verdict, where it leads and whether it needs tracking; whatever is not understood is `other`."""
    found = rule_of(line + "\n", "ip", 7)
    assert found.match == Match(**{"families": frozenset({4}), **match})
    assert found.text == line
    assert found.handle == 7
    defaults = {
        "target": "",
        "to_ports": None,
        "to_addresses": (),
        "fully_random": False,
        "tracks": False,
        "comment": "",
    }
    assert {name: getattr(found, name) for name in (*defaults, "verdict")} == {**defaults, **rule}


def test_an_address_of_ipv6_keeps_its_colons() -> None:
    """With and without a port."""
    found = rule_of("-A PREROUTING -p tcp -j DNAT --to-destination [fd00::1]:8080", "ip6", 1)
    assert (found.to_addresses, found.to_ports) == (("fd00::1/128",), ((8080, 8080),))
    found = rule_of("-A PREROUTING -p tcp -j DNAT --to-destination fd00::1", "ip6", 1)
    assert (found.to_addresses, found.to_ports) == (("fd00::1/128",), None)
