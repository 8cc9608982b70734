"""Learned exemptions: connections that go out from a port which Server rules leave untracked, and must be tracked.

A masqueraded connection, or one of the node's own, can get a source port inside a Server rule's range. Untracked, its
replies would skip their translation (tried on 6.18, ports 8000-16000 behind `masquerade fully-random`: 177 of 200
connections). So packets teach two sets: a bare SYN that leaves from such a port is not a server's, and its far address
and both ports are remembered: behind translation, as its replies will come in, and for the node's own also before it,
as its next packets will go out (masquerading gives them another port, a ClusterIP has another far end).
TCP alone says who begins; for UDP such an overlap is refused.

An exemption lives as long as its connection shows life, and a little longer than its end:
- the SYN gives it `SHORT_SECONDS`, enough for the next SYN to be tried;
- what carries data or answers the SYN gives it `LONG_SECONDS`;
- FIN and RST cut it back, so that connections that come and go do not fill the set. Acknowledgements alone change
  nothing: they would lengthen what has ended. A masqueraded connection whose far end has closed, and which then sends
  for longer than `SHORT_SECONDS` without an answer but acknowledgements, loses its exemption; nobody was seen to do so.
When the set is full a connection is not learned, and goes on as it would without exemptions.

Not covered: an ICMP error about such a connection quotes the port and is left untracked like any other. That is right
for the node's own; a masqueraded connection does not hear of it (nft 1.0.6 cannot look raw payload up in these sets).
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, NamedTuple

Hook = Literal["prerouting", "output"]

SHORT_SECONDS = 120
"""Life after a SYN, a FIN or a RST; nf_conntrack_tcp_timeout_syn_sent and _time_wait are 120 s too."""

LONG_SECONDS = 86_400
"""Life after data, in seconds; keepalive asks every 7,200 s, and its answers change nothing."""

SIZE = 32_768
"""Connections remembered, for each IP version: 270 a second may end, and a listing of all takes 30 MB for a moment."""

LEARN = "learn"

_FAMILY = {4: "ip", 6: "ip6"}
# th, not tcp: the protocol is known where this is asked, and need not be looked at again for every packet.
_ENDS = {"prerouting": "{ip} saddr . th sport . th dport", "output": "{ip} daddr . th dport . th sport"}
_CHAIN = {"prerouting": "exempt_in", "output": "exempt_out"}


class Exemption(NamedTuple):
    """One connection that is to be tracked: the far end's address and port, and the port on this node."""

    address: str
    port: int
    own_port: int

    @property
    def set_name(self) -> str:
        """Name of the set that holds it."""
        return set_name(6 if ":" in self.address else 4)

    def __str__(self) -> str:
        return f"{self.address} . {self.port} . {self.own_port}"


def set_name(version: int) -> str:
    """Return the name of the set for one IP version."""
    return f"exempt{version}"


def exempting(hook: Hook, families: Sequence[int]) -> Iterator[tuple[str, str]]:
    """Yield conditions and actions that let exempted packets be tracked, for packets whose port has matched."""
    if hook == "output":
        # No server begins a connection. Learned here too: translation may change what is seen from here on.
        yield "tcp flags & (syn | ack) == syn", f"goto {LEARN}"
    for version in families:
        yield f"{_ends(hook, version)} @{set_name(version)}", f"goto {_CHAIN[hook]}{version}"


def chains() -> dict[str, tuple[tuple[str, str], ...]]:
    """Return the chains that all exempting rules share, as conditions and actions by name."""
    shared = {LEARN: tuple(pair for version in _FAMILY for pair in _learning(version))}
    for hook, name in _CHAIN.items():
        for version in _FAMILY:
            shared[f"{name}{version}"] = tuple(_refreshing(hook, version))
    return shared


def postrouting() -> Iterator[tuple[str, str]]:
    """Yield what comes before the ports where connections are learned; nearly every packet ends here."""
    yield "tcp flags & (syn | rst) == 0x0", "accept"
    yield "tcp flags & (syn | ack) == syn | ack", "accept"
    yield 'oifname "lo"', "accept"


def elements_script(table: str, exemptions: Iterable[Exemption]) -> str:
    """Return nft commands that remember `exemptions`; at most half of what the sets hold, the first ones."""
    by_set: dict[str, list[str]] = {}
    for exemption in exemptions:
        found = by_set.setdefault(exemption.set_name, [])
        if len(found) < SIZE // 2:
            found.append(f"{exemption} timeout {LONG_SECONDS}s")
    return "".join(f"add element inet {table} {name} {{ {', '.join(found)} }}\n" for name, found in by_set.items())


def _ends(hook: str, version: int) -> str:
    return _ENDS[hook].format(ip=_FAMILY[version])


def _update(hook: str, version: int, seconds: int) -> str:
    return f"update @{set_name(version)} {{ {_ends(hook, version)} timeout {seconds}s }}"


def _refreshing(hook: str, version: int) -> Iterator[tuple[str, str]]:
    yield "tcp flags & (fin | rst) != 0x0", f"{_update(hook, version, SHORT_SECONDS)} accept"
    yield "tcp flags & (syn | psh) != 0x0", f"{_update(hook, version, LONG_SECONDS)} accept"
    yield "", "accept"


def _learning(version: int) -> Iterator[tuple[str, str]]:
    # A reset is no beginning: it only cuts back what is known.
    known = f"{_ends('output', version)} @{set_name(version)}"
    yield f"tcp flags & rst == rst {known}", f"{_update('output', version, SHORT_SECONDS)} accept"
    yield (
        "tcp flags & (syn | ack | rst) == syn fib saddr type local",
        f"{_update('output', version, SHORT_SECONDS)} accept",
    )
