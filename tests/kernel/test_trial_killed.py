"""kill -9 at any moment of a change: the next agent finds its way to what was confirmed, and never to half of it."""

import json
import sys

import pytest
from tests.lab import killing
from tests.lab.trials import ended

FIRST = {
    "timeouts": {"icmp": 10, "generic": 100},
    "notrack": {"rules": [{"name": "web", "ports": [80]}, {"name": "dns", "protocol": "UDP", "ports": [53]}]},
}
SECOND = {
    "timeouts": {"icmp": 11, "udp": {"unreplied": 20}},
    "tcp": {"beLiberal": True},
    "sysctls": {"nf_conntrack_acct": "1"},
    "notrack": {
        "rules": [{"name": "web", "ports": ["80-90"]}, {"name": "far", "ports": [81], "peers": ["10.0.0.0/8"]}]
    },
}


@pytest.mark.parametrize("first", [None, FIRST], ids=["untouched before", "confirmed before"])
def test_killed_after_every_step(netns, tmp_path, first):
    """Whatever step is the last: started again, the node is as it was or as it was confirmed, and can be restored."""
    node = netns.namespace()
    node.track()
    process = node.start(
        sys.executable, "-P", killing.__file__, str(tmp_path), json.dumps(first) if first else "", json.dumps(SECOND)
    )
    code, said = ended(process, 600)  # a minute, where all cores are busy
    assert code == 0, said
    lines = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    assert len(lines) > 40, "a change has many steps"
    assert [line["killed"] for line in lines] == [True] * (len(lines) - 1) + [False]
    confirmed = {key: lines[-1]["after"][key] for key in ("values", "table")}
    assert confirmed["values"] == {
        "icmp_timeout": 11, "generic_timeout": 600, "udp_timeout": 20, "tcp_be_liberal": 1, "acct": 1,
    }  # fmt: skip
    seen = []
    for line in lines:
        found = {key: line["after"][key] for key in ("values", "table")}
        assert found in (line["before"], confirmed), f"step {line['step']}: neither as before nor as confirmed: {found}"
        assert not line["after"]["trial"]
        assert line["restored"] == "Restored"
        assert line["end"]["values"]["icmp_timeout"] == 30
        assert line["end"]["table"] is None
        seen.append(found == confirmed)
    assert sorted(seen) == seen, "once confirmed it stays so"
    assert 10 < seen.count(False) < len(lines)
    assert {line["after"]["failures"] for line in lines} == {0, 1}, "a trial that was killed counts as a failure"
