"""What 1,000 NOTRACK ports cost a connection, exemptions on, beside the iptables multiport chain people use.

Goal: at most 5 % of the connections a second of the same node without these rules. Tracking is switched on there as on
any node that has a table to fill; what a node without any rule and without tracking does is printed too. One thread
opens, uses and closes connections over a veth pair, so that every packet is handled in its time and the rules weigh
more than where two processors share the work. The ways take turns; each round is compared with the same round of the
baseline, in CPU time, which a busy machine disturbs less. Run as root: python -m tests.bench.bench_notrack
"""

import contextlib
import shutil
import statistics
import time
from collections.abc import Callable

from tests.lab.namespaces import End, Lab, Namespace, missing

from conntrack_operator.kernel import nftables
from conntrack_operator.model.notrack import NotrackRule

PORTS = range(8001, 10001, 2)
"""1,000 ports that do not touch."""

LISTENING = (8001, 9001, 9999)
CONNECTIONS = 300
ROUNDS = 40
GOAL = 0.95
MULTIPORT = 15
"""Ports that one iptables multiport rule can hold."""

Way = Callable[[Namespace], None]


def _nothing(node: Namespace) -> None:
    """Leave the node without any rule: nothing is tracked either."""


def _tracking(node: Namespace) -> None:
    node.track()


def _rules_alone(node: Namespace) -> None:
    with node.inside():
        nftables.write_rules([NotrackRule(name="web", ports=list(PORTS))])


def _rules(node: Namespace) -> None:
    node.track()
    _rules_alone(node)


def _iptables(variant: str) -> Way:
    def load(node: Namespace) -> None:
        ports = [",".join(map(str, PORTS[at : at + MULTIPORT])) for at in range(0, len(PORTS), MULTIPORT)]
        lines = ["*raw"]
        for each in ports:
            lines.append(f"-A PREROUTING -p tcp -m multiport --dports {each} -j CT --notrack")
            lines.append(f"-A OUTPUT -p tcp -m multiport --sports {each} -j CT --notrack")
        node.run(f"iptables-{variant}-restore", text="\n".join([*lines, "COMMIT\n"]))

    return load


def _ways() -> dict[str, Way]:
    ways = {"tracking": _tracking, "ours": _rules, "no rules at all": _nothing, "ours, not tracking": _rules_alone}
    for variant in ("nft", "legacy"):
        if shutil.which(f"iptables-{variant}-restore"):
            ways[f"iptables-{variant}"] = _iptables(variant)
    return ways


def _forget(node: Namespace) -> None:
    node.run("nft", "flush", "ruleset")  # of this namespace, which is ours alone
    if shutil.which("iptables-legacy-restore"):
        node.run("iptables-legacy-restore", text="*raw\nCOMMIT\n")


def _round(node: Namespace, other: Namespace, end: End) -> tuple[float, float]:
    """Return (wall, CPU) seconds of a round. The node closes first: the client's port is free at once."""
    with contextlib.ExitStack() as stack:
        listeners = [stack.enter_context(node.listen(end.ipv4, port)) for port in LISTENING]
        wall, cpu = time.perf_counter(), time.thread_time()
        with other.inside():
            for number in range(CONNECTIONS):
                at = number % len(LISTENING)
                near = other.make_socket()
                near.connect((end.ipv4, LISTENING[at]))
                far, _ = listeners[at].accept()
                near.send(b"question")
                far.recv(64)
                far.send(b"answer")
                near.recv(64)
                far.close()
                near.close()
        return time.perf_counter() - wall, time.thread_time() - cpu


def main() -> None:
    """Print connections a second for each way, and what is left of those without rules."""
    if reason := missing():
        print(f"bench_notrack: skipped: {reason}")
        return
    ways = _ways()
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    with Lab() as lab:
        node, other = lab.namespace(), lab.namespace()
        end, _ = lab.link(node, other)
        node.sysctl("net.ipv4.tcp_max_tw_buckets", 1000)
        _round(node, other, end)
        for number in range(ROUNDS):
            order = list(ways.items())
            for name, load in order[number % len(order) :] + order[: number % len(order)]:
                load(node)
                taken[name].append(_round(node, other, end))
                _forget(node)
    _report(taken)


def _report(taken: dict[str, list[tuple[float, float]]]) -> None:
    for name, rounds in taken.items():
        wall, cpu = (statistics.median(CONNECTIONS / each[kind] for each in rounds) for kind in (0, 1))
        ratios = [f"{_ratio(taken, name, base):.3f} of {base}" for base in ("tracking", "no rules at all")]
        print(f"{name:19} {wall:6.0f} connections/s, {cpu:6.0f} a second of CPU: {', '.join(ratios)}")
    left = _ratio(taken, "ours", "tracking")
    print(f"NOTRACK of {len(PORTS)} ports leaves {left:.3f} (goal {GOAL}: {'met' if left >= GOAL else 'MISSED'})")


def _ratio(taken: dict[str, list[tuple[float, float]]], name: str, base: str) -> float:
    return statistics.median(plain[1] / mine[1] for plain, mine in zip(taken[base], taken[name], strict=True))


if __name__ == "__main__":
    main()
