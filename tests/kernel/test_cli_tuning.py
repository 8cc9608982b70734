"""plan, apply and restore as a person types them, in a namespace with a real kernel behind it."""

import json
import os
import signal
import time
from pathlib import Path

import pytest
from tests.lab.command import PROGRAM, assert_one_sentence, conntrack_operator
from tests.lab.namespaces import Lab, Namespace
from tests.lab.programs import wait_until

HEAD = "apiVersion: conntrack-operator.io/v1alpha1\nkind: ConntrackPolicy\n"
SPEC = "mode: Enforce, nodeSelector: {matchLabels: {role: web}}"
ICMP = "net.netfilter.nf_conntrack_icmp_timeout"
DNS = "notrack: {rules: [{name: dns, protocol: UDP, ports: [53]}]}"


def policy(rest: str, name: str = "web") -> str:
    """Return a policy as YAML."""
    return f"{HEAD}metadata: {{name: {name}}}\nspec: {{{SPEC}, {rest}}}\n"


@pytest.fixture
def node(netns: Lab) -> Namespace:
    """Give a namespace with a stateful firewall, as a node has."""
    made = netns.namespace()
    made.track()
    return made


def our_table(node: Namespace) -> str:
    """Return our nftables table as nft prints it, empty when there is none."""
    return node.run("nft", "list", "table", "inet", "conntrack_operator", check=False).stdout


def test_plan_apply_again_restore(node: Namespace, tmp_path: Path) -> None:
    """Planned, applied, right already, put back: each says so by its text and its exit code, and the kernel agrees."""
    file, state = tmp_path / "policy.yaml", ("--state-dir", tmp_path / "state")
    file.write_text(policy(f"timeouts: {{icmp: 10s}}, {DNS}"))
    before = node.sysctl(ICMP)

    done = conntrack_operator("plan", "-f", file, "-o", "json", *state, namespace=node)
    assert done.returncode == 2, done.stderr
    assert json.loads(done.stdout) == {
        "changes": [
            {"setting": ICMP, "from": int(before), "to": 10, "reason": "timeouts.icmp"},
            {"setting": "notrack/dns", "from": "absent", "to": "UDP 53 Server", "reason": "notrack.rules"},
        ],
        "refused": [],
    }
    assert (node.sysctl(ICMP), our_table(node)) == (before, "")
    assert not (tmp_path / "state").exists()

    done = conntrack_operator("apply", "-f", file, *state, namespace=node)
    assert (done.returncode, done.stderr) == (0, "")
    assert "2 changes." in done.stdout
    assert node.sysctl(ICMP) == "10"
    assert "udp/server" in our_table(node)

    assert conntrack_operator("plan", "-f", file, *state, namespace=node).returncode == 0
    done = conntrack_operator("apply", "-f", "-", *state, namespace=node, text=file.read_text())
    assert (done.returncode, done.stdout) == (0, "Nothing was changed.\n\n2 settings were right already.\n")

    done = conntrack_operator("restore", *state, namespace=node)
    assert (done.returncode, done.stderr) == (0, "")
    assert (node.sysctl(ICMP), our_table(node)) == (before, "")
    done = conntrack_operator("restore", *state, namespace=node)
    assert (done.returncode, done.stdout) == (0, "Nothing was changed.\n")


def test_restore_takes_back_what_keep_left_behind(node: Namespace, tmp_path: Path) -> None:
    """`onDelete: Keep` is for a policy that goes; a person who types restore wants the originals."""
    state = ("--state-dir", tmp_path / "state")
    before = node.sysctl(ICMP)
    text = policy("timeouts: {icmp: 10s}, onDelete: Keep")
    assert conntrack_operator("apply", "-f", "-", *state, namespace=node, text=text).returncode == 0
    assert conntrack_operator("restore", *state, namespace=node).returncode == 0
    assert node.sysctl(ICMP) == before


def test_a_refused_setting_does_not_stop_the_others(node: Namespace, tmp_path: Path) -> None:
    """Sizes can be written in the initial namespace only: refused with the reason, exit 1, and the rest is applied."""
    text = policy("table: {size: {maxEntries: 2000000}}, timeouts: {icmp: 10s}")
    done = conntrack_operator("apply", "-f", "-", "--state-dir", tmp_path / "state", namespace=node, text=text)
    assert done.returncode == 1
    assert "refused  net.netfilter.nf_conntrack_max  Unsupported" in done.stdout
    assert "initial network namespace only" in done.stdout
    assert node.sysctl(ICMP) == "10"


def test_several_policies_are_merged_and_the_loser_is_named(node: Namespace, tmp_path: Path) -> None:
    """The higher priority wins a field, as in a cluster."""
    file = tmp_path / "policies.yaml"
    high = policy("priority: 10, timeouts: {icmp: 11s}", "high")
    file.write_text(policy("timeouts: {icmp: 22s, generic: 33s}", "low") + "---\n" + high)
    done = conntrack_operator("apply", "-f", file, "--state-dir", tmp_path / "state", namespace=node)
    assert done.returncode == 0, done
    assert "policy low: timeouts.icmp: policy high comes first" in done.stdout
    assert (node.sysctl(ICMP), node.sysctl("net.netfilter.nf_conntrack_generic_timeout")) == ("11", "33")


def test_a_policy_that_observes_is_not_applied(node: Namespace, tmp_path: Path) -> None:
    """mode: Observe promises that nothing changes; apply says what to do instead."""
    before, text = node.sysctl(ICMP), policy("timeouts: {icmp: 10s}").replace("Enforce", "Observe")
    done = conntrack_operator("apply", "-f", "-", "--state-dir", tmp_path / "state", namespace=node, text=text)
    assert_one_sentence(done, "policy web only observes", "plan")
    assert node.sysctl(ICMP) == before
    done = conntrack_operator("plan", "-f", "-", "--state-dir", tmp_path / "state", namespace=node, text=text)
    assert done.returncode == 2


_REMOUNT = 'mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys && exec "$@"'
READ_ONLY = ("unshare", "--mount", "sh", "-c", _REMOUNT, "sh")
NO_ROOT = ("unshare", "--user")


@pytest.mark.parametrize(
    ("wrapper", "words"),
    [(READ_ONLY, [ICMP, "cannot be written"]), (NO_ROOT, ["apply needs root", "sudo"])],
    ids=["read-only /proc/sys", "no root"],
)
def test_without_the_right_to_write_nothing_is_written(
    node: Namespace, tmp_path: Path, wrapper: tuple[str, ...], words: list[str]
) -> None:
    """One sentence, exit 1; no sysctl, no rule, and no state directory either."""
    before = node.sysctl(ICMP)
    state = ("--state-dir", tmp_path / "state")
    text = policy(f"timeouts: {{icmp: 10s}}, {DNS}")
    done = conntrack_operator("apply", "-f", "-", *state, namespace=node, text=text, wrapper=wrapper)
    assert_one_sentence(done, *words)
    assert (node.sysctl(ICMP), our_table(node)) == (before, "")
    assert not (tmp_path / "state").exists()


def test_restore_without_the_right_to_write_keeps_the_journal(node: Namespace, tmp_path: Path) -> None:
    """What could not be put back now can be later."""
    state, before = ("--state-dir", tmp_path / "state"), node.sysctl(ICMP)
    done = conntrack_operator("apply", "-f", "-", *state, namespace=node, text=policy("timeouts: {icmp: 10s}"))
    assert done.returncode == 0
    assert_one_sentence(conntrack_operator("restore", *state, namespace=node, wrapper=READ_ONLY), ICMP, "written")
    assert_one_sentence(conntrack_operator("restore", *state, namespace=node, wrapper=NO_ROOT), "restore needs root")
    assert conntrack_operator("restore", *state, namespace=node).returncode == 0
    assert node.sysctl(ICMP) == before


@pytest.mark.parametrize("command", [("plan", "-f", "-"), ("apply", "-f", "-"), ("status",)])
def test_where_conntrack_is_not_loaded(node: Namespace, tmp_path: Path, command: tuple[str, ...]) -> None:
    """One sentence with the remedy."""
    state = () if command == ("status",) else ("--state-dir", tmp_path / "state")
    options = ("--proc-root", tmp_path, *state)
    done = conntrack_operator(*command, *options, namespace=node, text=policy("timeouts: {icmp: 10s}"))
    assert_one_sentence(done, "connection tracking is not loaded", "modprobe nf_conntrack")


def test_restore_where_conntrack_is_not_loaded(node: Namespace, tmp_path: Path) -> None:
    """There is nothing to put back, and that is no error; a --proc-root that is no /proc is one."""
    options = ("--proc-root", tmp_path, "--state-dir", tmp_path / "state")
    assert_one_sentence(conntrack_operator("restore", *options, namespace=node), "sys/net is not there", "--proc-root")
    (tmp_path / "sys/net/netfilter").mkdir(parents=True)
    done = conntrack_operator("restore", *options, namespace=node)
    assert (done.returncode, done.stdout, done.stderr) == (0, "Nothing was changed.\n", "")


def test_while_an_agent_works_here_apply_waits_for_nobody(node: Namespace, tmp_path: Path) -> None:
    """The agent on a file applies, is told of a change, and holds the lock: another apply is refused, not mixed in."""
    file, state = tmp_path / "policy.yaml", ("--state-dir", str(tmp_path / "state"))
    file.write_text(policy("timeouts: {icmp: 10s}"))
    agent = node.start(*PROGRAM, "agent", "--policy", str(file), *state)
    _wait_for(node, "10")
    done = conntrack_operator("apply", "-f", file, *state, namespace=node)
    assert_one_sentence(done, "another conntrack-operator is at work")
    new = tmp_path / "new"
    new.write_text(policy("timeouts: {icmp: 12s}"))
    os.replace(new, file)  # noqa: PTH105 - as editors do
    _wait_for(node, "12")
    # Until then it is on trial, which an agent that ends takes back.
    confirmed = tmp_path / "state/confirmed.json"
    wait_until(lambda: json.loads(confirmed.read_text())["sysctls"].get(ICMP) == 12, 60, "12 is confirmed")
    file.write_text("spec: [broken")
    time.sleep(1.5)
    assert node.sysctl(ICMP) == "12"
    agent.send_signal(signal.SIGTERM)
    assert agent.wait(60) == 0
    assert node.sysctl(ICMP) == "12", "an agent that ends keeps what it has"
    assert conntrack_operator("restore", *state, namespace=node).returncode == 0
    assert node.sysctl(ICMP) == "30"


def _wait_for(node: Namespace, value: str) -> None:
    wait_until(lambda: node.sysctl(ICMP) == value, 60, f"{ICMP} is {value}")
