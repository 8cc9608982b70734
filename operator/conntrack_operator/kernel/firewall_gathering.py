"""Rules of one table as they are read, with as little kept of them as the reader asked for.

A node with 10,000 Services has tens of thousands of NAT rules and chains. Whoever asks about some ports gets the chains
that packets to these ports can come to, and a crowd of rules that differ in nothing but their destination as its first
ones and one rule for the rest.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from conntrack_operator.decide.packets import common
from conntrack_operator.model.surroundings import FirewallRule, PortRanges

from .firewall_match import NAT

CROWD = 16
"""Rules alike that are told one by one."""
PASSES_MAX = 8
"""Each pass follows jumps that go on in the listing; kube-proxy's take one or two."""
TEXT_MAX = 400
"""Characters of a rule's text; an anonymous set can be of any length."""
_LEADING = NAT | {"jump", "goto"}


def concerns(rule: FirewallRule, interest: PortRanges | None) -> bool:
    """Tell whether a rule has to do with the ports of interest; only translations and ways to them can have not.

    A rule without ports concerns them all, one that translates to a port concerns that one too.
    """
    if interest is None or rule.verdict not in _LEADING:
        return True
    looked_at = [ports for ports in (rule.match.destination_ports, rule.match.source_ports) if ports is not None]
    return not looked_at or any(common(ports, interest) for ports in looked_at) or leads_to(rule, interest)


def leads_to(rule: FirewallRule, interest: PortRanges) -> bool:
    """Tell whether a rule translates to one of the ports of interest."""
    return rule.to_ports is not None and bool(common(rule.to_ports, interest))


@dataclass
class _Crowd:
    count: int = 0
    first: FirewallRule | None = None
    place: int = 0
    destinations: set[str] = field(default_factory=set)


class Gathering:
    """Takes the rules of a table in any order of chains. `thin` says whether anything may be left out."""

    def __init__(self, wanted: set[str], interest: PortRanges | None, *, thin: bool) -> None:
        self.interest = interest if thin else None
        self.wanted = wanted
        """Chains that packets of interest come to; grows as rules lead to more."""
        self._chains: dict[str, list[FirewallRule]] = {}
        self._crowds: dict[tuple[object, ...], _Crowd] = {}
        self._skipped: set[str] = set()
        self.complete = True
        """False when a chain was passed over before anything led to it: the table is to be read again."""

    def chain(self, name: str) -> None:
        """Note a chain, which may have no rules."""
        if self.interest is None:
            self._chains.setdefault(name, [])

    def skips(self, name: str) -> bool:
        """Tell whether nothing is known yet to lead to a chain; it is remembered that its rules were not looked at."""
        if self.interest is None or name in self.wanted:
            return False
        self._skipped.add(name)
        return True

    def take(self, chain: str, rule: FirewallRule, *, stray: bool = False) -> None:
        """Take one rule of a chain; a `stray` one, of a skipped chain, only if it translates to a port of interest."""
        if not concerns(rule, self.interest):
            return
        if stray and (self.interest is None or not leads_to(rule, self.interest)):
            return
        rules = self._chains.setdefault(chain, [])
        if self.interest is not None and rule.verdict in _LEADING and self._crowded(chain, rule, len(rules), stray):
            return
        rules.append(rule)
        if rule.target and rule.target not in self.wanted:
            self.wanted.add(rule.target)
            self.complete = self.complete and rule.target not in self._skipped

    def _crowded(self, chain: str, rule: FirewallRule, place: int, stray: bool) -> bool:  # noqa: FBT001
        where = "" if stray else chain
        key = (where, rule.verdict, replace(rule.match, destinations=None), rule.to_ports, rule.fully_random)
        crowd = self._crowds.setdefault(key, _Crowd())
        crowd.count += 1
        if crowd.count <= CROWD:
            return False
        if crowd.first is None:
            crowd.first, crowd.place = rule, place
            if not stray:
                return False
        crowd.destinations.update(rule.match.destinations or ("",))
        return True

    def chains(self) -> Iterator[tuple[str, tuple[FirewallRule, ...]]]:
        """Yield each chain's name and rules."""
        for (chain, *_), crowd in self._crowds.items():
            if crowd.first is not None and crowd.destinations and chain in self._chains:
                rules = self._chains[str(chain)]
                rules[crowd.place] = _all_of(crowd, crowd.first)
        yield from ((name, tuple(rules)) for name, rules in self._chains.items())


def gathered(
    wanted: set[str], interest: PortRanges | None, read_into: Callable[[Gathering], None], *, thin: bool
) -> Gathering:
    """Read a table until every chain that the wanted ones lead to is in it; once is enough where all is kept."""
    for _ in range(PASSES_MAX):
        gathering = Gathering(wanted, interest, thin=thin)
        read_into(gathering)
        if gathering.complete:
            break
    return gathering


def _all_of(crowd: _Crowd, first: FirewallRule) -> FirewallRule:
    anywhere = "" in crowd.destinations or first.match.destinations is None
    destinations = None if anywhere else tuple(sorted({*crowd.destinations, *(first.match.destinations or ())}))
    return replace(
        first,
        match=replace(first.match, destinations=destinations),
        text=f"{first.text} (and {crowd.count - CROWD - 1} more like it)",
    )


def shortened(text: str) -> str:
    """Return a rule's text, cut where it is very long."""
    return text if len(text) <= TEXT_MAX else f"{text[:TEXT_MAX]}..."
