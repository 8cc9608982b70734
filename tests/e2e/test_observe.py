"""Observe, Enforce and back, from `kubectl apply` to this machine's kernel: what is previewed is what is done."""

from typing import Any

import pytest
from tests.lab.host import Host, Writes, sysctls
from tests.lab.operator import Operator
from tests.lab.programs import wait_until

pytestmark = pytest.mark.tunes_this_machine

ICMP, MAX, BUCKETS = (f"net.netfilter.nf_conntrack_{name}" for name in ("icmp_timeout", "max", "buckets"))
POLICY: dict[str, Any] = {
    "table": {"size": {"maxEntries": 400_001}, "entriesPerBucket": 2},
    "timeouts": {"icmp": 21, "tcp": {"timeWait": 45}},
    "notrack": {"rules": [{"name": "web", "ports": [8980]}]},
    "trial": {"timeoutSeconds": 30, "soakSeconds": 0},
    "rollout": {"soakSeconds": 0},
}
PATIENCE = 90
"""Seconds that anything may take on a busy machine."""


def observed(operator: Operator, name: str) -> dict[str, Any]:
    """Wait until every node has said what would change; return the policy's preview."""

    def answered() -> bool:
        ready = operator.condition(name, "Ready")
        return ready.get("reason") == "Observed"

    wait_until(answered, PATIENCE, f"policy {name} is Observed")
    return dict((operator.policy(name) or {})["status"]["preview"])


def changes(preview: dict[str, Any]) -> dict[str, str]:
    """Return what would change, by setting."""
    return {each["setting"]: each["what"] for each in preview["changes"]}


@pytest.fixture
def before(operator: Operator, host: Host) -> dict[str, int]:  # noqa: ARG001 - has no policy for this machine
    """Return this machine's sysctls with no policy."""
    assert host.table() is None
    return sysctls()


def test_observe_enforce_observe(operator: Operator, host: Host, before: dict[str, int]) -> None:
    """The preview names every change and no other, Enforce makes them, and Observe again takes all of them back."""
    with Writes() as writes:
        operator.apply("look", mode="Observe", **POLICY)
        preview = observed(operator, "look")
        node = operator.node()
        assert node
        assert (node["spec"]["mode"], node["status"]["phase"]) == ("Hold", "Current")
        assert writes.seen() == []
    assert (sysctls(), host.table(), operator.journal()) == (before, None, {})
    assert (preview["nodes"], preview["changing"], preview.get("refused", [])) == (1, 1, [])
    said = operator.condition("look", "Ready")["message"]
    assert said == f"1 of 1 node would change {len(preview['changes'])} settings"
    assert changes(preview)["notrack/web"] == "absent -> TCP 8980 Server"

    operator.apply("look", mode="Enforce", **POLICY)
    operator.wait_ready("look", PATIENCE)
    after = sysctls()
    done = {
        f"net.netfilter.{name}": f"{before[name]} -> {value}" for name, value in after.items() if value != before[name]
    }
    assert host.table()
    assert done | {"notrack/web": "absent -> TCP 8980 Server"} == changes(preview)
    assert {ICMP, MAX, BUCKETS} <= done.keys()

    operator.apply("look", mode="Observe", **POLICY)
    wait_until(lambda: operator.status().get("phase") == "Restored", PATIENCE, "the node is restored")
    assert (sysctls(), host.table()) == (before, None)
    assert observed(operator, "look") == preview
    assert (operator.node() or {})["spec"]["mode"] == "Restore"
    assert operator.status()["usage"]["maxEntries"] == before["nf_conntrack_max"]


def test_an_edit_is_previewed_anew(operator: Operator, host: Host, before: dict[str, int]) -> None:
    """The preview is of the policy as it is now, also where the node's revision stays what it was."""
    operator.apply("look", mode="Observe", timeouts={"icmp": 21})
    assert changes(observed(operator, "look")) == {ICMP: f"{before['nf_conntrack_icmp_timeout']} -> 21"}
    operator.apply("look", mode="Observe", timeouts={"icmp": 22})
    assert changes(observed(operator, "look")) == {ICMP: f"{before['nf_conntrack_icmp_timeout']} -> 22"}
    operator.apply("look", mode="Observe", timeouts={"icmp": before["nf_conntrack_icmp_timeout"]})
    assert changes(observed(operator, "look")) == {}
    assert operator.condition("look", "Ready")["message"] == "nothing would change on the one node"
    assert sysctls() == before
    assert host.table() is None


def test_what_would_be_refused(operator: Operator, before: dict[str, int]) -> None:
    """A refusal is in the preview and in the failures, with its remedy, and the rest is previewed all the same."""
    operator.apply("look", mode="Observe", timeouts={"icmp": 21}, table={"size": {"maxEntries": 65_536}})

    def refused() -> list[dict[str, Any]]:
        status = (operator.policy("look") or {}).get("status") or {}
        return list((status.get("preview") or {}).get("refused", []))

    wait_until(refused, PATIENCE, "the refusal is told")
    assert [(each["setting"], each["what"].split(":")[0]) for each in refused()] == [(MAX, "ShrinkNotAllowed")]
    status = (operator.policy("look") or {})["status"]
    assert changes(status["preview"]) == {ICMP: f"{before['nf_conntrack_icmp_timeout']} -> 21"}
    assert status["failures"][0]["reason"] == "ShrinkNotAllowed"
    ready = operator.condition("look", "Ready")
    said = (
        f"1 of 1 node would change {ICMP} ({before['nf_conntrack_icmp_timeout']} -> 21 on this-machine); 1 would refuse"
    )
    assert (ready["reason"], ready["status"]) == ("NodesRefused", "False")
    assert ready["message"].startswith(f"{said} {MAX} (ShrinkNotAllowed); this-machine: ")
    assert sysctls() == before


def test_beside_an_enforced_policy(operator: Operator, before: dict[str, int]) -> None:
    """A second policy's preview tells what it alone would change; what the first one has done is none of it."""
    operator.apply("first", timeouts={"icmp": 25}, rollout={"soakSeconds": 0}, trial=POLICY["trial"])
    operator.wait_ready("first", PATIENCE)
    operator.apply("look", mode="Observe", priority=7, timeouts={"icmp": 21, "generic": 77})
    generic = before["nf_conntrack_generic_timeout"]
    wanted = {ICMP: "25 -> 21", "net.netfilter.nf_conntrack_generic_timeout": f"{generic} -> 77"}
    assert changes(observed(operator, "look")) == wanted
    assert sysctls() == before | {"nf_conntrack_icmp_timeout": 25}
