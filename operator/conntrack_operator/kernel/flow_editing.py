"""Flows that survive NOTRACK rules coming and going: entries are marked, made and deleted by ctnetlink.

A tracked flow that becomes untracked leaves its entry behind, and the entry's TCP window stands still: when the rules
go away again, every packet is out of window and INVALID. `make_liberal` before the rules go in prevents that. A flow
that was born untracked has no entry: a firewall that wants a SYN first would drop the next packet. `seed` before the
rules go away makes one from the live socket. `drop_stale` deletes entries that nothing will use any more.

Tried on 6.18: reading costs 2.6 s of CPU a million entries, and on top of it 8 µs for each that is marked and 10 µs for
each that is deleted; 250,000 entries or 84, the memory is the same, since edits go out in batches while the table is
still being read. A seed costs 15 µs, a socket that needs none 2 µs.

All of it in the network namespace of the calling thread. Needs NET_ADMIN and nf_conntrack_netlink; kernel files:
net/netfilter/nf_conntrack_netlink.c (ctnetlink_new_conntrack, ctnetlink_del_conntrack), nf_conntrack_proto_tcp.c.
"""

import errno
import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple, TypeVar

from conntrack_operator.decide.flow_matching import Matcher, for_sockets, is_translated, without_interfaces
from conntrack_operator.errors import Retry, Unsupported
from conntrack_operator.model.catalogue import PREFIX as SYSCTL
from conntrack_operator.model.notrack import NotrackRule

from .addresses import local_addresses
from .flow_messages import LIVES, UDP, Life, family_of, liberal, living, tuples
from .flow_selection import Entry, read_entries
from .netlink import BATCH, Netlink
from .roots import Roots
from .sockets import Connection, read_connections
from .sysctl import read_sysctls

_CT_NEW, _CT_DELETE = 0, 2  # IPCTNL_MSG_CT_*
_CREATE = 0x400 | 0x200  # NLM_F_CREATE | NLM_F_EXCL

_Item = TypeVar("_Item")
_Edit = tuple[int, bytes]
"""Family and attributes."""


def make_liberal(rules: Sequence[NotrackRule]) -> int:
    """Let every live TCP entry that `rules` match take packets outside its window from now on; return how many.

    To be called before the rules go in, and once more when they are in: reading a large table takes seconds, in which
    connections begin. Translated entries are left alone: no rule may touch their flows. Raises
    errors.Unsupported and errors.Retry as `flow_selection.read_entries` does; marking twice does no harm.
    """
    matcher = Matcher((rule for rule in rules if (rule.protocol or "TCP") == "TCP"), local_addresses())
    mark = liberal()
    edits = (
        (entry.family, entry.identity + mark) for entry in _matching(matcher) if matcher.direction_of(entry.original)
    )
    return _carry_out(_CT_NEW, edits)


def drop_stale(rules: Sequence[NotrackRule]) -> int:
    """Delete the entries of flows that `rules` leave untracked; return how many.

    To be called once the rules are confirmed. By tuple, zone and id, so that a later entry of the same tuple stays; the
    id is made from tuple and place in memory (nf_ct_get_id in nf_conntrack_core.c), the same place gives the same.
    Left alone: translated entries; those whose first packet came from the rule's port, which may be connections of the
    node's own that are tracked; and all that match only rules with interfaces, which an entry does not tell, so that
    the flow may be one that is still tracked. They end by their timeouts. Raises as `make_liberal` does.
    """
    matcher = Matcher(without_interfaces(rules), local_addresses())
    edits = (
        (entry.family, entry.identity + entry.number)
        for entry in _matching(matcher)
        if matcher.direction_of(entry.original) == "request"
    )
    return _carry_out(_CT_DELETE, edits)


def seed(rules: Sequence[NotrackRule], at_most_seconds: int | None = None, roots: Roots | None = None) -> int:
    """Make an entry for every live connection of a Server or Client rule of `rules`; return how many have one now.

    To be called while the rules are in force, just before they are withdrawn; packets that come meanwhile are untracked
    and disturb nothing. An entry that is there already is brought up to date: state, timeout, liberal.

    During a trial, now and then with `at_most_seconds`, so that connections born in it outlive an expiry that nobody is
    alive to prepare. The kernel would keep an entry for days, and some of these connections end untracked before the
    trial does: the bound is how long their entries are left behind. The first tracked packet gives the full timeout,
    and entries that were there keep theirs.

    - TCP: as the socket stands, so that half-closed and half-open connections live on too. Liberal, and assured unless
      half-open. Its first packet is taken to be the client's.
    - UDP: connected sockets alone. Others need none, since any packet makes a new entry: a request that the firewall
      lets in, and with it the replies; a client's next packet. What has to wait for that is a server's packet behind a
      firewall that lets only replies out, and a client that only listens.
    - SCTP: none. An entry needs the verification tags of both ends, and a socket tells only its own. Behind a firewall
      that drops what is INVALID, associations that were born untracked go on with the next HEARTBEAT (every 30 s by
      default) from a side that may open connections. Tried on 6.18.
    - Zones: entries are made in zone 0. Where a firewall puts these ports into another zone, they do not help.

    Raises errors.Unsupported when the kernel does not list its TCP sockets or may not be asked, errors.Retry when it
    had no room for some of the entries: those it had room for are made.
    """
    matcher = Matcher(for_sockets(rules), local_addresses())
    made, failed = 0, dict[int, int]()
    with Netlink() as netlink:
        for batch in _batches(_seeds(matcher, at_most_seconds, roots or Roots())):
            outcomes = netlink.outcomes(_CT_NEW, _CREATE, [(new.family, new.made) for new in batch])
            there = [new for new, outcome in zip(batch, outcomes, strict=True) if outcome == errno.EEXIST]
            outcomes = [outcome for outcome in outcomes if outcome != errno.EEXIST]
            # ENOENT: what is there belongs to a translated flow that shares one tuple with ours, and is left alone.
            renewed = netlink.outcomes(_CT_NEW, 0, [(new.family, new.renewed) for new in there])
            outcomes += [outcome for outcome in renewed if outcome != errno.ENOENT]
            made += _count(outcomes, failed)
    _raise_for(failed, "make")
    return made


class _Seed(NamedTuple):
    family: int
    made: bytes
    """The attributes of a new entry."""
    renewed: bytes
    """Those that bring one up to date that is there already."""


def _seeds(matcher: Matcher, at_most_seconds: int | None, roots: Roots) -> Iterator[_Seed]:
    for protocol, ports in matcher.ports.items():
        lives = LIVES.get(protocol, {})
        told = {}
        for state, life in lives.items():
            full = _timeout_seconds(life, roots)
            bounded = full if at_most_seconds is None else min(full, at_most_seconds)
            kept = full if at_most_seconds is None else None
            told[state] = living(protocol, life, bounded), living(protocol, life, kept)
        for connection in _connections(protocol, frozenset(lives), ports):
            inbound = connection.inbound(protocol)
            direction = matcher.direction_of(inbound)
            if direction:
                path = inbound if direction == "request" else inbound.back
                both = tuples(path)
                made, renewed = told[connection.state]
                yield _Seed(family_of(path), both + made, both + renewed)


def _connections(protocol: int, states: frozenset[int], ports: bytes) -> Iterator[Connection]:
    try:
        yield from read_connections(protocol, states, ports) if states else ()
    except Unsupported:
        if protocol != UDP:  # there it is a help alone
            raise


def _timeout_seconds(life: Life, roots: Roots) -> int:
    name = f"{SYSCTL}nf_conntrack_{life.timeout}"
    return read_sysctls(roots, [name]).get(name, life.default_seconds)


def _matching(matcher: Matcher) -> Iterator[Entry]:
    """Yield the entries that have a port of the rules and that nobody translates."""
    for entry in read_entries(matcher.ports):
        if not is_translated(entry.original, entry.reply, entry.status):
            yield entry


def _carry_out(kind: int, edits: Iterable[_Edit]) -> int:
    """Make the edits while the table is still being read, and return how many took place."""
    done, failed = 0, dict[int, int]()
    with Netlink() as netlink:
        for batch in _batches(edits):
            outcomes = netlink.outcomes(kind, 0, batch)
            # ENOENT: it ended by itself meanwhile, or another flow has its place.
            done += _count([outcome for outcome in outcomes if outcome != errno.ENOENT], failed)
    _raise_for(failed, "change" if kind == _CT_NEW else "delete")
    return done


def _count(outcomes: Iterable[int], failed: dict[int, int]) -> int:
    """Return how many are done, and add the others up in `failed` by errno."""
    done = 0
    for outcome in outcomes:
        if outcome:
            failed[outcome] = failed.get(outcome, 0) + 1
        else:
            done += 1
    return done


def _raise_for(failed: dict[int, int], what: str) -> None:
    if not failed:
        return
    number = max(failed, key=lambda number: failed[number])
    room = "; raise table.size" if number in (errno.ENOMEM, errno.ENOSPC) else ""
    raise Retry(
        f"the kernel refused to {what} {sum(failed.values())} entries of connections that NOTRACK rules match"
        f" ({os.strerror(number)}){room}; it will be tried again"
    )


def _batches(items: Iterable[_Item]) -> Iterator[list[_Item]]:
    left = iter(items)
    while batch := list(islice(left, BATCH)):
        yield batch
