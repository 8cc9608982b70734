"""Where NAT and a NOTRACK rule meet: translation needs an entry, and an untracked packet has none. Pure.

What cannot be told of a match counts as touching, and where the node's own addresses are not known, any may be one.
"""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace

from conntrack_operator.model.notrack import NotrackRule
from conntrack_operator.model.surroundings import Firewall, FirewallChain, Service, Surroundings

from .firewall_walk import Translation, translation_of, translations
from .intervals import WIDTHS
from .packets import Hook, Packets, common, networks, without
from .refusal import shorter
from .rule_packets import overlap, packets_of, ports_of, protocol_of, serving_addresses, side_of, words

_SERVING = frozenset({"NodePort", "LoadBalancer", "ExternalIP", "HostPort"})
_TOUCHED_BY: dict[str, frozenset[str]] = {
    "Server": _SERVING | {"TargetPort"},
    "Client": frozenset({"ClusterIP"}),
    "Forward": _SERVING | {"ClusterIP"},
}
_DESTINATION = ("dnat", "redirect")
_SOURCE = ("snat", "masquerade")
_LOWEST_PICKED = 1024
"""Masquerade gives a source port of 1024 or more one of 1024 or more (nf_nat_l4proto_unique_tuple in nf_nat_core.c);
the ones below go to the few programs that send from such a port."""
_HIGHEST = 65535
_KUBE_PROXY = "kube-proxy"


def nat_conflict(rule: NotrackRule, surroundings: Surroundings) -> str | None:
    """Return why NAT on this node would break under `rule` and what to do, in a sentence, or None."""
    causes = (
        _of_service(rule, surroundings.services),
        _of_destination_rule(rule, surroundings),
        _of_target(rule, surroundings),
        _of_source_rule(rule, surroundings),
        _of_masqueraded(rule, surroundings),
        _of_live_entry(rule, surroundings),  # last: a rule says more about what to do, and says it at every look
    )
    return next((cause for cause in causes if cause), None)


def source_port_overlap(rule: NotrackRule, surroundings: Surroundings) -> str | None:
    """Return why replies to connections from this node could meet a Server rule's ports, or None.

    TCP learns such connections when they start (the SYN is seen); UDP and SCTP have to be refused.
    """
    if side_of(rule) != "Server" or protocol_of(rule) == "tcp":
        return None
    low, high = surroundings.local_port_range
    if ports := common(ports_of(rule), ((low, high),)):
        return (
            f"{words(rule, ports)} may be source ports of this node's own flows (net.ipv4.ip_local_port_range is"
            f" {low} {high}), whose replies would be taken for requests; serve on a port outside that range, or"
            " narrow the range"
        )
    for found in _every(surroundings.firewall, "postrouting", protocol_of(rule), _SOURCE):
        picked = found.rule.to_ports or ((_LOWEST_PICKED, _HIGHEST),)
        if ports := common(ports_of(rule), picked):
            return (
                f"{words(rule, ports)} may be picked as source ports by {_where(found)}, and replies to such"
                f" flows would not be translated back; give the translation a port range without them, or serve below"
                f" {_LOWEST_PICKED}"
            )
    return None


def translates(firewall: Firewall) -> bool:
    """Tell whether any rule translates: then every entry carries the NAT extension."""
    return any(rule.verdict in (*_DESTINATION, *_SOURCE) for chain in firewall.chains for rule in chain.rules)


def _of_service(rule: NotrackRule, services: Iterable[Service]) -> str | None:
    side, protocol = side_of(rule), protocol_of(rule)
    for service in services:
        if service.kind not in _TOUCHED_BY[side] or service.protocol.lower() != protocol:
            continue
        port = ((service.port, service.port),)
        named = tuple(rule.addresses) if rule.addresses else None
        at = tuple(service.addresses) or None
        if common(ports_of(rule), port) and overlap(named, at):
            return (
                f"{words(rule, port)} is {_what(service)}, which translates it; take the port out of the"
                " rule, or serve it in a way that is not translated"
            )
    return None


def _what(service: Service) -> str:
    if service.kind == "HostPort":
        return f"HostPort of pod {service.name}"
    if service.kind == "TargetPort":
        return f"the target of Service {service.name} in a pod of this node's network"
    return f"{service.kind} of Service {service.name}"


def _of_live_entry(rule: NotrackRule, surroundings: Surroundings) -> str | None:
    side = side_of(rule)
    if side == "Client":
        return None  # An entry does not say whose connection it is; the rules of the nat table do.
    entries = dict(surroundings.translated)
    if side == "Forward":
        entries |= surroundings.translated_elsewhere
    for (protocol, port), example in sorted(entries.items()):
        if protocol.lower() == protocol_of(rule) and common(ports_of(rule), ((port, port),)):
            return (
                f"{words(rule, ((port, port),))} is translated right now ({shorter(example)}); take the port out of the"
                " rule, or end the translation and wait until its entries are gone"
            )
    return None


def _of_destination_rule(rule: NotrackRule, surroundings: Surroundings) -> str | None:
    """Judge the requests before any translation: what DNAT and REDIRECT would take."""
    hook: Hook = "output" if side_of(rule) == "Client" else "prerouting"
    for packets in packets_of(rule, "request", hook, surroundings.local_addresses):
        if found := translation_of(surroundings.firewall, packets, _DESTINATION):
            return (
                f"{words(rule, found.packets.destination_ports)} is translated by {_where(found)}; take the port"
                " out of the rule, or remove that translation"
            )
    return None


def _of_target(rule: NotrackRule, surroundings: Surroundings) -> str | None:
    """Judge the replies of what a translation leads to: untracked, they would not be translated back.

    A Client rule's servers are led to as well: a Service whose endpoints they are, asked for by its ClusterIP.
    """
    serving = serving_addresses(rule, surroundings.local_addresses)
    hook: Hook = "output" if side_of(rule) == "Client" else "prerouting"
    for found in _leading(surroundings.firewall, hook, protocol_of(rule)):
        if found.chain.table == _KUBE_PROXY and not found.rule.to_addresses:
            continue  # Of a large table the ways in alone are read; which of them lead here the controller tells.
        ports = common(ports_of(rule), found.rule.to_ports or found.packets.destination_ports)
        local = found.rule.verdict == "redirect"
        if side_of(rule) != "Server":
            leads_here = not local and overlap(serving, found.rule.to_addresses or None)
        else:
            leads_here = local or overlap(serving, found.rule.to_addresses or None)
        if ports and leads_here:
            return (
                f"{words(rule, ports)} is where {_where(found)} leads, and untracked replies would not be translated"
                " back; take the port out of the rule, or remove that translation"
            )
    return None


def _leading(firewall: Firewall, hook: Hook, protocol: str) -> Iterator[Translation]:
    """Yield the rules that translate requests, by the ways to them, and then those to which no way is known.

    Whoever reads about some ports leaves out the ways of others, and one of these may lead here: a Service at port 82
    to this node's port 8443.
    """
    yield from _every(firewall, hook, protocol, _DESTINATION)
    for family in WIDTHS:
        requests = Packets(hook, family, protocol)
        for chain in firewall.chains:
            for rule in chain.rules if not chain.hook else ():
                if rule.verdict in _DESTINATION and rule.to_ports and (taken := requests.cut(rule.match)[0]):
                    yield Translation(chain, rule, taken)


def _of_source_rule(rule: NotrackRule, surroundings: Surroundings) -> str | None:
    """Judge what leaves: masquerade and SNAT of routed packets; of the node's own, SNAT, which changes the address."""
    verdicts = {"Forward": _SOURCE, "Client": ("snat",)}.get(side_of(rule), ())
    for packets in packets_of(rule, "request", "postrouting") if verdicts else ():
        if found := translation_of(surroundings.firewall, packets, verdicts):
            return (
                f"the sources of {words(rule, found.packets.destination_ports)} are translated by {_where(found)};"
                " name addresses or peers in the rule that this does not cover, or remove the rule"
            )
    return None


def _of_masqueraded(rule: NotrackRule, surroundings: Surroundings) -> str | None:
    """Judge what others send through this node to the servers of a Client rule, with the node's own address as source.

    The answers come to this node like its own, would be left untracked and never get back to who asked (tried on
    6.18). kube-proxy and CNI's portmap masquerade by a mark what they have translated to pods, which nobody names as
    servers.
    """
    if side_of(rule) != "Client" or not surroundings.routes:
        return None
    others = tuple(chain for chain in surroundings.firewall.chains if not _masquerades_by_mark(chain))
    firewall = replace(surroundings.firewall, chains=others)
    for packets in packets_of(rule, "request", "postrouting"):
        own = networks(surroundings.local_addresses or (), packets.family)
        routed = replace(packets, sources=without(((0, (1 << WIDTHS[packets.family]) - 1),), own))
        if found := translation_of(firewall, routed, _SOURCE):
            return (
                f"what others send through this node to {words(rule, found.packets.destination_ports)} of these servers"
                f" gets this node's address by {_where(found)}, and untracked answers would not get back to them; name"
                " addresses in the rule that this does not cover, or remove the rule"
            )
    return None


def _masquerades_by_mark(chain: FirewallChain) -> bool:
    return chain.name in ("KUBE-POSTROUTING", "CNI-HOSTPORT-MASQ") or chain.table in (_KUBE_PROXY, "cni_hostport")


def _every(firewall: Firewall, hook: Hook, protocol: str, verdicts: Collection[str]) -> Iterator[Translation]:
    for family in WIDTHS:
        yield from translations(firewall, Packets(hook, family, protocol), verdicts)


def _where(found: Translation) -> str:
    return f"{found.chain.place}: {shorter(found.rule.text)}"
