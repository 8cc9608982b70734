"""`tracking: Disabled`: who on a node needs connection tracking, each with place, text and remedy. Pure.

Tracking is on demand: a kernel tracks in a network namespace from the first rule that needs it to the last (tried on
6.18). So switching it off is an audit: it is off when nobody needs it, and whoever appears later is named by the same
audit.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from conntrack_operator.model.facts import Facts
from conntrack_operator.model.surroundings import (
    Firewall,
    FirewallChain,
    FirewallRule,
    Surroundings,
    TrackingState,
)

from .refusal import Refusal

SETTING = "tracking"
NEEDED = "TrackingNeeded"
HELPER = "net.netfilter.nf_conntrack_helper"
MOST_NAMED = 8
"""Blockers named one by one; a status holds 4 KB."""
LONGEST_TEXT = 120
"""Characters of a rule's text."""

_COUNTED = re.compile(r"counter packets \d+ bytes \d+")
NAT = frozenset({"dnat", "redirect", "snat", "masquerade"})

OWNERS: Mapping[str, tuple[str, str]] = {
    "KUBE-": ("kube-proxy", "move its work elsewhere (a CNI that replaces it) and stop it, then remove its rules"),
    "cali-": ("Calico", "Calico's policies are stateful: take the node out of it, or leave tracking on"),
    "CILIUM_": ("Cilium", "let Cilium do without iptables (its own BPF masquerading and no kube-proxy rules)"),
    "DOCKER": ("Docker", 'set "iptables": false for dockerd, or take Docker off this node'),
    "CNI-": ("CNI plugins", "use no hostPort and no ipMasq on this node"),
    "FLANNEL-": ("flannel", "run flannel with --ip-masq=false"),
    "LIBVIRT_": ("libvirt", "end libvirt's NAT networks on this node"),
    "ufw": ("ufw", "run: ufw disable"),
    "firewalld": ("firewalld", "run: systemctl disable --now firewalld"),
}
"""Programs that own many chains, by the start of a chain's name in iptables, and what to do about each."""

TABLES: Mapping[str, str] = {"kube-proxy": "KUBE-", "cali": "cali-", "ip-masq": "CNI-", "firewalld": "firewalld"}
"""The same programs by the name of their table in nftables."""

MODULES: Mapping[str, str] = {
    "openvswitch": "Open vSwitch tracks by flows of its own (ct actions); stop it and run: rmmod openvswitch",
    "ip_vs": "IPVS balances here (kube-proxy in ipvs mode, keepalived); stop it and run: rmmod ip_vs",
    "act_ct": "tc has ct actions; remove those filters and run: rmmod act_ct",
    "nf_conntrack_bridge": "bridge tables track; remove their ct rules and run: rmmod nf_conntrack_bridge",
}
"""Modules that track without a rule in any table we read. The others (nf_nat, xt_conntrack, nft_ct) serve rules: those
are found as rules, and rules of another network namespace are tracked in that namespace alone."""


@dataclass(frozen=True)
class Blocker:
    """One reason why tracking cannot be off."""

    where: str
    """Table and chain, program or module: `nftables inet filter input`, `kube-proxy`."""
    text: str
    """The rule (one of `count`), or what was seen."""
    remedy: str
    count: int = 1
    """Rules of this kind."""

    @property
    def message(self) -> str:
        """Return it as one sentence with the remedy."""
        more = f" and {self.count - 1} more like it" if self.count > 1 else ""
        verb = "need" if more else "needs"
        return f"{self.where}: {self.text}{more} {verb} connection tracking; {self.remedy}"


def blockers_of(surroundings: Surroundings, facts: Facts) -> tuple[Blocker, ...]:
    """Return everything that needs connection tracking in this network namespace, grouped, programs first.

    A program's ten thousand rules are one blocker with an example. Empty: nothing here needs it.
    """
    if surroundings.tracking.presence == "absent":
        return ()
    found = [*_of_rules(surroundings.firewall), *_of_modules(surroundings.tracking, surroundings.modules)]
    if surroundings.kube_proxy and not any(blocker.where.startswith("kube-proxy") for blocker in found):
        found.insert(0, Blocker("kube-proxy", "its process, which translates every Service,", OWNERS["KUBE-"][1]))
    if facts.sysctls.get(HELPER):
        found.append(
            Blocker(HELPER, "1, which attaches helpers to flows,", 'set sysctls: {nf_conntrack_helper: "0"} first')
        )
    if surroundings.tracking.families != frozenset():
        found.extend(
            Blocker("firewall", f"what could not be looked at ({reason})", sentence)
            for reason, sentence in surroundings.firewall.problems
        )
    return tuple(found) or tuple(_unseen(surroundings.tracking))


def _unseen(tracking: TrackingState) -> Iterator[Blocker]:
    if tracking.families:
        versions = " and ".join(f"IPv{version}" for version in sorted(tracking.families))
        yield Blocker(
            versions,
            "something that shows in no rule (a connection over loopback was tracked)",
            "look for dormant nftables tables, for ct actions of tc or Open vSwitch, and for enable_hooks=1 among"
            " nf_conntrack's module options",
        )


def refusals_for(blockers: Sequence[Blocker]) -> list[Refusal]:
    """Return one refusal for each blocker, at most MOST_NAMED of them; the last says how many there are besides."""
    named = [Refusal(SETTING, NEEDED, blocker.message) for blocker in blockers[:MOST_NAMED]]
    rest = len(blockers) - len(named)
    if rest:
        last = named[-1]
        named[-1] = Refusal(last.setting, last.reason, f"{last.message} (and {rest} more blockers)")
    return named


def needs_tracking(rule: FirewallRule) -> bool:
    """Tell whether a rule makes the kernel track. `notrack` alone does not (tried on 6.18, nft and iptables)."""
    return rule.tracks or rule.match.states is not None or rule.verdict in NAT or rule.verdict == "helper"


def _of_rules(firewall: Firewall) -> Iterator[Blocker]:
    """Yield programs with their rules first, then one blocker a chain. An unhooked chain tracks as well."""
    programs: dict[str, list[tuple[FirewallChain, FirewallRule]]] = {}
    chains: list[Blocker] = []
    for chain in firewall.chains:
        rules = [rule for rule in chain.rules if needs_tracking(rule)]
        if not rules:
            continue
        owner = _owner_of(chain)
        if owner:
            programs.setdefault(owner, []).extend((chain, rule) for rule in rules)
        else:
            remedy = "remove it" if len(rules) == 1 else "remove them"
            chains.append(Blocker(chain.place, _shown(rules[0]), remedy, len(rules)))
    for owner, pairs in programs.items():
        name, remedy = OWNERS[owner]
        chain, rule = pairs[0]
        yield Blocker(f"{name}, {chain.place}", _shown(rule), remedy, len(pairs))
    yield from chains


def _owner_of(chain: FirewallChain) -> str:
    for start in OWNERS:
        if chain.name.startswith(start):
            return start
    # A table with a tool of its own; iptables-nft's tables have the names of iptables'.
    return next((owner for start, owner in TABLES.items() if chain.table.startswith(start)), "")


def _shown(rule: FirewallRule) -> str:
    # Without what it counted: a status must not change with every packet.
    text = _COUNTED.sub("counter", " ".join(rule.text.split()))
    return f'"{text}"' if len(text) <= LONGEST_TEXT else f'"{text[: LONGEST_TEXT - 3]}..."'


def _of_modules(tracking: TrackingState, users: Mapping[str, tuple[str, ...]]) -> Iterator[Blocker]:
    loaded = {module.name: module.users for module in tracking.modules} | dict(users)
    for name, remedy in MODULES.items():
        if name in loaded:
            by = f", used by {', '.join(loaded[name])}," if loaded[name] else ""
            yield Blocker(f"module {name}", f"its being loaded{by}", remedy)
