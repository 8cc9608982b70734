"""NOTRACK: which packets a node's rules leave untracked, as one nftables table of our own.

Owns how policy rules become sets and chains, how that compares with what the kernel has, and the script that puts it
there in one transaction. Rules without addresses, peers and interfaces share one plain interval set of ports for each
protocol and side (tried on 6.18 with 1,000 ports: 0.95 to 1.0 of the connections a second without any rule, where a
set of protocol and port concatenated left 0.49); the others have sets of their own. The shared sets are called
confirmed_*: elements on trial, which expire, go into sets beside them and never in there.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product

from conntrack_operator.errors import Refused
from conntrack_operator.model.policy import NotrackRule

from .intervals import Intervals, covers, merged, network_intervals, port_intervals, port_text
from .notrack_lines import ERRORS, Hook, Target, error_chain, matches_of
from .notrack_table import (
    TABLE,
    Bypassed,
    Chain,
    Contents,
    Installed,
    bypassed_from,
    digest_of,
    installed_from,
    label_of,
    set_text,
)

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

REMOVE = f"add table inet {TABLE}\ndelete table inet {TABLE}\n"
"""Script that leaves no table of ours, whether there was one or not."""

RAW = -300
"""NF_IP_PRI_RAW (include/uapi/linux/netfilter_ipv4.h): before connection tracking at -200, after defragmentation."""

_HOOKS: tuple[Hook, ...] = ("prerouting", "output")
_LOOPBACK: dict[Hook, str] = {"prerouting": 'iifname "lo"', "output": 'oifname "lo"'}
_SHOWN = 4


@dataclass(frozen=True)
class _Line:
    """One rule of a chain. The digest in its comment makes an edited generator visible in what is installed."""

    condition: str
    action: str
    subject: str

    @property
    def comment(self) -> str:
        return f"{self.subject} {digest_of(f'{self.condition} {self.action}')}"

    def __str__(self) -> str:
        return f'{self.condition} {self.action} comment "{self.comment}"'


@dataclass(frozen=True)
class _Share:
    """What one policy rule needs: its target, whose sets must hold at least its ports."""

    name: str
    target: Target
    ports: Intervals


@dataclass(frozen=True)
class Ruleset:
    """The table that a node's rules ask for."""

    shares: tuple[_Share, ...]

    @cached_property
    def expected(self) -> Installed | None:
        """What the kernel must show; None, no table at all, when there are no rules."""
        if not self.shares:
            return None
        chains = {name: Chain(tuple(line.comment for line in lines)) for name, lines in self._chains.items()}
        for hook in _HOOKS:
            chains[hook] = Chain(chains[hook].rules, "filter", hook, RAW, "accept")
        return Installed(chains, self._sets)

    def script(self) -> str:
        """Return the input of `nft -f -` that replaces the whole table in one transaction."""
        if not self.shares:
            return REMOVE
        parts = [REMOVE, f"table inet {TABLE} {{\n"]
        for name, contents in self._sets.items():
            parts.append(set_text(name, contents))
        for name, lines in self._chains.items():
            base = f"\t\ttype filter hook {name} priority raw; policy accept;\n" if name in _HOOKS else ""
            rules = "".join(f"\t\t{line}\n" for line in lines)
            parts.append(f"\tchain {name} {{\n{base}{rules}\t}}\n")
        return "".join([*parts, "}\n"])

    def missing_from(self, installed: Installed | None) -> tuple[str, ...]:
        """Return the names of the policy rules that `installed` does not carry out in full."""
        return tuple(share.name for share in self.shares if installed is None or not self._is_in(share, installed))

    @cached_property
    def _targets(self) -> tuple[Target, ...]:
        return tuple({share.target.set_name: share.target for share in self.shares}.values())

    @cached_property
    def _sets(self) -> dict[str, Contents]:
        return {name: contents for target in self._targets for name, contents in _sets_of(target)}

    @cached_property
    def _lines(self) -> dict[str, tuple[tuple[str, _Line], ...]]:
        """The rules of each target, by the name of its set, as (chain, line)."""
        return {target.set_name: tuple(_lines_of(target)) for target in self._targets}

    @cached_property
    def _chains(self) -> dict[str, list[_Line]]:
        chains: dict[str, list[_Line]] = defaultdict(list)
        for chain, line in (pair for pairs in self._lines.values() for pair in pairs):
            chains[chain].append(line)
        for hook in _HOOKS:
            start = [_Line(_LOOPBACK[hook], "accept", "loopback stays tracked")]
            start += [_jump(hook, version) for version in ERRORS if error_chain(hook, version) in chains]
            chains[hook] = start + chains[hook]
        return {name: chains[name] for name in sorted(chains)}

    def _is_in(self, share: _Share, installed: Installed) -> bool:
        expected = self.expected or Installed()
        if installed.flags:
            return False
        lines = self._lines[share.target.set_name]
        # Error rules hold the ports of everybody in the shared set: a newcomer changes their digest, and that alone
        # does not make the others missing. Equality with `expected` is what sees it.
        needed = [(chain, line.comment if chain in _HOOKS else line.subject) for chain, line in lines]
        for hook, version in product(_HOOKS, ERRORS):
            if any(chain == error_chain(hook, version) for chain, _ in lines):
                needed.append((hook, _jump(hook, version).comment))
        for name, comment in needed:
            chain = installed.chains.get(name)
            if chain is None or not chain.same_place(expected.chains[name]):
                return False
            if comment not in (chain.rules if name in _HOOKS else {rule.rpartition(" ")[0] for rule in chain.rules}):
                return False
        for name, contents in _sets_of(share.target):
            found = installed.sets.get(name)
            wanted = share.ports if name == share.target.set_name else contents.intervals
            if found is None or not covers(found.intervals, wanted) or not set(contents.names) <= set(found.names):
                return False
        return True


def ruleset_for(confirmed: Sequence[NotrackRule], wanted: Sequence[NotrackRule] | None = None) -> Ruleset:
    """Return the table for rules in whatever order they come. Raises Refused for a rule `problem_with` names.

    With `wanted` it is the table during a trial whose result would be `wanted`.
    """
    rules = confirmed if wanted is None else wanted
    for rule in rules:
        if problem := problem_with(rule):
            raise Refused("NothingToMatch", problem)
    pooled: dict[tuple[str, str], list[NotrackRule]] = defaultdict(list)
    own = []
    for rule in sorted(rules, key=lambda rule: (rule.name, rule.model_dump_json())):
        if rule.addresses or rule.peers or rule.interfaces:
            target = _own_target(rule)
            own.append(_Share(rule.name, target, target.ports))
        else:
            pooled[_protocol(rule), rule.side or "Server"].append(rule)
    shares = [share for _, members in sorted(pooled.items()) for share in _pool(members)]
    return Ruleset((*shares, *own))


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


def _pool(members: Sequence[NotrackRule]) -> Iterator[_Share]:
    protocol, side = _protocol(members[0]), members[0].side or "Server"
    every = merged(interval for rule in members for interval in port_intervals(rule.ports or ()))
    target = Target(f"{protocol}/{side.lower()}", f"confirmed_{protocol}_{side.lower()}", protocol, side, every)
    for rule in members:
        yield _Share(rule.name, target, port_intervals(rule.ports or ()))


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


def _lines_of(target: Target) -> Iterator[tuple[str, _Line]]:
    for match in matches_of(target):
        # accept ends our chain only: every packet is counted once.
        yield match.chain, _Line(match.condition, "counter notrack accept", f"{target.label} {match.part}")


def _jump(hook: Hook, version: int) -> _Line:
    return _Line(ERRORS[version], f"jump {error_chain(hook, version)}", f"IPv{version} errors")


def _sets_of(target: Target) -> Iterator[tuple[str, Contents]]:
    flags = ("interval", "timeout")
    yield target.set_name, Contents("inet_service", flags, target.ports)
    for suffix, ends in (("addresses", target.addresses), ("peers", target.peers)):
        for version in target.families if ends is not None else ():
            yield f"{target.set_name}_{suffix}{version}", Contents(f"ipv{version}_addr", flags, (ends or {})[version])
    if target.interfaces:
        yield f"{target.set_name}_interfaces", Contents("ifname", (), (), target.interfaces)
