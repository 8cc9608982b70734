"""Our nftables table as a value that compares: chains, the comments of their rules in order, and what sets hold.

`nft -j list table` prints handles, counters and expiry that change by themselves, elements in any order, and the
same set as ranges or prefixes by nft version. All of that is gone in `Installed`, so that equality means in place.
Rules are known by their comments, which end in a digest of the text they were made from.
"""

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from .intervals import Interval, Intervals, merged, network_intervals

TABLE = "conntrack_operator"

COMMENT_MAX_BYTES = 128
"""NFTNL_UDATA_COMMENT_MAXLEN: nft refuses longer comments."""

LABEL_MAX = 100
"""What the longest part and the digest leave of a comment, rounded down."""

_COMMENT = re.compile(r"(\S+) (requests|replies|errors) [0-9a-f]{8}")


LEARNED_SETS = ("exempt4", "exempt6")
"""Sets that packets fill: what they hold is never compared."""

Count = tuple[int, int]
"""A counter's packets and bytes."""


@dataclass(frozen=True)
class Chain:
    """A chain. A base chain has type, hook, priority and policy; others have none of them.

    `handles` and `counts` are of the rules, in their order, as found in the kernel; they do not count in comparisons.
    """

    rules: tuple[str, ...] = ()
    type: str | None = None
    hook: str | None = None
    priority: int | None = None
    policy: str | None = None
    handles: tuple[int, ...] = field(default=(), compare=False)
    counts: tuple[Count | None, ...] = field(default=(), compare=False)

    def same_place(self, other: "Chain") -> bool:
        """Tell whether both sit in the same place, whatever their rules."""
        mine, theirs = ((chain.type, chain.hook, chain.priority, chain.policy) for chain in (self, other))
        return mine == theirs


@dataclass(frozen=True)
class Contents:
    """A set. Ports and addresses are `intervals`, the rest `names`; `timed` and `timed_names` are those that expire.

    `size` and `timeout` (seconds) are of the set itself. `elements` are the lasting intervals as the kernel holds them,
    which may touch: only a whole one can be deleted. They do not count in comparisons.
    """

    type: str
    flags: tuple[str, ...] = ()
    intervals: Intervals = ()
    names: tuple[str, ...] = ()
    timed: Intervals = ()
    timed_names: tuple[str, ...] = ()
    size: int | None = None
    timeout: int | None = None
    elements: Intervals = field(default=(), compare=False)
    timed_elements: Intervals = field(default=(), compare=False)


@dataclass(frozen=True)
class Installed:
    """All of the table. `foreign` names what is of a kind we never make; `flags` is ("dormant",) when switched off."""

    chains: Mapping[str, Chain] = field(default_factory=dict)
    sets: Mapping[str, Contents] = field(default_factory=dict)
    foreign: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Bypassed:
    """What the rules of one label let by untracked since they were loaded. `part`: requests, replies or errors."""

    label: str
    part: str
    packets: int
    bytes: int


def label_of(name: str) -> str:
    """Return `name` in the form comments carry it: itself, or its start and a digest when it is too long for one."""
    return name if len(name) <= LABEL_MAX else f"{name[: LABEL_MAX - 9]}~{digest_of(name)}"


def label_in(comment: str) -> str:
    """Return the label of the rule of ours that has this comment; empty when it is none that leaves packets by."""
    match = _COMMENT.fullmatch(comment)
    return match[1] if match else ""


def digest_of(text: str) -> str:
    """Return eight hexadecimal digits that stand for `text`."""
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def installed_from(listing: Mapping[str, Any]) -> Installed:
    """Return what `listing`, the document of `nft -j list table inet conntrack_operator`, shows. Never raises on it."""
    by_kind: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for item in listing.get("nftables", ()):
        for kind, body in item.items():
            by_kind[kind].append(body)
    rules: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for rule in by_kind.pop("rule", ()):
        rules[rule.get("chain", "")].append(rule)
    chains = {chain["name"]: _chain(chain, rules[chain["name"]]) for chain in by_kind.pop("chain", ())}
    sets = {found["name"]: _contents(found) for found in by_kind.pop("set", ())}
    flags = sorted({flag for table in by_kind.pop("table", ()) for flag in _words(table.get("flags"))})
    by_kind.pop("metainfo", None)
    foreign = sorted(f"{kind} {body.get('name', '')}" for kind, bodies in by_kind.items() for body in bodies)
    return Installed(chains, sets, tuple(foreign), tuple(flags))


def bypassed_from(listing: Mapping[str, Any]) -> tuple[Bypassed, ...]:
    """Return the counters of our rules in `listing`, summed by label and part."""
    sums: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0])
    for item in listing.get("nftables", ()):
        rule = item.get("rule", {})
        if match := _COMMENT.fullmatch(rule.get("comment", "")):
            for statement in rule.get("expr", ()):
                counter = statement.get("counter")
                if isinstance(counter, dict):
                    total = sums[match[1], match[2]]
                    total[0] += counter.get("packets", 0)
                    total[1] += counter.get("bytes", 0)
    return tuple(Bypassed(label, part, *sums[label, part]) for label, part in sorted(sums))


def _chain(found: Mapping[str, Any], rules: Iterable[Mapping[str, Any]]) -> Chain:
    rules = list(rules)
    return Chain(
        tuple(rule.get("comment", "") for rule in rules),
        found.get("type"),
        found.get("hook"),
        found.get("prio"),
        found.get("policy"),
        tuple(rule.get("handle", 0) for rule in rules),
        tuple(_count(rule) for rule in rules),
    )


def _count(rule: Mapping[str, Any]) -> Count | None:
    for statement in rule.get("expr", ()):
        counter = statement.get("counter")
        if isinstance(counter, dict):
            return counter.get("packets", 0), counter.get("bytes", 0)
    return None


def _contents(found: Mapping[str, Any]) -> Contents:
    intervals: dict[bool, list[Interval]] = {False: [], True: []}
    names: dict[bool, list[str]] = {False: [], True: []}
    kind = found.get("type")
    for element in () if found.get("name") in LEARNED_SETS else found.get("elem", ()):
        inner = element.get("elem") if isinstance(element, dict) else None
        value = inner.get("val") if isinstance(inner, dict) else element
        expires = isinstance(inner, dict) and "timeout" in inner
        interval = _interval(value, kind)
        if interval is None:
            names[expires].append(value if isinstance(value, str) else repr(value))
        else:
            intervals[expires].append(interval)
    return Contents(
        type=" . ".join(str(part) for part in kind) if isinstance(kind, list) else str(kind),
        # Some versions of nft say that a set is filled by packets, 1.0.6 does so in its text alone.
        flags=tuple(sorted(flag for flag in _words(found.get("flags")) if flag != "dynamic")),
        intervals=merged(intervals[False]),
        names=tuple(sorted(names[False])),
        timed=merged(intervals[True]),
        timed_names=tuple(sorted(names[True])),
        size=found.get("size"),
        timeout=found.get("timeout"),
        elements=tuple(sorted(intervals[False])),
        timed_elements=tuple(sorted(intervals[True])),
    )


def _interval(value: Any, kind: Any) -> Interval | None:
    """Return a port, an address, a range or a prefix of them as an interval; None for anything else."""
    try:
        if kind == "inet_service":
            first, last = value["range"] if isinstance(value, dict) else (value, value)
            return int(first), int(last)
        if kind in ("ipv4_addr", "ipv6_addr"):
            return _joined(_network_texts(value))
    except (KeyError, TypeError, ValueError):
        pass
    return None


def _network_texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif "prefix" in value:
        yield f"{value['prefix']['addr']}/{value['prefix']['len']}"
    else:
        yield from value["range"]


def _joined(texts: Iterable[str]) -> Interval:
    intervals = [interval for text in texts for found in network_intervals([text]).values() for interval in found]
    return intervals[0][0], intervals[-1][1]


def _words(value: Any) -> list[str]:
    # One flag is a string in some versions of nft, several are a list.
    return [value] if isinstance(value, str) else list(value or ())
