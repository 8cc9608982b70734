"""Timeouts against TCP keepalive, kube-proxy's reasons and each other: which are odd, and which are left in peace."""

import pytest
import yaml
from tests.lab.examples import EXAMPLES

from conntrack_operator.decide.timeouts import timeout_warnings, timeouts_of, words
from conntrack_operator.model.catalogue import BY_FIELD
from conntrack_operator.model.policy import Settings
from conntrack_operator.model.reading import policy_from
from conntrack_operator.model.values import seconds_in

KERNEL = {
    "tcp.synSent": 120, "tcp.synRecv": 60, "tcp.established": 432000, "tcp.finWait": 120, "tcp.closeWait": 60,
    "tcp.lastAck": 30, "tcp.timeWait": 120, "tcp.close": 10, "tcp.maxRetrans": 300, "tcp.unacknowledged": 300,
    "udp.unreplied": 30, "udp.stream": 120, "gre.unreplied": 30, "gre.stream": 180,
}  # fmt: skip
"""Defaults of a fresh kernel."""
KUBE_PROXY = KERNEL | {"tcp.established": 86400, "tcp.closeWait": 3600}
RFC_5382 = KERNEL | {"tcp.established": 7440}


def named(fields):
    """Return timeouts by sysctl, from fields below spec.timeouts."""
    return {BY_FIELD[f"timeouts.{field}"].dotted: seconds for field, seconds in fields.items()}


@pytest.mark.parametrize(
    ("fields", "keepalive", "kube_proxy"),
    [
        pytest.param(KERNEL, 7200, False, id="kernel"),
        pytest.param(KUBE_PROXY, 7200, True, id="kube-proxy"),
        pytest.param(RFC_5382, 7200, False, id="rfc5382"),
        pytest.param({}, None, True, id="nothing known"),
        pytest.param({"tcp.established": 1800}, 600, False, id="short keepalive, short timeout"),
    ],
)
def test_what_is_usual_is_left_in_peace(fields, keepalive, kube_proxy):
    """The kernel's defaults, kube-proxy's values and the RFC's least are no warning."""
    assert timeout_warnings(named(fields), keepalive, kube_proxy=kube_proxy) == []


@pytest.mark.parametrize(
    ("fields", "keepalive", "kube_proxy", "expected"),
    [
        ({"tcp.established": 7200}, 7200, False, ("tcp.established", "BelowKeepalive", 86400)),
        ({"tcp.established": 600}, None, False, ("tcp.established", "BelowKeepalive", 86400)),
        ({"tcp.established": 86400}, 90000, False, ("tcp.established", "BelowKeepalive", 180000)),
        ({"tcp.closeWait": 60}, 7200, True, ("tcp.closeWait", "HalfClosedCut", 3600)),
        ({"tcp.closeWait": 59}, 7200, False, ("tcp.closeWait", "HalfClosedCut", 3600)),
        ({"tcp.closeWait": 3601}, 7200, True, ("tcp.closeWait", "HalfClosedKept", 3600)),
        ({"tcp.synSent": 9}, 7200, False, ("tcp.synSent", "TooShort", 10)),
        ({"tcp.synRecv": 3}, 7200, False, ("tcp.synRecv", "TooShort", 10)),
        ({"tcp.timeWait": 1}, 7200, False, ("tcp.timeWait", "TooShort", 5)),
        ({"udp.unreplied": 2}, 7200, False, ("udp.unreplied", "TooShort", 5)),
        ({"udp.unreplied": 20, "udp.stream": 29}, 7200, False, ("udp.stream", "TooShort", 30)),
        ({"udp.unreplied": 180}, 7200, False, ("udp.unreplied", "UnansweredOutlivesAnswered", 120)),
        ({"gre.unreplied": 181}, 7200, False, ("gre.unreplied", "UnansweredOutlivesAnswered", 180)),
        ({"tcp.timeWait": 432001}, 7200, False, ("tcp.timeWait", "ClosedOutlivesOpen", 120)),
        ({"tcp.unacknowledged": 432001}, 7200, False, ("tcp.unacknowledged", "NoEffect", 300)),
    ],
)
def test_each_oddity(fields, keepalive, kube_proxy, expected):
    """One timeout changed in a fresh kernel: one warning, with the field, the value now, and one that mends it."""
    values = named(KERNEL | ({"tcp.closeWait": 3600} if kube_proxy else {}) | fields)
    (warning,) = timeout_warnings(values, keepalive, kube_proxy=kube_proxy)
    field, reason, suggested = expected
    assert (warning.field, warning.reason, warning.suggested_seconds) == (f"timeouts.{field}", reason, suggested)
    assert warning.setting == BY_FIELD[warning.field].dotted
    assert warning.message.startswith(f"{BY_FIELD[warning.field].name} is {words(fields[field])}")
    mended = values | {warning.setting: suggested}
    assert timeout_warnings(mended, keepalive, kube_proxy=kube_proxy) == []


def test_examples_have_none():
    """Every example policy, on a fresh kernel with kube-proxy beside it, is without a warning."""
    assert EXAMPLES
    for file in EXAMPLES:
        for document in yaml.safe_load_all(file.read_text()):
            values = timeouts_of(policy_from(document).spec, named(KUBE_PROXY))
            assert timeout_warnings(values, 7200, kube_proxy=True) == [], file.name


def test_timeouts_of_settings():
    """A policy's timeouts go over those of the machine; what it does not name stays."""
    settings = Settings.model_validate({"timeouts": {"tcp": {"established": "1h"}, "icmp": 5}})
    values = timeouts_of(settings, named(KERNEL))
    assert values == named(KERNEL | {"tcp.established": 3600, "icmp": 5})
    assert [warning.reason for warning in timeout_warnings(values, 7200)] == ["BelowKeepalive"]


@pytest.mark.parametrize(
    ("seconds", "text"), [(1, "1s"), (90, "1m30s"), (3600, "1h"), (7440, "2h4m"), (432000, "120h")]
)
def test_words_are_what_a_policy_takes(seconds, text):
    """Seconds in words are read back as the same seconds."""
    assert words(seconds) == text
    assert seconds_in(text) == seconds
