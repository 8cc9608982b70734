"""Stateful firewalls for tests, the same rules in nftables, iptables-nft and iptables-legacy."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from tests.lab.namespaces import Namespace

from conntrack_operator.model.surroundings import Tool

TOOLS: tuple[Tool, ...] = ("nftables", "iptables-nft", "iptables-legacy")
Hook = Literal["input", "output", "forward"]

_PROGRAMS = {"ip": "iptables", "ip6": "ip6tables"}
_CHANGING = re.compile(r"^#.*$|\[\d+:\d+\]", re.MULTILINE)


@dataclass(frozen=True)
class Rule:
    """What a rule matches, and `accept`, `drop` or `reject`. `nd`: neighbour discovery, but no advertised routers."""

    verdict: Literal["accept", "drop", "reject"]
    states: tuple[str, ...] = ()
    source: str = ""
    protocol: str = ""
    port: int = 0
    nd: bool = False

    @property
    def family(self) -> str:
        """The family it is for, empty for both."""
        if self.nd:
            return "ip6"
        return "" if not self.source else "ip6" if ":" in self.source else "ip"

    def nft(self) -> str:
        """Return it as nft writes it."""
        words = ["icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert }"] if self.nd else []
        words += [f"{'ip6' if self.family == 'ip6' else 'ip'} saddr {self.source}"] if self.source else []
        words += [f"{self.protocol} dport {self.port}"] if self.port else []
        words += [f"ct state {{ {', '.join(self.states)} }}"] if self.states else []
        return " ".join([*words, self.verdict])

    def iptables(self) -> list[str]:
        """Return it as iptables writes it, without its chain."""
        if self.nd:
            return [f"-p ipv6-icmp --icmpv6-type {number} -j ACCEPT" for number in (135, 136)]
        words = [f"-s {self.source}"] if self.source else []
        words += [f"-p {self.protocol} --dport {self.port}"] if self.port else []
        words += [f"-m conntrack --ctstate {','.join(self.states).upper()}"] if self.states else []
        return [" ".join([*words, "-j", self.verdict.upper()])]


ESTABLISHED = Rule("accept", states=("established", "related"))
NEIGHBOURS = Rule("accept", nd=True)


@dataclass(frozen=True)
class Wall:
    """Base chains that drop by policy, with these rules in front."""

    tool: Tool
    rules: Mapping[Hook, Sequence[Rule]]

    def load(self, namespace: Namespace) -> None:
        """Put it up."""
        if self.tool == "nftables":
            chains = "".join(
                f" chain {hook} {{\n type filter hook {hook} priority filter; policy drop;\n"
                + "".join(f" {rule.nft()}\n" for rule in rules)
                + " }\n"
                for hook, rules in self.rules.items()
            )
            namespace.nft(f"table inet wall {{\n{chains}}}\n")
            return
        for family, program in _PROGRAMS.items():
            lines = [f":{hook.upper()} DROP [0:0]" for hook in self.rules]
            lines += [f"-A {hook.upper()} {words}" for hook in self.rules for words in self._words(hook, family)]
            namespace.run(f"{program}-{self._kind}-restore", text="\n".join(["*filter", *lines, "COMMIT", ""]))

    def listing(self, namespace: Namespace) -> str:
        """Return all of it as its own tool prints it, without counters."""
        if self.tool == "nftables":
            return namespace.run("nft", "-s", "list", "table", "inet", "wall").stdout
        saved = [namespace.run(f"{program}-{self._kind}-save").stdout for program in _PROGRAMS.values()]
        return _CHANGING.sub("", "".join(saved))

    def insert_second(self, namespace: Namespace, hook: Hook) -> None:
        """Put the second rule of `hook` right behind the first, which is there already."""
        second = self.rules[hook][1]
        if self.tool == "nftables":
            listing = namespace.run("nft", "-a", "list", "chain", "inet", "wall", hook).stdout
            handle = re.search(r"policy .*\n.* # handle (\d+)", listing)[1]
            namespace.run("nft", "add", "rule", "inet", "wall", hook, "handle", handle, *second.nft().split())
            return
        for program in _PROGRAMS.values():
            for words in second.iptables():
                namespace.run(f"{program}-{self._kind}", "-I", hook.upper(), "2", *words.split())

    def flush(self, namespace: Namespace, hook: Hook) -> None:
        """Do what an administrator does who empties a chain."""
        if self.tool == "nftables":
            namespace.run("nft", "flush", "chain", "inet", "wall", hook)
            return
        for program in _PROGRAMS.values():
            namespace.run(f"{program}-{self._kind}", "-F", hook.upper())

    def remove(self, namespace: Namespace) -> None:
        """Take it down: everything passes."""
        if self.tool == "nftables":
            namespace.run("nft", "delete", "table", "inet", "wall")
            return
        for program in _PROGRAMS.values():
            for hook in self.rules:
                namespace.run(f"{program}-{self._kind}", "-P", hook.upper(), "ACCEPT")
            namespace.run(f"{program}-{self._kind}", "-F")

    @property
    def _kind(self) -> str:
        return self.tool.removeprefix("iptables-")

    def _words(self, hook: Hook, family: str) -> list[str]:
        return [words for rule in self.rules[hook] if rule.family in ("", family) for words in rule.iptables()]
