"""A change that cuts the API server off, on a real agent that reaches a real API server through a translation."""

import json
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.lab.cluster import Cluster
from tests.lab.namespaces import Namespace, missing
from tests.lab.operator import FAR, FAR_PORT, Operator, in_namespace
from tests.lab.programs import wait_until

VIRTUAL = ("10.96.0.1", 443)
BEHIND = (FAR, FAR_PORT)
"""Where the node's own rules lead what it sends to VIRTUAL, as kube-proxy's lead to an API server."""
TRANSLATION = f"""
table ip services {{
  chain output {{
    type nat hook output priority -100; policy accept;
    ip daddr {VIRTUAL[0]} tcp dport {VIRTUAL[1]} dnat to {BEHIND[0]}:{BEHIND[1]}
  }}
}}
"""
CUTTING = {
    "onConflict": "Force",
    "rules": [{"name": "direct", "ports": [BEHIND[1]], "side": "Client", "addresses": [f"{BEHIND[0]}/32"]}],
}
"""Untracked replies of BEHIND are not translated back to VIRTUAL."""
LONG_AGO = -1000
"""On CLOCK_BOOTTIME, for a machine that was started just now too."""
TRIAL = {"timeoutSeconds": 12, "soakSeconds": 2}
PATIENCE = 60
STALL_SECONDS = 10
"""What a machine that stands still may add to the clock of a trial. Without one, the rules would stay for good."""


@pytest.fixture
def node(cluster: Cluster, crds: Path, tmp_path: Path) -> Iterator[Operator]:
    """Give an operator whose agent runs in a namespace and reaches the API server by VIRTUAL alone."""
    del crds
    reason = missing()
    if reason:
        pytest.skip(reason)
    with in_namespace(cluster, tmp_path, "virtual", f"https://{VIRTUAL[0]}:{VIRTUAL[1]}") as operator:
        operator.host.nft(TRANSLATION)
        operator.start({})
        yield operator


def reachable(namespace: Namespace) -> bool:
    """Tell whether a fresh connection to the API server comes about, TLS and all."""
    context = ssl._create_unverified_context()
    try:
        with namespace.connect(*VIRTUAL) as plain:
            plain.settimeout(2)
            with context.wrap_socket(plain):
                return True
    except OSError:
        return False


def table_of(namespace: Namespace) -> str:
    """Return our table, empty when there is none."""
    return namespace.run("nft", "list", "table", "inet", "conntrack_operator", check=False).stdout


def trials(operator: Operator) -> int:
    """Return how often the node has reported that a change is on trial."""
    return operator.agent.log.read_text().count(": Trial,")


def failures(operator: Operator) -> dict[str, Any]:
    """Return what the journal says of failures."""
    return dict(operator.journal().get("failures") or {"count": 0})


def said(operator: Operator) -> str:
    """Return the sentence of the first result that the node has reported."""
    return next((each["message"] for each in operator.status().get("results", [])), "")


def edit_failures(operator: Operator, **fields: Any) -> None:
    """Change what the journal of a stopped agent says of failures."""
    path = operator.state / "journal.json"
    journal = json.loads(path.read_text())
    journal["failures"] |= fields
    path.write_text(json.dumps(journal))


def test_a_rule_that_cuts_the_api_server_off_is_undone_and_parked(node: Operator) -> None:
    """Undone by the deadline, the status says which probe failed, and after three tries it is parked until `retry`."""
    wait_until(lambda: reachable(node.host), PATIENCE, "the API server answers")
    node.apply("direct", notrack=CUTTING, trial=TRIAL)
    wait_until(lambda: table_of(node.host), PATIENCE, "the rules are on trial", 0.05)
    # Who looks away for as long as the trial takes finds it over; that it was cut off is in the sentence below.
    wait_until(
        lambda: not reachable(node.host) or not table_of(node.host), PATIENCE, "the API server is cut off", 0.05
    )  # fmt: skip
    took = wait_until(lambda: not table_of(node.host), PATIENCE, "the rules are gone", 0.05)
    assert took < TRIAL["timeoutSeconds"] + STALL_SECONDS
    wait_until(lambda: reachable(node.host), PATIENCE, "the API server answers again")
    wait_until(lambda: node.status().get("phase") == "RolledBack", PATIENCE, "the node says RolledBack")
    (result,) = node.status()["results"]
    assert result["reason"] == "ProbeFailed"
    assert "API server 10.96.0.1:443 answered before the change and did not" in result["message"]
    assert "failure 1 of 3" in result["message"]
    wait_until(lambda: (node.policy("direct") or {}).get("status", {}).get("failures"), PATIENCE, "the policy says so")
    assert "API server 10.96.0.1:443" in (node.policy("direct") or {})["status"]["failures"][0]["message"]

    # The third failure is the last; only the second and the pauses are spared.
    node.agent.stop()
    edit_failures(node, count=2, at=LONG_AGO)
    before = trials(node)
    node.agent.start()
    wait_until(lambda: trials(node) == before + 1, PATIENCE, "it is tried again")
    wait_until(lambda: failures(node)["count"] == 3, PATIENCE, "the third failure")
    wait_until(lambda: "not tried again until" in said(node), PATIENCE, "the node says parked")
    assert not table_of(node.host)
    node.agent.stop()
    edit_failures(node, at=LONG_AGO)
    before = trials(node)
    node.agent.start()
    time.sleep(5)
    assert trials(node) == before, "a parked change was tried again"
    assert not table_of(node.host)
    node.apply("direct", notrack=CUTTING, trial=TRIAL, rollout={"retry": "again"})
    wait_until(lambda: trials(node) == before + 1, PATIENCE, "a new attempt is tried")
