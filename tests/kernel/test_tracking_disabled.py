"""`tracking: Disabled` on a real kernel: refused while something needs tracking, shown where nothing does, watched."""

import shutil
import signal
import sys
import time

import pytest

from conntrack_operator.agent import way_back
from conntrack_operator.agent.machine import Machine
from conntrack_operator.agent.trial import begin, finished
from conntrack_operator.errors import Unsupported
from conntrack_operator.kernel.journal import StateDirectory
from conntrack_operator.kernel.modules import presence_of_conntrack
from conntrack_operator.kernel.roots import Roots
from conntrack_operator.kernel.tracking import read_tracking, tracked_families
from conntrack_operator.model.node import NodeSpec
from conntrack_operator.model.policy import Settings

DISABLED = {"tracking": "Disabled"}
TABLE = "table {family} t {{\n chain c {{ {rule}\n }}\n}}\n"
INPUT = "type filter hook input priority filter;"

NFT_TRACKS = {
    "state": ("inet", f"{INPUT} ct state new counter;", {4, 6}),
    "one family": ("ip", f"{INPUT} ct state new counter;", {4}),
    "the other": ("ip6", f"{INPUT} ct state new counter;", {6}),
    "no packet gets there": ("inet", "ct state new counter;", {4, 6}),
    "mark": ("inet", f"{INPUT} ct mark 1 counter;", {4, 6}),
    "nat": ("inet", 'type nat hook postrouting priority srcnat; oifname "none" masquerade;', {4, 6}),
    "nat without a rule": ("inet", "type nat hook postrouting priority srcnat;", set()),
    "notrack": ("inet", "type filter hook prerouting priority raw; notrack;", set()),
    "no state": ("inet", f"{INPUT} tcp dport 1 drop;", set()),
}
IPTABLES_TRACKS = {
    "state": ("-A INPUT -m state --state NEW", {4}),
    "untracked alone": ("-A INPUT -p udp -m conntrack --ctstate UNTRACKED", {4}),
    "nat": ("-t nat -A POSTROUTING -o none -j MASQUERADE", {4}),
    "connmark": ("-t mangle -A INPUT -m connmark --mark 1", {4}),
    "notrack": ("-t raw -A PREROUTING -p udp -j CT --notrack", set()),
}


@pytest.fixture
def node(netns):
    """Return a fresh namespace: nothing in it tracks."""
    return netns.namespace()


@pytest.fixture
def roots(tmp_path):
    """Return the real /proc and a state directory of our own."""
    return Roots(state=tmp_path)


def families(node):
    """Return the IP versions that are tracked in the namespace."""
    with node.inside():
        return tracked_families()


def apply(node, roots, document):
    """Apply settings in the namespace."""
    with node.inside(), StateDirectory(roots) as state:
        spec = NodeSpec(revision="r", mode="Apply", node_uid="", settings=Settings.model_validate(document))
        return finished(begin(Machine(roots), state, spec, list))


@pytest.mark.parametrize(("family", "rule", "tracked"), NFT_TRACKS.values(), ids=NFT_TRACKS)
def test_what_switches_tracking_on(node, family, rule, tracked):
    """One connection over loopback tells which IP versions are tracked, and that it is over when the rule goes."""
    assert families(node) == set()
    node.nft(TABLE.format(family=family, rule=rule))
    assert families(node) == tracked
    node.nft(f"delete table {family} t\n")
    assert families(node) == set()


@pytest.mark.parametrize("program", ["iptables-nft", "iptables-legacy"])
@pytest.mark.parametrize(("rule", "tracked"), IPTABLES_TRACKS.values(), ids=IPTABLES_TRACKS)
def test_what_iptables_switches_on(node, program, rule, tracked):
    """Both iptables do as nftables does."""
    if shutil.which(program) is None:
        pytest.skip(f"not installed: {program}")
    node.run(program, *rule.split())
    assert families(node) == tracked
    node.run(program, *rule.replace("-A ", "-D ").split())
    assert families(node) == set()


def test_a_firewall_on_loopback_is_no_proof(node):
    """Where the connection cannot be made, the answer is that it is not known."""
    node.nft(TABLE.format(family="inet", rule=f"{INPUT} tcp flags syn drop;"))
    assert families(node) is None


def test_nothing_is_tracked_under_traffic(netns, roots):
    """Applied where nothing needs tracking, and real connections between two nodes leave not one entry."""
    node, peer = netns.namespace(), netns.namespace()
    end, _ = netns.link(node, peer)
    outcome = apply(node, roots, DISABLED)
    assert outcome.phase == "Current"
    (result,) = outcome.results
    assert (result.setting, result.wanted, result.reason) == ("tracking", "Disabled", "Applied")
    assert result.observed.startswith("nothing is tracked; nf_conntrack ")
    assert outcome.changes == () or outcome.changes[-1].setting == "tracking"
    listener = node.listen(end.ipv4)
    for _ in range(20):
        peer.connect(end.ipv4, listener.getsockname()[1]).close()
    listener.close()
    assert node.sysctl("net.netfilter.nf_conntrack_count") == "0"


def refusals(outcome):
    """Return the messages of TrackingNeeded."""
    assert {(result.setting, result.reason) for result in outcome.results} == {("tracking", "TrackingNeeded")}
    return [result.message for result in outcome.results]


NAMED = {
    "state": (
        f"table inet t {{\n chain c {{ {INPUT} ct state new counter;\n }}\n}}\n",
        "nftables inet t c",
        "ct state new",
    ),
    "nat": (
        'table ip t {\n chain c { type nat hook postrouting priority srcnat; oifname "none" masquerade;\n }\n}\n',
        "nftables ip t c",
        "masquerade",
    ),
    "no packet gets there": ("table ip6 t {\n chain c { ct mark 1 counter;\n }\n}\n", "nftables ip6 t c", "ct mark"),
}


@pytest.mark.parametrize(("script", "place", "text"), NAMED.values(), ids=NAMED)
def test_refused_with_place_and_text(node, roots, script, place, text):
    """A rule that needs tracking is named with its table, chain and text, and when it is gone tracking is off."""
    node.nft(script)
    outcome = apply(node, roots, DISABLED)
    assert outcome.phase == "Refused"
    (message,) = refusals(outcome)
    assert message.startswith(f"{place}: ")
    assert text in message
    assert message.endswith("needs connection tracking; remove it")
    node.nft("flush ruleset\n")
    assert apply(node, roots, DISABLED).phase == "Current"


@pytest.mark.parametrize("program", ["iptables-nft", "iptables-legacy"])
def test_refused_for_iptables(node, roots, program):
    """Rules of either iptables refuse it; legacy ones are named too, or at least told by their effect."""
    if shutil.which(program) is None:
        pytest.skip(f"not installed: {program}")
    rule = ("INPUT", "-m", "conntrack", "--ctstate", "ESTABLISHED", "-j", "ACCEPT")
    node.run(program, "-A", *rule)
    outcome = apply(node, roots, DISABLED)
    assert outcome.phase == "Refused"
    (message,) = refusals(outcome)
    assert ("filter INPUT" in message and "established" in message.lower()) or message.startswith("IPv4: ")
    node.run(program, "-D", *rule)
    assert apply(node, roots, DISABLED).phase == "Current"


def test_switched_on_again(node, roots):
    """Whoever switches tracking on later is named by the same audit; the node says Refused until it is gone."""
    assert apply(node, roots, DISABLED).phase == "Current"
    node.track()
    outcome = apply(node, roots, DISABLED)
    assert outcome.phase == "Refused"
    assert sorted(message.split(":")[0] for message in refusals(outcome)) == [
        f"nftables inet lab_tracking {chain}" for chain in ("forward", "input", "output")
    ]
    node.nft("delete table inet lab_tracking\n")
    assert apply(node, roots, DISABLED).phase == "Current"


def test_notrack_rules_wait(node, roots):
    """NOTRACK rules have nothing to do while nothing is tracked, go in when something tracks, and go when it ends."""
    wish = {**DISABLED, "notrack": {"rules": [{"name": "web", "ports": [80]}]}}
    tables = ("nft", "list", "tables")
    apply(node, roots, wish)
    assert node.run(*tables).stdout == ""
    node.track()
    assert {(result.setting, result.reason) for result in apply(node, roots, wish).results} == {
        ("tracking", "TrackingNeeded"),
        ("notrack/web", "Applied"),
    }
    assert "conntrack_operator" in node.run(*tables).stdout
    node.nft("delete table inet lab_tracking\n")
    assert apply(node, roots, wish).phase == "Current"
    assert node.run(*tables).stdout == ""


def test_timeouts_stay_ready(node, roots):
    """Timeouts are in the kernel all the same: they count the moment somebody switches tracking on."""
    outcome = apply(node, roots, {**DISABLED, "timeouts": {"udp": {"stream": 60}}})
    assert outcome.phase == "Current"
    assert node.sysctl("net.netfilter.nf_conntrack_udp_timeout_stream") == "60"


def test_where_the_module_is(node):
    """The kernel's nf_conntrack is found, built in or as a module, and a module is never without its line."""
    with node.inside():
        presence = presence_of_conntrack(Roots())
        tracking = read_tracking(Roots())
    assert presence in ("built in", "loaded")
    assert ("nf_conntrack" in {module.name for module in tracking.modules}) == (presence == "loaded")


def test_without_the_module(node, tmp_path):
    """Fault 11: no nf_conntrack is success for `tracking: Disabled`, and a restore has nothing to do."""
    roots = Roots(proc=tmp_path / "proc", state=tmp_path / "state")
    (roots.proc / "sys/net").mkdir(parents=True)
    outcome = apply(node, roots, {**DISABLED, "timeouts": {"udp": {"stream": 60}}})
    assert outcome.phase == "Current"
    assert [result.observed for result in outcome.results] == ["nothing is tracked; nf_conntrack is not loaded"]
    with node.inside(), StateDirectory(roots) as state:
        assert way_back.restore(Machine(roots), state).phase == "Restored"


def test_a_wrong_path_is_no_absence(node, tmp_path):
    """A --proc-root that is no /proc is refused: it must not pass for a machine without tracking."""
    roots = Roots(proc=tmp_path / "proc", state=tmp_path / "state")
    with pytest.raises(Unsupported, match="--proc-root"):
        apply(node, roots, DISABLED)


POLICY = """\
apiVersion: conntrack-operator.io/v1alpha1
kind: ConntrackPolicy
metadata: {{name: a}}
spec: {{mode: Enforce, nodeSelector: {{matchLabels: {{a: b}}}}, {wish}}}
"""


@pytest.mark.parametrize(
    ("wish", "phase", "words"),
    [("timeouts: {udp: {stream: 60s}}", "Refused", "modprobe nf_conntrack"), ("tracking: Disabled", "Current", "")],
)
def test_agent_without_the_module(node, tmp_path, wish, phase, words):
    """Fault 11: the agent says once what is missing and how to get it, and stays; it ends well when asked to."""
    (tmp_path / "proc/sys/net").mkdir(parents=True)
    policy = tmp_path / "policy.yaml"
    policy.write_text(POLICY.format(wish=wish))
    places = ("--proc-root", str(tmp_path / "proc"), "--state-dir", str(tmp_path / "state"))
    agent = node.start(sys.executable, "-m", "conntrack_operator", "agent", "--policy", str(policy), *places)
    assert agent.stderr is not None
    lines = []
    deadline = time.monotonic() + 30
    while not any(f" INFO {phase}" in line for line in lines) and time.monotonic() < deadline:
        lines.append(agent.stderr.readline())
    time.sleep(1)
    assert agent.poll() is None
    agent.send_signal(signal.SIGTERM)
    assert agent.wait(timeout=30) == 0
    said = "".join(lines) + agent.stderr.read()
    assert f" INFO {phase}" in said
    assert words in said
    assert "Traceback" not in said


def test_translations_are_named_by_what_an_agent_reads(netns, tmp_path):
    """What a plan reads of the firewall for `tracking: Disabled` has translations to any port in it, by name."""
    node = netns.namespace()
    dnat = ("--dport", "8080", "-j", "DNAT", "--to-destination", "192.0.2.1:80")
    node.run("iptables", "-t", "nat", "-A", "PREROUTING", "-p", "tcp", *dnat)
    node.nft("table ip n { chain p { type nat hook prerouting priority -100; tcp dport 81 dnat to 192.0.2.1:82; }; }")
    with node.inside():
        refused = Machine(Roots(state=tmp_path)).plan(Settings.model_validate({"tracking": "Disabled"})).refused
    messages = " ".join(refusal.message for refusal in refused)
    assert "--dport 8080" in messages
    assert "tcp dport 81" in messages
