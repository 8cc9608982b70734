"""The table that rules ask for, as a value: what it must look like, what brings it there, and whose part is missing."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product

from . import notrack_exemptions
from .intervals import Intervals, covers, merged, without
from .notrack_exemptions import Hook
from .notrack_lines import ERRORS, TRIAL, Target, error_chain, matches_of
from .notrack_script import REMOVE, Line, creation, edit
from .notrack_table import TABLE, Chain, Contents, Installed

ALIVE = f"{TRIAL}alive"
"""The set that says whether a trial is running."""

PRIORITIES = {"prerouting": -300, "output": -300, "postrouting": 101}
"""NF_IP_PRI_RAW, before connection tracking at -200 and after defragmentation, and behind NF_IP_PRI_NAT_SRC, 100.

include/uapi/linux/netfilter_ipv4.h. A trial's chains stand one behind these.
"""

_LOOPBACK: dict[Hook, str] = {"prerouting": 'iifname "lo"', "output": 'oifname "lo"'}
_FLAGS = ("interval", "timeout")


@dataclass(frozen=True)
class Share:
    """What one policy rule needs: its target, whose sets must hold at least its ports."""

    name: str
    target: Target
    ports: Intervals


@dataclass(frozen=True)
class Ruleset:
    """The table that a node's rules ask for: `shares` of lasting rules, and during a trial what it adds."""

    shares: tuple[Share, ...]
    on_trial: tuple[Share, ...] | None = None

    @cached_property
    def expected(self) -> Installed | None:
        """What the kernel must show; None, no table at all, when there are no rules."""
        if not self.shares and self.on_trial is None:
            return None
        chains = {}
        for name, lines in self._chains.items():
            chains[name] = Chain(tuple(line.comment for line in lines))
            hook = name.removeprefix(TRIAL)
            if hook in PRIORITIES:
                priority = PRIORITIES[hook] + (name != hook)
                chains[name] = replace(chains[name], type="filter", hook=hook, priority=priority, policy="accept")
        return Installed(chains, self._sets)

    @property
    def exempting_ports(self) -> Intervals:
        """Ports of TCP Server rules: connections that go out from one of them need an exemption."""
        return merged(interval for target in self._targets if target.exempts for interval in target.ports)

    def newly_exempting(self, installed: Installed | None) -> Intervals:
        """Return those of `exempting_ports` that `edit` adds to `installed`; all, where the table is replaced."""
        if installed is None or self.edit(installed).startswith(REMOVE):
            return self.exempting_ports
        sets = (installed.sets.get(target.set_name) for target in self._targets if target.exempts)
        return without(self.exempting_ports, (each for found in sets if found for each in found.intervals))

    def script(self) -> str:
        """Return the input of `nft -f -` that replaces the whole table in one transaction."""
        return REMOVE + (creation(self.expected, self._chains) if self.expected else "")

    def edit(self, installed: Installed | None) -> str:
        """Return the input of `nft -f -` that brings the table from `installed` to this, in place where that can be.

        Empty when nothing differs. One transaction.
        """
        if self.expected == installed:
            return ""
        if self.expected is None or installed is None:
            return self.script()
        return edit(installed, self.expected, self._chains) or self.script()

    def beginning(self, seconds: float) -> str:
        """Return the commands that add the trial to its lasting rules: timed elements live for `seconds`."""
        lasting = Ruleset(self.shares).expected or Installed()
        expected = self.expected or Installed()
        new = Installed(
            {name: chain for name, chain in expected.chains.items() if name not in lasting.chains},
            {name: contents for name, contents in expected.sets.items() if name not in lasting.sets},
        )
        return creation(new, self._chains, seconds)

    def ending(self) -> str:
        """Return the command that ends the trial and fails, with all of its transaction, when it is over already.

        It deletes what every packet on trial asks for. The ports live as long, and to delete them takes nft minutes.
        """
        alive = ", ".join(self._sets[ALIVE].timed_names)
        return f"delete element inet {TABLE} {ALIVE} {{ {alive} }}\n"

    def is_running_in(self, installed: Installed | None) -> bool:
        """Tell whether the trial is not over yet."""
        found = installed.sets.get(ALIVE) if installed else None
        return found is not None and set(self._sets[ALIVE].timed_names) <= set(found.timed_names)

    def missing_from(self, installed: Installed | None) -> tuple[str, ...]:
        """Return the names of the policy rules that `installed` does not carry out in full."""
        every = (*self.shares, *(self.on_trial or ()))
        return tuple(
            dict.fromkeys(share.name for share in every if installed is None or not self._is_in(share, installed))
        )

    @cached_property
    def _targets(self) -> tuple[Target, ...]:
        every = (*self.shares, *(self.on_trial or ()))
        return tuple({share.target.set_name: share.target for share in every}.values())

    @cached_property
    def _sets(self) -> dict[str, Contents]:
        sets: dict[str, Contents] = {}
        if self.on_trial is not None:
            # The first to be made is the first to expire: with it everything ends in one moment.
            sets[ALIVE] = Contents("nf_proto", ("timeout",), timed_names=("ipv4", "ipv6"))
        sets |= {name: contents for target in self._targets for name, contents in _sets_of(target)}
        if any(target.exempts for target in self._targets):
            sets |= _learned_sets()
        return sets

    @cached_property
    def _lines(self) -> dict[str, tuple[tuple[str, Line], ...]]:
        """The rules of each target, by the name of its set, as (chain, line)."""
        return {target.set_name: tuple(_lines_of(target)) for target in self._targets}

    @cached_property
    def _chains(self) -> dict[str, list[Line]]:
        chains: dict[str, list[Line]] = defaultdict(list)
        for chain, line in (pair for pairs in self._lines.values() for pair in pairs):
            chains[chain].append(line)
        for trial in (False, True):
            self._complete_bases(chains, TRIAL if trial else "", needed=bool(self.on_trial if trial else self.shares))
        if any(target.exempts for target in self._targets):
            chains.update((name, list(lines)) for name, lines in _shared_chains().items())
        return {name: chains[name] for name in sorted(chains)}

    def _complete_bases(self, chains: dict[str, list[Line]], prefix: str, *, needed: bool) -> None:
        guard = [Line(f"meta nfproto != @{ALIVE}", "accept", "trial is over")] if prefix else []
        for hook, loopback in _LOOPBACK.items() if needed else ():
            start = [*guard, Line(loopback, "accept", "loopback stays tracked")]
            jumps = [_jump(prefix, hook, version) for version in ERRORS]
            ends = [
                line
                for line, version in zip(jumps, ERRORS, strict=True)
                if prefix + error_chain(hook, version) in chains
            ]
            # Errors come last: few packets are any, and most of those that are not have been accepted by then.
            chains[prefix + hook] = start + chains[prefix + hook] + ends
        learning = f"{prefix}postrouting"
        if learning in chains:
            passing = [Line(*pair, "learns nothing") for pair in notrack_exemptions.postrouting()]
            chains[learning] = guard + passing + chains[learning]

    def _is_in(self, share: Share, installed: Installed) -> bool:
        expected = self.expected or Installed()
        if installed.flags:
            return False
        for name, line in self._needed(share.target):
            chain = installed.chains.get(name)
            if chain is None or not chain.same_place(expected.chains[name]):
                return False
            # Error rules hold the ports of everybody in the shared set: a newcomer changes their digest, and that
            # alone does not make the others missing. Equality with `expected` is what sees it.
            shared = line.subject.endswith(" errors")
            there = {rule.rpartition(" ")[0] for rule in chain.rules} if shared else chain.rules
            if (line.subject if shared else line.comment) not in there:
                return False
        return all(
            (found := installed.sets.get(name)) is not None
            and covers(found.timed if share.target.trial else found.intervals, needed.intervals or needed.timed)
            and {*needed.names, *needed.timed_names} <= {*found.names, *found.timed_names}
            for name, needed in self._needed_sets(share)
        )

    def _needed(self, target: Target) -> Iterator[tuple[str, Line]]:
        lines = self._lines[target.set_name]
        yield from lines
        for hook, version in product(_LOOPBACK, ERRORS):
            if any(chain == target.prefix + error_chain(hook, version) for chain, _ in lines):
                yield target.prefix + hook, _jump(target.prefix, hook, version)
        if target.exempts:
            yield from ((name, line) for name, lines in _shared_chains().items() for line in lines)

    def _needed_sets(self, share: Share) -> Iterator[tuple[str, Contents]]:
        yield from _sets_of(replace(share.target, ports=share.ports))
        if share.target.exempts:
            yield from _learned_sets().items()
        if share.target.trial:
            yield ALIVE, self._sets[ALIVE]


def _lines_of(target: Target) -> Iterator[tuple[str, Line]]:
    for match in matches_of(target):
        yield match.chain, Line(match.condition, match.action, f"{target.label} {match.part}")


def _jump(prefix: str, hook: Hook, version: int) -> Line:
    return Line(ERRORS[version], f"jump {prefix}{error_chain(hook, version)}", f"IPv{version} errors to")


def _shared_chains() -> dict[str, tuple[Line, ...]]:
    shared = notrack_exemptions.chains()
    return {name: tuple(Line(*pair, "exempted") for pair in pairs) for name, pairs in shared.items()}


def _learned_sets() -> dict[str, Contents]:
    return {
        notrack_exemptions.set_name(version): Contents(
            f"ipv{version}_addr . inet_service . inet_service",
            ("timeout",),
            size=notrack_exemptions.SIZE,
            timeout=notrack_exemptions.SHORT_SECONDS,
        )
        for version in (4, 6)
    }


def _sets_of(target: Target) -> Iterator[tuple[str, Contents]]:
    yield target.set_name, _contents("inet_service", target.ports, trial=target.trial)
    for suffix, ends in (("addresses", target.addresses), ("peers", target.peers)):
        for version in target.families if ends is not None else ():
            name = f"{target.set_name}_{suffix}{version}"
            yield name, _contents(f"ipv{version}_addr", (ends or {})[version], trial=target.trial)
    if target.interfaces:
        names = target.interfaces
        lasting, timed = Contents("ifname", names=names), Contents("ifname", ("timeout",), timed_names=names)
        yield f"{target.set_name}_interfaces", timed if target.trial else lasting


def _contents(kind: str, intervals: Intervals, *, trial: bool) -> Contents:
    return Contents(kind, _FLAGS, timed=intervals) if trial else Contents(kind, _FLAGS, intervals)
