"""The small values: how people may write them and what they stand for. The corpus holds the sentences."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from conntrack_operator.model.values import (
    DURATION_MAX_SECONDS,
    InterfaceName,
    IntOrPercent,
    Network,
    Ports,
    Seconds,
    ports_in,
    seconds_in,
)


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        (1, 1),
        (30, 30),
        (DURATION_MAX_SECONDS, DURATION_MAX_SECONDS),
        ("1s", 1),
        ("90s", 90),
        ("2m", 120),
        ("1h", 3600),
        ("24h", 86_400),
        ("1h30m", 5400),
        ("1h1m1s", 3661),
        ("0h0m1s", 1),
        ("596h31m23s", DURATION_MAX_SECONDS),
        ("596h31m24s", None),
        (DURATION_MAX_SECONDS + 1, None),
        (0, None),
        (-1, None),
        ("0s", None),
        ("", None),
        ("30", None),
        ("-5s", None),
        ("+5s", None),
        ("5d", None),
        ("300ms", None),
        ("1.5h", None),
        ("30s1h", None),
        ("1h 30m", None),
        ("1h\n", None),
        ("\u0661s", None),
        ("P1D", None),
        (True, None),
        (1.5, None),
        (None, None),
        ([], None),
    ],
)
def test_seconds(written: object, seconds: int | None) -> None:
    """A duration needs a unit in text and none as a number, and stays within what the kernel counts."""
    assert seconds_in(written) == seconds


@pytest.mark.parametrize(
    ("written", "ports"),
    [
        (1, (1, 1)),
        (65_535, (65_535, 65_535)),
        ("80", (80, 80)),
        ("00080", (80, 80)),
        ("8000-8100", (8000, 8100)),
        ("1-65535", (1, 65_535)),
        ("53-53", (53, 53)),
        (0, None),
        (65_536, None),
        (-1, None),
        ("9000-8000", None),
        ("80-", None),
        ("-80", None),
        ("80-70000", None),
        ("0-80", None),
        ("80 - 90", None),
        ("1-2-3", None),
        ("http", None),
        ("80\n", None),
        ("\u0668\u0660", None),
        (True, None),
        (80.0, None),
        (None, None),
    ],
)
def test_ports(written: object, ports: tuple[int, int] | None) -> None:
    """A port is a number or a range whose lower end comes first."""
    assert ports_in(written) == ports


@given(st.one_of(st.text(), st.integers(), st.from_regex(r"[0-9hms-]{0,12}")))
def test_anything_is_read_or_not_but_never_breaks(written: object) -> None:
    """Whatever is written, the answer is None or a value in range."""
    seconds, ports = seconds_in(written), ports_in(written)
    assert seconds is None or 1 <= seconds <= DURATION_MAX_SECONDS
    assert ports is None or 1 <= ports[0] <= ports[1] <= 65_535


@given(st.integers(0, 500), st.integers(0, 59), st.integers(0, 59))
def test_every_combination_of_units_adds_up(hours: int, minutes: int, seconds: int) -> None:
    """Hours, minutes and seconds add up, with the parts that are zero written or left out."""
    total = hours * 3600 + minutes * 60 + seconds
    short = "".join(f"{number}{unit}" for number, unit in ((hours, "h"), (minutes, "m"), (seconds, "s")) if number)
    for written in (f"{hours}h{minutes}m{seconds}s", short):
        assert seconds_in(written) == (total or None)


def _taken(annotation: object, value: object) -> bool:
    try:
        TypeAdapter(annotation).validate_python(value)
    except ValidationError:
        return False
    return True


@pytest.mark.parametrize(
    ("written", "good"),
    [
        ("192.0.2.1", True),
        ("192.0.2.0/24", True),
        ("192.0.2.1/32", True),
        ("0.0.0.0/0", True),
        ("::/0", True),
        ("2001:DB8::1", True),
        ("2001:db8::/32", True),
        ("192.0.2.1/24", False),
        ("192.0.2.0/255.255.255.0", False),
        ("192.0.2.0/024", False),
        ("192.0.2.0/33", False),
        ("192.0.2.0/", False),
        ("192.0.2.010", False),
        ("fe80::1%eth0", False),
        ("::ffff:192.0.2.1", False),
        ("example.com", False),
        ("", False),
        (5, False),
        (b"\xc0\x00\x02\x01", False),
    ],
)
def test_networks(written: object, good: bool) -> None:
    """An address or a network of either family, in the one way both judges read."""
    assert _taken(Network, written) is good


@pytest.mark.parametrize(
    ("written", "good"),
    [("eth0", True), ("veth@1", True), ("abcdefghijklmno", True), ("abcdefghijklmnop", False), ("eth 0", False),
     ("eth*", False), ('eth0"', False), ("", False), (0, False)],
)  # fmt: skip
def test_interfaces(written: object, good: bool) -> None:
    """Interface names reach nftables: nothing that means something there gets through."""
    assert _taken(InterfaceName, written) is good


@pytest.mark.parametrize(
    ("written", "good"),
    [(0, True), (1_000_000, True), ("0%", True), ("10%", True), ("100%", True), ("101%", False), ("007%", False),
     (-1, False), (1_000_001, False), ("10", False), (True, False), (0.5, False)],
)  # fmt: skip
def test_int_or_percent(written: object, good: bool) -> None:
    """A number of nodes, or a share of them."""
    assert _taken(IntOrPercent, written) is good


def test_seconds_are_held_as_numbers_and_ports_as_written() -> None:
    """Durations are compared after a merge, so they are numbers; ports go back out as people wrote them."""
    assert TypeAdapter(Seconds).validate_python("1h30m") == 5400
    assert TypeAdapter(Ports).validate_python("8000-8100") == "8000-8100"
