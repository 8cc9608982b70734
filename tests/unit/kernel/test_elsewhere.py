"""Other tables, from what programs print and file systems hold; real ones are in tests/kernel/test_doctor.py."""

import pytest

from conntrack_operator.decide.symptoms import PinnedMap, ZoneLimit
from conntrack_operator.kernel.elsewhere import zone_limits_in
from conntrack_operator.kernel.pinned_maps import read_cilium_maps
from conntrack_operator.kernel.roots import Roots


@pytest.mark.parametrize(
    ("text", "zones"),
    [
        ("default limit=0\n", ()),
        (
            "default limit=10\nzone=0,limit=5,count=5\nzone=3,limit=15,count=3\n",
            (ZoneLimit(0, 5, 5), ZoneLimit(3, 15, 3)),
        ),
        ("ovs-dpctl: no datapath\n", ()),
    ],
)
def test_zone_limits(text, zones):
    """One zone a line, as `ovs-dpctl ct-get-limits` prints them; the default is no zone."""
    assert zone_limits_in(text) == zones


def test_pins_that_cannot_be_read(tmp_path):
    """Maps that are there and cannot be read are said to be there, and their fill is left open."""
    pins = tmp_path / "fs/bpf/tc/globals"
    pins.mkdir(parents=True)
    for name in ("cilium_ct4_global", "cilium_ct_any4_global", "cilium_per_cluster_ct_tcp4", "cilium_ipcache"):
        (pins / name).touch()
    assert read_cilium_maps(Roots(sys=tmp_path)) == (PinnedMap("cilium_ct4_global"), PinnedMap("cilium_ct_any4_global"))
    assert read_cilium_maps(Roots(sys=tmp_path / "absent")) == ()
