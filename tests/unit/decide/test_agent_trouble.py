"""Why agents do not run, in the sentences a person reads."""

from typing import Any

import pytest

from conntrack_operator.decide.agent_trouble import (
    AgentPod,
    Ailment,
    Kind,
    ailment_in,
    trouble_of_pods,
    trouble_of_set,
)

SECURITY = (
    'Error creating: pods "conntrack-operator-agent-x8v5c" is forbidden: violates PodSecurity "restricted:latest":'
    ' host namespaces (hostNetwork=true), hostPath volumes (volumes "sysctls", "state")'
)
LABEL = "run: kubectl label --overwrite namespace ns pod-security.kubernetes.io/enforce=privileged"


def pod(node: str, kind: Kind | None = None, said: str = "") -> AgentPod:
    """Return an agent's pod on a node, with what ails it."""
    ailment = Ailment(kind, said) if kind else None
    return AgentPod(f"agent-{node}", node, is_bound=True, is_ready=kind is None, image="reg/i:1", ailment=ailment)


def sentence(*pods: AgentPod, nodes: list[str] | None = None) -> str:
    """Return what is said of these pods."""
    return trouble_of_pods(pods, nodes, "ns")


def container(reason: str, message: str = "", **status: Any) -> dict[str, Any]:
    """Return a pod whose container waits for this reason."""
    state = {"waiting": {"reason": reason, "message": message}}
    sidecar = {"name": "sidecar", "state": {"waiting": {"reason": "ErrImagePull"}}}
    return {"status": {"phase": "Pending", "containerStatuses": [sidecar, {"name": "agent", "state": state, **status}]}}


def crashing(restarts: int, **ended: Any) -> dict[str, Any]:
    """Return a pod that waits to be started once more."""
    return container("CrashLoopBackOff", "back-off 40s", restartCount=restarts, lastState={"terminated": ended})


def test_agents_that_run_are_no_trouble() -> None:
    """Nothing to say."""
    assert not sentence()
    assert not sentence(pod("a"), pod("b"))


def test_one_node_and_its_remedy() -> None:
    """A registry that does not have it: image, cause, and both places to look."""
    assert sentence(pod("a"), pod("b", "Image", "reg/i:1: not found")) == (
        "the agents do not run on node b: the image reg/i:1 cannot be pulled (reg/i:1: not found);"
        " see that it exists, and whether its registry wants a pull secret; chart values: image.repository, image.tag,"
        " image.pullSecrets (without the chart: --agent-image, --agent-config)"
    )


def test_many_nodes_are_counted_and_three_named() -> None:
    """In order, however they come; the first one's words stand for all."""
    pods = [pod(name, "Crash", f"exit code 1: {name}") for name in "dbca"]
    assert (
        sentence(*pods)
        == sentence(*reversed(pods))
        == (
            "the agents do not run on 4 nodes (a, b, c, ...): the agent ends again and again (exit code 1: a);"
            " see: kubectl logs -n ns agent-a --previous"
        )
    )
    assert "on 3 nodes (a, b, c):" in sentence(*pods[1:])


def test_the_commonest_trouble_comes_first() -> None:
    """And the others are counted."""
    told = sentence(pod("a", "Room", "0/9 nodes are available."), pod("b", "Start", "no key x"), pod("c", "Start"))
    assert told == (
        "the agents do not run on 2 nodes (b, c): the container cannot be started (no key x);"
        " see: kubectl describe pod -n ns agent-b; on 1 node more for other reasons"
    )


def test_only_the_nodes_asked_for() -> None:
    """A policy is told of its own nodes."""
    pods = [pod("a", "Crash"), pod("b", "ImageName")]
    assert not sentence(*pods, nodes=["c"])
    assert sentence(*pods, nodes=["b", "c"]) == (
        "the agents do not run on node b: reg/i:1 is no name of an image; correct the chart values image.repository"
        " and image.tag (without the chart: --agent-image)"
    )


def test_long_words_are_cut() -> None:
    """And stand on one line."""
    told = sentence(pod("a", "Room", "0/9\n nodes " + 400 * "x"))
    assert "(0/9 nodes xxx" in told
    assert len(told) < 500


@pytest.mark.parametrize(
    ("document", "ailment"),
    [
        pytest.param({}, None, id="just made"),
        pytest.param(container("ContainerCreating"), None, id="starting"),
        pytest.param(container("PodInitializing"), None, id="starting too"),
        pytest.param({"status": {"containerStatuses": [{"name": "agent", "state": {"running": {}}}]}}, None, id="runs"),
        pytest.param(container("ErrImagePull", "no such host"), Ailment("Image", "no such host"), id="pull"),
        pytest.param(
            container("ImagePullBackOff", 'Back-off pulling image "i:1": ErrImagePull: no such host'),
            Ailment("Image", "no such host"),
            id="the same while it waits",
        ),
        pytest.param(container("ImagePullBackOff", 'Back-off pulling image "i:1"'), Ailment("Image"), id="old kubelet"),
        pytest.param(
            container(
                "ErrImagePull",
                'rpc error: code = NotFound desc = failed to pull and unpack image "reg/i:1":'
                ' failed to resolve reference "reg/i:1": reg/i:1: not found',
            ),
            Ailment("Image", "reg/i:1: not found"),
            id="as containerd says it",
        ),
        pytest.param(container("InvalidImageName", "bad"), Ailment("ImageName", "bad"), id="no name"),
        pytest.param(
            container("CreateContainerConfigError", 'secret "x" not found'),
            Ailment("Start", 'secret "x" not found'),
            id="configuration",
        ),
        pytest.param(crashing(1, exitCode=1), None, id="a first crash"),
        pytest.param(
            crashing(2, exitCode=1, reason="Error", message="begins\nno way to the API server\n\n"),
            Ailment("Crash", "exit code 1: no way to the API server"),
            id="crashes",
        ),
        pytest.param(
            crashing(7, exitCode=137, reason="OOMKilled"), Ailment("Crash", "OOMKilled, exit code 137"), id="memory"
        ),
        pytest.param(crashing(7), Ailment("Crash"), id="nobody knows why"),
    ],
)
def test_what_ails_a_pod(document: dict[str, Any], ailment: Ailment | None) -> None:
    """From the agent's own container; only what does not pass by itself."""
    assert ailment_in(document, "agent") == ailment


@pytest.mark.parametrize(
    ("phase", "status", "reason", "ails"),
    [
        ("Pending", "False", "Unschedulable", True),
        ("Pending", "False", "SchedulingGated", False),
        ("Pending", "True", "", False),
        ("Running", "False", "Unschedulable", False),
    ],
)
def test_a_pod_without_a_node(phase: str, status: str, reason: str, *, ails: bool) -> None:
    """The scheduler says why."""
    scheduled = {"type": "PodScheduled", "status": status, "reason": reason, "message": "Insufficient memory"}
    document = {"status": {"phase": phase, "conditions": [{"type": "Ready"}, scheduled]}}
    assert ailment_in(document, "agent") == (Ailment("Room", "Insufficient memory") if ails else None)


@pytest.mark.parametrize(
    ("complaint", "remedy"),
    [
        (SECURITY, LABEL),
        (
            'Error creating: pods "a-1" is forbidden: exceeded quota: none, requested: pods=1, used: pods=0',
            "raise or remove the ResourceQuota, see: kubectl get resourcequota -n ns",
        ),
        (
            "Error creating: insufficient quota to match these scopes: [{PriorityClass In [system-node-critical]}]",
            "allow system-node-critical pods in ns by a ResourceQuota with that scope",
        ),
        (
            'Error creating: pods "a-1" is forbidden: looking up service account ns/x: serviceaccount "x" not found',
            "the controller makes it anew within a minute; see who deletes it",
        ),
        (
            'Error creating: pods "a-1" is forbidden: no PriorityClass with name system-node-critical was found',
            "make it (see: kubectl get priorityclasses), or name another: chart value agent.priorityClassName",
        ),
        (
            'Error creating: admission webhook "v.example" denied the request: no',
            "have that policy except namespace ns",
        ),
        (
            "Error creating: the sky fell",
            "see: kubectl get events -n ns --field-selector reason=FailedCreate",
        ),
    ],
)
def test_pods_that_are_not_created(complaint: str, remedy: str) -> None:
    """What admission says, without the name of a pod that never was, and what to do about it."""
    told = trouble_of_set(5, 2, ["older", complaint], "ns")
    assert told.startswith("the agents cannot be created on 3 of 5 nodes: ")
    assert told.endswith(f"; {remedy}")
    assert "Error creating" not in told
    assert 'pods "' not in told


def test_pod_security_is_told_in_one_line() -> None:
    """With the level, and without all that it forbids; also when events were put together."""
    sentence = f'the agents cannot be created on 5 of 5 nodes: violates PodSecurity "restricted:latest"; {LABEL}'
    assert trouble_of_set(5, 0, [SECURITY], "ns") == sentence
    assert trouble_of_set(5, 0, [f"(combined from similar events): {SECURITY}"], "ns") == sentence


def test_a_set_that_has_all_its_pods_is_well() -> None:
    """Events outlive their cause by an hour; pods that are only being made are no trouble."""
    assert not trouble_of_set(5, 5, [SECURITY], "ns")
    assert not trouble_of_set(5, 2, [], "ns")
