"""The chart installed, used, upgraded, rolled back and uninstalled by Helm on a real API server of its own.

No kubelet runs here: the controller, the test and the removal run as processes in the place of their pods, with the
arguments, the file and the rights that the chart gives them, and nothing else.
"""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.lab import control_plane
from tests.lab.answering import Answering, answer_to, answering
from tests.lab.cluster import Cluster
from tests.lab.helm import CHART, Helm
from tests.lab.programs import Program, free_port, wait_until

from conntrack_operator.cluster.connection import Connection
from conntrack_operator.errors import Refused

NAMESPACE = "conntrack-system"
RELEASE = "conntrack-operator"
AGENT = "conntrack-operator-agent"
VALUES = ("--set=image.repository=registry.example/conntrack-operator", f"--set=metrics.controllerPort={free_port()}",
          "--set=uninstall.timeoutSeconds=45")  # fmt: skip
REFUSALS = ("forbidden", "Forbidden", "permission", "rights", "cannot ")
"""What a controller's log holds that lacks a right."""
OUTDATED = "Operation cannot be fulfilled"
"""What the API server says of a write that another was quicker with."""


class Audited(Cluster):
    """A cluster whose API server writes down who asked it for what."""

    def apiserver_flags(self, etcd_port: int) -> dict[str, object]:
        """Return the flags of the API server."""
        rules = [{"level": "Metadata", "userGroups": [f"system:serviceaccounts:{NAMESPACE}"]}, {"level": "None"}]
        policy = {"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "omitStages": ["RequestReceived"], "rules": rules}
        (self.folder / "audit.json").write_text(json.dumps(policy))
        flags = {"audit-policy-file": self.folder / "audit.json", "audit-log-path": self.folder / "audit.log"}
        return super().apiserver_flags(etcd_port) | flags

    def used(self, account: str) -> set[tuple[str, str, str]]:
        """Return namespace, resource and verb of each request of an account that was obeyed, or not found."""
        found = set()
        whole, _, _ = (self.folder / "audit.log").read_text().rpartition("\n")  # the last line may be under way
        for line in whole.splitlines():
            event = json.loads(line)
            what = event.get("objectRef") or {}
            if event["user"]["username"].endswith(f":{account}") and "resource" in what:
                resource = "/".join(filter(None, (what["resource"], what.get("subresource"))))
                # A Namespace is its own namespace to the log; rights on it are the cluster's.
                namespace = "" if resource == "namespaces" else what.get("namespace", "")
                found.add((namespace, resource, event["verb"]))
        return found


def policy_of(name: str, **spec: Any) -> dict[str, Any]:
    """Return a policy for the nodes with role=web, which reaches all of them at once."""
    fields = {
        "mode": "Enforce", "nodeSelector": {"matchLabels": {"role": "web"}},
        "rollout": {"canary": 0, "maxUnavailable": "100%"}, "table": {"size": {"maxEntries": 500_000}}, **spec,
    }  # fmt: skip
    document = {"apiVersion": "conntrack-operator.io/v1alpha1", "kind": "ConntrackPolicy", "spec": fields}
    return {**document, "metadata": {"name": name}}


class Installed:
    """A cluster with the chart in it, and the programs that its pods would run."""

    def __init__(self, cluster: Cluster, helm: Helm, folder: Path) -> None:
        self.cluster, self.helm, self.folder = cluster, helm, folder
        self.controller: Program | None = None

    def document(self, kind: str, name: str) -> dict[str, Any]:
        """Return an object of the operator's namespace."""
        found = self.cluster.get(kind, name, "-n", NAMESPACE)
        assert found, f"there is no {kind} {name}"
        return found

    def program(self, pod: dict[str, Any], name: str, *, config: str = "") -> Program:
        """Return the one program of a pod: its arguments, with its account's token."""
        token = self.cluster.token(pod["serviceAccountName"], NAMESPACE)
        kubeconfig = self.cluster.kubeconfig_for(token, namespace=NAMESPACE)
        arguments = list(pod["containers"][0]["args"])
        if config:
            (self.folder / "agent.yaml").write_text(config)
            mount = "/etc/conntrack-operator"
            arguments = [each.replace(mount, str(self.folder)) for each in arguments]
        command = [sys.executable, "-m", "conntrack_operator", *arguments, f"--kubeconfig={kubeconfig}"]
        return Program(name, command, self.folder / f"{name}.log")

    def start_controller(self) -> None:
        """End the controller, if one runs, and start the one that the Deployment describes now."""
        self.stop_controller()
        pod = self.document("deployment", "conntrack-operator")["spec"]["template"]["spec"]
        config = self.document("configmap", AGENT)["data"]["agent.yaml"]
        self.controller = self.program(pod, "controller", config=config)
        self.controller.log.unlink(missing_ok=True)
        # The API server learns of new bindings by watches of its own; a pod takes longer to start than that.
        self.wait_may(
            "conntrack-operator", ("list", "nodes"), ("get", f"daemonset/{AGENT}", "-n", NAMESPACE),
            ("create", "events", "-n", "default"),
        )  # fmt: skip
        self.controller.start()
        self.controller.wait_until(self._has_begun, 60, "the controller has read everything")

    def may(self, *what: str, account: str = f"{NAMESPACE}:conntrack-operator") -> bool:
        """Tell whether the controller's account, or another, may do this, in kubectl's words."""
        asked = (*what, f"--as=system:serviceaccount:{account}")
        return self.cluster.kubectl("auth", "can-i", *asked, check=False).returncode == 0

    def wait_may(self, account: str, *asked: tuple[str, ...]) -> None:
        """Wait until the API server knows these rights of an account of the operator's namespace, just made."""
        account = account if ":" in account else f"{NAMESPACE}:{account}"
        wait_until(lambda: all(self.may(*each, account=account) for each in asked), 60, f"the rights of {account}")

    def _has_begun(self) -> bool:
        assert self.controller
        return "everything is read" in self.controller.log.read_text()

    def stop_controller(self) -> None:
        """End the controller, as when its pod goes; what it was refused fails the test."""
        if self.controller is not None:
            self.controller.stop()
            assert self.refused() == []

    def refused(self) -> list[str]:
        """Return the lines of the controller's log that speak of a right it lacks."""
        assert self.controller
        lines = self.controller.log.read_text().splitlines()
        return [line for line in lines if any(word in line.replace(OUTDATED, "") for word in REFUSALS)]

    def apply(self, name: str, **spec: Any) -> None:
        """Apply a policy for the nodes with role=web, which reaches all of them at once."""
        self.cluster.kubectl("apply", "-f", "-", input=policy_of(name, **spec))

    def is_ready(self, policy: str) -> bool:
        """Tell whether a policy is Ready in its present version."""
        found = self.cluster.get("conntrackpolicy", policy) or {}
        status = found.get("status") or {}
        current = status.get("observedGeneration") == found.get("metadata", {}).get("generation")
        return current and any(each["type"] == "Ready" and each["status"] == "True" for each in status["conditions"])

    def has_told(self) -> bool:
        """Tell whether there is an event of the controller."""
        events = self.cluster.items("events", "-n", "default")
        return any(each["reportingComponent"].startswith("conntrack-operator") for each in events)

    def daemon_set(self) -> dict[str, Any]:
        """Return the agents' DaemonSet, empty when there is none."""
        return self.cluster.get("daemonset", AGENT, "-n", NAMESPACE) or {}

    def capabilities(self) -> list[str]:
        """Return what the agents may do."""
        container = self.daemon_set()["spec"]["template"]["spec"]["containers"][0]
        return list(container["securityContext"]["capabilities"]["add"])


@pytest.fixture(scope="module")
def installed(helm_program: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installed]:
    """Give a cluster of its own with three nodes, two of them with role=web, and the chart installed."""
    if reason := control_plane.missing():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("installed")
    cluster = Audited(folder, lambda line: print(line, file=sys.stderr))
    try:
        cluster.start()
        for name, role in (("n1", "web"), ("n2", "web"), ("n3", "db")):
            cluster.add_node(name, role=role)
        made = Installed(cluster, Helm(helm_program, folder, cluster), folder)
        made.helm("install", RELEASE, str(CHART), "-n", NAMESPACE, "--create-namespace", *VALUES)
        cluster.kubectl("wait", "--for=condition=Established", "--timeout=60s", "crd", "--all")
        made.start_controller()
        yield made
        if made.controller is not None:
            made.controller.stop()
    finally:
        cluster.stop()


@pytest.fixture(scope="module")
def agents(installed: Installed) -> Iterator[Answering]:
    """Have the agents of all nodes answer."""
    with answering(installed.cluster, everything=True) as made:
        yield made


# The tests of this file are steps of one story, in this order; a cluster for each would cost ten seconds each.


def test_the_rights_suffice(installed: Installed, agents: Answering) -> None:
    """A policy goes out to its nodes, one with rules that follow pods and Services too, and nothing is refused."""
    del agents
    rule = {"name": "web", "side": "Server", "protocol": "TCP", "ports": [80]}
    installed.apply("web", notrack={"rules": [rule]})
    wait_until(lambda: installed.is_ready("web"), 90, "policy web is Ready")
    wait_until(installed.has_told, 60, "an event of the controller")  # events go their own way, after the status
    assert installed.cluster.items("controllerrevisions", "-n", NAMESPACE)
    wait_until(installed.daemon_set, 60, "the agents are there")  # the nodes are answered for without them
    assert installed.daemon_set()["spec"]["template"]["spec"]["tolerations"] == [{"operator": "Exists"}]
    lease = installed.document("lease", "conntrack-operator-controller")
    assert lease["spec"]["holderIdentity"]
    assert installed.refused() == []


def test_the_rights_are_no_more_than_that(installed: Installed) -> None:
    """Of what its neighbours have, the controller may read no Secret and change nothing but what is its own."""
    assert installed.may("delete", f"daemonset/{AGENT}", "-n", NAMESPACE)
    for refused in (
        ("get", "secrets", "-A"), ("get", "configmaps", "-n", NAMESPACE), ("update", "nodes"), ("patch", "nodes"),
        ("create", "pods", "-n", NAMESPACE), ("delete", "pods", "-n", NAMESPACE), ("create", "conntrackpolicies"),
        ("patch", "conntrackpolicies"), ("delete", "conntrackpolicies"), ("create", "daemonsets", "-n", "default"),
        ("delete", "daemonset/other", "-n", NAMESPACE), ("patch", "clusterrole/cluster-admin"),
        ("patch", "clusterrolebinding/cluster-admin"), ("delete", "customresourcedefinitions"),
        ("escalate", "clusterroles"), ("bind", "clusterroles"), ("impersonate", "users"),
        ("list", "events", "-n", "kube-system"),
        ("patch", "lease/other", "-n", NAMESPACE), ("create", "serviceaccounts/token", "-n", NAMESPACE),
        ("get", "namespace/kube-system"), ("create", "tokenreviews"),
    ):  # fmt: skip
        assert not installed.may(*refused), refused


BOUND = {
    # user: the role that is bound to him in the whole cluster
    "view": "view", "edit": "edit", "admin": "admin", "reader": "conntrack-operator-view",
    "writer": "conntrack-operator-edit",
}  # fmt: skip
READ, WRITE = ("get", "list", "watch"), ("create", "update", "patch", "delete")
OURS = ("conntrackpolicies", "nodeconntracks")


def allowed(cluster: Cluster, asked: list[tuple[str, str, str]]) -> dict[tuple[str, str, str], bool]:
    """Ask the API server whether (user, verb, resource) is allowed, all at once."""
    reviews = []
    for user, verb, resource in asked:
        name, _, subresource = resource.partition("/")
        what = {"group": "conntrack-operator.io", "verb": verb, "resource": name, "subresource": subresource}
        reviews.append({"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview",
                        "spec": {"user": user, "resourceAttributes": what}})  # fmt: skip
    listed = {"apiVersion": "v1", "kind": "List", "items": reviews}
    answers = cluster.kubectl("create", "-f", "-", "-o", "jsonpath={.status.allowed} ", input=listed).stdout.split()
    return {each: answer == "true" for each, answer in zip(asked, answers, strict=True)}


def test_what_people_may(installed: Installed) -> None:
    """Who has view in the whole cluster may read; conntrack-operator-edit alone lets somebody write a policy."""
    cluster = installed.cluster
    for user, role in BOUND.items():
        cluster.kubectl("create", "clusterrolebinding", f"test-{user}", f"--clusterrole={role}", f"--user={user}")
    # The built-in roles of one namespace reach nothing that is in none.
    cluster.kubectl("create", "rolebinding", "test", "-n", NAMESPACE, "--clusterrole=admin", "--user=local")
    everybody = [*BOUND, "local"]
    asked = [(user, verb, kind) for user in everybody for kind in (*OURS, *(f"{each}/status" for each in OURS))
             for verb in (*READ, *WRITE, "deletecollection")]  # fmt: skip
    expected = {
        *((user, verb, kind) for user in BOUND for verb in READ for kind in OURS),
        *(("writer", verb, "conntrackpolicies") for verb in WRITE),
    }
    # The built-in roles take in others a moment after those are made, and the API server hears of all by a watch.
    wait_until(lambda: all(allowed(cluster, sorted(expected)).values()), 60, "everybody has what the roles give")
    local = ("auth", "can-i", "list", "pods", "-n", NAMESPACE, "--as=local")
    wait_until(lambda: cluster.kubectl(*local, check=False).returncode == 0, 60, "local is admin of the namespace")
    assert {each for each, answer in allowed(cluster, asked).items() if answer} == expected


def test_the_plugin_with_these_roles(installed: Installed) -> None:
    """`kubectl conntrack` reads everything with view, and steers with conntrack-operator-edit."""
    cluster = installed.cluster
    run = {}
    for account, role in (("reads", "view"), ("writes", "conntrack-operator-edit")):
        cluster.kubectl("create", "serviceaccount", account, "-n", "default")
        cluster.kubectl("create", "clusterrolebinding", f"test-{account}", f"--clusterrole={role}",
                        f"--serviceaccount=default:{account}")  # fmt: skip
        run[account] = cluster.kubeconfig_for(cluster.token(account, "default"))
    installed.wait_may("default:reads", ("list", "conntrackpolicies"))
    installed.wait_may("default:writes", ("patch", "conntrackpolicies"))

    def plugin(account: str, *arguments: str, stdin: str = "") -> tuple[int, str]:
        command = [sys.executable, "-m", "conntrack_operator.cli.plugin.main", *arguments]
        done = subprocess.run([*command, f"--kubeconfig={run[account]}"], input=stdin, capture_output=True, text=True,
                              check=False, timeout=120)  # fmt: skip
        return done.returncode, done.stdout + done.stderr

    code, said = plugin("reads", "status")
    assert (code, "controller" in said) == (0, False), said
    assert plugin("reads", "top", "n1")[0] == 0
    code, said = plugin("reads", "history")
    assert (code, "not seen" in said) == (0, False), said
    code, said = plugin("reads", "pause", "web")
    assert (code, "you may not patch conntrackpolicies" in said) == (1, True), said
    code, said = plugin("writes", "plan", "-f", "-", stdin=json.dumps(policy_of("web", timeouts={"icmp": "20s"})))
    assert (code, "web: the API server would take it" in said, "n1" in said) == (2, True, True), said
    code, said = plugin("writes", "retry", "web")
    assert (code, "rollout.retry" in said) == (0, True), said
    wait_until(lambda: installed.is_ready("web"), 60, "the policy is judged as it is now")


GROUP = "/apis/conntrack-operator.io/v1alpha1"
NODES = f"{GROUP}/nodeconntracks"
MERGE = "application/merge-patch+json"


def tried(connection: Connection, method: str, path: str, body: Any = None, content_type: str = MERGE) -> str:
    """Send one request and return what the API server refuses it with, empty when it obeys.

    The request itself, not kubectl: that one reads before it writes, and would be refused that.
    """
    kind = content_type if method == "PATCH" else "application/json"
    try:
        assert connection.request(method, path, body=body, content_type=kind) is not None, f"{path} is not there"
    except Refused as refusal:
        return f"{refusal.reason}: {refusal}"
    return ""


def test_an_agent_writes_its_own_node_s_status_alone(installed: Installed) -> None:
    """With the token of node n1's agent: its own status, and nothing else of anything, by any verb."""
    cluster = installed.cluster
    found = {node: cluster.get("nodeconntrack", node) or {} for node in ("n1", "n2")}
    status = {"status": answer_to(found["n1"]["spec"])}

    def connection(token: str) -> Connection:
        return Connection(str(cluster.kubeconfig_for(token)), connect_seconds=30, read_seconds=30)

    mine = connection(cluster.token(AGENT, NAMESPACE, node="n1"))
    unbound = connection(cluster.token(AGENT, NAMESPACE))
    own = "an agent may write the status of the node its token is bound to"
    # It takes a few seconds to come into force.
    wait_until(lambda: own in tried(unbound, "PATCH", f"{NODES}/n1/status", status), 60, "the policy is in force")
    assert own in tried(unbound, "PATCH", f"{NODES}/n2/status", status)
    assert tried(mine, "PATCH", f"{NODES}/n1/status", status) == ""
    assert own in tried(mine, "PATCH", f"{NODES}/n2/status", status)
    whole = {"apiVersion": "conntrack-operator.io/v1alpha1", "kind": "NodeConntrack", "metadata": {"name": "n2"}}
    applied = f"{NODES}/n2/status?fieldManager=x&force=true"
    assert own in tried(mine, "PATCH", applied, {**whole, **status}, "application/apply-patch+yaml")
    # What it lives on, and nothing more.
    assert tried(mine, "GET", NODES) == tried(mine, "GET", f"{NODES}/n1") == ""
    # A status patch changes the status alone, whatever else is in it.
    other = {"spec": {**found["n1"]["spec"], "mode": "Restore"}}
    assert tried(mine, "PATCH", f"{NODES}/n1/status", {**status, **other}) == ""
    assert (cluster.get("nodeconntrack", "n1") or {})["spec"]["mode"] == found["n1"]["spec"]["mode"]
    labels = {"metadata": {"labels": {"a": "b"}}}
    system = f"/api/v1/namespaces/{NAMESPACE}"
    refused: list[tuple[Any, ...]] = [
        (method, f"{NODES}/{node}{part}", body)
        for node in found
        for part in ("", "/status")
        for method, body in (("PUT", found[node]), ("DELETE", None), ("PATCH", other), ("GET", None))
        if (method, part) not in {("PATCH", "/status"), ("GET", "")} and (method, part) != ("DELETE", "/status")
    ]
    refused += [
        ("POST", NODES, {**found["n1"], "metadata": {"name": "n9"}}),
        ("DELETE", NODES),
        ("PATCH", f"{NODES}/n1", labels),
        *((method, f"{GROUP}/conntrackpolicies/web", other) for method in ("PATCH", "PUT", "DELETE")),
        ("GET", f"{GROUP}/conntrackpolicies"),
        ("GET", f"{GROUP}/conntrackpolicies/web"),
        ("PATCH", f"{GROUP}/conntrackpolicies/web/status", {"status": {}}),
        ("GET", "/api/v1/nodes/n1"),
        ("PATCH", "/api/v1/nodes/n1", labels),
        ("PATCH", "/api/v1/nodes/n1/status", labels),
        *(("GET", f"/api/v1/{kind}") for kind in ("nodes", "pods", "services", "secrets", "configmaps", "events")),
        *(("GET", f"{system}/{kind}") for kind in ("secrets", "configmaps", "serviceaccounts", "pods")),
        ("POST", f"{system}/pods", {"metadata": {"name": "p"}, "spec": {"containers": []}}),
        ("POST", f"{system}/serviceaccounts/{AGENT}/token", {"spec": {}}),
        ("GET", f"/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases"),
        ("DELETE", f"/apis/apps/v1/namespaces/{NAMESPACE}/daemonsets/{AGENT}"),
        ("PATCH", f"/apis/rbac.authorization.k8s.io/v1/clusterroles/{AGENT}", {"rules": []}),
    ]
    for request in refused:
        assert tried(mine, *request).startswith("Forbidden"), request


def test_helm_test(installed: Installed) -> None:
    """`helm test` passes when its pod's program does, which a controller that answers makes it do."""
    command, env = installed.helm.command("test", RELEASE, "-n", NAMESPACE, "--timeout=120s")
    testing = subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
    try:
        where = ("pod", "conntrack-operator-check", "-n", NAMESPACE)
        wait_until(lambda: installed.cluster.get(*where), 60, "the test's pod is made")
        check = installed.program((installed.cluster.get(*where) or {})["spec"], "check")
        installed.wait_may("conntrack-operator-check", ("create", "conntrackpolicies"))
        check.start()
        assert check.process
        assert check.process.wait(90) == 0, check.tail()
        assert "the controller judged policy" in check.tail()
        patch = json.dumps({"status": {"phase": "Succeeded"}})
        installed.cluster.kubectl("patch", *where, "--subresource=status", "--type=merge", "-p", patch)
        said, _ = testing.communicate(timeout=90)
    finally:
        testing.kill()
        testing.wait()
    assert testing.returncode == 0
    assert "Succeeded" in said
    assert [each["metadata"]["name"] for each in installed.cluster.items("conntrackpolicies")] == ["web"]
    assert installed.cluster.get("clusterrole", "conntrack-operator-check") is None


def test_upgrade_and_rollback(installed: Installed) -> None:
    """Another pod for the agents, a newer CRD, and back: the DaemonSet follows, policies and nodes' specs stay."""
    cluster = installed.cluster
    before = {node: (cluster.get("nodeconntrack", node) or {})["spec"] for node in ("n1", "n2")}
    newer = installed.folder / "newer"
    subprocess.run(["cp", "-r", str(CHART), str(newer)], check=True)
    path = newer / "files" / "crds" / "conntrack-operator.io_conntrackpolicies.yaml"
    crd = yaml.safe_load(path.read_text())
    crd["spec"]["names"]["shortNames"].append("newer")
    path.write_text(yaml.safe_dump(crd))

    def short_names() -> list[str]:
        found = cluster.get("crd", "conntrackpolicies.conntrack-operator.io") or {}
        return list(found["spec"]["names"]["shortNames"])

    assert installed.capabilities() == ["NET_ADMIN"]
    installed.helm("upgrade", RELEASE, str(newer), "-n", NAMESPACE, *VALUES, "--set=agent.kernelLog=true")
    assert "newer" in short_names()
    installed.start_controller()
    wait_until(lambda: installed.capabilities() == ["NET_ADMIN", "SYSLOG"], 60, "the agents have SYSLOG")
    installed.helm("rollback", RELEASE, "1", "-n", NAMESPACE)
    assert "newer" not in short_names()
    installed.start_controller()
    wait_until(lambda: installed.capabilities() == ["NET_ADMIN"], 60, "the agents have it no more")
    assert {node: (cluster.get("nodeconntrack", node) or {})["spec"] for node in ("n1", "n2")} == before
    wait_until(lambda: installed.is_ready("web"), 60, "the policy is Ready as before")


def test_a_removal_that_cannot_run_removes_nothing(installed: Installed) -> None:
    """Where the Job does not end, as when its image is not there, helm fails, and the release can be had back."""
    cluster = installed.cluster
    kinds = "deployment,daemonset,serviceaccount,role,rolebinding,clusterrole,clusterrolebinding,lease,ctp,nct"

    def objects() -> set[str]:
        return set(cluster.kubectl("get", kinds, "-A", "-o", "name").stdout.split())

    before = objects()

    def put_back() -> None:
        listed = json.loads(installed.helm("list", "-n", NAMESPACE, "-o", "json").stdout)
        assert [each["status"] for each in listed] == ["uninstalling"]
        installed.helm("rollback", RELEASE, listed[0]["revision"], "-n", NAMESPACE)

    # Nobody runs Jobs here: it stays as helm has made it. On a busy machine helm may not come so far in two seconds.
    for seconds in (2, 30):
        done = installed.helm("uninstall", RELEASE, "-n", NAMESPACE, f"--timeout={seconds}s", check=False)
        if cluster.get("job", "conntrack-operator-uninstall", "-n", NAMESPACE):
            break
        put_back()
    assert done.returncode != 0
    assert "conntrack-operator-uninstall not ready" in done.stderr
    assert objects() == before
    put_back()
    cluster.kubectl("delete", "job", "conntrack-operator-uninstall", "-n", NAMESPACE)
    wait_until(lambda: installed.is_ready("web"), 60, "the policy is Ready as before")


def test_uninstall(installed: Installed, agents: Answering) -> None:
    """Every node is restored but the dead one, which is named; in the end only what is documented to stay is there."""
    cluster = installed.cluster
    agents.mute = frozenset({"n2"})
    command, env = installed.helm.command("uninstall", RELEASE, "-n", NAMESPACE, "--timeout=200s")
    began = time.monotonic()
    removing = subprocess.Popen(
        command, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        where = ("job", "conntrack-operator-uninstall", "-n", NAMESPACE)
        wait_until(lambda: cluster.get(*where), 60, "the removal's Job is made")
        removal = installed.program((cluster.get(*where) or {})["spec"]["template"]["spec"], "uninstall")
        installed.wait_may(
            "conntrack-operator-uninstall", ("delete", "conntrackpolicies"),
            ("list", "controllerrevisions", "-n", NAMESPACE), ("create", "events", "-n", "default"),
        )  # fmt: skip
        removal.start()
        assert removal.process
        assert removal.process.wait(120) == 0, removal.tail()
        # Up to here: when helm has removed the rights, a controller that is just ending is refused.
        assert installed.refused() == []
        moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        conditions = [{"type": kind, "status": "True", "lastTransitionTime": moment, "lastProbeTime": moment}
                      for kind in ("SuccessCriteriaMet", "Complete")]  # fmt: skip
        done = {"startTime": moment, "completionTime": moment, "succeeded": 1, "conditions": conditions}
        patch = json.dumps({"status": {**done, "uncountedTerminatedPods": {}}})
        cluster.kubectl("patch", *where, "--subresource=status", "--type=merge", "-p", patch)
        said, _ = removing.communicate(timeout=120)
    finally:
        removing.kill()
        removing.wait()
    assert removing.returncode == 0, said
    assert time.monotonic() - began < 45 + 90
    log = removal.log.read_text()
    assert "skipped n2: not restored within 45 s" in log
    assert "n1" not in log
    about = ("--field-selector=reason=NotRestored", "-o", "jsonpath={.items[*].involvedObject.name}")
    assert cluster.kubectl("get", "events", "-n", "default", *about).stdout == "n2"
    assert installed.controller
    installed.controller.stop()
    installed.controller = None
    labels = "app.kubernetes.io/name=conntrack-operator"

    def left() -> list[str]:
        names = cluster.kubectl("api-resources", "--verbs=list", "-o", "name").stdout.split()
        kinds = [each for each in names if not each.startswith("events")]
        return cluster.kubectl("get", ",".join(kinds), "-A", "-l", labels, "-o", "name").stdout.split()

    crds = {f"customresourcedefinition.apiextensions.k8s.io/{kind}.conntrack-operator.io"
            for kind in ("conntrackpolicies", "nodeconntracks")}  # fmt: skip
    wait_until(lambda: set(left()) == crds, 60, "nothing but the CRDs is left")
    assert cluster.items("nodeconntracks") == cluster.items("conntrackpolicies") == []
    assert cluster.items("leases", "-n", NAMESPACE) == []
    assert cluster.items("secrets", "-n", NAMESPACE) == []
    kept = {each["metadata"]["name"] for each in cluster.items("configmaps", "-n", NAMESPACE)}
    assert kept == {"kube-root-ca.crt"}


def test_installed_again(installed: Installed, agents: Answering) -> None:
    """What stayed is taken up by the next installation of the same name; without policies it takes its agents away."""
    cluster = installed.cluster
    agents.mute = frozenset()
    installed.helm("install", RELEASE, str(CHART), "-n", NAMESPACE, *VALUES)
    installed.start_controller()
    installed.apply("web", rollout={"paused": True})
    wait_until(lambda: len(cluster.items("nodeconntracks")) == 2, 60, "both nodes have their objects")
    cluster.kubectl("delete", "node", "n1")
    wait_until(lambda: len(cluster.items("nodeconntracks")) == 1, 60, "the gone node's object is gone")
    wait_until(installed.daemon_set, 60, "the agents are there")
    cluster.kubectl("delete", "conntrackpolicy", "web")
    where = ("serviceaccount", AGENT, "-n", NAMESPACE)
    wait_until(lambda: cluster.get(*where) is None, 120, "the agents are gone, their account last")
    installed.stop_controller()


NEVER_USED_HERE = {
    (NAMESPACE, "leases", "create"): "somebody deleted the Lease",
    ("", "nodes", "get"): "a Node is gone: is it, before its object goes, unless that was collected already",
    ("", "nodeconntracks", "get"): "the same, and what two have written",
    (NAMESPACE, "events", "list"): "pods of the agents are refused",
    ("", "conntrackpolicies", "get"): "a policy's status was written by two",
    ("default", "events", "patch"): "the same happens again",
    (NAMESPACE, "controllerrevisions", "delete"): "a policy's fourth version",
}
"""Rights that this story does not come to use, with what does."""


def test_no_right_is_for_nothing(installed: Installed) -> None:
    """Of all that the chart lets the controller do, each thing was done in the tests above, by what the server saw."""
    assert isinstance(installed.cluster, Audited)
    used = installed.cluster.used("conntrack-operator")
    granted = set()
    for kind, namespace in (("clusterrole", ""), ("role", NAMESPACE), ("role", "default")):
        name = "conntrack-operator-events" if namespace == "default" else "conntrack-operator"
        where = ("-n", namespace) if namespace else ()
        role = installed.cluster.get(kind, name, *where)
        assert role
        for rule in role["rules"]:
            granted |= {(namespace, resource, verb) for resource in rule["resources"] for verb in rule["verbs"]}
    # A resource that is created by applying it is a patch to the log, and asks for the right to create.
    applied = {(*each[:2], "create") for each in used if each[2] == "patch"}
    # The agents' rights, which are given on and not used.
    given = {("", "nodeconntracks/status", "patch")}
    unused = granted - used - applied - given
    assert unused <= set(NEVER_USED_HERE), unused - set(NEVER_USED_HERE)
