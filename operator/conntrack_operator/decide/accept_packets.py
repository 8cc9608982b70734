"""Which untracked packets a policy's rules let firewalls accept: protocol, ports, ends and direction, and no more.

    side     replies                    requests, when Both         ICMP errors
    Server   output, from the ports     input, to the ports         input about replies, output about requests
    Client   input, from the ports      output, to the ports        input about requests, output about replies
    Forward  forward, from the ports    forward, to the ports       forward and output, about either

Errors belong to the replies: NOTRACK leaves them untracked with the packets they quote (`notrack_lines`), and a
firewall that accepts only `related` would end path MTU discovery. A reply is never a bare SYN nor an SCTP INIT: who
opens connections from a serving port is judged by the firewall, like anybody else. UDP has no such mark: the servers
that a Client rule names may send from these ports to any port of the node, as behind every stateless firewall.
Every line asks whether the node's own end is local (Forward: that neither is), because a chain of somebody else's may
be jumped to from several hooks, and what is accepted for one must not be for another.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from conntrack_operator.model.notrack import NotrackRule
from conntrack_operator.model.surroundings import Match

from .intervals import Intervals, address_text, network_intervals, port_intervals
from .notrack_lines import Direction, Side
from .notrack_table import label_of

Hook = Literal["input", "output", "forward"]
What = Literal["replies", "errors", "requests"]

_REPLIES: dict[Side, Hook] = {"Server": "output", "Client": "input", "Forward": "forward"}
_REQUESTS: dict[Side, Hook] = {"Server": "input", "Client": "output", "Forward": "forward"}
_ERRORS: dict[Side, tuple[tuple[Hook, Direction], ...]] = {
    "Server": (("input", "reply"), ("output", "request")),
    "Client": (("input", "request"), ("output", "reply")),
    "Forward": (("forward", "request"), ("forward", "reply"), ("output", "request"), ("output", "reply")),
}


@dataclass(frozen=True)
class Accepted:
    """Untracked packets of one rule at one hook.

    `direction` is the packet's, for errors that of the packet they quote. `serving` and `other` are the addresses of
    the ends, None for any; `version` is 0 where it does not matter.
    """

    label: str
    hook: Hook
    what: What
    side: Side
    version: int
    protocol: str
    direction: Direction
    ports: Intervals
    serving: Intervals | None = None
    other: Intervals | None = None
    interfaces: tuple[str, ...] = ()

    @property
    def subject(self) -> str:
        """The start of its comment: whose it is and what it accepts."""
        return f"{self.label} {self.what}"

    @property
    def match(self) -> Match:
        """What it is of a packet, its locality apart; of an error no more than that it is one."""
        families = frozenset({self.version or 4, self.version or 6})
        if self.what == "errors":
            return Match(families, frozenset({"icmp", "icmpv6"}))
        ends = {key: _texts(self.version, intervals) for key, intervals in self.ends.items()}
        asked = self.direction == "request"
        return Match(
            families,
            frozenset({self.protocol}),
            source_ports=None if asked else self.ports,
            destination_ports=self.ports if asked else None,
            sources=ends.get("saddr"),
            destinations=ends.get("daddr"),
            in_interfaces=self.interfaces or None if self.hook == "input" else None,
            out_interfaces=self.interfaces or None if self.hook == "output" else None,
        )

    @property
    def ends(self) -> dict[str, Intervals]:
        """Addresses that the packet (of an error: the quoted packet) must have, as {saddr or daddr: intervals}."""
        names = ("daddr", "saddr") if self.direction == "request" else ("saddr", "daddr")
        ends = zip(names, (self.serving, self.other), strict=True)
        return {name: intervals for name, intervals in ends if intervals is not None}


def _texts(version: int, intervals: Intervals) -> tuple[str, ...]:
    return tuple(address_text(interval, version) for interval in intervals)


def unbounded(rule: NotrackRule) -> bool:
    """Tell whether replies of `rule` cannot be told from what a stranger sends who chooses the serving port himself.

    Routed datagrams: nothing in them says who began. Accepting all that come from port 53 would let anybody in.
    TCP and SCTP say it (SYN, INIT), Server replies leave from this node, and Client rules name their servers.
    """
    return rule.side == "Forward" and rule.protocol == "UDP" and not rule.addresses


def accepted_by(rule: NotrackRule, *, requests: bool) -> Iterator[Accepted]:
    """Yield what `rule` accepts: replies and their errors, and with `requests` those too. No ports: nothing."""
    side: Side = rule.side or "Server"
    ports = port_intervals(rule.ports or ())
    if not ports:
        return
    for version, serving, other in _ends(rule):
        common = {
            "label": label_of(rule.name),
            "side": side,
            "protocol": (rule.protocol or "TCP").lower(),
            "ports": ports,
            "serving": serving,
            "other": other,
            "interfaces": tuple(sorted(set(rule.interfaces or ()))),
        }
        if not unbounded(rule):
            yield Accepted(hook=_REPLIES[side], what="replies", direction="reply", version=version, **common)  # type: ignore[arg-type]
        for hook, direction in _ERRORS[side]:
            for each in (version,) if version else (4, 6):
                yield Accepted(hook=hook, what="errors", direction=direction, version=each, **common)  # type: ignore[arg-type]
        if requests:
            yield Accepted(hook=_REQUESTS[side], what="requests", direction="request", version=version, **common)  # type: ignore[arg-type]


def _ends(rule: NotrackRule) -> Iterable[tuple[int, Intervals | None, Intervals | None]]:
    """Yield the addresses and peers of each IP version in which a packet can match; version 0 when none are named."""
    if not rule.addresses and not rule.peers:
        yield 0, None, None
        return
    serving = network_intervals(rule.addresses) if rule.addresses else None
    other = network_intervals(rule.peers) if rule.peers else None
    for version in (4, 6):
        if all(ends is None or version in ends for ends in (serving, other)):
            yield version, serving[version] if serving else None, other[version] if other else None
