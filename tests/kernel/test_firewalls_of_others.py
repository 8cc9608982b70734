"""Preflight beside firewalls as other programs write them: what it lets pass works, what it refuses would break.

Each scene is a node between a client and a pod, with one program's rules. A rule is judged, then installed whatever was
said of it, and the same connections are made again.
"""

import re
import socket
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.lab.namespaces import End, Lab, Namespace

from conntrack_operator.agent.machine import Machine
from conntrack_operator.agent.writing import accepts_of
from conntrack_operator.decide.accepts import AcceptUntracked
from conntrack_operator.decide.refusal import Refusal
from conntrack_operator.kernel import accepts, nftables
from conntrack_operator.kernel.roots import Roots
from conntrack_operator.model.policy import Settings

SILENCE_SECONDS = 0.5
"""How long to wait for what may never come."""
PATIENCE_SECONDS = 30.0
"""How long to wait for what must come."""
WEB = {"name": "web", "ports": [80]}
TO_POD = {"name": "out", "ports": [80], "side": "Client", "addresses": ["10.99.2.2"]}
TO_CLIENT = {"name": "out", "ports": [80], "side": "Client", "addresses": ["10.99.1.2"]}


@dataclass
class Scene:
    """A node that routes between a client and a pod."""

    node: Namespace
    client: Namespace
    pod: Namespace
    near: End
    far: End
    inner: End
    state: Path

    def talk(self, *names: str, sure: Collection[str] = ()) -> set[str]:
        """Return which connections, of these or all, come about and carry data both ways; those in `sure` must."""
        ways: dict[str, tuple[Namespace, Namespace, str, int, tuple[str, int]]] = {
            "host": (self.client, self.node, self.near.ipv4, 80, (self.near.ipv4, 80)),
            "host, IPv6": (self.client, self.node, self.near.ipv6, 80, (self.near.ipv6, 80)),
            "published": (self.client, self.pod, self.near.ipv4, 8080, (self.inner.ipv4, 80)),
            "published, by the node": (self.node, self.pod, self.near.ipv4, 8080, (self.inner.ipv4, 80)),
            "pod goes out": (self.pod, self.client, self.far.ipv4, 80, (self.far.ipv4, 80)),
            "node goes out": (self.node, self.client, self.far.ipv4, 80, (self.far.ipv4, 80)),
        }
        return {
            name
            for name, way in ways.items()
            if name in (names or ways) and talks(*way, PATIENCE_SECONDS if name in sure else SILENCE_SECONDS)
        }

    def judged(self, rule: dict[str, Any], mode: AcceptUntracked, force: bool = False) -> tuple[Refusal, ...]:
        """Return what preflight says of a rule."""
        policy = {"rules": [rule], "acceptUntracked": mode, "onConflict": "Force" if force else "Refuse"}
        with self.node.inside():
            plan = Machine(Roots(state=self.state)).plan(Settings.model_validate({"notrack": policy}))
        return plan.warnings if force else plan.refused

    def broken_by(self, rule: dict[str, Any], mode: AcceptUntracked, expected: Collection[str] = ()) -> set[str]:
        """Install a rule, and its accepts, whatever may come of it; return what works no more (`expected`)."""
        before = self.talk(sure=expected)
        rules = Settings.model_validate({"notrack": {"rules": [rule]}}).notrack.rules  # type: ignore[union-attr]
        with self.node.inside():
            accepts.write_accepts(accepts_of(rules, mode))
            nftables.write_rules(rules)
        after = self.talk(*before, sure=before.difference(expected))
        with self.node.inside():
            nftables.write_rules([])
            accepts.remove_accepts()
        return before - after


def talks(asks: Namespace, serves: Namespace, address: str, port: int, at: tuple[str, int], seconds: float) -> bool:
    """Tell whether a question and its answer come through."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with serves.listen(*at) as listener, asks.make_socket(family) as near:
        near.settimeout(seconds)
        listener.settimeout(seconds)
        try:
            near.connect((address, port))
            with listener.accept()[0] as far:
                far.settimeout(seconds)
                near.sendall(b"question")
                far.recv(64)
                far.sendall(b"answer")
                return near.recv(64) == b"answer"
        except OSError:
            return False


@pytest.fixture
def scene(netns: Lab, tmp_path: Path) -> Iterator[Scene]:
    """Give the three namespaces, without any firewall."""
    node, client, pod = (netns.namespace() for _ in range(3))
    near, far = netns.link(node, client)
    gateway, inner = netns.link(node, pod)
    netns.forward(node)
    netns.route(client, near)
    netns.route(pod, gateway)
    return Scene(node, client, pod, near, far, inner, tmp_path)


def saved(*tables: str) -> Callable[[Namespace], None]:
    """Return what loads tables of iptables, each `name, chains and rules`, a line each; IPv4 alone."""
    text = ""
    for table in tables:
        name, *lines = [line.strip() for line in table.strip().splitlines()]
        own = dict.fromkeys(re.findall(r"^-A (\S+)", "\n".join(lines), re.MULTILINE))
        declared = [line for line in lines if line.startswith(":")]
        known = {line[1:].split()[0] for line in declared}
        built_in = ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING")
        declared += [f":{chain} {'ACCEPT' if chain in built_in else '-'} [0:0]" for chain in own if chain not in known]
        text += "\n".join([f"*{name}", *declared, *(line for line in lines if not line.startswith(":")), "COMMIT", ""])
    return lambda node: void(node.run("iptables-nft-restore", text=text))


def void(_: object) -> None:
    """Return nothing."""


def rules_of_input(*rules: str, output: Sequence[str] = ()) -> Callable[[Namespace], None]:
    """Return what loads a hand-written nftables.conf with these rules behind the usual first ones."""
    usual = ("ct state vmap { established : accept, related : accept, invalid : drop }", "iif lo accept")
    neighbours = "icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept"
    out = "\n".join(("chain output { type filter hook output priority filter; policy drop;", *output, neighbours, "}"))
    lines = ("type filter hook input priority filter; policy drop;", *usual, neighbours, *rules)
    text = f"table inet filter {{\n chain input {{\n{chr(10).join(lines)}\n}}\n{out if output else ''}\n}}\n"
    return lambda node: node.nft(text)


def before_routing(*rules: str) -> Callable[[Namespace], None]:
    """Return what loads a filter in prerouting with these rules, and neighbours let in."""
    lines = ("type filter hook prerouting priority mangle; policy drop;", "iif lo accept", "icmpv6 type != 1 accept")
    return lambda node: node.nft(f"table inet early {{ chain every {{\n{chr(10).join((*lines, *rules))}\n}}\n}}\n")


UFW = saved("""filter
    :INPUT DROP
    :OUTPUT DROP
    -A INPUT -j ufw-before-input
    -A OUTPUT -j ufw-before-output
    -A ufw-before-input -i lo -j ACCEPT
    -A ufw-before-input -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
    -A ufw-before-input -m conntrack --ctstate INVALID -j ufw-logging-deny
    -A ufw-before-input -m conntrack --ctstate INVALID -j DROP
    -A ufw-before-input -j ufw-not-local
    -A ufw-before-input -j ufw-user-input
    -A ufw-not-local -m addrtype --dst-type LOCAL -j RETURN
    -A ufw-not-local -m limit --limit 3/min --limit-burst 10 -j ufw-logging-deny
    -A ufw-not-local -j DROP
    -A ufw-logging-deny -m limit --limit 3/min --limit-burst 10 -j LOG --log-prefix "[UFW BLOCK] "
    -A ufw-user-input -p tcp -m tcp --dport 80 -m comment --comment "'dapp_Nginx%20\\"Full\\"'" -j ACCEPT
    -A ufw-before-output -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
    """)
DOCKER = saved(
    """nat
    -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
    -A OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER
    -A POSTROUTING -s 10.99.2.0/24 ! -o veth2a -j MASQUERADE
    -A DOCKER -i veth2a -j RETURN
    -A DOCKER ! -i veth2a -p tcp -m tcp --dport 8080 -j DNAT --to-destination 10.99.2.2:80
    """,
    """filter
    :FORWARD DROP
    -A FORWARD -j DOCKER-USER
    -A FORWARD -o veth2a -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
    -A FORWARD -o veth2a -j DOCKER
    -A FORWARD -i veth2a ! -o veth2a -j ACCEPT
    -A DOCKER -d 10.99.2.2/32 ! -i veth2a -o veth2a -p tcp -m tcp --dport 80 -j ACCEPT
    -A DOCKER-USER -j RETURN
    """,
)
PORTMAP = saved("""nat
    -A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT
    -A POSTROUTING -m comment --comment "CNI portfwd requiring masquerade" -j CNI-HOSTPORT-MASQ
    -A CNI-HOSTPORT-MASQ -m mark --mark 0x2000/0x2000 -j MASQUERADE
    -A CNI-HOSTPORT-DNAT -p tcp -m comment --comment "dnat name: \\"cbr0\\" id: \\"0a1b2c\\"" -m multiport --dports 8080,8443 -j CNI-DN-0a1b2c
    -A CNI-DN-0a1b2c -p tcp -m tcp --dport 8080 -j DNAT --to-destination 10.99.2.2:80
    """)  # noqa: E501
CALICO = saved("""filter
    -A INPUT -m comment --comment "cali:Cz_u1IQiXIMmKD4c" -j cali-INPUT
    -A OUTPUT -m comment --comment "cali:tVnHkvAo15HuiPy0" -j cali-OUTPUT
    -A cali-INPUT -j MARK --set-xmark 0x0/0xf0000
    -A cali-INPUT -i veth1a -g cali-fh-veth1a
    -A cali-OUTPUT -j MARK --set-xmark 0x0/0xf0000
    -A cali-OUTPUT -m conntrack ! --ctstate DNAT -j cali-to-host-endpoint
    -A cali-to-host-endpoint -o veth1a -g cali-th-veth1a
    -A cali-fh-veth1a -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
    -A cali-fh-veth1a -m conntrack --ctstate INVALID -j DROP
    -A cali-fh-veth1a -j cali-failsafe-in
    -A cali-fh-veth1a -j cali-pi-web
    -A cali-fh-veth1a -m mark --mark 0x10000/0x10000 -j ACCEPT
    -A cali-fh-veth1a -m comment --comment "Drop if no profiles matched" -j DROP
    -A cali-th-veth1a -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
    -A cali-th-veth1a -m conntrack --ctstate INVALID -j DROP
    -A cali-th-veth1a -p udp -m multiport --dports 53 -j ACCEPT
    -A cali-th-veth1a -m comment --comment "Drop if no profiles matched" -j DROP
    -A cali-pi-web -p tcp -m multiport --dports 80,443 -j MARK --set-xmark 0x10000/0x10000
    -A cali-failsafe-in -p tcp -m multiport --dports 22 -j ACCEPT
    """)


def firewalld(allowed: str) -> Callable[[Namespace], None]:
    """Return what loads firewalld's chains with one rule of the public zone."""
    reject = "reject with icmpx admin-prohibited"
    return lambda node: node.nft(f"""table inet firewalld {{
        chain filter_INPUT {{
            type filter hook input priority filter + 10; policy accept;
            ct state {{ established, related }} accept
            ct status dnat accept
            iifname "lo" accept
            ct state {{ invalid }} drop
            jump filter_INPUT_ZONES
            {reject}
        }}
        chain filter_INPUT_ZONES {{
            iifname "veth1a" goto filter_IN_public
            goto filter_IN_public
        }}
        chain filter_IN_public {{
            jump filter_IN_public_allow
            meta l4proto {{ icmp, ipv6-icmp }} accept
            {reject}
        }}
        chain filter_IN_public_allow {{
            {allowed}
        }}
    }}""")


GOOD = (None, set[str]())
BOTH_HOSTS = {"host", "host, IPv6"}


@pytest.mark.parametrize(
    ("load", "rule", "mode", "reason", "broken"),
    [
        pytest.param(UFW, WEB, "Replies", *GOOD, id="ufw allow 80"),
        pytest.param(firewalld("tcp dport 80 ct state { new, untracked } accept"), WEB, "Replies", *GOOD,
                     id="firewalld of today"),
        pytest.param(firewalld("tcp dport 80 ct state new accept"), WEB, "Replies", "StatefulAccept", BOTH_HOSTS,
                     id="firewalld of old"),
        pytest.param(rules_of_input("meta l4proto { tcp, udp } th dport 80 accept"), WEB, "Replies", *GOOD,
                     id="nftables.conf"),
        pytest.param(
            rules_of_input("iifname veth1a tcp dport 80 accept", output=(
                "ct state vmap { invalid : drop, established : accept, related : accept }", "udp dport 53 accept")),
            WEB, "Replies", *GOOD, id="what goes out by state"),
        pytest.param(rules_of_input("tcp dport 80 tcp flags & (fin | syn | rst | ack) == syn accept"), WEB, "Replies",
                     "StatefulAccept", BOTH_HOSTS, id="SYN alone"),
        pytest.param(rules_of_input("tcp dport 80 tcp flags & (fin | syn | rst | ack) == syn accept"), WEB, "Both",
                     *GOOD, id="SYN alone, with Both"),
        pytest.param(rules_of_input("tcp flags & (fin | syn) == fin | syn drop", "tcp dport 80 accept"), WEB, "Replies",
                     *GOOD, id="odd flags dropped"),
        pytest.param(rules_of_input("tcp dport 80 limit rate over 10000/second drop", "tcp dport 80 accept"), WEB,
                     "Replies", *GOOD, id="too many dropped"),
        pytest.param(rules_of_input("ct state untracked drop", "tcp dport 80 accept"), WEB, "Both", "StatefulDrop",
                     BOTH_HOSTS, id="untracked dropped"),
        pytest.param(
            rules_of_input("tcp dport 80 accept", output=("ct direction reply accept",)), WEB, "Replies",
            "UnclearAccept", BOTH_HOSTS, id="answers by direction"),
        pytest.param(
            before_routing("ct state established,related accept", "ct state new tcp dport 80 accept"), WEB, "Both",
            "StatefulAccept", BOTH_HOSTS, id="by state before routing"),
        pytest.param(before_routing("ct state invalid drop", "accept"), WEB, "Replies", *GOOD,
                     id="invalid dropped before routing"),
        pytest.param(CALICO, WEB, "Replies", *GOOD, id="Calico's host endpoint"),
        pytest.param(DOCKER, WEB, "Replies", *GOOD, id="docker, another port"),
        pytest.param(DOCKER, {"name": "wide", "ports": ["8000-8100"]}, "Replies", "NATConflict", {"published"},
                     id="docker's published port"),
        pytest.param(DOCKER, TO_CLIENT, "Replies", "NATConflict", {"pod goes out"}, id="docker's masquerade"),
        pytest.param(DOCKER, TO_POD, "Replies", "NATConflict", {"published, by the node"},
                     id="docker's pods as servers"),
        pytest.param(PORTMAP, WEB, "Replies", *GOOD, id="portmap, another port"),
        pytest.param(PORTMAP, {"name": "wide", "ports": ["8000-8100"]}, "Replies", "NATConflict", {"published"},
                     id="portmap's host port"),
        pytest.param(PORTMAP, TO_CLIENT, "Replies", *GOOD, id="portmap, a client"),
    ],
)  # fmt: skip
def test_what_is_said_is_what_happens(
    scene: Scene,
    load: Callable[[Namespace], None],
    rule: dict[str, Any],
    mode: AcceptUntracked,
    reason: str | None,
    broken: set[str],
) -> None:
    """Allowed: every connection works on. Refused, for one reason, in a short sentence: just these would break."""
    load(scene.node)
    found = scene.judged(rule, mode)
    assert [each.reason for each in found] == ([reason] if reason else [])
    assert all(each.setting == f"notrack/{rule['name']}" and len(each.message) <= 512 for each in found)
    assert scene.broken_by(rule, mode, broken) == broken
    # The same, whatever the connections above have left in the table.
    assert [each.reason for each in scene.judged(rule, mode)] == ([reason] if reason else [])


def test_forced_rules_are_warned_of(scene: Scene) -> None:
    """Force installs what has no place for its accepts, and says what is lost."""
    rules_of_input("ct state untracked drop", "tcp dport 80 accept")(scene.node)
    (found,) = scene.judged(WEB, "Both", force=True)
    assert (found.setting, found.reason) == ("notrack/web", "StatefulDrop")
    assert found.message.endswith("(installed by onConflict: Force)")


def test_odd_names_and_words_do_no_harm(scene: Scene) -> None:
    """Quotes, braces and hashes in comments and names, and a comment as long as one can be: all is read and judged."""
    scene.node.nft(f"""table inet odd.table/1 {{
        set a.b_c/d {{
            type inet_service
            elements = {{ 80 comment "x }} ; # y" }}
        }}
        chain in.put {{
            type filter hook input priority filter; policy drop;
            ct state established,related accept comment "a # handle 99 {{ b }} ' \\"
            icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert }} accept
            tcp dport @a.b_c/d ct state new accept comment "{"é" * 63}"
        }}
    }}""")
    (found,) = scene.judged(WEB, "Replies")
    assert found.reason == "StatefulAccept"
    assert "odd.table/1 in.put" in found.message
    assert scene.broken_by(WEB, "Both") == set()
