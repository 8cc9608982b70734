"""Why agents do not run, as one sentence that ends with the remedy: from their pods and from their DaemonSet.

A pod that is only starting is no trouble. The sentence says what kind of trouble most nodes have, on how many, and what
one of them says of it; it holds no number that goes up by itself, so that it stays the same while nothing changes.
"""

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["Image", "ImageName", "Crash", "Start", "Room"]

NODES_NAMED = 3
QUOTED_MAX = 240
"""Characters of what others say that are repeated; kubelets and admission can be long-winded."""


@dataclass(frozen=True)
class Ailment:
    """Why one agent's pod does not run: which kind of reason, and what the kubelet or the scheduler says of it."""

    kind: Kind
    said: str = ""


@dataclass(frozen=True)
class AgentPod:
    """One agent's pod. `node` is the one it runs on or is meant for; `is_bound` tells whether it is there yet."""

    name: str
    node: str
    is_bound: bool
    is_ready: bool
    is_ending: bool = False
    """It is being deleted: ready or not, it is not to be counted on."""
    image: str = ""
    ailment: Ailment | None = None


_CAUSES: Mapping[Kind, tuple[str, str]] = {
    "Image": (
        "the image {image} cannot be pulled{said}",
        (
            "see that it exists, and whether its registry wants a pull secret; chart values: image.repository,"
            " image.tag, image.pullSecrets (without the chart: --agent-image, --agent-config)"
        ),
    ),
    "ImageName": (
        "{image} is no name of an image{said}",
        "correct the chart values image.repository and image.tag (without the chart: --agent-image)",
    ),
    "Crash": ("the agent ends again and again{said}", "see: kubectl logs -n {namespace} {pod} --previous"),
    "Start": ("the container cannot be started{said}", "see: kubectl describe pod -n {namespace} {pod}"),
    "Room": (
        "the scheduler has no room for the pod{said}",
        "make room there or lift what keeps it away; see: kubectl describe pod -n {namespace} {pod}",
    ),
}
"""For every kind of ailment, what is the matter and the remedy."""


def trouble_of_pods(pods: Iterable[AgentPod], nodes: Collection[str] | None, namespace: str) -> str:
    """Return what keeps agents from running on `nodes` (None: anywhere), empty when nothing does."""
    ill: dict[Kind, list[tuple[AgentPod, Ailment]]] = defaultdict(list)
    for pod in pods:
        if pod.ailment is not None and (nodes is None or pod.node in nodes):
            ill[pod.ailment.kind].append((pod, pod.ailment))
    if not ill:
        return ""
    (kind, most), *others = sorted(ill.items(), key=lambda item: (-len(item[1]), item[0]))
    most.sort(key=lambda item: (item[0].node, item[0].name))
    pod, ailment = most[0]
    cause, remedy = (
        part.format(
            image=pod.image or "of the agent",
            said=_quoted(ailment.said),
            namespace=namespace,
            pod=pod.name,
        )
        for part in _CAUSES[kind]
    )
    rest = sum(len(each) for _, each in others)
    more = f"; on {_nodes(rest)} more for other reasons" if rest else ""
    return f"the agents do not run on {_named([each.node for each, _ in most])}: {cause}; {remedy}{more}"


def trouble_of_set(desired: int, current: int, complaints: Sequence[str], namespace: str) -> str:
    """Return why the DaemonSet has pods for only `current` of `desired` nodes; empty when it has all, or says nothing.

    `complaints` are the messages of its FailedCreate events, newest last.
    """
    if current >= desired or not complaints:
        return ""
    said = _plain(complaints[-1])
    remedy = next((remedy for pattern, remedy in _REMEDIES if pattern.search(said)), _LOOK).format(namespace=namespace)
    return f"the agents cannot be created on {desired - current} of {_nodes(desired)}: {_clipped(said)}; {remedy}"


def ailment_in(pod: Mapping[str, Any], container: str) -> Ailment | None:
    """Return why the pod in this document does not run its `container`, None when it does or is still on its way."""
    status = pod.get("status") or {}
    for each in status.get("containerStatuses") or ():
        if each.get("name") == container:
            return _of_container(each)
    if status.get("phase") == "Pending":
        for each in status.get("conditions") or ():
            if each.get("type") == "PodScheduled" and each.get("status") == "False":
                # Its preamble counts all nodes of the cluster, which says nothing of a pod that is meant for one.
                return Ailment("Room", each.get("message") or "") if each.get("reason") == "Unschedulable" else None
    return None


CRASHES_MIN = 2
"""Restarts before a pod that waits to be restarted is in trouble: anything may go wrong once."""

_WAITING: Mapping[str, Kind] = {
    **dict.fromkeys(
        (
            "ErrImagePull",
            "ImagePullBackOff",
            "ErrImageNeverPull",
            "ImageInspectError",
            "RegistryUnavailable",
            "SignatureValidationFailed",
        ),
        "Image",
    ),
    "InvalidImageName": "ImageName",
    "CrashLoopBackOff": "Crash",
    **dict.fromkeys(("CreateContainerConfigError", "CreateContainerError", "RunContainerError"), "Start"),
}
"""Reasons of a container that waits (pkg/kubelet/images/types.go, kuberuntime/kuberuntime_container.go). Any other,
such as ContainerCreating, is a pod on its way."""

_PULLING = re.compile(
    r'^(?:Back-off pulling image "[^"]*"(?:: |$)|(?:Err)?Image\w+: |rpc error: code = \w+ desc = '
    r'|failed to (?:pull and unpack image|resolve reference|pull image|copy|do request)(?: "[^"]*")?: )'
)
"""What kubelets and containerd say before they say why. A kubelet tries and waits in turn, in other words each time."""


def _of_container(status: Mapping[str, Any]) -> Ailment | None:
    waiting = (status.get("state") or {}).get("waiting") or {}
    kind, said = _WAITING.get(waiting.get("reason", "")), waiting.get("message") or ""
    if kind == "Crash":
        return Ailment(kind, _last_words(status)) if status.get("restartCount", 0) >= CRASHES_MIN else None
    if kind == "Image":
        said = _without(_PULLING, said)
    return Ailment(kind, said) if kind else None


def _last_words(status: Mapping[str, Any]) -> str:
    """Return how the container ended last, and the last line it wrote if the kubelet kept it."""
    ended = (status.get("lastState") or {}).get("terminated") or {}
    lines = [line.strip() for line in (ended.get("message") or "").splitlines() if line.strip()]
    how = [f"exit code {ended['exitCode']}"] if "exitCode" in ended else []
    if ended.get("reason") not in (None, "Error", "Completed"):
        how.insert(0, ended["reason"])
    return ": ".join(filter(None, (", ".join(how), lines[-1] if lines else "")))


_CREATING = re.compile(r'^(?:\(combined from similar events\): |Error creating: |pods "[^"]*" is forbidden: )')
_DETAILS = re.compile(r'(?<=violates PodSecurity ")([^"]*"): .*')
"""What a namespace's level forbids: all of it is needed, so the level says enough."""


def _plain(complaint: str) -> str:
    """Return it without the names of pods that were never made: they are others every time."""
    return _DETAILS.sub(r"\1", _without(_CREATING, " ".join(complaint.split())))


def _without(beginnings: re.Pattern[str], text: str) -> str:
    while (shorter := beginnings.sub("", text, count=1)) != text:
        text = shorter
    return text


_REMEDIES: tuple[tuple[re.Pattern[str], str], ...] = (
    (
        re.compile("violates PodSecurity"),
        "run: kubectl label --overwrite namespace {namespace} pod-security.kubernetes.io/enforce=privileged",
    ),
    (
        re.compile("insufficient quota to match these scopes"),
        "allow system-node-critical pods in {namespace} by a ResourceQuota with that scope",
    ),
    (
        re.compile("exceeded quota|failed quota"),
        "raise or remove the ResourceQuota, see: kubectl get resourcequota -n {namespace}",
    ),
    (
        re.compile("(?i)service account|serviceaccount"),
        "the controller makes it anew within a minute; see who deletes it",
    ),
    (
        re.compile("(?i)priority ?class"),
        "make it (see: kubectl get priorityclasses), or name another: chart value agent.priorityClassName",
    ),
    (
        re.compile("(?i)LimitRange|(minimum|maximum) .* usage per"),
        "change the LimitRange, see: kubectl get limitrange -n {namespace}",
    ),
    (
        re.compile("admission webhook|ValidatingAdmissionPolicy|failed calling webhook"),
        "have that policy except namespace {namespace}",
    ),
)
"""What admission says when it refuses a pod (the plugins below plugin/pkg/admission), and the remedy."""

_LOOK = "see: kubectl get events -n {namespace} --field-selector reason=FailedCreate"


def _clipped(text: str) -> str:
    return text if len(text) <= QUOTED_MAX else text[: QUOTED_MAX - 3] + "..."


def _quoted(said: str) -> str:
    plain = " ".join(said.split()).rstrip(".")
    return f" ({_clipped(plain)})" if plain else ""


def _nodes(number: int) -> str:
    return "1 node" if number == 1 else f"{number} nodes"


def _named(nodes: Sequence[str]) -> str:
    """Return how many nodes and the first of them by name; one alone goes by its name."""
    if len(nodes) == 1:
        return f"node {nodes[0]}"
    rest = ", ..." if len(nodes) > NODES_NAMED else ""
    return f"{len(nodes)} nodes ({', '.join(nodes[:NODES_NAMED])}{rest})"
