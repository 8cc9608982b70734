"""Tables of iptables-legacy on a real kernel: their shapes, and what an agent says that lacks what they need of it."""

import json
from pathlib import Path

import pytest
from tests.lab.command import conntrack_operator
from tests.lab.namespaces import Lab, Namespace

from conntrack_operator.kernel.legacy_tables import read_shapes

STATEFUL = ("-A INPUT -p tcp --dport 80 -m conntrack --ctstate NEW,ESTABLISHED -j ACCEPT", "-P INPUT DROP")
"""A firewall that drops what is not tracked."""
POLICY = {
    "apiVersion": "conntrack-operator.io/v1alpha1", "kind": "ConntrackPolicy", "metadata": {"name": "web"},
    "spec": {
        "mode": "Enforce", "nodeSelector": {"matchLabels": {"role": "web"}}, "timeouts": {"icmp": "10s"},
        "notrack": {"onConflict": "Force", "acceptUntracked": "Both", "rules": [{"name": "web", "ports": [80]}]},
        "trial": {"timeoutSeconds": 20, "soakSeconds": 0},
    },
}  # fmt: skip
ICMP = "net.netfilter.nf_conntrack_icmp_timeout"


def as_pod(*capabilities: str, lock: bool) -> tuple[str, ...]:
    """Return what makes a program one of a pod's: these of root's capabilities, and the node's lock or no way to it."""
    run = "mount -t tmpfs none /run && touch /run/xtables.lock" if lock else "mount -t tmpfs -o ro none /run"
    kept = ",".join(f"+{each}" for each in capabilities)
    rights = ("setpriv", f"--bounding-set=-all,{kept}", f"--inh-caps=-all,{kept}")
    return ("unshare", "--mount", "sh", "-c", f'{run} && exec "$@"', "sh", *rights)


def test_shapes_move_with_rules(netns: Lab) -> None:
    """None where it was never used; another one for each rule more or less, the old one when the rules are back."""
    node = netns.namespace()

    def shapes() -> tuple[bytes, ...]:
        with node.inside():
            return read_shapes()

    assert shapes() == shapes() == ()
    assert node.run("cat", "/proc/net/ip_tables_names").stdout == ""
    seen = []
    for command in ("-A INPUT -j ACCEPT", "-A INPUT -p tcp -j ACCEPT", "-D INPUT 2", "-F"):
        node.run("iptables-legacy", *command.split())
        seen.append(shapes())
    assert len(set(seen)) == 3
    assert seen[0] == seen[2]
    assert all(len(each) == 1 for each in seen)
    node.run("ip6tables-legacy", "-A", "INPUT", "-j", "ACCEPT")
    assert len(shapes()) == 2


def apply(node: Namespace, folder: Path, wrapper: tuple[str, ...]) -> str:
    """Apply the policy on a node with that firewall; return what it prints, on one line."""
    for command in STATEFUL:
        node.run("iptables-legacy", *command.split())
    done = conntrack_operator(
        "apply", "-f", "-", "--state-dir", folder / "state", namespace=node, wrapper=wrapper, text=json.dumps(POLICY)
    )
    assert "Traceback" not in done.stderr
    return " ".join(done.stdout.split())


def accepted(node: Namespace) -> str:
    """Return the rules of iptables-legacy that are about untracked packets."""
    lines = node.run("iptables-legacy-save").stdout.splitlines()
    return "\n".join(line for line in lines if "UNTRACKED" in line)


@pytest.mark.parametrize(
    ("capabilities", "reason", "sentence"),
    [
        # As by default.
        (("net_admin",), "LegacyIptablesNeedsNetRaw", "only NET_RAW may read it; set agent.iptablesLegacy"),
        # As with agent.privileged alone, which may read it, and has no way to the lock that others of the node take.
        (("net_admin", "net_raw"), "WriteFailed", "without the node's xtables lock"),
    ],
    ids=["no NET_RAW", "no lock"],
)
def test_what_is_missing_is_said(
    netns: Lab, tmp_path: Path, capabilities: tuple[str, ...], reason: str, sentence: str
) -> None:
    """A rule whose harm nobody can tell, or end, is not installed, not even by Force: why, and which switch helps."""
    node = netns.namespace()
    said = apply(node, tmp_path, as_pod(*capabilities, lock=False))
    assert f"refused notrack/web {reason}" in said
    assert sentence in said
    assert "set agent.iptablesLegacy" in said
    assert (node.sysctl(ICMP), accepted(node)) == ("10", "")
    assert "80" not in node.run("nft", "list", "ruleset").stdout


def test_with_the_switch_it_is_done(netns: Lab, tmp_path: Path) -> None:
    """NET_RAW and the node's lock are what agent.iptablesLegacy gives, and they are enough."""
    node = netns.namespace()
    said = apply(node, tmp_path, as_pod("net_admin", "net_raw", lock=True))
    assert "web absent TCP 80 Server done" in said
    assert "refused" not in said
    assert "-j CONNTRACK-OP-IN-REQUESTS" in accepted(node)
