"""The chart as it is written: linted, its values judged, rendered, and every object taken by a real API server."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.lab import chart
from tests.lab.cluster import Cluster
from tests.lab.helm import CHART, ROOT, Helm

from conntrack_operator.cli.reading import agent_config_in
from conntrack_operator.controller.daemonset import agent_documents
from conntrack_operator.model.agent_config import AgentConfig

EVERY_SWITCH = (
    "--set=agent.iptablesLegacy=true", "--set=agent.kernelLog=true", "--set=agent.privileged=true",
    "--set=agent.seLinuxOptions.type=spc_t", "--set=networkPolicy.enabled=true", "--set=metrics.enabled=true",
    "--set=metrics.dashboard.enabled=true", "--set=image.pullSecrets[0].name=registry", "--set=agent.labels.team=net",
    "--set=agent.annotations.note=x", "--set=controller.labels.team=net", "--set=agent.updateStrategy.type=OnDelete",
)  # fmt: skip


@pytest.fixture(scope="module")
def helm(helm_program: Path, tmp_path_factory: pytest.TempPathFactory) -> Helm:
    """Give helm without a cluster."""
    return Helm(helm_program, tmp_path_factory.mktemp("helm"))


def rendered(helm: Helm, *arguments: str) -> list[dict[str, Any]]:
    """Return the objects of the chart."""
    return [document for document in yaml.safe_load_all(helm.template(*arguments)) if document]


def one(documents: list[dict[str, Any]], kind: str, name: str = "conntrack-operator") -> dict[str, Any]:
    """Return the one object of this kind and name."""
    found = [each for each in documents if (each["kind"], each["metadata"]["name"]) == (kind, name)]
    assert len(found) == 1, f"{kind} {name}: {len(found)}"
    return found[0]


def test_lint(helm: Helm) -> None:
    """Helm itself finds nothing to object to, as it is and with every switch on."""
    helm("lint", "--strict", str(CHART))
    helm("lint", "--strict", str(CHART), *EVERY_SWITCH)


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ("image.repositry=x", "repositry"),
        ("image.repository=registry.example/a:1.0", "/image/repository"),
        ("image.repository=https://registry.example/a", "/image/repository"),
        ("image.tag=sha256:" + 64 * "0", "/image/tag"),
        ("image.pullPolicy=Sometimes", "/image/pullPolicy"),
        ("controller.replicas=0", "/controller/replicas"),
        ("agent.topTalkers=21", "/agent/topTalkers"),
        ("agent.privileged=maybe", "/agent/privileged"),
        ("agent.updateStrategy.maxUnavailable=0%", "/agent/updateStrategy/maxUnavailable"),
        ("agent.updateStrategy.type=Recreate", "/agent/updateStrategy/type"),
        ("agent.seLinuxOptions.typ=x", "typ"),
        (r"agent.labels.app\.kubernetes\.io/name=x", "/agent/labels"),
        ("uninstall.timeoutSeconds=-1", "/uninstall/timeoutSeconds"),
        ("metrics.agentPort=70000", "/metrics/agentPort"),
        ("metrics.agentPort=1023", "/metrics/agentPort"),
        ("metrics.podMonitor.interval=soon", "/metrics/podMonitor/interval"),
        ("metrics.prometheusRule.disabledAlerts[0]=ConntrackFilling", "/metrics/prometheusRule/disabledAlerts"),
        ("metrics.prometheusRule.runbookURL=wiki", "/metrics/prometheusRule/runbookURL"),
        ("agents.privileged=true", "agents"),
    ],
)
def test_a_wrong_value_is_named(helm: Helm, setting: str, named: str) -> None:
    """Who mistypes a value learns which one before anything is installed."""
    done = helm("template", "x", str(CHART), f"--set={setting}", check=False)
    assert done.returncode != 0
    assert re.search(re.escape(named).replace("/", "[/.]"), done.stderr), done.stderr


def test_every_value_is_described_and_judged() -> None:
    """Each value has its comment, and the schema knows the same values as the file."""
    text = (CHART / "values.yaml").read_text()
    described = dict(chart.described(text))
    schema = json.loads((CHART / "values.schema.json").read_text())

    def known(part: dict[str, Any], path: str = "") -> Iterator[str]:
        for name, each in part.get("properties", {}).items():
            where = f"{path}.{name}".lstrip(".")
            if each.get("properties") and where not in described:
                yield from known(each, where)
            else:
                yield where

    # These two are Helm's own, and come from charts that have this one among theirs.
    assert set(known(schema)) - {"global", "enabled"} == set(described)
    assert len(described) > 40


def test_the_readme_s_table_and_the_crds_are_in_step() -> None:
    """What is generated without helm is as it would be generated now."""
    assert chart.table() in (CHART / "README.md").read_text()
    assert chart.schema() == (CHART / "values.schema.json").read_text()
    ours = {path.name: path.read_text() for path in (ROOT / "crds").glob("*.yaml")}
    assert {path.name: path.read_text() for path in (CHART / "files" / "crds").glob("*")} == ours


def test_the_manifest_is_in_step(helm: Helm) -> None:
    """manifests/install.yaml is what the chart makes."""
    assert (ROOT / "manifests" / "install.yaml").read_text() == chart.manifest(helm)


def test_the_agents_config_is_the_controller_s(helm: Helm, tmp_path: Path) -> None:
    """By default the chart's file says what is built in; each switch reaches the DaemonSet."""

    def config(*arguments: str) -> AgentConfig:
        text = one(rendered(helm, *arguments), "ConfigMap", "conntrack-operator-agent")["data"]["agent.yaml"]
        (tmp_path / "agent.yaml").write_text(text)
        return agent_config_in(str(tmp_path / "agent.yaml"))

    plain = config("--set=metrics.enabled=false")
    assert plain.model_copy(update={"image_pull_policy": None}) == AgentConfig()
    spec = agent_documents("ns", "image", config(*EVERY_SWITCH))[-1]["spec"]
    pod = spec["template"]["spec"]
    container = pod["containers"][0]
    assert spec["updateStrategy"] == {"type": "OnDelete"}
    assert spec["template"]["metadata"]["labels"]["team"] == "net"
    assert spec["template"]["metadata"]["annotations"] == {"note": "x"}
    assert pod["imagePullSecrets"] == [{"name": "registry"}]
    assert "/run/xtables.lock" in [volume["hostPath"]["path"] for volume in pod["volumes"]]
    assert container["securityContext"]["privileged"]
    assert container["securityContext"]["seLinuxOptions"] == {"type": "spc_t"}
    assert container["imagePullPolicy"] == "IfNotPresent"
    # On the node's own network: at its address alone, whichever family it is of.
    assert container["args"][-2:] == ["--metrics-address", "[$(HOST_IP)]:9817"]
    assert {"name": "HOST_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.hostIP"}}} in container["env"]
    assert (container["ports"], container["readinessProbe"]["httpGet"]) == (
        [{"name": "metrics", "containerPort": 9817}],
        {"path": "/readyz", "port": "metrics"},
    )
    legacy = agent_documents("ns", "image", config("--set=agent.iptablesLegacy=true,agent.kernelLog=true"))[-1]
    rights = legacy["spec"]["template"]["spec"]["containers"][0]["securityContext"]
    assert rights["capabilities"] == {"drop": ["ALL"], "add": ["NET_ADMIN", "NET_RAW", "SYSLOG"]}


def test_what_the_network_policy_is_for(helm: Helm) -> None:
    """Every pod that the chart itself makes and that speaks to the API server; agents are on their nodes' network."""
    documents = rendered(helm, "--set=networkPolicy.enabled=true")
    (expression,) = one(documents, "NetworkPolicy")["spec"]["podSelector"]["matchExpressions"]
    pods = [
        one(documents, "Deployment")["spec"]["template"], one(documents, "Pod", "conntrack-operator-check"),
        one(documents, "Job", "conntrack-operator-uninstall")["spec"]["template"],
    ]  # fmt: skip
    labels = [each["metadata"]["labels"] for each in pods]
    assert {each["app.kubernetes.io/component"] for each in labels} == set(expression["values"])
    assert {each["app.kubernetes.io/name"] for each in labels} == {"conntrack-operator"}
    port = one(documents, "Deployment")["spec"]["template"]["spec"]["containers"][0]["ports"][0]["containerPort"]
    assert one(documents, "NetworkPolicy")["spec"]["ingress"] == [{"ports": [{"protocol": "TCP", "port": port}]}]
    shut = rendered(helm, "--set=networkPolicy.enabled=true,metrics.enabled=false")
    assert one(shut, "NetworkPolicy")["spec"]["ingress"] == []


def test_one_replica_has_no_budget(helm: Helm) -> None:
    """A budget for one pod would hold up every drain; of several, one may go at a time, and a broken one always."""
    budget = one(rendered(helm), "PodDisruptionBudget")["spec"]
    assert (budget["maxUnavailable"], budget["unhealthyPodEvictionPolicy"]) == (1, "AlwaysAllow")
    kinds = {each["kind"] for each in rendered(helm, "--set=controller.replicas=1")}
    assert "PodDisruptionBudget" not in kinds


def test_another_config_is_another_controller(helm: Helm) -> None:
    """The file is read at the start: a change of it must replace the controller's pods."""

    def template(*arguments: str) -> Any:
        return one(rendered(helm, *arguments), "Deployment")["spec"]["template"]

    assert template() == template()
    assert template() != template("--set=agent.topTalkers=0")


def test_crds_are_kept_unless_somebody_says_so(helm: Helm) -> None:
    """A policy must not go because a chart was uninstalled."""

    def kept(*arguments: str) -> list[bool]:
        crds = [each for each in rendered(helm, *arguments) if each["kind"] == "CustomResourceDefinition"]
        return ["helm.sh/resource-policy" in each["metadata"].get("annotations", {}) for each in crds]

    assert kept() == [True, True]
    assert kept("--set=crds.keep=false") == [False, False]
    assert kept("--set=crds.install=false") == []


ALERTS = """
groups:
  - name: conntrack-operator
    rules:
      - {alert: ConntrackTableSoonFull, expr: "a > 1", annotations: {summary: "{{ $labels.node }} fills"}}
      - {alert: ConntrackTableDropping, expr: "b > 1"}
"""


def test_what_prometheus_and_grafana_get(helm: Helm, tmp_path: Path) -> None:
    """Nothing unless it is asked for; alerts and dashboard as their files have them, but for those left out."""
    copy = shutil.copytree(CHART, tmp_path / "chart")
    (copy / "files" / "alerts.yaml").write_text(ALERTS)
    (copy / "files" / "dashboard.json").write_text('{"title": "{{node}}"}')

    def made(*arguments: str) -> list[dict[str, Any]]:
        text = helm("template", "conntrack-operator", str(copy), *arguments).stdout
        return [document for document in yaml.safe_load_all(text) if document]

    kinds = {"PodMonitor", "ServiceMonitor", "PrometheusRule", "Service"}
    every = [f"--set=metrics.{name}.enabled=true" for name in ("podMonitor", "serviceMonitor", "prometheusRule")]
    for nothing in ([], [*every, "--set=metrics.enabled=false"]):
        assert not kinds & {each["kind"] for each in made(*nothing)}
    documents = made(
        "--set=metrics.podMonitor.enabled=true,metrics.serviceMonitor.enabled=true,metrics.dashboard.enabled=true",
        "--set=metrics.prometheusRule.enabled=true,metrics.prometheusRule.disabledAlerts[0]=ConntrackTableDropping",
        "--set=metrics.prometheusRule.labels.release=mine",
    )
    assert kinds <= {each["kind"] for each in documents}
    rule = one(documents, "PrometheusRule")
    assert rule["metadata"]["labels"]["release"] == "mine"
    assert rule["spec"]["groups"] == [
        {"name": "conntrack-operator", "rules": yaml.safe_load(ALERTS)["groups"][0]["rules"][:1]}
    ]
    dashboard = one(documents, "ConfigMap", "conntrack-operator-dashboard")
    assert dashboard["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert json.loads(dashboard["data"]["conntrack-operator.json"]) == {"title": "{{node}}"}
    port = one(documents, "Deployment")["spec"]["template"]["spec"]["containers"][0]["ports"][0]["name"]
    for kind, field in (("PodMonitor", "podMetricsEndpoints"), ("ServiceMonitor", "endpoints")):
        assert one(documents, kind)["spec"][field][0]["port"] == port


def test_alerts_say_where_their_page_is(helm: Helm) -> None:
    """In the source tree, or at the address that somebody named; what the mixin of node_exporter has is left out."""

    def annotations(*arguments: str) -> dict[str, dict[str, str]]:
        documents = rendered(helm, "--set=metrics.prometheusRule.enabled=true", *arguments)
        rules = [rule for group in one(documents, "PrometheusRule")["spec"]["groups"] for rule in group["rules"]]
        return {rule["alert"]: rule["annotations"] for rule in rules}

    ours = {rule["alert"]: rule for group in yaml.safe_load((CHART / "files" / "alerts.yaml").read_text())["groups"]
            for rule in group["rules"]}  # fmt: skip
    plain = annotations()
    assert set(ours) - set(plain) == {"ConntrackTableFilling"}
    assert all(plain[name]["runbook"] == f"docs/alerts/{name}.md" for name in plain)
    for base in ("https://wiki.example.com/alerts", "https://wiki.example.com/alerts/"):
        told = annotations(f"--set=metrics.prometheusRule.runbookURL={base}",
                           "--set-json=metrics.prometheusRule.disabledAlerts=[]")  # fmt: skip
        assert set(told) == set(ours)
        for name, each in told.items():
            assert each == {"summary": ours[name]["annotations"]["summary"],
                            "runbook_url": f"https://wiki.example.com/alerts/{name}.md"}  # fmt: skip
    schema = json.loads((CHART / "values.schema.json").read_text())["properties"]["metrics"]["properties"]
    assert schema["prometheusRule"]["properties"]["disabledAlerts"]["items"]["enum"] == list(ours)


DIGEST = "@sha256:" + 64 * "0"


@pytest.mark.parametrize("namespace", ["conntrack-system", "default"])
def test_no_two_objects_are_one(helm: Helm, namespace: str) -> None:
    """Also in `default`, where the roles for Events are: of two hooks with one name Helm deletes the first."""
    documents = rendered(helm, *EVERY_SWITCH, f"--namespace={namespace}")
    made = [(each["kind"], each["metadata"].get("namespace"), each["metadata"]["name"]) for each in documents]
    assert sorted({each for each in made if made.count(each) > 1}) == []


def test_as_part_of_another_chart(helm: Helm, tmp_path: Path) -> None:
    """The usual condition, `enabled`, reaches the values of the part, where it is not taken for a misspelt one."""
    shutil.copytree(CHART, tmp_path / "charts" / CHART.name)
    part = {"name": CHART.name, "version": ">=0", "condition": f"{CHART.name}.enabled"}
    whole = {"apiVersion": "v2", "name": "whole", "version": "1.0.0", "dependencies": [part]}
    (tmp_path / "Chart.yaml").write_text(yaml.safe_dump(whole))
    text = helm("template", "x", str(tmp_path), f"--set={CHART.name}.enabled=true,global.x=y").stdout
    assert "kind: Deployment" in text


def test_labels_of_a_version_with_a_plus_sign(helm: Helm, tmp_path: Path) -> None:
    """Flux gives a chart from Git such a version (reconcileStrategy: Revision); a label that has it is refused."""
    helm("package", str(CHART), "--version=0.2.0+4e5cbb7b9d5e", "--app-version=0.2.0+x", f"--destination={tmp_path}")
    text = helm("template", "x", str(tmp_path / "conntrack-operator-0.2.0+4e5cbb7b9d5e.tgz")).stdout
    label = re.compile(r"^([A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?$")
    labels = [each["metadata"]["labels"] for each in yaml.safe_load_all(text) if each]
    assert {each["helm.sh/chart"] for each in labels} == {"conntrack-operator-0.2.0_4e5cbb7b9d5e"}
    assert [value for each in labels for value in each.values() if not label.match(value)] == []


@pytest.mark.parametrize(("tag", "ending"), [("1.0", ":1.0"), (DIGEST, DIGEST), (f"1.0{DIGEST}", f":1.0{DIGEST}")])
def test_the_image_is_the_one_that_is_named(helm: Helm, tag: str, ending: str) -> None:
    """By a tag, a digest or both, the same for controller, agents, test and removal."""
    text = helm.template(f"--set-string=image.tag={tag}", "--set=image.repository=registry.example:5000/a/b")
    named = re.findall(r"(?:^ *image: |--agent-image=)(.*)", text, re.MULTILINE)
    assert named == 4 * [f"registry.example:5000/a/b{ending}"]


def test_the_short_pods_run_where_the_controller_may(helm: Helm) -> None:
    """Test and removal go by the controller's node affinity, selector and tolerations, not by what keeps pods apart."""
    term = {"matchExpressions": [{"key": "kubernetes.io/arch", "operator": "In", "values": ["amd64"]}]}
    node = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}
    apart = {"requiredDuringSchedulingIgnoredDuringExecution": [{"topologyKey": "kubernetes.io/hostname"}]}
    affinity = {"nodeAffinity": node, "podAntiAffinity": apart}
    places = {"nodeSelector": {"pool": "system"}, "tolerations": [{"operator": "Exists"}], "affinity": affinity}
    documents = rendered(helm, f"--set-json=controller={json.dumps(places)}")
    assert one(documents, "Deployment")["spec"]["template"]["spec"]["affinity"] == affinity
    job = one(documents, "Job", "conntrack-operator-uninstall")["spec"]["template"]
    for pod in (job["spec"], one(documents, "Pod", "conntrack-operator-check")["spec"]):
        assert pod["affinity"] == {"nodeAffinity": node}
        assert pod["nodeSelector"] == {"pool": "system", "kubernetes.io/os": "linux"}
        assert pod["tolerations"] == [{"operator": "Exists"}]


def test_argo_cd_sees_the_removal_too(helm: Helm) -> None:
    """The removal comes before everything else also where Argo CD applies the chart."""
    job = one(rendered(helm), "Job", "conntrack-operator-uninstall")
    assert job["metadata"]["annotations"]["helm.sh/hook"] == "pre-delete"
    assert job["metadata"]["annotations"]["argocd.argoproj.io/hook"] == "PreDelete"
    left = [each["kind"] for each in rendered(helm, "--set=uninstall.deletePolicies=false")]
    assert "Job" not in left


def test_the_api_server_takes_it_all(helm: Helm, cluster: Cluster, crds: Path) -> None:
    """Every object, every switch on, by a dry run on the server; a warning is an error."""
    del crds
    cluster.clear()
    # A pod is not taken without its account, which a dry run does not make.
    cluster.kubectl("create", "serviceaccount", "conntrack-operator-check", "-n", "conntrack-system")
    try:
        for arguments in ((), EVERY_SWITCH):
            documents = rendered(helm, *arguments)
            done = cluster.kubectl(
                "apply", "--dry-run=server", "--warnings-as-errors", "--server-side", "--force-conflicts", "-f", "-",
                input=yaml.safe_dump_all(documents),
            )  # fmt: skip
            assert done.stdout.count("serverside-applied") == len(documents), done.stdout
            assert "Warning" not in done.stderr
        for name in ("install.yaml", "examples"):
            cluster.kubectl(
                "apply", "--dry-run=server", "--warnings-as-errors", "--server-side", "--force-conflicts",
                "-f", str(ROOT / "manifests" / name),
            )  # fmt: skip
    finally:
        cluster.clear()


def test_the_controller_s_pod_is_restricted(helm: Helm, cluster: Cluster, crds: Path) -> None:
    """Where Pod Security enforces its strictest level, the pods of controller, test and removal are still taken."""
    del crds
    cluster.clear()
    cluster.kubectl(
        "label", "namespace", "conntrack-system",
        "pod-security.kubernetes.io/enforce=restricted", "pod-security.kubernetes.io/warn=restricted",
    )  # fmt: skip
    try:
        documents = rendered(helm)
        templates = [
            one(documents, "Deployment")["spec"]["template"]["spec"],
            one(documents, "Job", "conntrack-operator-uninstall")["spec"]["template"]["spec"],
            one(documents, "Pod", "conntrack-operator-check")["spec"],
        ]
        for spec in templates:
            spec.pop("serviceAccountName")
            spec["restartPolicy"] = "Never"
            pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "conntrack-system"}}
            # The namespace's own account comes with the namespace, a moment later.
            cluster.kubectl("get", "namespace", "conntrack-system")
            cluster.controller_manager.wait_until(
                lambda: cluster.get("serviceaccount", "default", "-n", "conntrack-system"), 60, "the account default"
            )
            cluster.kubectl(
                "create", "--dry-run=server", "--warnings-as-errors", "-f", "-", input={**pod, "spec": spec}
            )
    finally:
        cluster.clear()
