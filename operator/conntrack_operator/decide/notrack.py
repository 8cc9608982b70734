"""NOTRACK: which packets a node's rules leave untracked, as one nftables table of our own.

Owns how policy rules become sets and chains, and how that compares with what the kernel has. Rules without addresses,
peers and interfaces share one plain interval set of ports for each protocol and side (tried on 6.18 with 1,000 ports:
0.95 to 1.0 of the connections a second without any rule, where a set of protocol and port concatenated left 0.49);
the others have sets of their own.

A trial never touches what is confirmed: what it adds stands in sets and chains apart, called trial_*, at the next
priority. Every element there has a timeout, and every packet that comes there looks for trial_alive first, which has
the same: the rules for ICMP errors carry constants that could not expire. So a trial that nobody ends has no effect
from its deadline on, with no process alive. What it would take away, goes when it is confirmed.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from conntrack_operator.errors import Refused
from conntrack_operator.model.notrack import NotrackRule

from .intervals import merged, network_intervals, port_intervals, port_text, without
from .notrack_lines import TRIAL, Target
from .notrack_ruleset import Ruleset, Share
from .notrack_script import REMOVE
from .notrack_table import TABLE, Bypassed, Installed, bypassed_from, digest_of, installed_from, label_of

__all__ = [
    "REMOVE",
    "TABLE",
    "Bypassed",
    "Installed",
    "Ruleset",
    "bypassed_from",
    "description_of",
    "installed_from",
    "label_of",
    "problem_with",
    "ruleset_for",
]

_SHOWN = 4


def ruleset_for(confirmed: Sequence[NotrackRule], wanted: Sequence[NotrackRule] | None = None) -> Ruleset:
    """Return the table for rules in whatever order they come. Raises Refused for a rule `problem_with` names.

    With `wanted` it is the table during a trial whose result would be `wanted`: `confirmed` as it is, and beside it, in
    timed elements, what `wanted` has and `confirmed` lacks. Without any difference there is no trial in it.
    """
    lasting = _shares_of(confirmed)
    if wanted is None:
        return Ruleset(lasting)
    result = _shares_of(wanted)
    if {share.target.set_name: share.target for share in lasting} == {
        share.target.set_name: share.target for share in result
    }:
        return Ruleset(lasting)
    there = {share.target.set_name: share.target for share in lasting}
    return Ruleset(
        lasting, tuple(added for share in result if (added := _added(share, there.get(share.target.set_name))))
    )


def _added(share: Share, there: Target | None) -> Share | None:
    """Return what of `share` goes on trial beside `there`, the lasting target of the same sets."""
    covered = there.ports if there else ()
    ports, every = without(share.ports, covered), without(share.target.ports, covered)
    if not ports:
        return None
    target = replace(share.target, set_name=_trial_name(share.target.set_name), ports=every, trial=True)
    return Share(share.name, target, ports)


def _trial_name(name: str) -> str:
    return TRIAL + name.removeprefix("confirmed_")


def _shares_of(rules: Sequence[NotrackRule]) -> tuple[Share, ...]:
    for rule in rules:
        if problem := problem_with(rule):
            raise Refused("NothingToMatch", problem)
    pooled: dict[tuple[str, str], list[NotrackRule]] = defaultdict(list)
    own = []
    for rule in sorted(rules, key=lambda rule: (rule.name, rule.model_dump_json())):
        if rule.addresses or rule.peers or rule.interfaces:
            target = _own_target(rule)
            own.append(Share(rule.name, target, target.ports))
        else:
            pooled[_protocol(rule), rule.side or "Server"].append(rule)
    shares = [share for _, members in sorted(pooled.items()) for share in _pool(members)]
    return (*shares, *own)


def problem_with(rule: NotrackRule) -> str | None:
    """Return why `rule` can match no packet at all and what to change, or None."""
    if not rule.ports:
        return f"rule {rule.name}: no ports are known for it yet; write ports, or wait until its pods are found"
    if not _own_target(rule).families:
        return (
            f"rule {rule.name}: addresses and peers have no IP version in common, so that no packet can match;"
            " add peers of the version of the addresses"
        )
    return None


def description_of(rule: NotrackRule) -> str:
    """Return `rule` in a few words, without its name: `TCP 80,8000-8100 Server, peers 10.0.0.0/8`."""
    words = f"{rule.protocol or 'TCP'} {_few(map(port_text, port_intervals(rule.ports or ())))} {rule.side or 'Server'}"
    for what, values in (("addresses", rule.addresses), ("peers", rule.peers), ("interfaces", rule.interfaces)):
        if values:
            words += f", {what} {_few(values)}"
    return words


def _few(values: Iterable[str]) -> str:
    every = list(values)
    rest = f" and {len(every) - _SHOWN} more" if len(every) > _SHOWN else ""
    return ",".join(every[:_SHOWN]) + rest


def _protocol(rule: NotrackRule) -> str:
    return (rule.protocol or "TCP").lower()


def _pool(members: Sequence[NotrackRule]) -> Iterator[Share]:
    protocol, side = _protocol(members[0]), members[0].side or "Server"
    every = merged(interval for rule in members for interval in port_intervals(rule.ports or ()))
    target = Target(f"{protocol}/{side.lower()}", f"confirmed_{protocol}_{side.lower()}", protocol, side, every)
    for rule in members:
        yield Share(rule.name, target, port_intervals(rule.ports or ()))


def _own_target(rule: NotrackRule) -> Target:
    # The digest keeps rules apart that share a name; the start of the name is there for people who list the table.
    readable = rule.name[:40].replace("-", "_").replace(".", "_")
    return Target(
        label=label_of(rule.name),
        set_name=f"rule_{readable}_{digest_of(rule.model_dump_json())}",
        protocol=_protocol(rule),
        side=rule.side or "Server",
        ports=port_intervals(rule.ports or ()),
        addresses=network_intervals(rule.addresses) if rule.addresses else None,
        peers=network_intervals(rule.peers) if rule.peers else None,
        interfaces=tuple(sorted(set(rule.interfaces or ()))),
    )
