"""A person's way to the cluster: what they may see and change, by their own kubeconfig and rights.

What is refused is said with the right that is missing. Programs inside a pod are run by kubectl itself, which knows
every way of streaming that an API server may want.
"""

import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from conntrack_operator.errors import Refused, Retry, Unsupported

from .connection import Connection
from .objects import Kind, Objects

PODS = Kind("Pod", "v1", "pods", namespaced=True)
USER_AGENT = "kubectl-conntrack"
FIELD_MANAGER = "kubectl-conntrack"
READ_SECONDS = 60.0
"""A person waits longer than a worker may; a list of all pods of a large cluster takes its time."""
EXEC_SECONDS = 120

Document = dict[str, Any]
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Way:
    """How the person reaches the cluster: as kubectl does, with these two of its options."""

    kubeconfig: str | None = None
    context: str | None = None

    def options(self) -> list[str]:
        """Return it as options of kubectl."""
        named = (("--kubeconfig", self.kubeconfig), ("--context", self.context))
        return [f"{option}={value}" for option, value in named if value]


class Person:
    """What one person may do. Raises Refused, Retry or Unsupported with a sentence that ends in what to do."""

    def __init__(self, way: Way) -> None:
        self._way = way
        self._connection = Connection(
            # As kubectl: also in a pod, $KUBECONFIG comes before the pod's own account.
            way.kubeconfig or os.environ.get("KUBECONFIG") or None,
            context=way.context,
            user_agent=USER_AGENT,
            read_seconds=READ_SECONDS,
        )
        self._objects = Objects(self._connection)

    def all(
        self,
        kind: Kind,
        *,
        namespace: str = "",
        labels: str = "",
        fields: str = "",
        slim: Callable[[Document], Document] | None = None,
    ) -> list[Document]:
        """Return the objects of a kind that the selectors pick."""
        kind = replace(kind, field_selector=fields or kind.field_selector)
        listed = _told(
            "list",
            kind,
            lambda: self._objects.list(kind, slim, namespace=namespace, label_selector=labels),
            namespace,
        )
        return list(listed.items)

    def one(self, kind: Kind, name: str, namespace: str = "") -> Document | None:
        """Return one object, or None."""
        return _told("get", kind, lambda: self._objects.get(kind, name, namespace), namespace)

    def merge(self, kind: Kind, name: str, part: Document) -> Document | None:
        """Change what `part` names of a cluster-scoped object by a merge patch; None when there is no such object."""
        return _told(
            "patch",
            kind,
            lambda: self._connection.request(
                "PATCH",
                kind.path(name=name),
                body=part,
                query={"fieldManager": FIELD_MANAGER},
                content_type="application/merge-patch+json",
            ),
        )

    def judged(self, kind: Kind, document: Document) -> Document | None:
        """Return a cluster-scoped object as it would be stored, which it is not; None when its kind is not there.

        Needs the right to patch it. Raises Refused with the API server's own words where it would not take it.
        """
        return _told(
            "patch",
            kind,
            lambda: self._connection.request(
                "PATCH",
                kind.path(name=document["metadata"]["name"]),
                body=document,
                query={"fieldManager": FIELD_MANAGER, "force": "true", "dryRun": "All", "fieldValidation": "Strict"},
                content_type="application/apply-patch+yaml",
            ),
        )

    def run_in_pod(self, namespace: str, pod: str, container: str, command: list[str]) -> str:
        """Return what `command` prints in a container, by kubectl exec. Raises Unsupported with what kubectl said."""
        kubectl = shutil.which("kubectl")
        if kubectl is None:
            raise Unsupported("kubectl is not on PATH, and running something in a pod needs it; put it there")
        options = [*self._way.options(), f"--namespace={namespace}", f"--container={container}"]
        try:
            done = subprocess.run(
                [kubectl, "exec", *options, pod, "--", *command],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=False,
                timeout=EXEC_SECONDS,
            )
        except subprocess.TimeoutExpired as error:
            raise Retry(f"{pod} in {namespace} did not answer in {EXEC_SECONDS} s; try again") from error
        except OSError as error:
            raise Unsupported(f"{kubectl} cannot be run ({error.strerror}); put a kubectl on PATH that can") from error
        if done.returncode != 0:
            raise Unsupported(_exec_words(done.stderr, namespace, pod))
        return done.stdout


def _told(verb: str, kind: Kind, ask: Callable[[], Answer], namespace: str = "") -> Answer:
    group = kind.api_version.rpartition("/")[0]
    group = f".{group}" if group else ""
    try:
        return ask()
    except Refused as error:
        if error.reason != "Forbidden":
            raise
        what = f"{kind.plural}{group}"
        where = f" --namespace {namespace}" if namespace else " --all-namespaces" if kind.namespaced else ""
        there = f" in namespace {namespace}" if namespace else ""
        raise Refused(
            "Forbidden",
            f"you may not {verb} {what}{there}; ask for that right (kubectl auth can-i {verb} {what}{where})",
        ) from error
    except Retry as error:
        if str(error).startswith("the API server said Unauthorized"):
            raise Unsupported(
                "the API server does not know you: the token or certificate of this context is wrong or has ended; log"
                " in again, and see whether kubectl auth whoami answers"
            ) from error
        if error.__cause__ is None:
            raise
        raise Retry(f"{error}; see whether kubectl version answers, and name a cluster with --context") from error


def _exec_words(said: str, namespace: str, pod: str) -> str:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    last = lines[-1].removeprefix("error: ") if lines else "nothing was said"
    if "forbidden" in last.lower():
        remedy = f"ask for the rights to get pods and create pods/exec in {namespace}"
    else:
        remedy = f"see kubectl -n {namespace} describe pod {pod}"
    return f"nothing could be run in pod {namespace}/{pod}: {last}; {remedy}"
