"""EC2's own table, from a driver's statistics. No such card can be had in a test, so its numbers are put in by hand."""

import pytest

from conntrack_operator.decide.symptoms import Allowance
from conntrack_operator.kernel import ethtool

OTHERS = {"tx_timeout": 0, "bw_in_allowance_exceeded": 12}


@pytest.mark.parametrize(
    ("driver", "statistics", "found"),
    [
        ("ena", OTHERS | {ethtool.EXCEEDED: 17, ethtool.AVAILABLE: 900}, (Allowance("eth0", 17, 900),)),
        ("ena", OTHERS | {ethtool.EXCEEDED: 0}, (Allowance("eth0", 0, None),)),
        ("ena", OTHERS, ()),
        ("ena", {}, ()),
        ("virtio_net", {ethtool.EXCEEDED: 17}, ()),
    ],
)
def test_allowances(monkeypatch, driver, statistics, found):
    """Cards of driver ena that count the allowance are told of; older drivers and other cards say nothing."""
    monkeypatch.setattr(ethtool.socket, "if_nameindex", lambda: [(2, "eth0")])
    monkeypatch.setattr(ethtool, "driver_of", lambda _: driver)
    monkeypatch.setattr(ethtool, "statistics_of", lambda _: statistics)
    assert ethtool.read_allowances() == found
