"""The plan of one machine: what changes, in which order, what is refused and why, and what is put back."""

import pytest
import yaml
from tests.lab.examples import EXAMPLES
from tests.lab.firewalls import nftables, rule

from conntrack_operator.decide import notrack
from conntrack_operator.decide.cluster_only import refusals_of_cluster_fields
from conntrack_operator.decide.plan import BUCKETS, MAX, TableState, plan_for
from conntrack_operator.model import catalogue
from conntrack_operator.model.facts import Facts
from conntrack_operator.model.journal import AppliedRule, Journal, Original
from conntrack_operator.model.node import PolicyUse
from conntrack_operator.model.notrack import NotrackRule
from conntrack_operator.model.policy import Settings
from conntrack_operator.model.reading import policy_from
from conntrack_operator.model.surroundings import UNREAD, Firewall, Service, Surroundings, TrackingState

ACCEPTED_PORTS = rule("accept", "th dport { 53, 80 } accept", ports=[53, 80])

ESTABLISHED = "net.netfilter.nf_conntrack_tcp_timeout_established"
TIME_WAIT = "net.netfilter.nf_conntrack_tcp_timeout_time_wait"
ACCT = "net.netfilter.nf_conntrack_acct"
LOOSE = "net.netfilter.nf_conntrack_tcp_loose"
NOW = {MAX: 262144, BUCKETS: 262144, ESTABLISHED: 432000, TIME_WAIT: 120, ACCT: 0, LOOSE: 1}
WEB = NotrackRule.model_validate({"name": "web", "ports": [80]})
DNS = NotrackRule.model_validate({"name": "dns", "ports": [53], "protocol": "UDP"})


def machine(entries=1000, initial_namespace=True, **sysctls):
    """Return a 48 GiB machine with 8 CPUs; keyword sysctls (max=, buckets=) replace its values."""
    named = {f"net.netfilter.nf_conntrack_{name}": value for name, value in sysctls.items()}
    return Facts(
        memory_bytes=48 << 30,
        cpus=8,
        kernel="6.18.0",
        entries=entries,
        sysctls={**NOW, **named},
        initial_namespace=initial_namespace,
    )


def settings(**document):
    """Return settings from their YAML form."""
    return Settings.model_validate(document)


def size(entries, **table):
    """Return settings that ask for a number of entries."""
    return settings(table={"size": {"maxEntries": entries}, **table})


def installed(*rules):
    """Return the table of these rules, as it stands when nobody touched it."""
    return TableState(notrack.ruleset_for(rules).expected)


def changes(plan):
    """Return (setting, from, to) of every change."""
    return [(change.setting, change.from_, change.to) for change in plan.changes]


def refusals(plan):
    """Return (setting, reason) of every refusal."""
    return [(refusal.setting, refusal.reason) for refusal in plan.refused]


def test_nothing_to_do():
    """Settings that hold already change nothing."""
    plan = plan_for(settings(timeouts={"tcp": {"established": "5h"}}), machine(tcp_timeout_established=18000))
    assert (plan.changes, plan.refused) == ((), ())
    assert plan.wanted == {ESTABLISHED: 18000}


@pytest.mark.parametrize(
    ("table", "facts", "expected"),
    [
        ({"size": {"maxEntries": 524288}}, machine(), [(MAX, 262144, 524288)]),
        ({"size": {"maxEntries": 524289}}, machine(), [(BUCKETS, 262144, 524800), (MAX, 262144, 524289)]),
        (
            {"size": {"maxEntries": 524288}, "entriesPerBucket": 1},
            machine(),
            [(BUCKETS, 262144, 524288), (MAX, 262144, 524288)],
        ),
        (
            {"size": {"kernelFormula": {}}, "entriesPerBucket": 8},
            machine(),
            [(MAX, 262144, 1572864), (BUCKETS, 262144, 196608)],
        ),
        (
            {"size": {"maxEntries": 65536}, "allowShrink": True},
            machine(),
            [(MAX, 262144, 65536), (BUCKETS, 262144, 65536)],
        ),
        ({"size": {"maxEntries": 131072}, "allowShrink": True}, machine(), [(MAX, 262144, 131072)]),
        (
            {"size": {"maxEntries": 131072}, "allowShrink": True, "entriesPerBucket": 1},
            machine(),
            [(MAX, 262144, 131072), (BUCKETS, 262144, 131072)],
        ),
        ({"size": {"maxEntries": 262144}}, machine(buckets=524288), []),
        ({"size": {"maxEntries": 300000}}, machine(buckets=524288), [(MAX, 262144, 300000)]),
        ({"entriesPerBucket": 4}, machine(), [(BUCKETS, 262144, 65536)]),
        ({"allowShrink": True}, machine(), []),
        (
            {"size": {"perCore": {"entries": 65536}}},
            machine(buckets=65536),
            [(BUCKETS, 65536, 524288), (MAX, 262144, 524288)],
        ),
    ],
)
def test_sizes(table, facts, expected):
    """Buckets before max when they grow, after it when they shrink; those nobody wrote follow beyond a factor of two.

    Planned again on the machine that has them, nothing changes, and what is wanted is what is there.
    """
    plan = plan_for(settings(table=table), facts)
    assert changes(plan) == expected
    assert plan.refused == ()
    after = facts.model_copy(update={"sysctls": facts.sysctls | {name: to for name, _, to in expected}})
    again = plan_for(settings(table=table), after)
    assert (again.changes, dict(again.wanted)) == ((), dict(plan.wanted))
    assert all(after.sysctls[name] == value for name, value in again.wanted.items())


@pytest.mark.parametrize(
    ("entries", "facts", "surroundings", "fits"),
    [
        (2147483647, machine(), None, 97612877),
        (97612877, machine(), None, None),
        (97614000, machine(), None, 97612877),
        (97612877, machine(), Surroundings(other_entries=1_000_000), 96643180),
        (97612877, machine(acct=1), None, 65739284),
        (97612877, machine(), Surroundings(firewall=nftables(rule("masquerade"))), 65739284),
    ],
)
def test_memory_budget(entries, facts, surroundings, fits):
    """What could never be filled is refused before the kernel is asked, and the sentence names what would fit."""
    plan = plan_for(size(entries), facts, surroundings=surroundings)
    assert refusals(plan) == ([(MAX, "MemoryBudget")] if fits else [])
    if fits:
        assert plan.changes == ()
        assert plan.refused[0].message.endswith(f"ask for at most {fits} entries")
        assert plan_for(size(fits), facts, surroundings=surroundings).refused == ()


def test_buckets_that_a_rival_wrote():
    """A rival's buckets are left within a factor of two and put right beyond it."""
    assert changes(plan_for(size(262144), machine(buckets=131072))) == []
    assert changes(plan_for(size(262144), machine(buckets=65536))) == [(BUCKETS, 65536, 262144)]


@pytest.mark.parametrize(
    ("wanted", "facts", "refused"),
    [
        (size(131072), machine(), [(MAX, "ShrinkNotAllowed")]),
        (size(131072, allowShrink=False), machine(), [(MAX, "ShrinkNotAllowed")]),
        (size(131072, allowShrink=True), machine(entries=104858), [(MAX, "BelowUse")]),
        (size(131072, allowShrink=True), machine(entries=104857), []),
        (size(524288), machine(initial_namespace=False), [(MAX, "Unsupported")]),
        (size(262144), machine(initial_namespace=False), []),
        (
            settings(timeouts={"dccp": {"open": "1h"}}),
            machine(),
            [("net.netfilter.nf_conntrack_dccp_timeout_open", "Unsupported")],
        ),
    ],
)
def test_refusals(wanted, facts, refused):
    """What would hurt or cannot be is refused by its name and changes nothing."""
    plan = plan_for(wanted, facts)
    assert refusals(plan) == refused
    assert not refused or plan.changes == ()


def test_one_refusal_hides_nothing():
    """A size that is refused does not keep a timeout from being set."""
    plan = plan_for(settings(table={"size": {"maxEntries": 1000}}, timeouts={"tcp": {"timeWait": "30s"}}), machine())
    assert changes(plan) == [(TIME_WAIT, 120, 30)]
    assert refusals(plan) == [(MAX, "ShrinkNotAllowed")]
    assert plan.refused[0].message.endswith("set table.allowShrink: true to go below it, or ask for more")


@pytest.mark.parametrize(
    ("now", "then", "order"),
    [((3, 4), (5, 6), ["high", "low"]), ((5, 6), (3, 4), ["low", "high"]), ((3, 6), (4, 5), ["low", "high"])],
)
def test_the_two_thresholds_never_cross(now, then, order):
    """The kernel refuses a lower threshold above the upper one, at any moment."""
    have = {f"frag6_{end}_thresh": value for end, value in zip(("low", "high"), now, strict=True)}
    want = {f"nf_conntrack_{name}": str(value) for name, value in zip(have, then, strict=True)}
    plan = plan_for(settings(sysctls=want), machine(**have))
    assert [change.setting.split("_")[-2] for change in plan.changes] == order


def test_values_and_order():
    """Raising comes first, lowering last; booleans are 0 and 1; each change says which field asked."""
    plan = plan_for(
        settings(
            timeouts={"tcp": {"established": 86400, "timeWait": "1h"}},
            tcp={"loose": False},
            sysctls={"nf_conntrack_acct": "1"},
        ),
        machine(),
    )
    assert changes(plan) == [(ACCT, 0, 1), (TIME_WAIT, 120, 3600), (LOOSE, 1, 0), (ESTABLISHED, 432000, 86400)]
    assert [change.reason for change in plan.changes] == [
        "sysctls.nf_conntrack_acct",
        "timeouts.tcp.timeWait",
        "tcp.loose",
        "timeouts.tcp.established",
    ]


@pytest.mark.parametrize(
    ("document", "setting"),
    [
        ({"tracking": "Disabled"}, "tracking"),
        (
            {
                "notrack": {
                    "rules": [{"name": "pods", "pods": {"namespace": "x", "selector": {"matchLabels": {"a": "b"}}}}]
                }
            },
            "notrack/pods",
        ),
    ],
)
def test_later_fields_are_refused_by_name(document, setting):
    """A field that does nothing yet is never silently ignored."""
    plan = plan_for(settings(**document), machine())
    assert refusals(plan) == [(setting, "Unsupported")]
    assert plan.changes == ()


@pytest.mark.parametrize(
    "document",
    [
        {"tracking": "Enabled"},
        {"notrack": {"acceptUntracked": "Never", "dropExisting": False}},
        {"notrack": {"acceptUntracked": "Both", "onConflict": "Force"}},
        {"notrack": {"acceptUntracked": "Replies", "onConflict": "Refuse"}},
    ],
)
def test_what_holds_anyway_is_no_refusal(document):
    """Asking for what this version does anyway is fine."""
    assert plan_for(settings(**document), machine()).refused == ()


def test_a_policy_s_rollout_is_no_concern_of_the_node():
    """How a change travels is the controller's business: what a node has been given, it does."""
    rollout = {"canary": 1, "maxFailures": 2, "retry": "x"}
    use = PolicyUse.model_validate({"name": "web", "revision": "r", "fields": [], "rollout": rollout})
    assert plan_for(size(300_000), machine(), uses=[use]) == plan_for(size(300_000), machine())


def test_what_needs_a_cluster_is_refused_from_a_file():
    """A rule that follows pods would have no ports; the others go in, and in a cluster ports are in its place."""
    pods = {"namespace": "ingress", "selector": {"matchLabels": {"app": "envoy"}}}
    wanted = settings(notrack={"rules": [{"name": "envoy", "pods": pods}, WEB.document()]})
    (refused,) = refusals_of_cluster_fields(wanted)
    assert (refused.setting, refused.reason) == ("notrack/envoy", "Unsupported")
    assert refused.message.endswith("write ports instead")
    assert [*refusals_of_cluster_fields(rules(WEB)), *refusals_of_cluster_fields(settings())] == []


def rules(*wanted):
    """Return settings with these rules."""
    return settings(notrack={"rules": [rule.document() for rule in wanted]})


def applied(*wanted, keep=False):
    """Return a journal in which these rules were installed."""
    return Journal(boot_id="b", applied_rules={rule.name: AppliedRule(rule=rule, keep=keep) for rule in wanted})


@pytest.mark.parametrize(
    ("wanted", "table", "journal", "expected"),
    [
        ((WEB,), TableState(), None, [("notrack/web", "absent", "TCP 80 Server")]),
        ((WEB,), installed(WEB), applied(WEB), []),
        ((WEB, DNS), installed(WEB), applied(WEB), [("notrack/dns", "absent", "UDP 53 Server")]),
        ((WEB,), installed(WEB, DNS), applied(WEB, DNS), [("notrack/dns", "UDP 53 Server", "absent")]),
        ((), installed(WEB), applied(WEB), [("notrack/web", "TCP 80 Server", "absent")]),
        ((), TableState(), None, []),
        ((WEB,), TableState(), applied(WEB), [("notrack/web", "absent", "TCP 80 Server")]),
        ((WEB,), installed(WEB, DNS), applied(WEB), [("notrack/*", "changed by somebody else", "as the policies say")]),
        (
            (WEB.model_copy(update={"ports": [80, 81]}),),
            installed(WEB),
            applied(WEB),
            [("notrack/web", "TCP 80 Server", "TCP 80-81 Server")],
        ),
        (
            (WEB,),
            installed(WEB.model_copy(update={"ports": [80, 81]})),
            applied(WEB.model_copy(update={"ports": [80, 81]})),
            [("notrack/web", "TCP 80-81 Server", "TCP 80 Server")],
        ),
    ],
)
def test_rules(wanted, table, journal, expected):
    """Each rule that is not there in full, was changed or is no longer wanted is one change."""
    assert changes(plan_for(rules(*wanted) if wanted else settings(), machine(), table, journal)) == expected


def test_nft_missing():
    """Without nft the rules are refused, and everything else goes on."""
    wanted = settings(timeouts={"tcp": {"timeWait": 30}}, notrack={"rules": [WEB.document()]})
    plan = plan_for(wanted, machine(), TableState(problem="nft is not installed; install nftables"))
    assert refusals(plan) == [("notrack/web", "Unsupported")]
    assert changes(plan) == [(TIME_WAIT, 120, 30)]


NODE_PORT = Surroundings(services=(Service(name="shop/web", kind="NodePort", protocol="TCP", port=80),))


def test_a_rule_is_withdrawn_when_a_conflict_appears():
    """A Service that came after the rule: the rule goes, the other stays, and the change says why."""
    plan = plan_for(rules(WEB, DNS), machine(), installed(WEB, DNS), applied(WEB, DNS), surroundings=NODE_PORT)
    assert refusals(plan) == [("notrack/web", "NATConflict")]
    assert changes(plan) == [("notrack/web", "TCP 80 Server", "absent")]
    assert plan.changes[0].reason == "NATConflict"
    assert [rule.name for rule in plan.rules] == ["dns"]
    again = plan_for(rules(WEB, DNS), machine(), installed(DNS), applied(DNS), surroundings=NODE_PORT)
    assert (again.changes, refusals(again)) == ((), [("notrack/web", "NATConflict")])


def test_force_installs_and_warns():
    """onConflict: Force makes the refusal a warning of the same reason and words."""
    refused = plan_for(rules(WEB), machine(), surroundings=NODE_PORT).refused[0]
    wanted = settings(notrack={"onConflict": "Force", "rules": [WEB.document()]})
    plan = plan_for(wanted, machine(), surroundings=NODE_PORT)
    assert changes(plan) == [("notrack/web", "absent", "TCP 80 Server")]
    assert plan.refused == ()
    (warning,) = plan.warnings
    assert (warning.setting, warning.reason) == ("notrack/web", "NATConflict")
    assert refused.message.partition("; onConflict")[0] == warning.message.removesuffix(
        " (installed by onConflict: Force)"
    )
    assert plan.document()["warnings"] == [warning.document()]


def test_timeouts_are_warned_of():
    """Only what the policy sets, and only what is odd."""
    plan = plan_for(settings(timeouts={"tcp": {"established": "10m", "timeWait": "30s"}}), machine())
    assert [(warning.setting, warning.reason) for warning in plan.warnings] == [(ESTABLISHED, "BelowKeepalive")]
    assert changes(plan) == [(ESTABLISHED, 432000, 600), (TIME_WAIT, 120, 30)]
    kept = settings(timeouts={"tcp": {"timeWait": "30s"}})
    assert plan_for(kept, machine(tcp_timeout_established=600)).warnings == ()
    short = Surroundings(keepalive_seconds=300)
    assert plan_for(settings(timeouts={"tcp": {"established": "10m"}}), machine(), surroundings=short).warnings == ()


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
@pytest.mark.parametrize("kube_proxy", [True, False])
def test_examples_bring_no_warnings(path, kube_proxy):
    """What we tell people to copy surprises nobody, and preflight refuses none of it on a plain node."""
    document = yaml.safe_load(path.read_text())
    for each in document["spec"].get("notrack", {}).get("rules", ()):
        if each.pop("pods", None):
            each["ports"] = [8080]  # as the controller resolves it
    policy = policy_from(document)
    around = Surroundings(
        kube_proxy=kube_proxy,
        local_addresses=("192.0.2.1",),
        # A node without tracking has no firewall that looks at states.
        firewall=Firewall() if policy.spec.tracking == "Disabled" else nftables(ACCEPTED_PORTS),
        tracking=TrackingState(families=frozenset()),
    )
    defaults = {entry.dotted: 3600 for entry in catalogue.BY_FIELD.values()}
    facts = machine()
    facts = facts.model_copy(update={"sysctls": defaults | facts.sysctls})
    plan = plan_for(policy.spec, facts, surroundings=around)
    needed = {("tracking", "TrackingNeeded")} if kube_proxy and policy.spec.tracking == "Disabled" else set()
    assert (plan.warnings, set(refusals(plan))) == ((), needed)


def written(name, value, *ours, keep=False):
    """Return a journal in which we wrote `ours` over `value`."""
    return Journal(boot_id="b", originals={name: Original(value=value, ours=list(ours), keep=keep)})


@pytest.mark.parametrize(
    ("journal", "facts", "expected", "released"),
    [
        (written(TIME_WAIT, 120, 30), machine(tcp_timeout_time_wait=30), [(TIME_WAIT, 30, 120)], (TIME_WAIT,)),
        (written(TIME_WAIT, 120, 20, 30), machine(tcp_timeout_time_wait=20), [(TIME_WAIT, 20, 120)], (TIME_WAIT,)),
        (written(TIME_WAIT, 120, 30), machine(tcp_timeout_time_wait=120), [], (TIME_WAIT,)),
        (written(TIME_WAIT, 120, 30), machine(tcp_timeout_time_wait=77), [], (TIME_WAIT,)),
        (written(TIME_WAIT, 120, 30, keep=True), machine(tcp_timeout_time_wait=30), [], ()),
        (written(MAX, 262144, 524288), machine(max=524288), [(MAX, 524288, 262144)], (MAX,)),
    ],
)
def test_put_back(journal, facts, expected, released):
    """What no policy sets any more gets its original back, unless somebody else wrote it meanwhile or it is kept."""
    plan = plan_for(settings(), facts, journal=journal)
    assert changes(plan) == expected
    assert plan.released == released
    assert plan.wanted == {}


def test_put_back_waits_for_room():
    """An original limit below the entries in use would drop connections at once; it waits, and says so."""
    plan = plan_for(settings(), machine(entries=300000, max=524288), journal=written(MAX, 262144, 524288))
    assert refusals(plan) == [(MAX, "BelowUse")]
    assert (plan.changes, plan.released) == ((), ())


def test_kept_rules_stay():
    """Rules of a deleted onDelete: Keep policy stay beside the new ones."""
    plan = plan_for(rules(DNS), machine(), installed(WEB), applied(WEB, keep=True))
    assert changes(plan) == [("notrack/dns", "absent", "UDP 53 Server")]
    assert {rule.name for rule in plan.rules} == {"web", "dns"}


def test_a_rule_its_policy_still_speaks_for_is_not_kept():
    """onDelete: Keep is about deleted policies: a rule whose pods have left the node goes while its policy is there."""
    fields = ["notrack.rules[web]"]
    use = PolicyUse.model_validate({"name": "p", "revision": "r", "fields": fields, "onDelete": "Keep"})
    plan = plan_for(settings(), machine(), installed(WEB), applied(WEB, keep=True), [use])
    assert changes(plan) == [("notrack/web", "TCP 80 Server", "absent")]
    assert plan.rules == ()


def test_document():
    """`plan -o json` is exactly this shape."""
    plan = plan_for(settings(table={"size": {"maxEntries": 1000}}, timeouts={"tcp": {"timeWait": "30s"}}), machine())
    document = plan.document()
    assert document["changes"] == [{"setting": TIME_WAIT, "from": 120, "to": 30, "reason": "timeouts.tcp.timeWait"}]
    assert set(document["refused"][0]) == {"setting", "reason", "message"}
    assert "warnings" not in document


def test_going_back_is_no_shrinking():
    """What somebody raised above the value we wrote is put back; what was ours and is asked to be less is shrinking."""
    raised, ours = machine(max=2_000_000), written(MAX, 262_144, 1_000_000)
    assert changes(plan_for(size(1_000_000), raised, journal=ours))[-1] == (MAX, 2_000_000, 1_000_000)
    before = written(MAX, 262_144, 1_000_000, 2_000_000)
    assert refusals(plan_for(size(1_000_000), raised, journal=before)) == [(MAX, "ShrinkNotAllowed")]
    full = machine(entries=900_000, max=2_000_000)
    assert refusals(plan_for(size(1_000_000), full, journal=ours)) == [(MAX, "BelowUse")]


def test_what_nft_cannot_touch_is_stuck():
    """Rules in force are neither withdrawn nor forgotten while nft cannot be used; each is refused by name."""
    plan = plan_for(Settings(), machine(), TableState(problem="nft is not installed"), applied(WEB))
    assert (plan.changes, plan.rules, plan.stuck) == ((), (), ("web",))
    assert [(refusal.setting, refusal.reason) for refusal in plan.refused] == [("notrack/web", "Unsupported")]


def test_a_firewall_that_cannot_be_read_keeps_out_and_takes_nothing_away():
    """The rule in force stays, with a warning; a new one waits."""
    blind = Surroundings(firewall=Firewall(problems=((UNREAD, "nft did not finish"),)))
    wanted = rules(WEB, DNS)
    journal = applied(WEB)
    plan = plan_for(wanted, machine(), TableState(), journal, surroundings=blind)
    assert [rule.name for rule in plan.rules] == ["web"]
    assert [(refusal.setting, refusal.reason) for refusal in plan.refused] == [("notrack/dns", UNREAD)]
    assert [(warning.setting, warning.reason) for warning in plan.warnings] == [("notrack/web", UNREAD)]
