"""A real agent on a policy file while its surroundings change: rules go when translation comes, and come back."""

import json
import signal
import time

from tests.lab.trials import ICMP, ended, our_table, policy, reachable, start, wait_until

QUICK = {"timeoutSeconds": 20, "soakSeconds": 0}
RULES = {"rules": [{"name": "web", "ports": [80]}, {"name": "shop", "ports": [8080]}]}
PUBLISHED = """
table ip docker {
  chain p { type nat hook prerouting priority dstnat; fib daddr type local tcp dport 8080 dnat to 172.17.0.2:80; }
}
"""
STATEFUL = """
*filter
:INPUT DROP [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT DROP [0:0]
-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A INPUT -p tcp -m multiport --dports 80,8080 -j ACCEPT
-A INPUT -i lo -j ACCEPT
-A OUTPUT -m conntrack --ctstate NEW,RELATED,ESTABLISHED -j ACCEPT
COMMIT
"""


def accepts(node):
    """Return the rules of our own chains in iptables."""
    listing = node.run("iptables-save", "-t", "filter").stdout
    return sorted(line for line in listing.splitlines() if "CONNTRACK-OP" in line)


def seconds_to_withdraw(node):
    """Publish the port; return how long its rule was there still."""
    node.nft(PUBLISHED)
    began = time.monotonic()
    wait_until(lambda: "8080" not in our_table(node), 60, "the rule is withdrawn")
    return time.monotonic() - began


def test_translation_comes_and_goes(netns, tmp_path):
    """As `docker run -p` does: within 15 s the rule of that port alone is withdrawn; then it is back, untried."""
    with reachable(netns) as (node, target):
        file, state = tmp_path / "policy.json", tmp_path / "state"
        policy(file, timeouts={"icmp": 10}, notrack=RULES, trial=QUICK)
        running = start(node, "agent", "--policy", file, "--state-dir", state, "--probe", target.address)
        wait_until((state / "confirmed.json").exists, 60, "the policy")
        assert "8080" in our_table(node)
        took = [seconds_to_withdraw(node)]
        assert "80" in our_table(node)
        # A war about something else does not hold the next withdrawal up, nor does the first count as one.
        node.run("nft", "delete", "table", "ip", "docker")
        wait_until(lambda: "8080" in our_table(node), 60, "the rule is back")
        for _ in range(3):
            node.run("nft", "delete", "table", "inet", "conntrack_operator")
            wait_until(lambda: our_table(node) != "", 60, "the table is put back")
        took.append(seconds_to_withdraw(node))
        assert min(took) < 15, took  # one may have met a pause of the machine
        in_force = lambda: list(json.loads((state / "journal.json").read_text())["appliedRules"])  # noqa: E731
        wait_until(lambda: in_force() == ["web"], 30, "the journal says so")
        running.send_signal(signal.SIGTERM)
        code, said = ended(running, 60)
        assert code == 0, said
        assert "NATConflict" in said
        assert "notrack/shop: withdrawn" in said


def test_accepts_come_back(netns, tmp_path):
    """Flushed by `iptables -F` and made anew by their owner, a firewall has our accepts again within seconds."""
    with reachable(netns) as (node, target):
        node.run("iptables-restore", text=STATEFUL)
        file, state = tmp_path / "policy.json", tmp_path / "state"
        policy(file, timeouts={"icmp": 10}, notrack=RULES, trial=QUICK)
        running = start(node, "agent", "--policy", file, "--state-dir", state, "--probe", target.address)
        wait_until((state / "confirmed.json").exists, 60, "the policy")
        before = accepts(node)
        assert before
        took = []
        while not took or (took[-1] >= 8 and len(took) < 3):  # again, should the machine have paused
            node.run("iptables", "-F")
            node.run("iptables-restore", text=STATEFUL)
            began = time.monotonic()
            wait_until(lambda: accepts(node) == before, 60, "the accepts are back")
            took.append(time.monotonic() - began)
        assert took[-1] < 8, took
        running.send_signal(signal.SIGTERM)
        code, said = ended(running, 60)
        assert code == 0, said
        assert node.sysctl(ICMP) == "10"


def test_told_to_end_again_and_again(netns, tmp_path):
    """Three SIGTERM in a trial, some of them while it is taken back: everything is as it was, and the exit is clean."""
    with reachable(netns) as (node, target):
        file, state = tmp_path / "policy.json", tmp_path / "state"
        policy(file, timeouts={"icmp": 10}, notrack=RULES, trial={"timeoutSeconds": 60, "soakSeconds": 40})
        running = start(node, "agent", "--policy", file, "--state-dir", state, "--probe", target.address)
        wait_until(lambda: node.sysctl(ICMP) == "10" and "trial" in our_table(node), 60, "the trial")
        for pause in (0.05, 0.1, 0.0):
            running.send_signal(signal.SIGTERM)
            time.sleep(pause)
        code, said = ended(running, 60)
        assert code == 0, said
        assert (node.sysctl(ICMP), our_table(node)) == ("30", "")
        assert "trial" not in json.loads((state / "journal.json").read_text())


def test_interrupted_by_an_impatient_person(netns, tmp_path):
    """Ctrl-C three times during `apply`: all is as before, and it says so."""
    with reachable(netns) as (node, target):
        file, state = tmp_path / "policy.json", tmp_path / "state"
        policy(file, timeouts={"icmp": 10}, notrack=RULES, trial={"timeoutSeconds": 60, "soakSeconds": 40})
        running = start(node, "apply", "-f", file, "--state-dir", state, "--probe", target.address)
        wait_until(lambda: node.sysctl(ICMP) == "10", 60, "the first write")
        for pause in (0.05, 0.1, 0.0):
            running.send_signal(signal.SIGINT)
            time.sleep(pause)
        code, said = ended(running, 60)
        # The last one may come when all is done, and end the program as it ends any.
        assert code in {1, 130, -signal.SIGINT}, said
        assert (node.sysctl(ICMP), our_table(node)) == ("30", "")
        assert "Traceback" not in said
        assert "trial" not in json.loads((state / "journal.json").read_text())
