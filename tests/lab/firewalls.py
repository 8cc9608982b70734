"""Firewalls as hosts have them, as data: short ways to write chains down, and the usual arrangements."""

import ipaddress

from conntrack_operator.model.surroundings import Firewall, FirewallChain, FirewallRule, Match

PRIORITIES = {"mangle": -150, "nat": -100, "filter": 0}


def rule(verdict, text="", *, target="", to_ports=None, to_addresses=(), tracks=None, **match):
    """Return a rule; the other keywords are its match, with `ports` for destination ports and single ports as such."""
    if "ports" in match:
        match["destination_ports"] = match.pop("ports")
    for name in ("source_ports", "destination_ports"):
        if name in match:
            match[name] = tuple(port if isinstance(port, tuple) else (port, port) for port in match[name])
    for name in ("protocols", "states", "families"):
        if name in match:
            match[name] = frozenset(match[name])
    text = text or f"{verdict} {target} {match}"
    tracks = "states" in match if tracks is None else tracks
    made = Match(**match)
    ports = to_ports and tuple((port, port) for port in to_ports)
    return FirewallRule(made, verdict, text, target, ports, tuple(to_addresses), tracks=tracks)


def jump(target, **match):
    """Return a jump to a chain."""
    return rule("jump", target=target, **match)


def chain(name, *rules, hook="", policy="", kind="filter", tool="iptables-nft", family="ip", table=None):
    """Return a chain of table `table`, by default the one named like its kind; a base chain when it has a hook."""
    priority = {"postrouting": 100}.get(hook, PRIORITIES["nat"]) if kind == "nat" else PRIORITIES.get(kind, 0)
    policy = policy or ("accept" if hook else "")
    return FirewallChain(
        tool, family, table or kind, name, rules, kind if hook else "", hook, priority if hook else 0, policy
    )


def number(text):
    """Return an address as an interval of one."""
    value = int(ipaddress.ip_address(text))
    return ((value, value),)


REPLIES = rule("accept", "ct state established,related accept", states={"established", "related"})
INVALID = rule("drop", "ct state invalid drop", states={"invalid"})
LOOPBACK = rule("accept", 'iifname "lo" accept', in_interfaces=("lo",))


def nftables(*rules, hook="input", policy="drop"):
    """Return the firewall of a hand-written nftables.conf whose chain has these rules after its usual start."""
    start = (LOOPBACK, INVALID, REPLIES)
    made = chain(hook, *start, *rules, hook=hook, policy=policy, tool="nftables", family="inet")
    return Firewall((made,))


def ufw(*user_rules):
    """Return UFW's chains, shortened, with these rules in ufw-user-input."""
    state = {"tool": "iptables-nft", "family": "ip"}
    return Firewall((
        chain("INPUT", jump("ufw-before-input"), jump("ufw-after-input"), hook="input", policy="drop", **state),
        chain(
            "ufw-before-input",
            LOOPBACK,
            REPLIES,
            jump("ufw-logging-deny", states={"invalid"}),
            INVALID,
            jump("ufw-not-local"),
            jump("ufw-user-input"),
            **state,
        ),
        chain("ufw-logging-deny", rule("none", "-j LOG", other=True), **state),
        chain(
            "ufw-not-local",
            rule("return", "-m addrtype --dst-type LOCAL -j RETURN", other=True),
            rule("return", "-m addrtype --dst-type MULTICAST -j RETURN", other=True),
            rule("drop", "-j DROP"),
            **state,
        ),
        chain("ufw-user-input", *user_rules, **state),
        chain("ufw-after-input", rule("none", "-j LOG", other=True), **state),
    ))  # fmt: skip


def firewalld(*allowed):
    """Return firewalld's chains, shortened, with these rules in the public zone; it rejects at the end of INPUT."""
    place = {"tool": "nftables", "family": "inet", "table": "firewalld"}
    return Firewall((
        chain(
            "filter_INPUT",
            rule("accept", "ct state { established, related } accept", states={"established", "related"}),
            rule("accept", "ct status dnat accept", states={"dnat"}),
            LOOPBACK,
            INVALID,
            jump("filter_INPUT_ZONES"),
            rule("reject", "reject with icmpx admin-prohibited"),
            hook="input",
            **place,
        ),
        chain("filter_INPUT_ZONES", rule("goto", target="filter_IN_public"), **place),
        chain("filter_IN_public", jump("filter_IN_public_allow"), **place),
        chain("filter_IN_public_allow", *allowed, **place),
    ))  # fmt: skip
