"""Timeouts judged against TCP keepalive, kube-proxy's reasons and each other. Pure; warnings, never refusals.

Kernel defaults, kube-proxy's values and RFC 5382 (2 h 4 min for an open connection) pass without a word. Each rule says
what dies and when, so that somebody who wants it so can go on.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from conntrack_operator.model.catalogue import BY_FIELD, PREFIX
from conntrack_operator.model.facts import Facts
from conntrack_operator.model.policy import Settings
from conntrack_operator.model.surroundings import Surroundings
from conntrack_operator.model.values import seconds_in

from .refusal import Refusal

HOUR = 3600
KEEPALIVE_SECONDS = 7200
"""net.ipv4.tcp_keepalive_time of a fresh kernel."""
SHORTEST_HANDSHAKE = 10
"""A lost SYN or SYN-ACK is sent again after 1, 3 and 7 s."""
SHORTEST_ANSWER = 5
"""Resolvers wait 5 s for an answer before they ask again."""
SHORTEST_STREAM = 30
"""QUIC and WireGuard keep their flows open with a packet every 25 to 30 s."""
SHORTEST_TIME_WAIT = 5
"""A lost last ACK makes the other side send its FIN again, within seconds."""
SHORTEST_CLOSE_WAIT = 60
"""The kernel's own value."""


@dataclass(frozen=True)
class TimeoutWarning:
    """One timeout that will surprise somebody."""

    setting: str
    """The sysctl's full dotted name."""
    field: str
    """The field below `spec` that sets it."""
    reason: str
    """CamelCase, as in a condition."""
    message: str
    """One sentence with the remedy."""
    suggested_seconds: int | None = None
    """A value that mends it; None where another timeout should move."""


def timeout_warnings(
    values: Mapping[str, int], keepalive_seconds: int | None = None, *, kube_proxy: bool = False
) -> list[TimeoutWarning]:
    """Return what is odd about the timeouts in `values`, which maps full dotted sysctl names to seconds.

    `keepalive_seconds` is the machine's net.ipv4.tcp_keepalive_time, None where it is not known: then the kernel's 2 h.
    `kube_proxy` tells that one runs on the machine. A timeout that is not in `values` is not judged.
    """
    judge = _Judge(values)
    _open_connections(judge, keepalive_seconds or KEEPALIVE_SECONDS)
    _half_closed(judge, kube_proxy=kube_proxy)
    _too_short(judge)
    _against_each_other(judge)
    return judge.warnings


def timeouts_of(settings: Settings, otherwise: Mapping[str, int] | None = None) -> dict[str, int]:
    """Return the timeouts of `settings` by full dotted sysctl name; what they leave alone is as in `otherwise`."""
    values = dict(otherwise or {})
    timeouts = settings.timeouts.document() if settings.timeouts else {}
    waiting = [("timeouts", timeouts)]
    while waiting:
        path, document = waiting.pop()
        for key, value in document.items():
            field = f"{path}.{key}"
            if isinstance(value, dict):
                waiting.append((field, value))
            elif field in BY_FIELD and (seconds := seconds_in(value)) is not None:
                values[BY_FIELD[field].dotted] = seconds
    return values


def warnings_of(
    settings: Settings, wanted: Mapping[str, int], facts: Facts, surroundings: Surroundings | None = None
) -> Iterator[Refusal]:
    """Yield what is odd about the timeouts that `settings` writes, as a plan warns of it.

    `wanted` are the sysctls the plan accepts. They are judged beside those the machine keeps, but a timeout that no
    policy sets is nobody's to be warned about.
    """
    keepalive = surroundings.keepalive_seconds if surroundings else None
    kube_proxy = surroundings.kube_proxy if surroundings else False
    mine = timeouts_of(settings).keys() & wanted.keys()
    for warning in timeout_warnings({**facts.sysctls, **wanted}, keepalive, kube_proxy=kube_proxy):
        if warning.setting in mine:
            yield Refusal(warning.setting, warning.reason, warning.message)


class _Judge:
    def __init__(self, values: Mapping[str, int]) -> None:
        self._values = values
        self.warnings: list[TimeoutWarning] = []

    def seconds(self, field: str) -> int | None:
        return self._values.get(BY_FIELD[f"timeouts.{field}"].dotted)

    def warn(self, field: str, reason: str, message: str, suggested: int | None = None) -> None:
        path = f"timeouts.{field}"
        name = BY_FIELD[path].dotted
        sentence = f"{name.removeprefix(PREFIX)} {message}"
        self.warnings.append(TimeoutWarning(name, path, reason, sentence, suggested))


def _open_connections(judge: _Judge, keepalive: int) -> None:
    established = judge.seconds("tcp.established")
    if established is not None and established <= keepalive:
        judge.warn(
            "tcp.established",
            "BelowKeepalive",
            f"is {words(established)}, not above the TCP keepalive time of {words(keepalive)}: pooled connections are"
            f" forgotten while they are idle, before the first probe; use more than {words(keepalive)}, such as 24h",
            max(24 * HOUR, keepalive * 2),
        )


def _half_closed(judge: _Judge, *, kube_proxy: bool) -> None:
    close_wait = judge.seconds("tcp.closeWait")
    if close_wait is None:
        return
    if close_wait < SHORTEST_CLOSE_WAIT or (kube_proxy and close_wait < HOUR):
        judge.warn(
            "tcp.closeWait",
            "HalfClosedCut",
            f"is {words(close_wait)}: a connection that one side has closed and the other still uses is cut, and its"
            " translated port is used again too early; kube-proxy writes 1h for that (kubernetes #32551), use 1h",
            HOUR,
        )
    elif close_wait > HOUR:
        judge.warn(
            "tcp.closeWait",
            "HalfClosedKept",
            f"is {words(close_wait)}: every connection that a program forgets to close stays that long; 1h is enough",
            HOUR,
        )


def _too_short(judge: _Judge) -> None:
    for field, least, what in (
        ("tcp.synSent", SHORTEST_HANDSHAKE, "a handshake with one lost packet is forgotten before it ends"),
        ("tcp.synRecv", SHORTEST_HANDSHAKE, "a handshake with one lost packet is forgotten before it ends"),
        ("tcp.timeWait", SHORTEST_TIME_WAIT, "the last packets of a connection, sent again, fit nothing any more"),
        ("udp.unreplied", SHORTEST_ANSWER, "a slow DNS answer comes too late and is refused"),
        ("udp.stream", SHORTEST_STREAM, "QUIC and VPN flows are forgotten between two keepalive packets"),
    ):
        seconds = judge.seconds(field)
        if seconds is not None and seconds < least:
            judge.warn(field, "TooShort", f"is {words(seconds)}: {what}; use {words(least)} or more", least)


def _against_each_other(judge: _Judge) -> None:
    for shorter, longer in (("udp.unreplied", "udp.stream"), ("gre.unreplied", "gre.stream")):
        first, second = judge.seconds(shorter), judge.seconds(longer)
        if first is not None and second is not None and first > second:
            judge.warn(
                shorter,
                "UnansweredOutlivesAnswered",
                f"is {words(first)} and that of answered flows {words(second)}: an unanswered flow stays longer than an"
                f" answered one; use {words(second)} or less",
                second,
            )
    established = judge.seconds("tcp.established")
    for field in ("tcp.synSent", "tcp.synRecv", "tcp.finWait", "tcp.lastAck", "tcp.timeWait", "tcp.close"):
        seconds = judge.seconds(field)
        if established is not None and seconds is not None and seconds > established:
            judge.warn(
                field,
                "ClosedOutlivesOpen",
                f"is {words(seconds)} and that of open connections {words(established)}: connections that are over stay"
                f" longer than idle ones; use {words(min(120, established))}",
                min(120, established),
            )
    for field in ("tcp.maxRetrans", "tcp.unacknowledged"):
        # nf_conntrack_tcp_packet takes these only where they are shorter than the state's own timeout.
        seconds = judge.seconds(field)
        if established is not None and seconds is not None and seconds > established:
            judge.warn(
                field,
                "NoEffect",
                f"is {words(seconds)}, more than the {words(established)} of open connections, and so does nothing;"
                f" use less than {words(established)}",
                min(300, established),
            )


def words(seconds: int) -> str:
    """Return seconds as a policy writes them: `432000` is `120h`, `7440` `2h4m`, `90` `1m30s`."""
    hours, rest = divmod(seconds, HOUR)
    minutes, left = divmod(rest, 60)
    parts = [f"{number}{unit}" for number, unit in ((hours, "h"), (minutes, "m"), (left, "s")) if number]
    return "".join(parts) or "0s"
