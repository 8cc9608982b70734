"""What an operator sees of a policy at 3 a.m.: phases written as an agent writes them, read as a person or Flux does.

The statuses are made by the very function the agent makes them with; the controller is real.
"""

import json
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from tests.lab.answering import answering
from tests.lab.cluster import Cluster
from tests.lab.controller import started
from tests.lab.fleet_by_hand import apply, condition, soon, spec_of
from tests.lab.policies import AT_ONCE

from conntrack_operator.decide.outcome import NODE
from conntrack_operator.decide.refusal import Refusal
from conntrack_operator.decide.report import Deed, Moment, status_for
from conntrack_operator.model.node import NodeStatus, Result, Usage, node_from

MAX = "net.netfilter.nf_conntrack_max"
DONE = Result(setting=MAX, wanted="500000", observed="500000", reason="Applied")
CALM_SECONDS = 3
"""Longer than this hasty controller ever puts off a write."""


@pytest.fixture(scope="module", autouse=True)
def controller(cluster: Cluster, crds: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Have a controller at work, and one node it is about."""
    del crds
    cluster.clear()
    program = started(cluster, tmp_path_factory.mktemp("controller"))
    cluster.add_node("n1", role="web")
    with answering(cluster):
        yield
    program.stop()
    cluster.clear()


@pytest.fixture
def policy(cluster: Cluster) -> Iterator[str]:
    """Give a policy that its node was told of."""
    apply(cluster, "web")
    soon(lambda: spec_of(cluster, "n1").get("mode") == "Apply", "the node is told")
    yield "web"
    cluster.delete_all("conntrackpolicies", "nodeconntracks")
    cluster.delete_all(("events", "-n", "default"))


def failed(reason: str, message: str, setting: str = NODE) -> Result:
    """Return the result of a setting that came to nothing."""
    return Result(setting=setting, wanted="", observed="", reason=reason, message=message)


def report(
    cluster: Cluster, phase: Any, results: Sequence[Result] = (DONE,), node: str = "n1", **deed: Any
) -> NodeStatus:
    """Write the status of a node that did what it was asked, with this outcome, as its agent would."""
    found = node_from(cluster.get("nodeconntrack", node))
    usage = Usage(entries=deed.pop("entries", 400), max_entries=1000, percent=40)
    made = status_for(found.spec, found.status, Deed(phase, results, **deed), Moment(datetime.now(UTC), "boot", usage))
    patch = json.dumps([{"op": "add", "path": "/status", "value": made.document()}])
    cluster.kubectl("patch", "nodeconntrack", node, "--subresource=status", "--type=json", "-p", patch)
    return made


def verdicts(cluster: Cluster) -> dict[str, str]:
    """Return the status of the four conditions that people and Flux wait for, with the reason of Ready."""
    found = {kind: condition(cluster, "web", kind) for kind in ("Ready", "Reconciling", "Stalled", "Degraded")}
    return {kind: each.get("status", "") for kind, each in found.items()} | {"why": found["Ready"].get("reason", "")}


def shows(cluster: Cluster, why: str, *holding: str) -> None:
    """Wait until Ready has this reason and exactly the conditions in `holding` are True."""
    wanted = {kind: str(kind in holding) for kind in ("Ready", "Reconciling", "Stalled", "Degraded")} | {"why": why}
    soon(lambda: verdicts(cluster) == wanted, f"{wanted}")


def told(cluster: Cluster) -> list[tuple[str, int]]:
    """Return the events about the policy: reason and count, in order of reason.

    By its uid: one about the policy of the test before may come late.
    """
    uid = (cluster.get("ctp", "web") or {})["metadata"]["uid"]
    events = cluster.items("events", "-n", "default", "--field-selector=involvedObject.kind=ConntrackPolicy")
    return sorted((event["reason"], event["count"]) for event in events if event["involvedObject"]["uid"] == uid)


def test_from_trial_to_ready(cluster: Cluster, policy: str) -> None:
    """A trial is in progress and told as such, in `kubectl get` too; when it is kept, `kubectl wait` returns."""
    report(cluster, "Trial", ())
    shows(cluster, "Progressing", "Reconciling")
    # The same conditions were true while it was yet to answer.
    on_trial = "0 of 1 node current, 1 on trial"
    soon(lambda: condition(cluster, policy, "Reconciling")["message"] == on_trial, on_trial)
    assert (cluster.get("ctp", policy) or {})["status"]["nodes"]["updating"] == 1
    line = cluster.kubectl("get", "nct", "n1", "-o", "wide", "--no-headers").stdout
    assert line.split()[1:3] == ["Apply", "Trial"]
    assert "kept if the node's probes pass" in line
    report(cluster, "Current")
    cluster.kubectl("wait", "--for=condition=Ready", "--timeout=90s", f"ctp/{policy}")
    shows(cluster, "AllNodesCurrent", "Ready")


def test_rolled_back_tried_again_parked_and_asked_to_retry(cluster: Cluster, policy: str) -> None:
    """While it tries again it is in progress and degraded, without flapping; parked it is stalled, with the remedy."""
    failure = failed("ProbeFailed", "DNS 10.0.0.10 answered before the change and did not after it")
    report(cluster, "Trial", ())
    shows(cluster, "Progressing", "Reconciling")
    report(cluster, "RolledBack", (failure,))
    shows(cluster, "NodesRolledBack", "Reconciling", "Degraded")
    since = {kind: condition(cluster, policy, kind)["lastTransitionTime"] for kind in ("Reconciling", "Degraded")}
    report(cluster, "Trial", (failure, DONE))
    shows(cluster, "Progressing", "Reconciling", "Degraded")
    assert (cluster.get("ctp", policy) or {})["status"]["nodes"]["updating"] == 1
    report(cluster, "RolledBack", (failure,))
    shows(cluster, "NodesRolledBack", "Reconciling", "Degraded")
    assert {kind: condition(cluster, policy, kind)["lastTransitionTime"] for kind in since} == since
    report(cluster, "RolledBack", (failed("ProbeFailed", "DNS did not answer; rollout.retry"),), parked=True)
    shows(cluster, "NodesRolledBack", "Stalled", "Degraded")
    status = (cluster.get("ctp", policy) or {})["status"]
    assert status["nodes"]["rolledBack"] == 1
    assert status["failures"] == [
        {"node": "n1", "reason": "ProbeFailed", "message": "DNS did not answer; rollout.retry"}
    ]
    soon(lambda: told(cluster) == [("NodesParked", 1), ("RolledBack", 1)], "both events, once each")
    apply(cluster, policy, rollout={**AT_ONCE, "retry": "once more"})
    shows(cluster, "Progressing", "Reconciling")
    soon(lambda: spec_of(cluster, "n1").get("attempt"), "the node is asked to try again")
    report(cluster, "Current")
    shows(cluster, "AllNodesCurrent", "Ready")
    assert (cluster.get("ctp", policy) or {})["status"]["observedGeneration"] == 2


def test_refused_for_a_service_and_well_when_it_is_gone(cluster: Cluster, policy: str) -> None:
    """One rule of several is refused: stalled, degraded, named; told once, and once when it is over."""
    refused = failed("NATConflict", "port 30080/TCP is NodePort of Service shop/web", "notrack/shop")
    report(cluster, "Refused", (refused, DONE))
    shows(cluster, "NodesRefused", "Stalled", "Degraded")
    for number in range(3):  # an example in the sentence changes
        report(cluster, "Refused", (refused.model_copy(update={"message": f"{refused.message} {number}"}), DONE))
        soon(lambda: str(number) in condition(cluster, policy, "Ready")["message"][-1:], "the sentence is the newest")  # noqa: B023
    soon(lambda: told(cluster) == [("NATConflict", 1)], "it is told once")
    report(cluster, "Current")
    shows(cluster, "AllNodesCurrent", "Ready")
    events = [("AllNodesCurrent", 1), ("NATConflict", 1), ("Recovered", 1)]
    soon(lambda: told(cluster) == events, "its end is told")


def test_contended_names_the_rival(cluster: Cluster, policy: str) -> None:
    """Somebody else keeps writing: the policy says who, and counts on somebody to act."""
    sentence = "nf_conntrack_max was changed from 500000 to 131072, likely by kube-proxy; set conntrack.maxPerCore: 0"
    report(cluster, "Contended", (failed("Contended", sentence, MAX),))
    shows(cluster, "NodesRefused", "Stalled", "Degraded")
    assert (cluster.get("ctp", policy) or {})["status"]["failures"] == [
        {"node": "n1", "reason": "Contended", "message": sentence}
    ]
    soon(lambda: told(cluster) == [("Contended", 1)], "it is told")


def test_warnings_are_in_the_sentence_of_a_ready_policy(cluster: Cluster, policy: str) -> None:
    """What was done as asked and may surprise does not make a policy unready; it is counted and the first is named."""
    report(cluster, "Current", warnings=(Refusal(MAX, "Odd", "is far above what this node needs"),))
    shows(cluster, "AllNodesCurrent", "Ready")
    assert condition(cluster, policy, "Ready")["message"] == (
        f"1 of 1 node as the policy says; 1 with warnings; n1: Odd: {MAX}: is far above what this node needs"
    )


IDLE: dict[str, tuple[Any, tuple[Result, ...], bool]] = {
    "current": ("Current", (DONE,), False),
    "trial": ("Trial", (), False),
    "parked": ("RolledBack", (failed("ProbeFailed", "DNS"),), True),
    "refused": ("Refused", (failed("NATConflict", "NodePort", "notrack/web"),), False),
    "contended": ("Contended", (failed("Contended", "by kube-proxy", MAX),), False),
}
"""A policy and a node for each phase: its results, and whether it is parked."""


@pytest.fixture
def idle(cluster: Cluster) -> Iterator[None]:
    """Give a node and a policy of its own for each phase; what was said of them goes, too."""
    for name in IDLE:
        cluster.add_node(name, idle=name)
        apply(cluster, name, nodeSelector={"matchLabels": {"idle": name}})
    soon(lambda: all(spec_of(cluster, name).get("mode") == "Apply" for name in IDLE), "the nodes are told")
    yield
    cluster.delete_all("conntrackpolicies", "nodeconntracks")
    cluster.kubectl("delete", "nodes", *IDLE)
    cluster.delete_all(("events", "-n", "default"))


@pytest.mark.usefixtures("idle")
def test_a_policy_is_not_written_while_nothing_happens(cluster: Cluster) -> None:
    """In every phase its status is written for a report of its node, and not otherwise."""

    def versions() -> dict[str, str]:
        items = cluster.items("conntrackpolicies")
        return {each["metadata"]["name"]: each["metadata"]["resourceVersion"] for each in items}

    for name, (phase, results, parked) in IDLE.items():
        report(cluster, phase, results, node=name, parked=parked)
    judged = lambda name: condition(cluster, name, "Ready").get("reason")  # noqa: E731
    expected = {
        "current": "AllNodesCurrent", "trial": "Progressing", "parked": "NodesRolledBack", "refused": "NodesRefused",
        "contended": "NodesRefused",
    }  # fmt: skip
    soon(lambda: {name: judged(name) for name in IDLE} == expected, "every policy is judged")
    # What is still to be said of that may be put off, on a busy machine for longer; then nothing is.
    seen, since = versions(), time.monotonic()

    def is_calm() -> bool:
        nonlocal seen, since
        if (now := versions()) != seen:
            seen, since = now, time.monotonic()
        return time.monotonic() - since > CALM_SECONDS

    soon(is_calm, "no status is written any more")
    before = versions()
    for name, (phase, results, parked) in IDLE.items():
        report(cluster, phase, results, node=name, parked=parked)  # the same again: a heartbeat
    time.sleep(1)
    assert versions() == before
