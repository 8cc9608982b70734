"""The nft scripts that bring our table from what it is to what it should be, each one transaction.

What stays is not touched: rules keep their counters, exemptions that were learned stay, and an interval of a set is
deleted only when some of it goes (of very many, all are written anew). Intervals that touch stand side by side in the
kernel, so widening only adds; a range is narrowed by deleting it and adding what is left, which no packet sees half
done (tried on 6.18).
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from .intervals import Interval, address_text, port_text, within, without
from .notrack_lines import UNTRACK
from .notrack_table import LEARNED_SETS, TABLE, Chain, Contents, Count, Installed, digest_of

REMOVE = f"add table inet {TABLE}\ndelete table inet {TABLE}\n"
"""Script that leaves no table of ours, whether there was one or not."""

DELETIONS_MAX = 64
"""More elements are not deleted one by one: nft 1.0.6 takes 5 s for 2,000 of 4,000, and 0.05 s to write them all."""


@dataclass(frozen=True)
class Line:
    """One rule of a chain. The digest in its comment makes an edited generator visible in what is installed."""

    condition: str
    action: str
    subject: str

    @property
    def comment(self) -> str:
        """What the rule is known by."""
        return f"{self.subject} {digest_of(f'{self.condition} {self.action}')}"

    def text(self, count: Count | None = None) -> str:
        """Return the rule as a script has it, its counter beginning at `count`."""
        action = self.action
        if count is not None and action == UNTRACK:
            action = action.replace("counter", f"counter packets {count[0]} bytes {count[1]}")
        return f'{self.condition} {action} comment "{self.comment}"'.lstrip()


Lines = Mapping[str, Sequence[Line]]
"""Rules by the chain they belong to."""


def creation(expected: Installed, lines: Lines, seconds: float | None = None) -> str:
    """Return the commands that make the sets and chains of `expected`; timed elements live for `seconds`."""
    parts = [f"table inet {TABLE} {{\n"]
    parts += [_set_text(name, contents, seconds) for name, contents in expected.sets.items()]
    # All chains come before the rules, which may jump to any of them.
    parts += [f"\tchain {name} {{\n{_base(chain)}\t}}\n" for name, chain in expected.chains.items()]
    for name in expected.chains:
        rules = "".join(f"\t\t{line.text()}\n" for line in lines[name])
        parts.append(f"\tchain {name} {{\n{rules}\t}}\n")
    return "".join([*parts, "}\n"])


def edit(installed: Installed, expected: Installed, lines: Lines) -> str | None:
    """Return the commands that make `installed` what `expected` says; None when only a new table can."""
    kept = expected.chains.keys() & installed.chains.keys()
    if installed.flags or installed.foreign:
        return None
    if any(not installed.chains[name].same_place(expected.chains[name]) for name in kept):
        return None
    if any(
        not _same_kind(installed.sets[name], expected.sets[name])
        for name in expected.sets.keys() & installed.sets.keys()
    ):
        return None
    new = Installed(
        {name: chain for name, chain in expected.chains.items() if name not in kept},
        {name: contents for name, contents in expected.sets.items() if name not in installed.sets},
    )
    gone = [name for name in installed.chains if name not in expected.chains]
    commands = [creation(new, lines)] if new.chains or new.sets else []
    commands += [f"flush chain inet {TABLE} {name}\n" for name in gone]
    for name in sorted(kept):
        commands += _chain_edits(name, installed.chains[name], lines[name])
    commands += [f"delete chain inet {TABLE} {name}\n" for name in gone]
    commands += [f"delete set inet {TABLE} {name}\n" for name in installed.sets if name not in expected.sets]
    for name, contents in expected.sets.items():
        if name in installed.sets and name not in LEARNED_SETS:
            commands += _set_edits(name, installed.sets[name], contents)
    return "".join(commands)


def _same_kind(one: Contents, other: Contents) -> bool:
    return (one.type, one.flags, one.size, one.timeout) == (other.type, other.flags, other.size, other.timeout)


def _chain_edits(name: str, chain: Chain, lines: Sequence[Line]) -> Iterator[str]:
    comments = [line.comment for line in lines]
    counts = {
        comment.rpartition(" ")[0]: count for comment, count in zip(chain.rules, chain.counts, strict=True) if count
    }
    if list(chain.rules) == comments:
        return
    from difflib import SequenceMatcher  # noqa: PLC0415 - few nodes ever see a chain change

    where = f"inet {TABLE} {name}"
    for what, first, last, low, high in SequenceMatcher(None, chain.rules, comments, autojunk=False).get_opcodes():
        if what == "equal":
            continue
        place = f" handle {chain.handles[last]}" if last < len(chain.handles) else ""
        for line in lines[low:high]:
            # A rule that takes another's place goes on counting where that one stopped.
            text = line.text(counts.get(line.subject))
            yield f"insert rule {where}{place} {text}\n" if place else f"add rule {where} {text}\n"
        yield from (f"delete rule {where} handle {handle}\n" for handle in chain.handles[first:last])


def _set_edits(name: str, found: Contents, wanted: Contents) -> Iterator[str]:
    # A single element is deleted whole; what of it is still wanted is added again with the rest.
    kept = within(wanted.intervals, found.elements)
    stale = [*sorted({*found.elements} - {*kept}), *found.timed_elements]
    if len(stale) > DELETIONS_MAX:
        yield f"flush set inet {TABLE} {name}\n"
        kept = []
    else:
        yield _command("delete", name, found, stale, [*found.names, *found.timed_names])
    yield _command("add", name, wanted, without(wanted.intervals, kept), wanted.names)


def _command(verb: str, name: str, contents: Contents, intervals: Iterable[Interval], names: Iterable[str]) -> str:
    elements = _element_texts(contents.type, intervals, names)
    return f"{verb} element inet {TABLE} {name} {{ {', '.join(elements)} }}\n" if elements else ""


def _element_texts(kind: str, intervals: Iterable[Interval], names: Iterable[str]) -> list[str]:
    if kind == "inet_service":
        return [port_text(interval) for interval in intervals]
    if kind in ("ipv4_addr", "ipv6_addr"):
        return [address_text(interval, 4 if kind == "ipv4_addr" else 6) for interval in intervals]
    return [f'"{name}"' if kind == "ifname" else name for name in names]


def _set_text(name: str, contents: Contents, seconds: float | None) -> str:
    flags = (*contents.flags, "dynamic") if name in LEARNED_SETS else contents.flags
    words = [f"type {contents.type}"]
    words += [f"flags {', '.join(flags)}"] if flags else []
    words += [f"size {contents.size}"] if contents.size else []
    words += [f"timeout {contents.timeout}s"] if contents.timeout else []
    elements = _element_texts(contents.type, contents.intervals, contents.names)
    timed = _element_texts(contents.type, contents.timed, contents.timed_names)
    elements += [f"{element} timeout {round((seconds or 0) * 1000)}ms" for element in timed]
    words += [f"elements = {{ {', '.join(elements)} }}"] if elements else []
    return f"\tset {name} {{\n" + "".join(f"\t\t{word}\n" for word in words) + "\t}\n"


def _base(chain: Chain) -> str:
    if chain.type is None:
        return ""
    return f"\t\ttype {chain.type} hook {chain.hook} priority {chain.priority}; policy {chain.policy};\n"
