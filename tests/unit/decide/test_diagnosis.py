"""Diagnosis: for every finding, the symptoms that bring it and those just short of it; and policies that apply."""

from dataclasses import replace

import pytest

from conntrack_operator.decide.diagnosis import diagnose
from conntrack_operator.decide.plan import plan_for
from conntrack_operator.decide.symptoms import (
    Allowance,
    Elsewhere,
    FullLine,
    KernelLog,
    NamespaceUse,
    PinnedMap,
    PortTraits,
    Symptoms,
    TableUse,
    Traits,
    Writer,
    ZoneLimit,
)
from conntrack_operator.decide.talkers import Row, Top
from conntrack_operator.model.catalogue import BY_FIELD, PREFIX
from conntrack_operator.model.facts import Facts
from conntrack_operator.model.reading import policy_from

NOW = 1_800_000_000.0
LIMIT = 262_144
OWN, POD = 4026531840, 4026532500
MAX = f"{PREFIX}nf_conntrack_max"
BUCKETS = f"{PREFIX}nf_conntrack_buckets"
SYSCTLS = {
    MAX: LIMIT, BUCKETS: LIMIT, f"{PREFIX}nf_conntrack_tcp_loose": 1, f"{PREFIX}nf_conntrack_tcp_be_liberal": 0,
    **{
        BY_FIELD[f"timeouts.{field}"].dotted: seconds
        for field, seconds in {
            "tcp.synSent": 120, "tcp.synRecv": 60, "tcp.established": 432000, "tcp.finWait": 120, "tcp.closeWait": 60,
            "tcp.timeWait": 120, "tcp.lastAck": 30, "udp.unreplied": 30, "udp.stream": 120,
        }.items()
    },
}  # fmt: skip
FACTS = Facts(memory_bytes=24 << 30, cpus=8, kernel="6.18.0", entries=1000, sysctls=SYSCTLS)
CALM = Symptoms(
    facts=FACTS,
    table=TableUse(1000, LIMIT, watched_seconds=1.0),
    own_inode=OWN,
    keepalive_seconds=7200,
    node="node-7",
    now_seconds=NOW,
)
FULL = replace(CALM, table=TableUse(LIMIT, LIMIT, drop=1234, dropped_now=51, watched_seconds=1.0))


def shares(**by):
    """Return tops: each question with {key: share}."""
    return {
        question: Top(LIMIT, LIMIT, tuple(Row(key, int(share * LIMIT), share, 0.0) for key, share in keys.items()))
        for question, keys in by.items()
    }


def table(**changes):
    """Return calm symptoms with another table."""
    return replace(CALM, table=replace(CALM.table, **changes))


def sysctls(base, **values):
    """Return symptoms with other sysctls, by their names behind nf_conntrack_."""
    changed = SYSCTLS | {f"{PREFIX}nf_conntrack_{name}": value for name, value in values.items()}
    return replace(base, facts=FACTS.model_copy(update={"sysctls": changed}))


def elsewhere(**changes):
    """Return calm symptoms with another table that is not this one."""
    return replace(CALM, elsewhere=Elsewhere(**changes))


def full_of(**by):
    """Return a full table with these talkers."""
    return replace(FULL, top=shares(**by))


def logged(base, *ages, namespace=None):
    """Return symptoms with lines in the log that are so many seconds old."""
    return replace(base, log=KernelLog(tuple(FullLine(NOW - age, namespace) for age in ages)))


def found(symptoms):
    """Return reason -> severity."""
    return {finding.reason: finding.severity for finding in diagnose(symptoms).findings}


def writer(kind="sysctl.d", value=131072, setting=MAX, key=""):
    """Return one writer."""
    return Writer(kind, f"/etc/{kind}/x.conf:3", setting, value, key)


def pod(**changes):
    """Return a pod's namespace, empty unless changed."""
    return elsewhere(
        namespaces=(NamespaceUse(POD, "envoy (pid 7)", **({"entries": 9, "max_entries": LIMIT} | changes)),)
    )


@pytest.mark.parametrize(
    ("symptoms", "reason", "severity"),
    [
        # the table itself
        (FULL, "TableFull", "critical"),
        (table(entries=LIMIT), "TableFull", "critical"),
        (table(entries=LIMIT - 1), "TableNearlyFull", "critical"),
        (table(entries=200_000, drop=9, dropped_now=9), "TableFull", "critical"),
        (table(entries=200_000, early_drop=9, thrown_out_now=9), "TableFull", "critical"),
        (table(drop=9), "TableWasFull", "warning"),
        (table(early_drop=9), "TableWasFull", "warning"),
        (logged(table(drop=9), 600), "TableWasFull", "critical"),
        (logged(table(drop=9), 6000), "TableWasFull", "warning"),
        (table(entries=210_000), "TableFilling", "warning"),
        (table(entries=209_000), "TableFilling", None),
        (table(max_entries=0), "NoLimit", "warning"),
        (table(drop=9, insert_failed=9), "TableWasFull", None),
        (table(drop=9, insert_failed=9), "InsertFailed", "info"),
        (table(search_restart=1), "SearchRestart", "info"),
        (table(invalid=10_000), "InvalidPackets", "info"),
        (table(invalid=9_999), "InvalidPackets", None),
        (sysctls(table(invalid=10_000), tcp_be_liberal=1), "InvalidPackets", None),
        (sysctls(CALM, tcp_loose=0), "StrictPickup", "info"),
        (replace(CALM, facts=FACTS.model_copy(update={"initial_namespace": False})), "NotTheHost", "info"),
        # who fills it
        (full_of(state={"TCP TIME_WAIT": 0.3, "TCP LAST_ACK": 0.1}), "FinishedConnections", "warning"),
        (full_of(state={"TCP TIME_WAIT": 0.39}), "FinishedConnections", None),
        (replace(CALM, top=shares(state={"TCP TIME_WAIT": 1.0})), "FinishedConnections", None),
        (full_of(state={"TCP CLOSE_WAIT": 0.2}), "HalfClosedConnections", "warning"),
        (full_of(state={"TCP SYN_SENT": 0.1, "TCP SYN_RECV": 0.1}), "UnansweredHandshakes", "warning"),
        (full_of(state={"UDP UNREPLIED": 0.2}), "UnansweredUDP", "warning"),
        (full_of(state={"UDP ASSURED": 0.2, "UDP REPLIED": 0.2}), "AnsweredUDP", "warning"),
        (replace(full_of(state={"TCP ESTABLISHED": 0.9}), traits=Traits(100, 20)), "IdleConnections", "warning"),
        (replace(full_of(state={"TCP ESTABLISHED": 0.9}), traits=Traits(100, 19)), "IdleConnections", None),
        (full_of(source={"10.0.0.1": 0.5}), "OneSource", "warning"),
        (full_of(source={"10.0.0.1": 0.49}), "OneSource", None),
        (full_of(port={"80/TCP": 0.5}), "OnePort", "warning"),
        (full_of(port={"GRE": 0.9}), "OnePort", None),
        # settings
        (FULL, "LimitBelowMemory", "warning"),
        (CALM, "LimitBelowMemory", None),
        (table(max_entries=30_000_000), "LimitAboveMemory", "warning"),
        (table(max_entries=20_000_000), "LimitAboveMemory", None),
        (sysctls(CALM, buckets=LIMIT // 8 - 512), "FewBuckets", "warning"),
        (sysctls(CALM, buckets=LIMIT // 8), "FewBuckets", None),
        (sysctls(CALM, tcp_timeout_established=3600), "BelowKeepalive", "warning"),
        (replace(CALM, writers=(writer("kube-proxy", setting="net.netfilter.x"),)), "HalfClosedCut", "warning"),
        # who else writes
        (replace(CALM, writers=(writer(value=LIMIT),)), "AlsoWritten", "info"),
        (replace(CALM, writers=(writer(value=LIMIT - 1),)), "LowerAtNextStart", "warning"),
        (replace(CALM, writers=(writer(value=LIMIT), writer("TuneD", LIMIT + 1))), "WritersDisagree", "warning"),
        (replace(CALM, writers=(writer(value=1), writer(value=LIMIT))), "WritersDisagree", None),
        # elsewhere
        (pod(entries=LIMIT), "OtherNamespaceFull", "critical"),
        (pod(entries=210_000), "OtherNamespaceFull", "warning"),
        (pod(drop=5), "OtherNamespaceFull", "warning"),
        (pod(drop=5, insert_failed=5), "OtherNamespaceFull", None),
        (pod(), "OtherNamespaceFull", None),
        (logged(pod(drop=5), 60, namespace=POD), "OtherNamespaceFull", "critical"),
        (logged(pod(drop=5), 60, namespace=POD), "AnotherTableWasFull", None),
        (logged(CALM, 60, namespace=POD), "AnotherTableWasFull", "warning"),
        (logged(CALM, 6000, namespace=POD), "AnotherTableWasFull", "info"),
        (logged(CALM, 6000), "AnotherTableWasFull", "info"),
        (logged(table(drop=9), 6000), "AnotherTableWasFull", None),
        (elsewhere(allowances=(Allowance("eth0", 0, 100),)), "EC2AllowanceExceeded", None),
        (elsewhere(allowances=(Allowance("eth0", 7, 100),)), "EC2AllowanceExceeded", "warning"),
        (elsewhere(allowances=(Allowance("eth0", 7, None, exceeded_now=2),)), "EC2AllowanceExceeded", "critical"),
        (elsewhere(allowances=(Allowance("eth0", 0, 0),)), "EC2AllowanceUsedUp", "critical"),
        (elsewhere(maps=(PinnedMap("cilium_ct4_global"),)), "CiliumTracks", "info"),
        (elsewhere(maps=(PinnedMap("cilium_ct4_global", 100, 80),)), "CiliumMapFull", "warning"),
        (elsewhere(maps=(PinnedMap("cilium_ct4_global", 100, 95),)), "CiliumMapFull", "critical"),
        (elsewhere(maps=(PinnedMap("cilium_ct4_global", 100),)), "CiliumMapFull", None),
        (elsewhere(zones=(ZoneLimit(3, 100, 80),)), "ZoneFull", "warning"),
        (elsewhere(zones=(ZoneLimit(3, 100, 100),)), "ZoneFull", "critical"),
        (elsewhere(zones=(ZoneLimit(3, 0, 100),)), "ZoneFull", None),
    ],
)
def test_findings(symptoms, reason, severity):
    """Each finding comes from its symptoms, with its severity, and not from what falls just short of them."""
    assert found(symptoms).get(reason) == severity


def test_nothing_is_wrong():
    """A calm machine: no finding, no policy, and a verdict that says so."""
    diagnosis = diagnose(CALM)
    assert diagnosis.findings == ()
    assert diagnosis.policy is None
    assert diagnosis.verdict == "Not full: 0% of 262,144 entries used, nothing lost. Nothing to do."


@pytest.mark.parametrize(
    ("counters", "end"),
    [({}, "100%."), ({"drop": 50}, "100%; it was full, 50 packets lost."),
     ({"early_drop": 1}, "100%; it was full, 1 entry thrown out.")],
)  # fmt: skip
def test_nearly_full_says_what_it_has_cost(counters, end):
    """The kernel's collector makes some room in a table that has dropped packets: they are not forgotten."""
    verdict = diagnose(table(entries=LIMIT - 1, **counters)).verdict
    assert verdict == f"The table is nearly full: 262,143 of 262,144 entries, {end}"


def test_the_worst_comes_first_and_is_the_verdict():
    """Critical before warning before info, whatever the order they were found in."""
    symptoms = replace(pod(entries=LIMIT), table=TableUse(LIMIT, LIMIT, drop=5, insert_failed=1, search_restart=3))
    diagnosis = diagnose(symptoms)
    severities = [finding.severity for finding in diagnosis.findings]
    assert severities == sorted(severities, key=["critical", "warning", "info"].index)
    assert (
        diagnosis.verdict
        == diagnosis.findings[0].summary
        == "The table is full: 262,144 of 262,144 entries, 4 packets lost."
    )


def test_a_verdict_answers_before_it_warns():
    """A warning about a setting does not hide that the table is not full; one about another table is the answer."""
    lint = diagnose(sysctls(CALM, tcp_timeout_established=3600))
    assert lint.verdict == "Not full: 0% of 262,144 entries used, nothing lost. But 1 warning."
    assert diagnose(pod(drop=5)).verdict.startswith("The table of another network namespace was full: envoy (pid 7)")


def test_lines_of_a_namespace_whose_number_was_anothers():
    """Namespace numbers are used again: lines beyond what this one dropped were its predecessor's."""
    symptoms = logged(table(drop=2), 9000, 8000, 70, 60, namespace=OWN)
    (finding,) = [each for each in diagnose(symptoms).findings if each.reason == "TableWasFull"]
    assert "2 lines" in finding.detail
    assert found(symptoms)["AnotherTableWasFull"] == "info"
    (finding,) = [
        each
        for each in diagnose(replace(symptoms, own_began_seconds=NOW - 65)).findings
        if each.reason == "TableWasFull"
    ]
    assert "1 line at" in finding.detail


POLICIES = [
    pytest.param(FULL, {"table": {"size": {"memory": {"percent": 2}}}}, id="small limit"),
    pytest.param(
        full_of(state={"TCP TIME_WAIT": 1.0}),
        {"table": {"size": {"memory": {"percent": 2}}}, "timeouts": {"tcp": {"finWait": "1m", "timeWait": "30s"}}},
        id="finished connections",
    ),
    pytest.param(
        replace(full_of(state={"TCP ESTABLISHED": 1.0}), traits=Traits(100, 90)),
        {"table": {"size": {"memory": {"percent": 2}}}, "timeouts": {"tcp": {"established": "24h"}}},
        id="idle connections",
    ),
    pytest.param(
        replace(FULL, table=replace(FULL.table, entries=1_500_000, max_entries=1_500_000)),
        {"table": {"size": {"memory": {"percent": 5}}}},
        id="2% is not enough",
    ),
    pytest.param(sysctls(CALM, tcp_timeout_established=3600), {"timeouts": {"tcp": {"established": "24h"}}}, id="lint"),
    pytest.param(sysctls(CALM, buckets=16384), {"table": {"entriesPerBucket": 1}}, id="few buckets"),
    pytest.param(
        sysctls(table(max_entries=50_000_000), max=50_000_000, buckets=50_000_000 // 512 * 512),
        {"table": {"size": {"memory": {"percent": 2, "floor": 262144}}, "allowShrink": True}},
        id="too large",
    ),
    pytest.param(
        sysctls(table(max_entries=0), max=0),
        {"table": {"size": {"memory": {"percent": 2, "floor": 262144}}}},
        id="no limit",
    ),
    pytest.param(pod(entries=LIMIT), {"table": {"size": {"memory": {"percent": 2}}}}, id="a pod's table"),
]


@pytest.mark.parametrize(("symptoms", "wanted"), POLICIES)
def test_policies(symptoms, wanted):
    """The policy has what mends it and nothing else, is valid, plans without a refusal, and changes something."""
    if symptoms.table.max_entries != LIMIT and symptoms.table.max_entries:
        symptoms = sysctls(symptoms, max=symptoms.table.max_entries, buckets=symptoms.table.max_entries // 512 * 512)
    document = diagnose(symptoms).policy
    spec = dict(document["spec"])
    assert spec.pop("mode") == "Enforce"
    assert spec.pop("nodeSelector") == {"matchLabels": {"kubernetes.io/hostname": "node-7"}}
    assert spec == wanted
    facts = symptoms.facts.model_copy(update={"entries": symptoms.table.entries})
    plan = plan_for(policy_from(document).spec, facts)
    assert plan.refused == ()
    assert plan.changes


FULL_OF_WEB = replace(
    full_of(port={"80/TCP": 0.9}),
    table=TableUse(11_000_000, 11_000_000, drop=5),
    facts=FACTS.model_copy(update={"sysctls": SYSCTLS | {MAX: 11_000_000, BUCKETS: 11_000_320}}),
    traits=Traits(100, 0, {"80/TCP": PortTraits(90, 90, 0)}),
)


def test_notrack_where_no_size_helps():
    """One local port, no NAT, and no room for a larger table: the port goes untracked."""
    spec = diagnose(FULL_OF_WEB).policy["spec"]
    assert spec["notrack"] == {"rules": [{"name": "port-80", "protocol": "TCP", "ports": [80], "side": "Server"}]}
    assert "table" not in spec
    policy_from(diagnose(FULL_OF_WEB).policy)


@pytest.mark.parametrize(
    "symptoms",
    [
        pytest.param(replace(FULL_OF_WEB, traits=Traits(100, 0, {"80/TCP": PortTraits(90, 90, 1)})), id="translated"),
        pytest.param(
            replace(FULL_OF_WEB, traits=Traits(100, 0, {"80/TCP": PortTraits(90, 89, 0)})), id="not all local"
        ),
        pytest.param(replace(FULL_OF_WEB, traits=Traits(100, 0)), id="not looked at"),
        pytest.param(
            replace(
                FULL_OF_WEB,
                top=shares(port={"22/TCP": 0.9}),
                traits=Traits(100, 0, {"22/TCP": PortTraits(90, 90, 0)}),
            ),
            id="ssh",
        ),
        pytest.param(
            replace(
                FULL_OF_WEB,
                top=shares(port={"99/UDP": 0.9}),
                traits=Traits(100, 0, {"99/UDP": PortTraits(90, 90, 0)}),
            ),
            id="UDP",
        ),
    ],
)
def test_no_notrack_where_it_could_break_something(symptoms):
    """NAT, other people's connections, failsafe ports and UDP are never suggested for NOTRACK."""
    assert diagnose(symptoms).policy is None


def test_another_namespace_gets_the_limit_alone():
    """In a pod's namespace a policy reaches the machine's limit; its timeouts are not the host's."""
    symptoms = full_of(state={"TCP TIME_WAIT": 1.0})
    inside = replace(symptoms, facts=FACTS.model_copy(update={"initial_namespace": False}))
    assert set(diagnose(inside).policy["spec"]) == {"mode", "nodeSelector", "table"}


def test_a_name_that_is_no_label():
    """A host name that cannot be a label's value does not make an invalid policy."""
    document = diagnose(replace(FULL, node="x" * 64)).policy
    assert document["spec"]["nodeSelector"] == {"matchLabels": {"kubernetes.io/os": "linux"}}
    policy_from(document)


def test_who_disagrees_is_told_what_to_do():
    """kube-proxy's key and a file's line are named, each with what to do about it."""
    kube_proxy = Writer("kube-proxy", "kube-proxy (pid 9, config x)", MAX, 131072, "conntrack.min")
    ours = Writer("conntrack-operator", "conntrack-operator, before which it was 65536", MAX, LIMIT)
    (finding,) = [
        each
        for each in diagnose(replace(CALM, writers=(writer(value=65536), kube_proxy, ours))).findings
        if each.reason == "WritersDisagree"
    ]
    assert "sysctl.d, kube-proxy and conntrack-operator" in finding.summary
    assert "/etc/sysctl.d/x.conf:3: 65536." in finding.detail
    assert f"{LIMIT} is from conntrack-operator, before which it was 65536." in finding.detail
    assert "remove it from /etc/sysctl.d/x.conf:3" in finding.remedy
    assert "set conntrack.maxPerCore: 0 in kube-proxy's ConfigMap" in finding.remedy
    assert "remove it from conntrack-operator" not in finding.remedy
